//! Pods without an API: everything of this crate that only a kernel can judge. Needs root; runs beside a live mesh, on hosts of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::sidecar::{SidecarCapture, ruleset};
use carrick_dns::{Sockets, Upstream, read_framed, serve, write_framed};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;

use crate::dns::server::Responder;
use crate::dns::table::TableFile;
use crate::network::Netlink;
use crate::options::DNS_ADDRESS;
use crate::sandbox::{Sandbox, View};
use crate::state::{self, PodFolder};
use crate::sweep::dismantle;
use crate::{ExecOptions, Network, child, exec, http_get_in_pod, sweep};

/// Runs a test on a host of its own: a network namespace that only the threads and children of this test are in. So neither tests nor a live
/// mesh on this machine meet each other's links, rules and cluster IPs.
fn on_a_host(test: impl Future<Output = ()>) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

/// The pod network of one test.
struct Machine {
    data: PathBuf,
    network: Network,
}

impl Machine {
    async fn new(number: u8) -> Machine {
        let process = std::process::id() % 100_000;
        let data = std::env::temp_dir().join(format!("carrick-ns-{process}-{number}"));
        std::fs::create_dir_all(&data).unwrap();
        let network = Network { netns_prefix: format!("ckt{process}n{number}"), ..Network::default() };
        Netlink::open().unwrap().ensure_bridge(&network).await.unwrap();
        Netlink::open().unwrap().ensure_bridge(&network).await.unwrap();
        Machine { data, network }
    }

    /// The bridge's hardware address, as `ip` shows it.
    fn hardware_address(&self) -> String {
        let output =
            std::process::Command::new("ip").args(["-o", "link", "show", &self.network.bridge]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned()
    }

    async fn pod(&self, name: &str) -> Pod {
        let mut folder = state::allocate(&self.data, &self.network).unwrap();
        let namespace = NetNs::create(&folder.state.netns).unwrap();
        Netlink::open().unwrap().attach(&self.network, &folder.state.link, &namespace).await.unwrap();
        let etc = folder.path().join("resolv.conf");
        std::fs::write(&etc, format!("nameserver {DNS_ADDRESS}\n")).unwrap();
        let secrets = folder.path().join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        std::fs::write(secrets.join("token"), format!("token of {name}")).unwrap();
        let real = std::fs::canonicalize("/etc/resolv.conf").unwrap();
        let view = View { host_name: name.into(), binds: vec![(etc, real), (secrets, "/run/secrets".into())] };
        let sandbox = Sandbox::start(namespace.clone(), view).await.unwrap();
        let (ip, gateway) = (folder.state.ip.unwrap(), self.network.gateway);
        let inside = async move { Netlink::open()?.configure_inside(ip, gateway, DNS_ADDRESS).await };
        sandbox.run(inside).await.unwrap().unwrap();
        folder.state.namespace = "ns".into();
        folder.state.name = name.into();
        folder.state.thread = sandbox.thread();
        folder.state.cwd = "/".into();
        folder.state.env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("POD".into(), name.into())];
        folder.save().unwrap();
        Pod { folder, namespace, sandbox, ip }
    }

    async fn end(self) {
        Netlink::open().unwrap().remove(&self.network.bridge).await.unwrap();
        assert!(!NetNs::names().unwrap().iter().any(|name| name.starts_with(&self.network.netns_prefix)));
        let links = Netlink::open().unwrap().links().await.unwrap();
        assert!(!links.iter().any(|name| name.starts_with(&self.network.link_prefix)), "{links:?}");
        std::fs::remove_dir_all(&self.data).unwrap();
    }
}

struct Pod {
    folder: PodFolder,
    namespace: NetNs,
    sandbox: Sandbox,
    ip: Ipv4Addr,
}

impl Pod {
    async fn output(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        child::as_app(&mut command, false);
        let output = self.sandbox.run(async move { command.output().await }).await.unwrap().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Echoes one line per connection, inside.
    async fn listen(&self, port: u16) {
        let listener = self.sandbox.run(TcpListener::bind(("0.0.0.0", port))).await.unwrap().unwrap();
        self.sandbox.handle().spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                let body = format!("{}", peer.ip());
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }

    async fn end(self) {
        drop(self.sandbox);
        dismantle(&self.folder.state).await.unwrap();
        self.folder.remove().unwrap();
    }
}

async fn body(mut stream: TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).rsplit("\r\n").next().unwrap().to_owned()
}

