//! What the sidecar's rules do to real connections: each row of spec §17.3 that can be told apart from outside.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::sidecar::{self, Mode, OutboundRanges, SidecarCapture};

use crate::topology::{Topology, ask, line, pod_ip, serve};

const TABLE: Table<'static> = Table { family: "inet", name: sidecar::TABLE };

fn start(label: &str) -> Topology {
    let topology = Topology::new(label, 2);
    let (outside, pod) = (&topology.pods[0], &topology.pods[1]);
    for (port, word) in [(15006, "in"), (15001, "out"), (8080, "app"), (15020, "agent"), (15008, "tunnel")] {
        serve(pod, SocketAddr::from(([0, 0, 0, 0], port)), word);
    }
    serve(pod, "[::1]:8080".parse().unwrap(), "app6");
    serve(outside, "0.0.0.0:80".parse().unwrap(), "outside");
    serve(outside, "0.0.0.0:25".parse().unwrap(), "mail");
    topology
}

fn capture(pod: &NetNs, capture: &SidecarCapture) {
    pod.run(|| nft::apply(TABLE, &sidecar::ruleset(capture))).unwrap().unwrap();
}

/// The same as [`ask`] with the socket owned by the proxy's user and group. The file system ids of one thread are enough: the socket's
/// owner is taken from them.
fn ask_as_proxy(namespace: &NetNs, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let stream = namespace
        .run(move || {
            nix::unistd::setfsgid(1337.into());
            nix::unistd::setfsuid(1337.into());
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
        })
        .unwrap()
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    line(stream)
}

#[test]
fn in_out_and_what_stays_alone() {
    let topology = start("sc");
    let (outside, pod) = (&topology.pods[0], &topology.pods[1]);
    let (from, to) = (pod_ip(0), pod_ip(1));
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"), "before the rules");

    capture(pod, &SidecarCapture::default());
    // Incoming.
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("in {to}:8080 {from}"));
    assert_eq!(
        ask(outside, &format!("{to}:9999")),
        format!("in {to}:9999 {from}"),
        "a port nobody listens on is captured too"
    );
    assert_eq!(ask(outside, &format!("{to}:15020")), format!("agent {to}:15020 {from}"));
    assert_eq!(ask(outside, &format!("{to}:15008")), format!("tunnel {to}:15008 {from}"));
    // Outgoing.
    assert_eq!(ask(pod, &format!("{from}:80")), format!("out {from}:80 {to}"));
    assert_eq!(ask(pod, "192.0.2.1:443"), format!("out 192.0.2.1:443 {to}"));
    // The proxy's own, outgoing and to itself.
    assert_eq!(ask_as_proxy(pod, &format!("{from}:80")), format!("outside {from}:80 {to}"));
    assert_eq!(ask_as_proxy(pod, &format!("{to}:8080")), format!("in {to}:8080 {to}"));
    assert_eq!(ask_as_proxy(pod, &format!("{to}:15008")), format!("tunnel {to}:15008 {to}"));
    assert_eq!(ask_as_proxy(pod, "127.0.0.1:8080"), "app 127.0.0.1:8080 127.0.0.1");
    // The app's own loopback, IPv4 and IPv6, and its own address.
    assert_eq!(ask(pod, "127.0.0.1:8080"), "app 127.0.0.1:8080 127.0.0.1");
    assert_eq!(ask(pod, "[::1]:8080"), "app6 [::1]:8080 ::1");
    assert_eq!(ask(pod, &format!("{to}:8080")), format!("app {to}:8080 {to}"));

    // The proxy hands over from 127.0.0.6, also to an address that is not loopback.
    let handed = pod
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            nix::unistd::setfsgid(1337.into());
            nix::unistd::setfsuid(1337.into());
            socket.bind(&SocketAddr::from(([127, 0, 0, 6], 0)).into()).unwrap();
            socket.connect(&SocketAddr::from((to, 8080)).into()).unwrap();
            line(socket.into())
        })
        .unwrap();
    assert_eq!(handed, format!("app {to}:8080 127.0.0.6"));

    // Taken out again, nothing is captured.
    pod.run(|| nft::remove(TABLE)).unwrap().unwrap();
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"));
    assert_eq!(ask(pod, &format!("{from}:80")), format!("outside {from}:80 {to}"));
}

