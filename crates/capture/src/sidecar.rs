//! The rules of one pod with a sidecar: what comes in goes to one port of the proxy, what goes out to another.
//!
//! Invariant: the order of evaluation is Istio's (spec §17.3), line by line, for IPv4 and IPv6 alike; what the proxy itself sends (uid or gid
//! 1337) is never turned back to it, except where the pod calls itself through a service. Pure but for [`apply`] and [`remove`].

mod tproxy;

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnet::IpNet;

use crate::CaptureError;
use crate::nft::{self, Table};
use crate::routes::{self, MARK};

/// The table a pod's rules live in, within the pod's own namespace.
pub const TABLE: &str = "carrick-capture";
/// Port that outgoing connections are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port that incoming connections are redirected to.
pub const INBOUND_PORT: u16 = 15006;
/// Port of tunnelled mesh traffic, which reaches the proxy as it is.
pub const TUNNEL_PORT: u16 = 15008;
/// User and group of the proxy.
pub const PROXY_ID: u32 = 1337;

/// Which incoming ports are captured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InboundPorts {
    /// All but the excluded ones.
    All,
    /// Exactly these; exclusions do not apply. Empty: none.
    Only(BTreeSet<u16>),
}

/// Which outgoing destinations are captured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OutboundRanges {
    /// Every address.
    All,
    /// Exactly these. Empty: none.
    Only(Vec<IpNet>),
}

/// How packets reach the proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// NAT to the proxy's ports.
    Redirect,
    /// NAT for what goes out; what comes in keeps its addresses up to the application.
    Tproxy,
    /// Not at all: the workload addresses the proxy itself.
    None,
}

/// What is captured in one pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SidecarCapture {
    /// nftables table, family `inet`.
    pub table: String,
    /// How.
    pub mode: Mode,
    /// Captured incoming ports.
    pub inbound: InboundPorts,
    /// Incoming ports left alone when [`InboundPorts::All`].
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// Captured outgoing destinations.
    pub outbound: OutboundRanges,
    /// Outgoing destinations left alone.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Outgoing ports captured whatever the destination.
    pub include_outbound_ports: BTreeSet<u16>,
    /// Outgoing ports left alone.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Interfaces left alone in both directions.
    pub exclude_interfaces: BTreeSet<String>,
    /// Interfaces whose incoming packets are a virtual machine's outgoing ones.
    pub virtual_interfaces: BTreeSet<String>,
    /// The proxy's user and group.
    pub proxy_id: u32,
    /// Where outgoing connections go.
    pub outbound_port: u16,
    /// Where incoming connections go.
    pub inbound_port: u16,
}

impl Default for SidecarCapture {
    fn default() -> Self {
        SidecarCapture {
            table: TABLE.into(),
            mode: Mode::Redirect,
            inbound: InboundPorts::All,
            exclude_inbound_ports: BTreeSet::from([15090, 15021, 15020]),
            outbound: OutboundRanges::All,
            exclude_outbound_ranges: Vec::new(),
            include_outbound_ports: BTreeSet::new(),
            exclude_outbound_ports: BTreeSet::new(),
            exclude_interfaces: BTreeSet::new(),
            virtual_interfaces: BTreeSet::new(),
            proxy_id: PROXY_ID,
            outbound_port: OUTBOUND_PORT,
            inbound_port: INBOUND_PORT,
        }
    }
}

/// The rules as one nft transaction that replaces the table. With [`Mode::None`] it only removes it.
pub fn ruleset(capture: &SidecarCapture) -> String {
    let mut text = Text::new(&capture.table);
    if capture.mode == Mode::None {
        return text.out;
    }
    text.line(0, &format!("table inet {} {{", capture.table));
    if capture.mode == Mode::Tproxy {
        tproxy::chains(&mut text, capture);
    }
    redirect_chain(&mut text, "to_inbound", capture.inbound_port);
    redirect_chain(&mut text, "to_outbound", capture.outbound_port);
    let turned = has_inbound(capture) && capture.mode == Mode::Redirect;
    if turned {
        inbound(&mut text, capture);
    }
    outbound(&mut text, capture);
    if turned || !capture.virtual_interfaces.is_empty() {
        text.line(1, "chain prerouting {");
        text.line(2, "type nat hook prerouting priority dstnat; policy accept;");
        for interface in &capture.exclude_interfaces {
            text.line(2, &format!("iifname \"{interface}\" return"));
        }
        for interface in &capture.virtual_interfaces {
            for range in ranges(&capture.outbound) {
                text.line(2, &format!("iifname \"{interface}\"{range} meta l4proto tcp goto to_outbound"));
            }
            text.line(2, &format!("iifname \"{interface}\" return"));
        }
        if turned {
            text.line(2, "meta l4proto tcp jump inbound");
        }
        text.line(1, "}");
    }
    text.line(1, "chain output {");
    text.line(2, "type nat hook output priority -100; policy accept;");
    text.line(2, "meta l4proto tcp jump outbound");
    text.line(1, "}");
    text.line(0, "}");
    text.out
}

