//! The chains of TPROXY mode: what comes in reaches the proxy as it was sent, and what the proxy then sends its application bears the
//! client's address (semantics §17.4).
//!
//! Invariant: answers of the application to such an address come back to the proxy and to nobody else: their connection was marked
//! when the proxy opened it, and [`crate::routes`] brings marked packets to this machine.

use super::{InboundPorts, SidecarCapture, TUNNEL_PORT, Text, has_inbound, port_set};
use crate::routes::MARK;

/// Before the hooks of [`super::ruleset`] that turn addresses around.
pub(super) fn chains(text: &mut Text, capture: &SidecarCapture) {
    if !has_inbound(capture) {
        return;
    }
    // In what a connection's client sends; what the pod asked for itself comes back by its own sockets.
    let to_proxy = format!("ct direction original meta l4proto tcp tproxy to :{} accept", capture.inbound_port);
    // Where no proxy listens the rule above lets a packet go on, to the application.
    let else_nowhere = "ct direction original meta l4proto tcp reject with tcp reset";
    text.line(1, "chain divert_inbound {");
    text.line(2, &format!("tcp dport {TUNNEL_PORT} return"));
    match &capture.inbound {
        InboundPorts::All => {
            if !capture.exclude_inbound_ports.is_empty() {
                text.line(2, &format!("tcp dport {} return", port_set(&capture.exclude_inbound_ports)));
            }
            text.line(2, &to_proxy);
            text.line(2, else_nowhere);
        }
        InboundPorts::Only(ports) => {
            for what in [to_proxy.as_str(), else_nowhere] {
                text.line(2, &format!("tcp dport {} {what}", port_set(ports)));
            }
        }
    }
    text.line(1, "}");
    text.line(1, "chain divert_prerouting {");
    text.line(2, "type filter hook prerouting priority mangle; policy accept;");
    text.line(2, &format!("iifname \"lo\" meta l4proto tcp meta mark {MARK} ct mark set {MARK}"));
    text.line(2, "iifname \"lo\" return");
    for interface in capture.exclude_interfaces.iter().chain(&capture.virtual_interfaces) {
        text.line(2, &format!("iifname \"{interface}\" return"));
    }
    text.line(2, "meta l4proto tcp jump divert_inbound");
    text.line(1, "}");
    text.line(1, "chain divert_output {");
    text.line(2, "type route hook output priority mangle; policy accept;");
    text.line(2, &format!("meta l4proto tcp ct direction reply ct mark {MARK} meta mark set {MARK}"));
    text.line(1, "}");
}