#[test]
fn exclusions_and_inclusions() {
    let topology = start("ex");
    let (outside, pod) = (&topology.pods[0], &topology.pods[1]);
    let (from, to) = (pod_ip(0), pod_ip(1));
    let excluding = SidecarCapture {
        exclude_inbound_ports: BTreeSet::from([8080]),
        exclude_outbound_ports: BTreeSet::from([25]),
        exclude_outbound_ranges: vec![format!("{from}/32").parse().unwrap()],
        ..SidecarCapture::default()
    };
    capture(pod, &excluding);
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"));
    assert_eq!(ask(outside, &format!("{to}:15020")), format!("in {to}:15020 {from}"));
    assert_eq!(ask(pod, &format!("{from}:80")), format!("outside {from}:80 {to}"));
    assert_eq!(ask(pod, "192.0.2.1:80"), format!("out 192.0.2.1:80 {to}"));

    let including = SidecarCapture {
        outbound: OutboundRanges::Only(vec!["192.0.2.0/24".parse().unwrap()]),
        include_outbound_ports: BTreeSet::from([80]),
        ..SidecarCapture::default()
    };
    capture(pod, &including);
    assert_eq!(ask(pod, &format!("{from}:25")), format!("mail {from}:25 {to}"));
    assert_eq!(ask(pod, &format!("{from}:80")), format!("out {from}:80 {to}"));
    assert_eq!(ask(pod, "192.0.2.9:25"), format!("out 192.0.2.9:25 {to}"));
}

/// A listener that takes connections to any address, as the proxy's does, and hands each to `to` from its client's address: what the
/// client then reads is what the application says.
fn hand_over(pod: &NetNs, listen: SocketAddr) {
    use socket2::{Domain, SockRef, Socket, Type};
    let listener = pod
        .run(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_ip_transparent_v4(true).unwrap();
            socket.bind(&listen.into()).unwrap();
            socket.listen(8).unwrap();
            std::net::TcpListener::from(socket)
        })
        .unwrap();
    let pod = pod.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (client, dialled) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
            let upstream = pod.run(move || {
                nix::unistd::setfsgid(1337.into());
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                let options = SockRef::from(&socket);
                options.set_ip_transparent_v4(true).unwrap();
                options.set_mark(carrick_capture::routes::MARK).unwrap();
                socket.bind(&SocketAddr::new(client.ip(), 0).into()).unwrap();
                socket.connect_timeout(&dialled.into(), Duration::from_secs(5)).map(|()| TcpStream::from(socket))
            });
            let Ok(Ok(mut upstream)) = upstream else { return };
            std::thread::spawn(move || std::io::copy(&mut upstream, &mut stream));
        }
    });
}

#[test]
fn the_application_sees_its_client_in_tproxy_mode() {
    let topology = start("tp");
    let (outside, pod) = (&topology.pods[0], &topology.pods[1]);
    let (from, to) = (pod_ip(0), pod_ip(1));
    let tproxy = SidecarCapture { mode: Mode::Tproxy, inbound_port: 16006, ..SidecarCapture::default() };
    let put = || pod.run(|| sidecar::apply(&tproxy)).unwrap().unwrap();
    put();
    // Nobody is at the proxy's port: nothing gets by.
    assert!(crate::topology::connect(outside, &format!("{to}:8080")).is_err());
    hand_over(pod, SocketAddr::from(([0, 0, 0, 0], 16006)));
    put();
    for _ in 0..20 {
        assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"));
    }
    assert_eq!(ask(outside, &format!("{to}:15020")), format!("agent {to}:15020 {from}"));
    assert_eq!(ask(outside, &format!("{to}:15008")), format!("tunnel {to}:15008 {from}"));
    // What goes out, and what stays within.
    assert_eq!(ask(pod, &format!("{from}:80")), format!("out {from}:80 {to}"));
    assert_eq!(ask_as_proxy(pod, &format!("{from}:80")), format!("outside {from}:80 {to}"));
    assert_eq!(ask(pod, &format!("{to}:8080")), format!("app {to}:8080 {to}"));
    assert_eq!(ask(pod, "127.0.0.1:8080"), "app 127.0.0.1:8080 127.0.0.1");
    pod.run(|| sidecar::remove(&tproxy)).unwrap().unwrap();
    assert_eq!(ask(outside, &format!("{to}:8080")), format!("app {to}:8080 {from}"));
    let rules = pod.run(|| std::process::Command::new("ip").arg("rule").output()).unwrap().unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(!rules.contains("fwmark"), "a rule is left: {rules}");
}
