//! The rules of a machine whose workload has its sidecar on the machine's own network: captured is who is named, not everything that is there.
//!
//! Invariant: what belongs to others stays theirs. Outgoing connections are taken by the user or group that owns them, the proxy's own never;
//! incoming ones by their port, and only those for the machine itself (not what it forwards); what stays on loopback is the machine's own
//! affair. Pure: applying is [`crate::nft`], and removing the table leaves nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::sidecar::{
    INBOUND_PORT, InboundPorts, OUTBOUND_PORT, PROXY_ID, TUNNEL_PORT, Text, destination, port_set, redirect_chain,
};

/// The table a machine's rules live in.
pub const TABLE: &str = "carrick-machine";
/// Port that questions of names are redirected to.
pub const DNS_PORT: u16 = 15053;

/// Whose outgoing connections are captured; the proxy's never are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Owners {
    /// Everybody's but these users'.
    AllBut(BTreeSet<u32>),
    /// Those of these users and groups.
    Only {
        /// User ids.
        users: BTreeSet<u32>,
        /// Group ids.
        groups: BTreeSet<u32>,
    },
}

/// What is captured on one machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostCapture {
    /// nftables table, family `inet`.
    pub table: String,
    /// Whose outgoing connections.
    pub owners: Owners,
    /// Incoming ports.
    pub inbound: InboundPorts,
    /// Incoming ports left alone when [`InboundPorts::All`].
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// Outgoing destinations left alone.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Outgoing ports left alone.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Name servers whose questions are captured, of the same owners; empty: none.
    pub name_servers: BTreeSet<IpAddr>,
    /// The proxy's user and group.
    pub proxy_id: u32,
}

impl Default for HostCapture {
    fn default() -> Self {
        HostCapture {
            table: TABLE.into(),
            owners: Owners::AllBut(BTreeSet::from([0])),
            inbound: InboundPorts::Only(BTreeSet::new()),
            exclude_inbound_ports: BTreeSet::from([22, 15008, 15020, 15021, 15090]),
            exclude_outbound_ranges: Vec::new(),
            exclude_outbound_ports: BTreeSet::new(),
            name_servers: BTreeSet::new(),
            proxy_id: PROXY_ID,
        }
    }
}

/// The rules as one nft transaction that replaces the table.
pub fn ruleset(capture: &HostCapture) -> String {
    let mut text = Text::new(&capture.table);
    text.line(0, &format!("table inet {} {{", capture.table));
    redirect_chain(&mut text, "to_inbound", INBOUND_PORT);
    redirect_chain(&mut text, "to_outbound", OUTBOUND_PORT);
    inbound(&mut text, capture);
    names(&mut text, capture);
    captured(&mut text, capture);
    if captures_inbound(capture) {
        text.line(1, "chain prerouting {");
        text.line(2, "type nat hook prerouting priority dstnat; policy accept;");
        text.line(2, "fib daddr type local meta l4proto tcp jump inbound");
        text.line(1, "}");
    }
    output(&mut text, capture);
    text.line(0, "}");
    text.out
}

fn captures_inbound(capture: &HostCapture) -> bool {
    capture.inbound != InboundPorts::Only(BTreeSet::new())
}

fn inbound(text: &mut Text, capture: &HostCapture) {
    if !captures_inbound(capture) {
        return;
    }
    text.line(1, "chain inbound {");
    match &capture.inbound {
        InboundPorts::All => {
            let mut excluded = capture.exclude_inbound_ports.clone();
            excluded.insert(TUNNEL_PORT);
            text.line(2, &format!("tcp dport {} return", port_set(&excluded)));
            text.line(2, "meta l4proto tcp goto to_inbound");
        }
        InboundPorts::Only(ports) => text.line(2, &format!("tcp dport {} goto to_inbound", port_set(ports))),
    }
    text.line(1, "}");
}

/// Questions of names, which may well go to loopback.
fn names(text: &mut Text, capture: &HostCapture) {
    if capture.name_servers.is_empty() {
        return;
    }
    text.line(1, "chain names {");
    let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = capture.name_servers.iter().partition(|ip| ip.is_ipv4());
    for (family, servers) in [("ip", v4), ("ip6", v6)] {
        if servers.is_empty() {
            continue;
        }
        let set = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        for protocol in ["udp", "tcp"] {
            text.line(2, &format!("{family} daddr {{ {set} }} {protocol} dport 53 redirect to :{DNS_PORT}"));
        }
    }
    text.line(1, "}");
}

/// What becomes of a connection whose owner is captured.
fn captured(text: &mut Text, capture: &HostCapture) {
    text.line(1, "chain captured {");
    if !capture.name_servers.is_empty() {
        text.line(2, "jump names");
    }
    text.line(2, "oifname \"lo\" return");
    if !capture.exclude_outbound_ports.is_empty() {
        text.line(2, &format!("tcp dport {} return", port_set(&capture.exclude_outbound_ports)));
    }
    for range in &capture.exclude_outbound_ranges {
        text.line(2, &format!("{} return", destination(range)));
    }
    text.line(2, "meta l4proto tcp goto to_outbound");
    text.line(1, "}");
}

fn output(text: &mut Text, capture: &HostCapture) {
    let id = capture.proxy_id;
    text.line(1, "chain output {");
    text.line(2, "type nat hook output priority -100; policy accept;");
    // The proxy hands a connection to its workload from these addresses.
    text.line(2, "oifname \"lo\" ip saddr 127.0.0.6 return");
    text.line(2, "oifname \"lo\" ip6 saddr ::6 return");
    if captures_inbound(capture) {
        // The proxy chose its own machine as the endpoint of a service: the connection enters as any other would.
        for (family, loopback) in [("ip", "127.0.0.0/8"), ("ip6", "::1")] {
            text.line(
                2,
                &format!("oifname \"lo\" {family} daddr != {loopback} meta l4proto tcp meta skuid {id} jump inbound"),
            );
        }
    }
    for owner in ["skuid", "skgid"] {
        text.line(2, &format!("meta {owner} {id} return"));
    }
    match &capture.owners {
        // A packet of no socket matches neither.
        Owners::AllBut(users) if users.is_empty() => text.line(2, "meta skuid >= 0 jump captured"),
        Owners::AllBut(users) => text.line(2, &format!("meta skuid != {} jump captured", id_set(users))),
        Owners::Only { users, groups } => {
            // Whoever is both is captured once: the first match of a connection counts.
            for (owner, ids) in [("skuid", users), ("skgid", groups)] {
                if !ids.is_empty() {
                    text.line(2, &format!("meta {owner} {} jump captured", id_set(ids)));
                }
            }
        }
    }
    text.line(1, "}");
}

fn id_set(ids: &BTreeSet<u32>) -> String {
    format!("{{ {} }}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
