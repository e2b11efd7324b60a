//! What a machine's rules do to real connections: who is captured, and above all who is not.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use carrick_capture::host::{self, HostCapture, Owners};
use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::sidecar::InboundPorts;

use crate::topology::{Topology, ask, line, pod_ip, serve};

const TABLE: Table<'static> = Table { family: "inet", name: host::TABLE };
/// The user whose connections are captured.
const APP: u32 = 1500;
const PROXY: u32 = 1337;

/// What a server says to a connection of a user. The file system ids of one thread are enough: a socket's owner is taken from them.
fn ask_as(namespace: &NetNs, user: u32, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let stream = namespace
        .run(move || {
            nix::unistd::setfsgid(user.into());
            nix::unistd::setfsuid(user.into());
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
        })
        .unwrap()
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    line(stream)
}

/// Where a datagram of a user to a name server arrives: the one of two sockets that hears it.
fn question_reaches(
    namespace: &NetNs,
    user: u32,
    server: &'static str,
    agent: &UdpSocket,
    real: &UdpSocket,
) -> &'static str {
    namespace
        .run(move || {
            nix::unistd::setfsgid(user.into());
            nix::unistd::setfsuid(user.into());
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", server).unwrap()
        })
        .unwrap();
    let start = std::time::Instant::now();
    let mut buffer = [0; 8];
    while start.elapsed() < Duration::from_secs(5) {
        for (socket, name) in [(agent, "agent"), (real, "server")] {
            if socket.recv_from(&mut buffer).is_ok() {
                return name;
            }
        }
    }
    panic!("the question of user {user} is lost");
}

#[test]
fn only_who_is_named_is_captured() {
    let topology = Topology::new("host", 2);
    let (outside, machine) = (&topology.pods[0], &topology.pods[1]);
    let (from, to) = (pod_ip(0), pod_ip(1));
    for (port, word) in [(15006, "in"), (15001, "out"), (8080, "app"), (22, "ssh")] {
        serve(machine, SocketAddr::from(([0, 0, 0, 0], port)), word);
    }
    serve(outside, "0.0.0.0:80".parse().unwrap(), "outside");
    serve(outside, "0.0.0.0:25".parse().unwrap(), "mail");
    let capture = HostCapture {
        owners: Owners::Only { users: [APP].into(), groups: [].into() },
        inbound: InboundPorts::Only([8080].into()),
        exclude_outbound_ports: [25].into(),
        name_servers: ["127.0.0.53".parse().unwrap()].into(),
        ..HostCapture::default()
    };
    machine.run(|| nft::apply(TABLE, &host::ruleset(&capture))).unwrap().unwrap();

    // Incoming: the declared port alone.
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("in {to}:8080 {from}"));
    assert_eq!(ask(outside, &format!("{to}:22")), format!("ssh {to}:22 {from}"), "ssh stays as it is");
    // Outgoing: the named user alone.
    assert_eq!(ask_as(machine, APP, &format!("{from}:80")), format!("out {from}:80 {to}"));
    assert_eq!(ask_as(machine, APP, &format!("{from}:25")), format!("mail {from}:25 {to}"), "an excluded port");
    for other in [0, PROXY, 1501] {
        assert_eq!(ask_as(machine, other, &format!("{from}:80")), format!("outside {from}:80 {to}"), "user {other}");
    }
    // On the machine itself nothing is taken, but for what the proxy sends to a declared port.
    assert!(ask_as(machine, APP, "127.0.0.1:8080").starts_with("app "), "loopback");
    assert!(ask_as(machine, APP, &format!("{to}:8080")).starts_with("app "), "its own address");
    assert!(
        ask_as(machine, PROXY, &format!("{to}:8080")).starts_with("in "),
        "a service whose endpoint is this machine"
    );
    assert!(ask_as(machine, PROXY, &format!("{to}:22")).starts_with("ssh "));

    // Names.
    let bind = |address: &'static str| {
        let socket = machine.run(move || UdpSocket::bind(address).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    };
    let (agent, real) = (bind("127.0.0.1:15053"), bind("127.0.0.53:53"));
    for (user, expected) in [(APP, "agent"), (PROXY, "server"), (0, "server")] {
        assert_eq!(question_reaches(machine, user, "127.0.0.53:53", &agent, &real), expected, "user {user}");
    }

    // By default root is left alone; and nothing remains when the table is gone.
    let capture = HostCapture::default();
    machine.run(|| nft::apply(TABLE, &host::ruleset(&capture))).unwrap().unwrap();
    assert_eq!(ask_as(machine, 0, &format!("{from}:80")), format!("outside {from}:80 {to}"));
    assert_eq!(ask_as(machine, 1501, &format!("{from}:80")), format!("out {from}:80 {to}"));
    machine.run(|| nft::remove(TABLE)).unwrap().unwrap();
    assert_eq!(ask_as(machine, 1501, &format!("{from}:80")), format!("outside {from}:80 {to}"));
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"));
}
