//! PeerAuthentication objects (semantics §1.1).
//!
//! Invariant: a port outside of 1..=65535 is left out and told of; the rest of its policy stays in force.

use carrick_api::{MutualTlsMode, PeerAuthentication};
use carrick_base::{Diagnostic, Severity};

use super::{finding, origin};
use crate::{
    codes,
    model::{MtlsMode, PeerAuth},
};

fn mode(from: MutualTlsMode) -> Option<MtlsMode> {
    match from {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(MtlsMode::Disable),
        MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        MutualTlsMode::Strict => Some(MtlsMode::Strict),
    }
}

pub(crate) fn read(from: &PeerAuthentication, found: &mut Vec<Diagnostic>) -> PeerAuth {
    let origin = origin("PeerAuthentication", &from.metadata);
    let mut ports = std::collections::BTreeMap::new();
    for (number, level) in from.spec.port_level_mtls.iter().flatten() {
        match u16::try_from(*number).ok().filter(|n| *n > 0) {
            Some(port) => {
                ports.insert(port, mode(level.mode));
            }
            None => found.push(finding(
                &origin,
                codes::UNREADABLE,
                Severity::Error,
                "spec.portLevelMtls",
                format!("{number} is not a port"),
            )),
        }
    }
    let selector = from.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
    PeerAuth { mode: mode(from.spec.mode()), origin, selector, ports }
}
