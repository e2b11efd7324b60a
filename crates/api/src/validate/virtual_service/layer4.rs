//! `tls` and `tcp` routes.
//!
//! Invariant: a server name that is matched on belongs to the hosts of the object.

use super::super::{Findings, Node, names};
use super::{common_match, covered, destinations, domain};

pub(super) fn tls(route: &Node<'_>, hosts: &[&str], bound: bool, findings: &mut Findings) {
    let matches = route.field("match");
    if matches.is_empty() {
        findings.error(&matches.path, "TLS route must have at least one match condition");
    }
    for wanted in matches.items() {
        let names = wanted.field("sniHosts");
        if names.is_empty() {
            findings.error(&names.path, "TLS match must have at least one SNI host");
        }
        for name in names.items() {
            sni(&name, hosts, bound, findings);
        }
        subnets(&wanted, findings);
        common_match(&wanted, findings);
    }
    targets(route, "TLS", findings);
}

pub(super) fn tcp(route: &Node<'_>, findings: &mut Findings) {
    for wanted in route.field("match").items() {
        subnets(&wanted, findings);
        common_match(&wanted, findings);
    }
    targets(route, "TCP", findings);
}

fn targets(route: &Node<'_>, what: &str, findings: &mut Findings) {
    let list = route.field("route");
    if list.is_empty() {
        findings.error(&list.path, format!("{what} route is required"));
    }
    destinations(&list, findings);
}

fn sni(name: &Node<'_>, hosts: &[&str], bound: bool, findings: &mut Findings) {
    let text = name.text();
    if let Err(message) = domain(text, bound, true) {
        if names::is_ip(text) {
            findings.warning(
                &name.path,
                format!("using an IP address ({text:?}) goes against SNI spec and most clients do not support this"),
            );
        } else {
            findings.error(&name.path, message);
        }
        return;
    }
    if !hosts.iter().any(|host| covered(text, host)) {
        findings.error(
            &name.path,
            format!(
                "SNI host {text:?} is not a compatible subset of any of the virtual service hosts: [{}]",
                hosts.join(", ")
            ),
        );
    }
}

fn subnets(wanted: &Node<'_>, findings: &mut Findings) {
    for subnet in wanted.field("destinationSubnets").items() {
        if !names::is_subnet(subnet.text()) {
            let what = if subnet.text().contains('/') { "a valid CIDR block" } else { "a valid IP" };
            findings.error(&subnet.path, format!("{} is not {what}", subnet.text()));
        }
    }
}
