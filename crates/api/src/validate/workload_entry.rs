//! Rules of `WorkloadEntry`, also where one stands as an endpoint of a service entry (spec §28, §11.6).
//!
//! Invariant: an address is an IP address, a host name where names are resolved, or the path of a socket.

use std::collections::BTreeSet;

use super::{Findings, Node, names};

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    entry(&object.field("spec"), None, true, findings);
}

/// One entry. `service_ports`: names of the ports of the service that it belongs to.
pub(super) fn entry(
    entry: &Node<'_>,
    service_ports: Option<&BTreeSet<&str>>,
    names_allowed: bool,
    findings: &mut Findings,
) {
    let address = entry.field("address");
    let text = address.text();
    let network = entry.field("network").text();
    if text.is_empty() {
        if network.is_empty() {
            findings.error(&address.path, "address is required");
            return;
        }
        findings.warning(&address.path, format!("address is unset with network {network:?}"));
    }
    if text.len() > 256 {
        findings.error(&address.path, "address may not be longer than 256 bytes");
    }
    if let Some(path) = text.strip_prefix("unix://") {
        if let Err(message) = names::unix_path(path) {
            findings.error(&address.path, message);
        }
        if !entry.field("ports").is_empty() {
            findings.error(&entry.path.field("ports"), format!("unix endpoint {text} must not include ports"));
        }
        if service_ports.is_some_and(|ports| ports.len() != 1) {
            findings.error(&address.path, "exactly 1 service port required for unix endpoints");
        }
    } else if !text.is_empty() && !names::is_ip(text) {
        if !names_allowed {
            findings.error(&address.path, format!("endpoint address {text:?} is not a valid IP address"));
        } else if names::fqdn(text).is_err() {
            findings.error(&address.path, format!("endpoint address {text:?} is not a valid FQDN or an IP address"));
        }
    }
    ports(&entry.field("ports"), service_ports, findings);
    labels(&entry.field("labels"), findings);
}

/// Port numbers by name.
pub(super) fn ports(ports: &Node<'_>, service_ports: Option<&BTreeSet<&str>>, findings: &mut Findings) {
    for (name, port) in ports.entries() {
        if service_ports.is_some_and(|known| !known.contains(name)) {
            findings.error(&port.path, format!("endpoint port {} is not defined by the service entry", port.number()));
        }
        findings.port_name(&port.path, name);
        findings.port_number(&port);
    }
}

/// Labels of a workload.
pub(super) fn labels(labels: &Node<'_>, findings: &mut Findings) {
    for (key, value) in labels.entries() {
        if !names::is_label_key(key) {
            findings.error(&value.path, format!("invalid label key: {key:?}"));
        } else if !names::is_label_value(value.text()) {
            findings.error(&value.path, format!("invalid label value: {:?}", value.text()));
        }
    }
}