/// Puts a pod's rules in place, or takes them out if nothing is captured.
///
/// # Errors
/// What [`nft::apply`] says, and where TPROXY is wanted what [`routes::apply`] does.
pub fn apply(capture: &SidecarCapture) -> Result<(), CaptureError> {
    if capture.mode == Mode::Tproxy {
        routes::apply()?;
    }
    nft::apply(table(capture), &ruleset(capture))
}

/// Takes a pod's rules out; fine when they are not there.
///
/// # Errors
/// What [`nft::remove`] says.
pub fn remove(capture: &SidecarCapture) -> Result<(), CaptureError> {
    routes::remove();
    nft::remove(table(capture))
}

fn table(capture: &SidecarCapture) -> Table<'_> {
    Table { family: "inet", name: &capture.table }
}

fn has_inbound(capture: &SidecarCapture) -> bool {
    capture.inbound != InboundPorts::Only(BTreeSet::new())
}

pub(crate) fn redirect_chain(text: &mut Text, name: &str, port: u16) {
    text.line(1, &format!("chain {name} {{"));
    text.line(2, &format!("meta l4proto tcp redirect to :{port}"));
    text.line(1, "}");
}

fn inbound(text: &mut Text, capture: &SidecarCapture) {
    text.line(1, "chain inbound {");
    text.line(2, &format!("tcp dport {TUNNEL_PORT} return"));
    match &capture.inbound {
        InboundPorts::All => {
            if !capture.exclude_inbound_ports.is_empty() {
                text.line(2, &format!("tcp dport {} return", port_set(&capture.exclude_inbound_ports)));
            }
            text.line(2, "meta l4proto tcp goto to_inbound");
        }
        InboundPorts::Only(ports) => text.line(2, &format!("tcp dport {} goto to_inbound", port_set(ports))),
    }
    text.line(1, "}");
}

fn outbound(text: &mut Text, capture: &SidecarCapture) {
    let id = capture.proxy_id;
    text.line(1, "chain outbound {");
    for interface in &capture.exclude_interfaces {
        text.line(2, &format!("oifname \"{interface}\" return"));
    }
    if !capture.exclude_outbound_ports.is_empty() {
        text.line(2, &format!("tcp dport {} return", port_set(&capture.exclude_outbound_ports)));
    }
    if capture.mode == Mode::Tproxy {
        // The proxy hands a connection to its workload from its client's address.
        text.line(2, &format!("oifname \"lo\" meta mark {MARK} return"));
    }
    // The proxy hands a connection to its workload from these addresses.
    text.line(2, "oifname \"lo\" ip saddr 127.0.0.6 return");
    text.line(2, "oifname \"lo\" ip6 saddr ::6 return");
    for owner in ["skuid", "skgid"] {
        // The proxy chose its own pod as the endpoint of a service: the connection enters as any other would.
        text.line(
            2,
            &format!(
                "oifname \"lo\" ip daddr != 127.0.0.1 tcp dport != {TUNNEL_PORT} meta {owner} {id} goto to_inbound"
            ),
        );
        text.line(
            2,
            &format!("oifname \"lo\" ip6 daddr != ::1 tcp dport != {TUNNEL_PORT} meta {owner} {id} goto to_inbound"),
        );
        text.line(2, &format!("oifname \"lo\" meta {owner} != {id} return"));
        text.line(2, &format!("meta {owner} {id} return"));
    }
    text.line(2, "ip daddr 127.0.0.1 return");
    text.line(2, "ip6 daddr ::1 return");
    for range in &capture.exclude_outbound_ranges {
        text.line(2, &format!("{} return", destination(range)));
    }
    if !capture.include_outbound_ports.is_empty() {
        text.line(2, &format!("tcp dport {} goto to_outbound", port_set(&capture.include_outbound_ports)));
    }
    for range in ranges(&capture.outbound) {
        text.line(2, format!("{range} meta l4proto tcp goto to_outbound").trim_start());
    }
    text.line(1, "}");
}

/// One condition per range, each with a space in front; a single empty condition for all.
fn ranges(outbound: &OutboundRanges) -> Vec<String> {
    match outbound {
        OutboundRanges::All => vec![String::new()],
        OutboundRanges::Only(ranges) => ranges.iter().map(|range| format!(" {}", destination(range))).collect(),
    }
}

pub(crate) fn destination(range: &IpNet) -> String {
    match range {
        IpNet::V4(net) => format!("ip daddr {}", net.trunc()),
        IpNet::V6(net) => format!("ip6 daddr {}", net.trunc()),
    }
}

pub(crate) fn port_set(ports: &BTreeSet<u16>) -> String {
    let mut out = String::from("{ ");
    for (index, port) in ports.iter().enumerate() {
        let _ = write!(out, "{}{port}", if index == 0 { "" } else { ", " });
    }
    out + " }"
}

/// The growing transaction; it begins by making sure that the table can be deleted, and deleting it.
pub(crate) struct Text {
    pub(crate) out: String,
}

impl Text {
    pub(crate) fn new(table: &str) -> Self {
        Text { out: format!("table inet {table}\ndelete table inet {table}\n") }
    }

    pub(crate) fn line(&mut self, depth: usize, line: &str) {
        for _ in 0..depth {
            self.out.push_str("  ");
        }
        self.out.push_str(line);
        self.out.push('\n');
    }
}
