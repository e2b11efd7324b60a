//! Labels and annotations that injection adds to a pod.
//!
//! Invariant: what the user set is kept; only what is missing is added, but for `security.istio.io/tlsMode`, which says
//! what the proxy does and not what somebody wishes. Source: spec §16.3.

use std::collections::BTreeMap;

use serde_json::json;

use crate::proxy::CONTAINER_NAME;

/// What the additions depend on.
#[derive(Debug, Clone, Copy)]
pub struct MetadataFacts<'a> {
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    /// The name of the deployment or of what else owns the pod; the pod's own name when nothing does.
    pub owner_name: &'a str,
    /// Containers of the application, in order.
    pub containers: &'a [String],
    pub revision: &'a str,
    /// Whether the proxy is a gateway: nobody may assume mutual TLS of its ports, so it gets no `tlsMode`.
    pub gateway: bool,
    /// The network that the pod is in; empty when the mesh has only one.
    pub network: &'a str,
}

/// What is to be added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Added {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Longest label value.
const LABEL_LIMIT: usize = 63;

/// The labels and annotations to set on an injected pod.
pub fn added(facts: &MetadataFacts<'_>) -> Added {
    let mut added = Added::default();
    let label = |name: &str| facts.labels.get(name).map(String::as_str).filter(|v| !v.is_empty());
    if !facts.gateway {
        added.labels.insert("security.istio.io/tlsMode".into(), "istio".into());
    }
    if label("service.istio.io/canonical-name").is_none() {
        let name = label("app.kubernetes.io/name").or_else(|| label("app")).unwrap_or(facts.owner_name);
        if let Some(name) = label_value(name) {
            added.labels.insert("service.istio.io/canonical-name".into(), name);
        }
    }
    if label("service.istio.io/canonical-revision").is_none() {
        let revision = label("app.kubernetes.io/version").or_else(|| label("version")).unwrap_or("latest");
        added.labels.insert("service.istio.io/canonical-revision".into(), revision.to_owned());
    }
    if !facts.network.is_empty() && label("topology.istio.io/network").is_none() {
        added.labels.insert("topology.istio.io/network".into(), facts.network.to_owned());
    }

    // A pod of `carrick run` has no init containers and no volumes of the injector's; the lists say so.
    let status = json!({
        "initContainers": null,
        "containers": [CONTAINER_NAME],
        "volumes": null,
        "imagePullSecrets": null,
        "revision": facts.revision,
    });
    added.annotations.insert("sidecar.istio.io/status".into(), status.to_string());
    added.annotations.insert("istio.io/rev".into(), facts.revision.to_owned());
    if let Some(first) = facts.containers.iter().find(|name| *name != CONTAINER_NAME) {
        for annotation in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
            if !facts.annotations.contains_key(annotation) {
                added.annotations.insert(annotation.into(), first.clone());
            }
        }
    }
    added
}

/// A label value from any name: cut to the limit, and not ending in a separator. `None` when nothing is left.
fn label_value(name: &str) -> Option<String> {
    let mut value: String = name.chars().take(LABEL_LIMIT).collect();
    let end = value.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len();
    value.truncate(end);
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_for(labels: &[(&str, &str)], owner: &str) -> Added {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let facts = MetadataFacts {
            labels: &labels,
            annotations: &BTreeMap::new(),
            owner_name: owner,
            containers: &["istio-proxy".to_owned(), "web".to_owned()],
            revision: "default",
            gateway: false,
            network: "",
        };
        added(&facts)
    }

    #[test]
    fn canonical_names_come_from_the_first_source_present() {
        let name =
            |labels: &[(&str, &str)]| labels_for(labels, "shop").labels.get("service.istio.io/canonical-name").cloned();
        assert_eq!(name(&[]).as_deref(), Some("shop"));
        assert_eq!(name(&[("app", "a")]).as_deref(), Some("a"));
        assert_eq!(name(&[("app", "a"), ("app.kubernetes.io/name", "n")]).as_deref(), Some("n"));
        assert_eq!(name(&[("app", "")]).as_deref(), Some("shop"));
        assert_eq!(name(&[("service.istio.io/canonical-name", "own"), ("app", "a")]), None, "kept, so not added");
        let long = "x".repeat(62) + "-tail";
        assert_eq!(labels_for(&[], &long).labels["service.istio.io/canonical-name"], "x".repeat(62));
    }

    #[test]
    fn revisions_and_status() {
        let revision =
            |labels: &[(&str, &str)]| labels_for(labels, "shop").labels["service.istio.io/canonical-revision"].clone();
        assert_eq!(revision(&[]), "latest");
        assert_eq!(revision(&[("version", "v1")]), "v1");
        assert_eq!(revision(&[("version", "v1"), ("app.kubernetes.io/version", "2")]), "2");
        let added = labels_for(&[("security.istio.io/tlsMode", "disabled")], "shop");
        assert_eq!(added.labels["security.istio.io/tlsMode"], "istio");
        assert_eq!(added.annotations["kubectl.kubernetes.io/default-container"], "web");
        let status: serde_json::Value = serde_json::from_str(&added.annotations["sidecar.istio.io/status"]).unwrap();
        assert_eq!(status["containers"], json!(["istio-proxy"]));
        assert_eq!(status["revision"], "default");
    }
}
