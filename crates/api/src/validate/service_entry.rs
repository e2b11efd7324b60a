//! Rules of `ServiceEntry` (spec §28, §11).
//!
//! Invariant: what a resolution cannot use (endpoints, addresses, wildcards) is refused with it.

use std::collections::BTreeSet;

use super::{Findings, Node, attachment, export, names, workload_entry};
use crate::protocol::Protocol;

const RESOLUTIONS: [&str; 5] = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    let namespace = object.field("metadata").field("namespace").text();
    let resolution = spec.field("resolution").choice(&RESOLUTIONS);
    attachment::labels(&spec.field("workloadSelector"), "labels", findings);
    if spec.field("workloadSelector").is_set() && spec.field("endpoints").is_set() {
        findings.error(&spec.path, "only one of WorkloadSelector or Endpoints is allowed in Service Entry");
    }
    hosts(&spec.field("hosts"), resolution, findings);
    addresses(&spec.field("addresses"), resolution, findings);
    let ports = ports(&spec, resolution, object, findings);
    match resolution {
        "NONE" => {
            let endpoints = spec.field("endpoints");
            if !endpoints.is_empty() {
                findings.error(&endpoints.path, "no endpoints should be provided for resolution type none");
            }
            let selector = spec.field("workloadSelector");
            if selector.is_set() {
                findings.warning(&selector.path, "workloadSelector should not be set when resolution mode is NONE");
            }
        }
        "STATIC" => {
            for endpoint in spec.field("endpoints").items() {
                workload_entry::entry(&endpoint, Some(&ports), false, findings);
            }
        }
        "DYNAMIC_DNS" => dynamic(&spec, object, findings),
        _ => dns(&spec, resolution, &ports, findings),
    }
    several_hosts(&spec, resolution, findings);
    export::check(&spec.field("exportTo"), namespace, true, findings);
}

fn hosts(hosts: &Node<'_>, resolution: &str, findings: &mut Findings) {
    if hosts.is_empty() {
        findings.error(&hosts.path, "service entry must have at least one host");
    }
    if hosts.len() > 256 {
        findings.error(&hosts.path, format!("must have at most 256 items, not {}", hosts.len()));
    }
    for host in hosts.items() {
        if host.text() == "*" {
            findings.error(&host.path, "invalid host *");
        } else if let Err(message) = names::wildcard_domain(host.text()) {
            findings.error(&host.path, message);
        } else if resolution != "DYNAMIC_DNS" && names::is_partial_wildcard(host.text()) {
            findings.warning(&host.path, format!("partial wildcard {:?} not allowed", host.text()));
        }
    }
}

fn addresses(addresses: &Node<'_>, resolution: &str, findings: &mut Findings) {
    if addresses.len() > 256 {
        findings.error(&addresses.path, format!("must have at most 256 items, not {}", addresses.len()));
    }
    for address in addresses.items() {
        let text = address.text();
        if !names::is_subnet(text) {
            let what = if text.contains('/') { "a valid CIDR block" } else { "a valid IP" };
            findings.error(&address.path, format!("{text} is not {what}"));
        }
        if text.contains('/') && !matches!(resolution, "NONE" | "STATIC") {
            findings.error(&address.path, "CIDR addresses are allowed only for NONE/STATIC resolution types");
        }
    }
}

/// Whether the entry gets addresses by itself: it can use some, and nobody said no.
fn allocates(resolution: &str, object: &Node<'_>) -> bool {
    let labels = object.field("metadata").field("labels");
    let wish = labels.field("networking.istio.io/enable-autoallocate-ip").text();
    resolution != "NONE" && !wish.eq_ignore_ascii_case("false")
}

