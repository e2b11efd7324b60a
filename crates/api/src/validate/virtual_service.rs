//! Rules of `VirtualService` (spec §28, §10).
//!
//! Invariant: a route that a proxy could not be told, or that says two things at once, is refused; one that never is
//! reached is told.

mod http;
mod layer4;
mod unreachable;

pub(super) use self::http::retries;
use super::{Findings, Node, export, header, host, names};

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    let namespace = object.field("metadata").field("namespace").text();
    let hosts = spec.field("hosts");
    let gateways = spec.field("gateways");
    let delegate = hosts.is_empty();
    if delegate {
        for (field, what) in [("gateways", "gateways"), ("tls", "tls route"), ("tcp", "tcp route")] {
            if !spec.field(field).is_empty() {
                findings
                    .error(&spec.path.field(field), format!("delegate virtual service must have no {what} specified"));
            }
        }
    }
    host::gateways(&gateways, findings);
    let bound = !gateways.is_empty() && !gateways.texts().contains(&"mesh");
    if !bound {
        claims(&spec, findings);
    }
    self::hosts(&spec, bound, findings);
    if ["http", "tcp", "tls"].iter().all(|field| spec.field(field).is_empty()) {
        findings.error(&spec.path, "http, tcp or tls must be provided in virtual service");
    }
    for route in spec.field("http").items() {
        http::route(&route, delegate, findings);
    }
    for route in spec.field("tls").items() {
        layer4::tls(&route, &hosts.texts(), bound, findings);
    }
    for route in spec.field("tcp").items() {
        layer4::tcp(&route, findings);
    }
    export::check(&spec.field("exportTo"), namespace, false, findings);
    for (field, named) in [("http", true), ("tcp", false), ("tls", false)] {
        unreachable::check(&spec.field(field), named, findings);
    }
}

/// Claims of a token are only known where the token is verified and routes are chosen: at gateways.
fn claims(spec: &Node<'_>, findings: &mut Findings) {
    for route in spec.field("http").items() {
        for wanted in route.field("match").items() {
            for field in ["headers", "withoutHeaders"] {
                for (name, place) in wanted.field(field).entries() {
                    if header::is_claim(name) {
                        findings.error(
                            &place.path,
                            format!(
                                "JWT claim based routing (key: {name}) is only supported for gateway, found no gateways"
                            ),
                        );
                    }
                }
            }
        }
    }
}

fn hosts(spec: &Node<'_>, bound: bool, findings: &mut Findings) {
    let hosts = spec.field("hosts");
    let by_sni = spec
        .field("tls")
        .items()
        .iter()
        .flat_map(|route| route.field("match").items())
        .any(|wanted| !wanted.field("sniHosts").is_empty());
    let mut all_good = true;
    for host in hosts.items() {
        let text = host.text();
        match domain(text, bound, by_sni) {
            Err(_) if names::is_ip(text) => {}
            Err(message) => {
                findings.error(&host.path, message);
                all_good = false;
            }
            Ok(()) if !bound && text == "*" => {
                findings
                    .error(&host.path, "wildcard host * is not allowed for virtual services bound to the mesh gateway");
                all_good = false;
            }
            Ok(()) => {}
        }
    }
    if !all_good {
        return;
    }
    let list = hosts.items();
    for (index, later) in list.iter().enumerate() {
        for earlier in list.iter().take(index).filter(|earlier| overlap(earlier.text(), later.text())) {
            findings.error(
                &later.path,
                format!("duplicate hosts in virtual service: {} & {}", earlier.text(), later.text()),
            );
        }
    }
}

/// A host; at a gateway that passes TLS through also a sidecar's own form, `outbound_.80_._.host`.
fn domain(host: &str, bound: bool, by_sni: bool) -> Result<(), String> {
    if !(bound && by_sni && host.starts_with("outbound_")) {
        return names::wildcard_domain(host);
    }
    let parts: Vec<&str> = host.split('_').collect();
    let form = || format!("domain name {host} invalid, should follow outbound_.<PORT>_._.<HOSTNAME> format");
    let (Some(port), Some(name)) = (parts.get(1), parts.get(3)) else { return Err(form()) };
    let fits = port.bytes().any(|b| b.is_ascii_digit()) && name.bytes().any(|b| b.is_ascii_alphabetic());
    if fits && host.len() <= 255 { Ok(()) } else { Err(form()) }
}

/// Whether a name could be meant by both: wildcards by their suffixes.
fn overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(a), None) => b.ends_with(a),
        (None, Some(b)) => a.ends_with(b),
        (None, None) => a == b,
    }
}

/// Whether every name that `host` means is meant by `of`.
fn covered(host: &str, of: &str) -> bool {
    match (host.strip_prefix('*'), of.strip_prefix('*')) {
        (Some(host), Some(of)) => host.len() >= of.len() && host.ends_with(of),
        (Some(_), None) => false,
        (None, Some(of)) => host.ends_with(of),
        (None, None) => host == of,
    }
}

/// A destination: host, subset, port.
pub(super) fn destination(destination: &Node<'_>, findings: &mut Findings) {
    let host = destination.field("host");
    if host.text() == "*" {
        findings.error(&host.path, "invalid destination host *");
    } else if let Err(message) = names::wildcard_domain(host.text()) {
        findings.error(&host.path, message);
    }
    let subset = destination.field("subset");
    if !subset.text().is_empty() && !names::is_label(subset.text()) {
        findings.error(&subset.path, format!("subset name is invalid: {}", subset.text()));
    }
    let port = destination.field("port");
    if port.is_set() {
        findings.port_number(&port.field("number"));
    }
}

/// The list of weighted destinations of a route.
fn destinations(list: &Node<'_>, findings: &mut Findings) {
    let mut total = 0;
    for entry in list.items() {
        let target = entry.field("destination");
        if target.is_set() {
            destination(&target, findings);
        } else {
            findings.error(&target.path, "destination is required");
        }
        header::operations(&entry.field("headers"), findings);
        let weight = entry.field("weight");
        if weight.number() < 0 {
            findings.error(&weight.path, format!("weight {} < 0", weight.number()));
        }
        total += weight.number();
    }
    if list.len() > 1 && total == 0 {
        findings.error(&list.path, "total destination weight = 0");
    }
}

/// What HTTP, TLS and TCP matches have in common.
fn common_match(wanted: &Node<'_>, findings: &mut Findings) {
    let port = wanted.field("port");
    if port.number() != 0 {
        findings.port_number(&port);
    }
    super::workload_entry::labels(&wanted.field("sourceLabels"), findings);
    host::gateways(&wanted.field("gateways"), findings);
    let namespace = wanted.field("sourceNamespace");
    if !namespace.text().is_empty() && !names::is_label(namespace.text()) {
        findings.error(&namespace.path, format!("sourceNamespace match {} is invalid", namespace.text()));
    }
}
