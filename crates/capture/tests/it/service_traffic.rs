//! What the service rules do to real connections of pods and of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use carrick_capture::nft::{self, Table};
use carrick_capture::services::{self, Protocol, ServicePort, ServiceTable};

use crate::topology::{BRIDGE, GATEWAY, Topology, ask, connect, line, pod_ip, serve};

const NAME: &str = "svc-test";
const VIP: &str = "10.198.0.7:80";

fn put(topology: &Topology, ports: &[(&str, &[String])], node_ports: &[(u16, String)]) {
    let mut table = ServiceTable::new(NAME, BRIDGE, "10.199.0.0/16".parse().unwrap(), "10.198.0.0/16".parse().unwrap());
    table.ports = ports
        .iter()
        .map(|(service, endpoints)| {
            let SocketAddr::V4(service) = service.parse().unwrap() else { unreachable!() };
            let key = ServicePort { ip: *service.ip(), protocol: Protocol::Tcp, port: service.port() };
            (key, endpoints.iter().map(|end| end.parse().unwrap()).collect::<BTreeSet<_>>())
        })
        .collect::<BTreeMap<_, _>>();
    table.node_ports =
        node_ports.iter().map(|(port, end)| ((Protocol::Tcp, *port), BTreeSet::from([end.parse().unwrap()]))).collect();
    let text = services::ruleset(&table);
    topology.host.run(|| nft::apply(Table { family: "ip", name: NAME }, &text)).unwrap().unwrap();
}

#[test]
fn cluster_ips_for_pods_and_host() {
    all_paths(Topology::new("sv", 3));
}

/// On machines with the bridge netfilter module, packets between pods meet the rules inside the bridge; on others when they are routed.
#[test]
fn cluster_ips_whichever_way_the_bridge_filters() {
    let topology = Topology::new("sb", 3);
    let switch = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    topology
        .host
        .run(|| {
            if let Ok(now) = std::fs::read_to_string(switch) {
                let other = if now.trim() == "0" { "1" } else { "0" };
                std::fs::write(switch, other).unwrap();
            }
        })
        .unwrap();
    all_paths(topology);
}

fn all_paths(topology: Topology) {
    for (index, pod) in topology.pods.iter().enumerate() {
        let word = ["p0", "p1", "p2"][index];
        serve(pod, "0.0.0.0:8080".parse().unwrap(), word);
    }
    serve(&topology.host, "127.0.0.1:6443".parse().unwrap(), "api");
    let [a, b, c] = [0, 1, 2].map(|index| format!("{}:8080", pod_ip(index)));
    let (b, c) = (&b, &c);

    // Pods in the same network, so that the answer comes back without passing the bridge's address unless the layout makes it.
    put(&topology, &[(VIP, std::slice::from_ref(b))], &[(30080, b.clone())]);
    let from = pod_ip(0);
    assert_eq!(ask(&topology.pods[0], VIP), format!("p1 {b} {from}"), "the pod's own address is kept");
    assert_eq!(ask(&topology.host, VIP), format!("p1 {b} {GATEWAY}"));
    assert_eq!(ask(&topology.pods[1], VIP), format!("p1 {b} {GATEWAY}"), "a pod reaches itself through its service");
    assert_eq!(ask(&topology.pods[0], &format!("{GATEWAY}:30080")), format!("p1 {b} {from}"), "node port from a pod");
    assert_eq!(
        ask(&topology.host, &format!("{GATEWAY}:30080")),
        format!("p1 {b} {GATEWAY}"),
        "node port from the host"
    );

    // An open connection outlives a table that no longer has its endpoint, and new ones go elsewhere.
    let mut open = connect(&topology.pods[0], VIP).unwrap();
    assert!(line(open.try_clone().unwrap()).starts_with("p1 "));
    put(&topology, &[(VIP, std::slice::from_ref(c))], &[]);
    open.write_all(b"still here").unwrap();
    let mut echo = [0; 10];
    open.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"still here");
    assert_eq!(ask(&topology.pods[0], VIP), format!("p2 {c} {from}"));

    // Spread over several.
    put(&topology, &[(VIP, &[a.clone(), b.clone(), c.clone()])], &[]);
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        let word = ask(&topology.host, VIP).split(' ').next().unwrap().to_owned();
        *seen.entry(word).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3, "60 connections all went to {seen:?}");

    // No endpoint, no such port, no such service: refused, and at once.
    put(&topology, &[(VIP, &[])], &[]);
    for client in [&topology.pods[0], &topology.host] {
        for address in [VIP, "10.198.0.7:81", "10.198.3.3:80"] {
            let begin = Instant::now();
            let error = connect(client, address).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(1), "{address} took {:?}", begin.elapsed());
        }
    }

    // An endpoint on the host's loopback is reached through its service, and only so.
    put(&topology, &[("10.198.0.1:443", &["127.0.0.1:6443".to_owned()])], &[]);
    assert!(ask(&topology.pods[0], "10.198.0.1:443").starts_with("api "));
    assert!(ask(&topology.host, "10.198.0.1:443").starts_with("api "));
}
