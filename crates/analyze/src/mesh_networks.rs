//! Networks of the mesh that name a cluster nobody knows.
//!
//! Invariant: clusters are known by the secrets that lead to them.

use carrick_api::parse;
use serde_json::Value;

use crate::objects::{items, labels, text};
use crate::report::Report;

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let Some(map) = objects.find("", "ConfigMap", objects.root(), "istio") else { return };
    let Some(networks) = parse::documents(map.text_at("/data/meshNetworks").as_bytes())
        .ok()
        .and_then(|documents| documents.into_iter().next())
    else {
        return;
    };
    let mut known = vec!["Mock".to_owned(), "Kubernetes".to_owned(), "External".to_owned()];
    for secret in objects.of("", "Secret").iter().filter(|s| s.labels().get("istio/multiCluster") == Some(&"true")) {
        for field in ["/data", "/stringData"] {
            known.extend(labels(secret.at(field)).keys().map(|name| (*name).to_owned()));
        }
    }
    let all = networks.get("networks").and_then(Value::as_object).into_iter().flatten();
    for (name, network) in all {
        for endpoint in items(network, "endpoints") {
            let registry = text(endpoint, "fromRegistry");
            if !registry.is_empty() && !known.iter().any(|known| known == registry) {
                report.add(
                    "IST0126",
                    map,
                    "data.meshNetworks",
                    format!("Unknown service registry {registry} in network {name}"),
                );
            }
        }
    }
}
