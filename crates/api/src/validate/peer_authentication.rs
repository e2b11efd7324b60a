//! Rules of `PeerAuthentication` (spec §1.9).
//!
//! Invariant: port levels exist only where a selector names workloads, since a port number means nothing for a namespace.

use carrick_base::FieldPath;

use super::{Findings, selector};
use crate::istio::peer_authentication::PeerAuthentication;

pub(super) fn check(policy: &PeerAuthentication, findings: &mut Findings) {
    let spec = FieldPath::new("spec");
    selector::check(policy.spec.selector.as_ref(), &spec.field("selector"), findings);
    let Some(ports) = &policy.spec.port_level_mtls else { return };
    let path = spec.field("portLevelMtls");
    if ports.is_empty() {
        findings.error(&path, "port level mtls, if specified, must have at least one element");
    } else if !policy.spec.selects_workloads() {
        findings.error(&path, "mtls port level settings must be used with a workload selector");
    }
    for port in ports.keys() {
        findings.port(&path.key(&port.to_string()), *port);
    }
}