/// Judges the ports and returns their names.
fn ports<'a>(spec: &Node<'a>, resolution: &str, object: &Node<'_>, findings: &mut Findings) -> BTreeSet<&'a str> {
    let list = spec.field("ports");
    if list.len() > 256 {
        findings.error(&list.path, format!("must have at most 256 items, not {}", list.len()));
    }
    let (mut seen, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let bare = spec.field("addresses").is_empty() && !allocates(resolution, object);
    for port in list.items() {
        let (name, number, protocol) = (port.field("name"), port.field("number"), port.field("protocol"));
        if !seen.insert(name.text()) {
            findings.error(&name.path, format!("service entry port name {:?} already defined", name.text()));
        }
        if !numbers.insert(number.number()) {
            findings.error(&number.path, format!("service entry port {} already defined", number.number()));
        }
        let target = port.field("targetPort");
        if target.number() != 0 {
            findings.port_number(&target);
        }
        if bare && matches!(protocol.text(), "" | "TCP") {
            findings.warning(
                &protocol.path,
                "addresses are required for ports serving TCP (or unset) protocol when IP Autoallocation is not enabled",
            );
        }
        findings.port_name(&name.path, name.text());
        findings.protocol(&protocol);
        findings.port_number(&number);
    }
    seen
}

fn dns(spec: &Node<'_>, resolution: &str, ports: &BTreeSet<&str>, findings: &mut Findings) {
    let endpoints = spec.field("endpoints");
    if endpoints.is_empty() {
        let bad = spec.field("hosts").items().into_iter().find(|host| names::fqdn(host.text()).is_err());
        if let Some(host) = bad.filter(|host| host.text() != "*") {
            findings.error(
                &host.path,
                format!("hosts must be FQDN if no endpoints are provided for resolution mode {resolution}"),
            );
        }
    }
    if resolution == "DNS_ROUND_ROBIN" && endpoints.len() > 1 {
        findings.error(&endpoints.path, format!("there must only be 0 or 1 endpoint for resolution mode {resolution}"));
    }
    for endpoint in endpoints.items() {
        let address = endpoint.field("address");
        if !names::is_ip(address.text()) && names::fqdn(address.text()).is_err() {
            findings.error(
                &address.path,
                format!("endpoint address {:?} is not a valid FQDN or an IP address", address.text()),
            );
        }
        workload_entry::labels(&endpoint.field("labels"), findings);
        workload_entry::ports(&endpoint.field("ports"), Some(ports), findings);
    }
    let over_tcp = |port: &Node<'_>| {
        Protocol::parse(port.field("protocol").text()).is_some_and(|p| !p.is_http() && p != Protocol::Udp)
    };
    let many = spec.field("hosts").len() > 1 && !spec.field("addresses").is_empty();
    if many && spec.field("ports").items().iter().any(over_tcp) {
        findings.warning(
            &spec.field("hosts").path,
            "service entry can not have more than one host specified simultaneously with address and tcp port",
        );
    }
}

fn dynamic(spec: &Node<'_>, object: &Node<'_>, findings: &mut Findings) {
    for host in spec.field("hosts").items().iter().filter(|host| !host.text().starts_with('*')) {
        findings.error(&host.path, "host must be wildcarded for resolution mode DYNAMIC_DNS");
    }
    for field in ["addresses", "endpoints"] {
        let list = spec.field(field);
        if !list.is_empty() {
            findings.error(&list.path, format!("{field} cannot be set for resolution type DYNAMIC_DNS"));
        }
    }
    for port in spec.field("ports").items() {
        let protocol = port.field("protocol");
        let known = Protocol::parse(protocol.text());
        if !matches!(known, Some(Protocol::Http | Protocol::Tls | Protocol::Grpc | Protocol::Http2)) {
            findings.error(
                &protocol.path,
                "only HTTP, TLS, GRPC, and HTTP2 protocols are supported for resolution type DYNAMIC_DNS",
            );
        }
    }
    let location = spec.field("location");
    let waypoint = object.field("metadata").field("labels").field("istio.io/use-waypoint");
    let uses_waypoint = !waypoint.text().is_empty() && !waypoint.text().eq_ignore_ascii_case("none");
    if location.choice(&["MESH_EXTERNAL", "MESH_INTERNAL"]) == "MESH_INTERNAL" && uses_waypoint {
        findings.error(
            &location.path,
            "location MESH_INTERNAL with resolution type DYNAMIC_DNS is not supported when using waypoints",
        );
    }
}

/// Of several hosts behind one address only HTTP and TLS tell which is meant.
fn several_hosts(spec: &Node<'_>, resolution: &str, findings: &mut Findings) {
    if resolution == "NONE" || spec.field("hosts").len() <= 1 {
        return;
    }
    let tells = |port: &Node<'_>| {
        Protocol::parse(port.field("protocol").text())
            .is_some_and(|p| p.is_http() || matches!(p, Protocol::Https | Protocol::Tls))
    };
    if let Some(port) = spec.field("ports").items().iter().find(|port| !tells(port)) {
        findings.error(&port.path.field("protocol"), "multiple hosts provided with non-HTTP, non-TLS ports");
    }
}
