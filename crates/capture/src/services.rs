//! Cluster IPs on one machine: destination NAT from a service's address to one of its ready endpoints, for pods and for the host itself.
//!
//! Invariant: every address of the service range that no ready endpoint stands behind refuses at once, and a connection that is already
//! established is not touched by a new table. Pure: applying is [`crate::nft`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// One address and port that stands for some endpoints.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ServicePort {
    /// Cluster IP, or another address of this machine.
    pub ip: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Everything the rules are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceTable {
    /// nftables table, family `ip`.
    pub table: String,
    /// Interface the pods are behind.
    pub bridge: String,
    /// Addresses of pods.
    pub pods: Ipv4Net,
    /// Addresses of services.
    pub services: Ipv4Net,
    /// Ready endpoints by service port; empty: refuse.
    pub ports: BTreeMap<ServicePort, BTreeSet<SocketAddrV4>>,
    /// Node ports: ready endpoints by protocol and port of this machine's own addresses (loopback excepted).
    pub node_ports: BTreeMap<(Protocol, u16), BTreeSet<SocketAddrV4>>,
    /// Let pods reach the world under the host's address.
    pub masquerade_egress: bool,
}

impl ServiceTable {
    /// A table without services.
    pub fn new(table: impl Into<String>, bridge: impl Into<String>, pods: Ipv4Net, services: Ipv4Net) -> Self {
        ServiceTable {
            table: table.into(),
            bridge: bridge.into(),
            pods: pods.trunc(),
            services: services.trunc(),
            ports: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            masquerade_egress: false,
        }
    }
}

/// The rules as one nft transaction that replaces the table.
pub fn ruleset(table: &ServiceTable) -> String {
    let name = &table.table;
    let mut out = format!("table ip {name}\ndelete table ip {name}\ntable ip {name} {{\n");
    let served: Vec<_> = table.ports.iter().filter(|(_, endpoints)| !endpoints.is_empty()).collect();
    let node: Vec<_> = table.node_ports.iter().filter(|(_, endpoints)| !endpoints.is_empty()).collect();
    for (port, endpoints) in &served {
        chain(&mut out, &service_chain(port), port.protocol, endpoints);
    }
    for ((protocol, port), endpoints) in &node {
        chain(&mut out, &node_chain(*protocol, *port), *protocol, endpoints);
    }
    map(
        &mut out,
        "services",
        "ipv4_addr . inet_proto . inet_service",
        served
            .iter()
            .map(|(p, _)| format!("{} . {} . {} : goto {}", p.ip, p.protocol.as_str(), p.port, service_chain(p))),
    );
    map(
        &mut out,
        "node-ports",
        "inet_proto . inet_service",
        node.iter().map(|((protocol, port), _)| {
            format!("{} . {port} : goto {}", protocol.as_str(), node_chain(*protocol, *port))
        }),
    );
    hairpin_set(&mut out, table);
    rules(&mut out, table);
    out.push_str("}\n");
    out
}

fn service_chain(port: &ServicePort) -> String {
    format!("svc-{}-{}-{}", port.ip, port.protocol.as_str(), port.port)
}

fn node_chain(protocol: Protocol, port: u16) -> String {
    format!("node-{}-{port}", protocol.as_str())
}

fn chain(out: &mut String, name: &str, protocol: Protocol, endpoints: &BTreeSet<SocketAddrV4>) {
    let _ = writeln!(out, "  chain {name} {{");
    let protocol = protocol.as_str();
    if let (1, Some(only)) = (endpoints.len(), endpoints.first()) {
        let _ = writeln!(out, "    meta l4proto {protocol} dnat to {only}");
    } else {
        let _ = write!(out, "    meta l4proto {protocol} dnat ip to numgen random mod {} map {{ ", endpoints.len());
        for (index, endpoint) in endpoints.iter().enumerate() {
            let _ =
                write!(out, "{}{index} : {} . {}", if index == 0 { "" } else { ", " }, endpoint.ip(), endpoint.port());
        }
        out.push_str(" }\n");
    }
    out.push_str("  }\n");
}

fn map(out: &mut String, name: &str, key: &str, elements: impl Iterator<Item = String>) {
    let _ = writeln!(out, "  map {name} {{\n    type {key} : verdict");
    block(out, elements);
    out.push_str("  }\n");
}

fn block(out: &mut String, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(out, "    elements = {{\n      {}\n    }}", elements.join(",\n      "));
    }
}

/// A pod that is given its own endpoint would see a packet from itself; such pairs leave under the bridge's address instead.
fn hairpin_set(out: &mut String, table: &ServiceTable) {
    let pods: BTreeSet<&Ipv4Addr> = table
        .ports
        .values()
        .chain(table.node_ports.values())
        .flatten()
        .map(SocketAddrV4::ip)
        .filter(|ip| table.pods.contains(*ip))
        .collect();
    out.push_str("  set hairpin {\n    type ipv4_addr . ipv4_addr\n");
    block(out, pods.iter().map(|ip| format!("{ip} . {ip}")));
    out.push_str("  }\n");
}

fn rules(out: &mut String, table: &ServiceTable) {
    let ServiceTable { bridge, pods, services, .. } = table;
    // An endpoint on the host's loopback is reached through NAT only, never by a pod that writes 127.0.0.1 into its packets.
    let _ = writeln!(
        out,
        "  chain guard {{\n    type filter hook prerouting priority raw; policy accept;\n    iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n  }}"
    );
    out.push_str("  chain dispatch {\n    ip daddr . meta l4proto . th dport vmap @services\n");
    out.push_str("    fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node-ports\n  }\n");
    for hook in ["prerouting", "output"] {
        let _ = writeln!(
            out,
            "  chain {hook} {{\n    type nat hook {hook} priority -100; policy accept;\n    meta l4proto {{ tcp, udp }} jump dispatch\n  }}"
        );
    }
    out.push_str("  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n");
    out.push_str("    ct status dnat ip saddr . ip daddr @hairpin masquerade\n");
    if table.masquerade_egress {
        let _ = writeln!(out, "    ip saddr {pods} oifname != {{ \"lo\", \"{bridge}\" }} masquerade");
    }
    out.push_str("  }\n");
    // What still carries a service address here found no endpoint.
    for hook in ["forward", "output"] {
        let _ = writeln!(out, "  chain refuse-{hook} {{\n    type filter hook {hook} priority filter; policy accept;");
        let _ = writeln!(out, "    ip daddr {services} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(out, "    ip daddr {services} reject with icmp port-unreachable\n  }}");
    }
}
