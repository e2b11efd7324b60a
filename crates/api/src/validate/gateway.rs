//! Rules of `Gateway` (spec §28, §9).
//!
//! Invariant: each server is judged alone, except that names of ports are unique among them.

use std::collections::BTreeSet;

use super::host::Place;
use super::{Findings, Node, host, names, server_tls};
use crate::protocol::Protocol;

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let name = object.field("metadata").field("name");
    if !name.text().is_empty() && !names::is_label(name.text()) {
        findings.error(&name.path, format!("invalid gateway name: {:?}", name.text()));
    }
    let servers = object.field("spec").field("servers");
    if servers.is_empty() {
        findings.error(&servers.path, "gateway must have at least one server");
    }
    let mut seen = BTreeSet::new();
    for server in servers.items() {
        self::server(&server, findings);
        let port = server.field("port");
        if port.is_set() && !seen.insert(port.field("name").text()) {
            findings.error(
                &port.path.field("name"),
                format!("port names in servers must be unique: duplicate name {}", port.field("name").text()),
            );
        }
    }
}

fn server(server: &Node<'_>, findings: &mut Findings) {
    let hosts = server.field("hosts");
    if hosts.is_empty() {
        findings.error(&hosts.path, "server config must contain at least one host");
    }
    for host in hosts.items() {
        host::scoped(&host, Place::Gateway, findings);
    }
    let port_fits = port(server, findings);
    let tls = server.field("tls");
    server_tls::check(&tls, findings);
    if let Some(protocol) = port_fits {
        fits(protocol, &tls, findings);
    }
}

/// The port's protocol, when the port is good.
fn port(server: &Node<'_>, findings: &mut Findings) -> Option<Protocol> {
    let port = server.field("port");
    let bind = server.field("bind");
    let number = port.field("number");
    if let Some(path) = bind.text().strip_prefix("unix://") {
        if let Err(message) = names::unix_path(path) {
            findings.error(&bind.path, message);
        }
        if number.number() != 0 {
            findings.error(&number.path, "port number must be 0 for unix domain socket");
        }
    } else if !bind.text().is_empty() && !names::is_ip(bind.text()) {
        findings.error(&bind.path, format!("{} is not a valid IP", bind.text()));
    }
    if !port.is_set() {
        findings.error(&port.path, "port is required");
        return None;
    }
    let before = findings.errors();
    let word = port.field("protocol");
    let protocol = Protocol::parse(word.text()).filter(|protocol| *protocol != Protocol::Hbone);
    if protocol.is_none() {
        findings.error(
            &word.path,
            format!(
                "invalid protocol {:?}, supported protocols are HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TLS, MONGO, REDIS, MYSQL, TCP",
                word.text()
            ),
        );
    }
    if number.number() > 0 || !bind.text().starts_with("unix://") {
        findings.port_number(&number);
    }
    if port.field("targetPort").number() > 0 {
        findings.error(&port.path.field("targetPort"), "targetPort has no impact on Gateways");
    }
    if port.field("name").text().is_empty() {
        findings.error(&port.path.field("name"), "port name must be set");
    }
    protocol.filter(|_| findings.errors() == before)
}

/// Whether the TLS settings are of the port's protocol.
fn fits(protocol: Protocol, tls: &Node<'_>, findings: &mut Findings) {
    let over_tls = matches!(protocol, Protocol::Https | Protocol::Tls);
    if !protocol.is_http() && tls.field("httpsRedirect").flag() {
        findings.warning(&tls.path.field("httpsRedirect"), "tls.httpsRedirect should only be used with http servers");
    }
    if over_tls && !tls.is_set() {
        findings.error(&tls.path, "server must have TLS settings for HTTPS/TLS protocols");
    } else if !over_tls && tls.is_set() {
        let files = ["caCertificates", "privateKey", "serverCertificate"];
        let bare = files.iter().all(|field| tls.field(field).text().is_empty());
        if !protocol.is_http() {
            findings.error(&tls.path, "server cannot have TLS settings for non HTTPS/TLS ports");
        } else if !bare || !matches!(server_tls::mode(tls), "PASSTHROUGH" | "AUTO_PASSTHROUGH") {
            findings.error(&tls.path, "server cannot have TLS settings for plain text HTTP ports");
        }
    }
}
