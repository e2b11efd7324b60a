//! What keeps quarantined identities out of an Envoy: a filter in front of each inbound chain that closes their connections.
//!
//! Invariant: with nobody quarantined there is no filter at all. Envoy cannot be told to cut what is open, and knows no
//! serials here; chains that change are drained by it, which ends their connections within its drain time.

use carrick_api::{EnvoyFilter, from_value};
use carrick_ledger::list;
use serde_json::{Value, json};
use std::sync::Arc;
use tracing::error;

/// The filter, in the words in which everybody's filters are inserted.
pub(super) fn barrier(root_namespace: &str, identities: &[&str]) -> Option<Arc<EnvoyFilter>> {
    if identities.is_empty() {
        return None;
    }
    let principal = |id: &&str| json!({"authenticated": {"principal_name": {"exact": id}}});
    let rules = json!({
        "action": "DENY",
        "policies": {"quarantine": {
            "permissions": [{"any": true}],
            "principals": identities.iter().map(principal).collect::<Vec<_>>(),
        }},
    });
    let value = json!({
        "name": list::CONFIG_MAP,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "quarantine.",
            "rules": rules,
        },
    });
    let patch = |context: &str| -> Value {
        json!({
            "applyTo": "NETWORK_FILTER",
            "match": {"context": context, "listener": {"filterChain": {}}},
            "patch": {"operation": "INSERT_FIRST", "value": value},
        })
    };
    let object = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": list::CONFIG_MAP, "namespace": root_namespace},
        "spec": {"configPatches": [patch("SIDECAR_INBOUND"), patch("GATEWAY")]},
    });
    match from_value(&object) {
        Ok(filter) => Some(Arc::new(filter)),
        Err(problem) => {
            error!(message = problem.message, "the filter of the quarantine");
            None
        }
    }
}