#[test]
fn a_pod_has_its_own_network_names_and_files() {
    on_a_host(async {
        let machine = Machine::new(1).await;
        let gateway = machine.hardware_address();
        let (a, b) = (machine.pod("pod-a").await, machine.pod("pod-b").await);
        let host_name = crate::options::host_name();
        assert_eq!(a.output("hostname").await, "pod-a");
        assert_eq!(b.output("cat /etc/resolv.conf").await, format!("nameserver {DNS_ADDRESS}"));
        assert_eq!(a.output("cat /var/run/secrets/token").await, "token of pod-a");
        assert_eq!(b.output("cat /var/run/secrets/token").await, "token of pod-b");
        assert!(!Path::new("/run/secrets/token").exists(), "the host does not see a pod's files");
        assert_eq!(crate::options::host_name(), host_name, "the host keeps its name");

        // Host to pod, and into a pod's loopback.
        b.listen(8080).await;
        let stream = TcpStream::connect((b.ip, 8080)).await.unwrap();
        assert_eq!(body(stream).await, machine.network.gateway.to_string());
        let answer = http_get_in_pod(&machine.data, "ns", "pod-b", 8080, "/").await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"127.0.0.1".as_slice()));
        let error = http_get_in_pod(&machine.data, "ns", "pod-c", 8080, "/").await.unwrap_err();
        assert!(error.to_string().contains("no pod \"pod-c\""), "{error}");

        // A second process inside sees what the first sees.
        let script = format!(
            "test $(hostname) = pod-b && test $POD = pod-b && test \"$MORE\" = more && test -e /run/secrets/token && grep -q {DNS_ADDRESS} /etc/resolv.conf && exit 7"
        );
        let options = ExecOptions {
            pod: "pod-b".into(),
            namespace: "ns".into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: vec![("MORE".into(), "more".into())],
            data_dir: machine.data.clone(),
        };
        assert_eq!(exec(options.clone()).await.unwrap(), 7);
        let killed = ExecOptions { command: vec!["sh".into(), "-c".into(), "kill -TERM $$".into()], ..options.clone() };
        assert_eq!(exec(killed).await.unwrap(), 143);
        let missing = ExecOptions { command: vec!["no-such-program".into()], ..options };
        assert_eq!(exec(missing).await.unwrap_err().exit_code(), 127);

        // Pods remember it: it must not follow the links that come and go.
        assert_eq!(gateway, "02:43:0a:f4:00:01");
        assert_eq!(machine.hardware_address(), gateway);
        a.end().await;
        assert_eq!(machine.hardware_address(), gateway);
        b.end().await;
        machine.end().await;
    });
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query.to_vec().unwrap()
}

/// The answer's code and records.
fn read(raw: &[u8]) -> (ResponseCode, Vec<String>) {
    let answer = Message::from_vec(raw).unwrap();
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

async fn over_udp(question: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect((DNS_ADDRESS, 53)).await?;
    socket.send(&question).await?;
    let mut buffer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await??;
    buffer.truncate(read);
    Ok(buffer)
}

async fn over_tcp(question: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((DNS_ADDRESS, 53)).await?;
    write_framed(&mut stream, &question).await?;
    read_framed(&mut stream).await
}

#[test]
fn a_pod_resolves_the_cluster_and_the_world() {
    on_a_host(async {
        let machine = Machine::new(2).await;
        let pod = machine.pod("pod-dns").await;
        // The world: one server of the host, which knows one name.
        let outside = UdpSocket::bind("127.0.0.77:53").await.unwrap();
        let world = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, client)) = outside.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let mut answer = carrick_dns::reply_to(&query, ResponseCode::NoError);
                let data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A(Ipv4Addr::new(192, 0, 2, 99)));
                answer.add_answer(hickory_proto::rr::Record::from_rdata(query.queries[0].name().clone(), 9, data));
                let _ = outside.send_to(&answer.to_vec().unwrap(), client).await;
            }
        });
        let resolv = machine.data.join("host-resolv.conf");
        std::fs::write(&resolv, "nameserver 127.0.0.77\n").unwrap();
        let table = machine.data.join("dns.json");
        let responder = Arc::new(Responder {
            table: TableFile::new(table.clone()),
            domain: "cluster.local".into(),
            mesh: None,
            upstream: Upstream::new(&resolv, None),
            host: tokio::runtime::Handle::current(),
        });
        let sockets = pod.sandbox.run(Sockets::bind((DNS_ADDRESS, 53).into())).await.unwrap().unwrap();
        let serving = pod.sandbox.handle().spawn(serve(sockets, responder));
        // The rules of an injected pod leave its DNS alone.
        let rules = ruleset(&SidecarCapture::default());
        pod.namespace.run(|| nft::apply(Table { family: "inet", name: "carrick-capture" }, &rules)).unwrap().unwrap();

        let kyc = "kyc.basic.svc.cluster.local.";
        let (code, _) = read(&pod.sandbox.run(over_udp(question(kyc, RecordType::A))).await.unwrap().unwrap());
        assert_eq!(code, ResponseCode::ServFail, "no table yet");
        let write = |text: &str| state::write_atomic(&table, text.as_bytes(), 0o644).unwrap();
        write(r#"{"services": {"kyc.basic": {"ips": ["10.96.1.2"]}}}"#);
        for raw in [
            pod.sandbox.run(over_udp(question(kyc, RecordType::A))).await.unwrap().unwrap(),
            pod.sandbox.run(over_tcp(question(kyc, RecordType::A))).await.unwrap().unwrap(),
        ] {
            assert_eq!(read(&raw), (ResponseCode::NoError, vec!["10.96.1.2".to_owned()]));
        }
        write(r#"{"services": {"kyc.basic": {"ips": ["10.96.1.3"]}}}"#);
        let raw = pod.sandbox.run(over_udp(question(kyc, RecordType::A))).await.unwrap().unwrap();
        assert_eq!(read(&raw).1, ["10.96.1.3"], "a replaced table is seen at once");
        let raw = pod.sandbox.run(over_udp(question(kyc, RecordType::AAAA))).await.unwrap().unwrap();
        assert_eq!(read(&raw), (ResponseCode::NoError, vec![]));
        let raw =
            pod.sandbox.run(over_udp(question("no.basic.svc.cluster.local.", RecordType::A))).await.unwrap().unwrap();
        assert_eq!(read(&raw).0, ResponseCode::NXDomain);
        let raw = pod.sandbox.run(over_udp(question("www.example.com.", RecordType::A))).await.unwrap().unwrap();
        assert_eq!(read(&raw), (ResponseCode::NoError, vec!["192.0.2.99".to_owned()]));
        // The C library agrees, with the resolv.conf of the pod.
        assert_eq!(pod.output(&format!("getent ahostsv4 {kyc} | head -1 | cut -d' ' -f1")).await, "10.96.1.3");

        std::fs::write(&resolv, "").unwrap();
        let raw = pod.sandbox.run(over_udp(question("www.example.com.", RecordType::A))).await.unwrap().unwrap();
        assert_eq!(read(&raw).0, ResponseCode::ServFail, "nobody to ask");

        serving.abort();
        world.abort();
        pod.end().await;
        machine.end().await;
    });
}

