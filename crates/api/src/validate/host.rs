//! Hosts with a namespace before them, as gateways and sidecars name them.
//!
//! Invariant: what a gateway takes and a sidecar does not (addresses, hosts without a namespace) is told by where the host
//! stands, not by its form.

use super::{Findings, Node, names};

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Gateway,
    Sidecar,
}

/// `namespace/host`; for a gateway also the host alone.
pub(super) fn scoped(node: &Node<'_>, place: Place, findings: &mut Findings) {
    let Some((namespace, host)) = node.text().split_once('/') else {
        if place == Place::Gateway {
            plain(node.text(), place, node, findings);
        } else {
            findings.error(&node.path, "host must be of form namespace/dnsName");
        }
        return;
    };
    if namespace.is_empty() || host.is_empty() {
        findings.error(&node.path, "config namespace and dnsName in host entry cannot be empty");
        return;
    }
    // A sidecar excludes a namespace by a leading `~`; alone it means none.
    let (named, where_) = match place {
        Place::Gateway => (namespace, "gateway"),
        Place::Sidecar => (namespace.strip_prefix('~').unwrap_or(namespace), "sidecar"),
    };
    if !(named.is_empty() || named == "*" || named == "." || names::is_label(named)) {
        findings.error(&node.path, format!("invalid namespace value {namespace:?} in {where_}"));
    }
    plain(host, place, node, findings);
}

fn plain(host: &str, place: Place, node: &Node<'_>, findings: &mut Findings) {
    let address = place == Place::Gateway && names::is_ip(host);
    if let Err(message) = names::wildcard_domain(host).or_else(|message| if address { Ok(()) } else { Err(message) }) {
        findings.error(&node.path, message);
    } else if host != "*" && !host.contains('.') {
        findings.error(&node.path, "short names (non FQDN) are not allowed");
    } else if names::is_partial_wildcard(host) {
        findings.error(&node.path, format!("partial wildcard {host:?} not allowed"));
    }
}

/// A name of a gateway: `namespace/name`, `name`, or (of old) a dotted name.
pub(super) fn gateways(list: &Node<'_>, findings: &mut Findings) {
    for gateway in list.items() {
        let name = gateway.text();
        let Some((namespace, gateway_name)) = name.split_once('/') else {
            if let Some((short, rest)) = name.split_once('.') {
                let owner = rest.split('.').next().unwrap_or_default();
                findings.warning(
                    &gateway.path,
                    format!("using legacy gatewayName format {name:?}; prefer the <namespace>/<name> format: \"{owner}/{short}\""),
                );
            }
            if let Err(message) = names::fqdn(name) {
                findings.error(&gateway.path, message);
            }
            continue;
        };
        if namespace.is_empty() || gateway_name.is_empty() {
            findings.error(&gateway.path, "config namespace and gateway name cannot be empty");
            continue;
        }
        if !names::is_label(namespace) {
            findings.error(&gateway.path, format!("invalid value for namespace: {namespace:?}"));
        }
        if !names::is_label(gateway_name) {
            findings.error(&gateway.path, format!("invalid value for gateway name: {gateway_name:?}"));
        }
    }
}
