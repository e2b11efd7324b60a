//! A machine in miniature: a namespace that plays the host with a bridge, and namespaces that play pods, laid out as the real pod network is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use carrick_capture::netns::NetNs;
use carrick_capture::original_dst;

pub struct Topology {
    pub host: NetNs,
    pub pods: Vec<NetNs>,
}

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 1);
pub const BRIDGE: &str = "cktbr";

pub fn pod_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 199, 0, u8::try_from(index).unwrap() + 2)
}

impl Topology {
    /// `label` keeps tests of one process apart.
    pub fn new(label: &str, pods: usize) -> Topology {
        let base = format!("ckt{}-{label}", std::process::id());
        let host = NetNs::create(&format!("{base}-host")).expect("these tests need root");
        ip(
            &host,
            &format!(
                "link set lo up\nlink add {BRIDGE} type bridge\naddr add {GATEWAY}/16 dev {BRIDGE}\nlink set {BRIDGE} up\nroute add 10.198.0.0/16 dev {BRIDGE} src {GATEWAY}\n"
            ),
        );
        host.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet"), "1").unwrap();
        })
        .unwrap();
        let mut topology = Topology { host, pods: Vec::new() };
        for index in 0..pods {
            let pod = NetNs::create(&format!("{base}-p{index}")).unwrap();
            ip(
                &topology.host,
                &format!(
                    "link add v{index} type veth peer name eth0 netns {}\nlink set v{index} master {BRIDGE} up\nlink set v{index} type bridge_slave hairpin on\n",
                    pod.name()
                ),
            );
            ip(
                &pod,
                &format!(
                    "link set lo up\naddr add {}/32 dev eth0\nlink set eth0 up\nroute add {GATEWAY} dev eth0 scope link\nroute add default via {GATEWAY}\n",
                    pod_ip(index)
                ),
            );
            pod.run(|| {
                std::fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "0").unwrap();
                std::fs::write("/proc/sys/net/ipv4/conf/eth0/accept_redirects", "0").unwrap();
            })
            .unwrap();
            topology.pods.push(pod);
        }
        topology
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for namespace in self.pods.iter().chain([&self.host]) {
            namespace.delete().unwrap();
        }
    }
}

fn ip(namespace: &NetNs, batch: &str) {
    let mut child = namespace
        .spawn(Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()))
        .expect("these tests need iproute2");
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch:\n{batch}");
}

/// Serves for as long as the test process lives: answers each connection with one line, `<word> <original destination> <peer address>`,
/// then with whatever it is sent.
pub fn serve(namespace: &NetNs, address: SocketAddr, word: &'static str) {
    let listener = namespace.run(move || TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let original = original_dst(&stream).unwrap_or_else(|_| stream.local_addr().unwrap());
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{word} {original} {peer}\n").as_bytes());
                let mut buffer = [0; 256];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..read]);
                }
            });
        }
    });
}

pub fn connect(namespace: &NetNs, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    let stream = namespace.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// The line that the server answers with.
pub fn ask(namespace: &NetNs, address: &str) -> String {
    let stream = connect(namespace, address).unwrap_or_else(|error| panic!("{address}: {error}"));
    line(stream)
}

pub fn line(mut stream: TcpStream) -> String {
    let mut out = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != [b'\n'] {
        out.push(byte[0]);
    }
    String::from_utf8(out).unwrap()
}