#[test]
fn what_a_dead_runner_leaves_is_swept() {
    on_a_host(async {
        let machine = Machine::new(3).await;
        let (dead, alive) = (machine.pod("pod-dead").await, machine.pod("pod-alive").await);

        // A child dies with the thread that the runner is.
        let mut command = Command::new("sleep");
        command.arg("300");
        child::as_app(&mut command, false);
        let mut direct = dead.sandbox.run(async move { command.spawn() }).await.unwrap().unwrap();
        // A grandchild that got away does not, and holds the namespace.
        let mut stray = dead.namespace.spawn(std::process::Command::new("sleep").arg("300")).unwrap();
        assert_eq!(sweep(&machine.data, &machine.network, None).await.unwrap(), 0, "nobody is dead yet");
        let Pod { mut folder, namespace, sandbox, .. } = dead;
        // Without an API only pods that have no object there can be swept.
        folder.state.name.clear();
        folder.save().unwrap();
        drop(sandbox);
        let ended =
            tokio::time::timeout(Duration::from_secs(5), direct.wait()).await.expect("dies with its thread").unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));

        let (path, ip) = (folder.path().to_owned(), folder.state.ip);
        drop(folder);
        assert_eq!(sweep(&machine.data, &machine.network, None).await.unwrap(), 1);
        assert!(!path.exists());
        assert!(NetNs::open(namespace.name()).is_err());
        let ended = stray.try_wait().unwrap().expect("the stray was killed");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        assert_eq!(alive.output("hostname").await, "pod-alive", "the living are left alone");
        let again = state::allocate(&machine.data, &machine.network).unwrap();
        assert_ne!(again.state.ip, ip, "a freed address is not used again at once");
        again.remove().unwrap();

        alive.end().await;
        machine.end().await;
    });
}

/// The part of a start that is the kernel's and nft's, twenty times at once.
#[test]
fn twenty_pods_at_once() {
    on_a_host(async {
        let machine = Arc::new(Machine::new(4).await);
        let begin = Instant::now();
        let mut starts = tokio::task::JoinSet::new();
        for number in 0..20 {
            let machine = Arc::clone(&machine);
            starts.spawn(async move {
                let pod = machine.pod(&format!("pod-{number}")).await;
                let namespace = pod.namespace.clone();
                let rules = ruleset(&SidecarCapture::default());
                let apply =
                    move || namespace.run(|| nft::apply(Table { family: "inet", name: "carrick-capture" }, &rules));
                tokio::task::spawn_blocking(apply).await.unwrap().unwrap().unwrap();
                pod
            });
        }
        let pods = starts.join_all().await;
        let took = begin.elapsed();
        println!("twenty pod networks with capture rules: {took:?}");
        let addresses: std::collections::BTreeSet<Ipv4Addr> = pods.iter().map(|pod| pod.ip).collect();
        assert_eq!(addresses.len(), 20);
        // Each is reached from the host.
        for pod in &pods {
            pod.listen(15006).await;
            let address = SocketAddr::from((pod.ip, 8080));
            let stream =
                tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(address)).await.unwrap().unwrap();
            assert_eq!(body(stream).await, machine.network.gateway.to_string());
        }
        for pod in pods {
            pod.end().await;
        }
        Arc::try_unwrap(machine).ok().unwrap().end().await;
        assert!(took < Duration::from_secs(5), "{took:?}");
    });
}
