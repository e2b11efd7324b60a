//! RBAC of connections, before anything of them is served.
//!
//! Invariant: asked once the handshake has shown who the peer is, and before an upstream is connected. Envoy waits for the first byte of
//! the client; whoever is refused there is refused here, only earlier.

use crate::info::Info;
use crate::worker::Worker;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::filter::FilterStateKey;
use carrick_proxy_core::model::metadata::Metadata;
use carrick_proxy_core::rbac::Subject;

/// Why a connection is refused, in Envoy's words; `None` if it is not.
pub(crate) fn refusal(worker: &Worker, info: &Info) -> Option<String> {
    if info.chain.rbac.is_empty() {
        return None;
    }
    let state: Vec<(Name, String)> = info
        .chain
        .on_new_connection
        .iter()
        .filter_map(|set| match &set.key {
            FilterStateKey::Text(key) => Some((key.clone(), set.value.text(&facts(info)))),
            _ => None,
        })
        .collect();
    let mut metadata = Metadata::default();
    for filter in &info.chain.rbac {
        let subject = Subject {
            request: None,
            local: info.local,
            remote: info.peer,
            source: info.peer,
            direct: info.direct,
            server_name: info.server_name.as_deref().unwrap_or_default(),
            peer: info.certificate_names(),
            metadata: &metadata,
            route_metadata: None,
            filter_state: &state,
        };
        let decision = filter.decide(&subject);
        for counted in decision.counted.into_iter().flatten() {
            if let Some(counter) = filter.counters.get(counted as usize) {
                worker.stats.filter(None, counter);
            }
        }
        if let Some(details) = decision.details() {
            return Some(details);
        }
        let learned = decision.metadata;
        metadata.0.entry(carrick_proxy_core::rbac::NETWORK.into()).or_default().extend(learned);
    }
    None
}

fn facts(info: &Info) -> Facts<'_> {
    Facts {
        local: Some(info.local),
        remote: Some(info.peer),
        direct_remote: Some(info.peer),
        server_name: info.server_name.as_deref(),
        peer_uri_san: info.tls.as_ref().and_then(|t| t.principal.as_deref()),
        ..Facts::default()
    }
}
