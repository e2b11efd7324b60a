//! Whether a pod gets a sidecar, and what that adds to its object.
//!
//! Invariant: the decision is Istio's (spec §16.1, §16.2). Pure.

use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// Namespaces that are never injected.
const NEVER: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
const SWITCH: &str = "sidecar.istio.io/inject";
const REVISION: &str = "istio.io/rev";

/// Whether a pod of this namespace, with these labels and annotations, is injected.
pub(crate) fn decide(namespace: &str, namespace_labels: &Labels, labels: &Labels, annotations: &Labels) -> bool {
    if NEVER.contains(&namespace) {
        return false;
    }
    let known = |value: Option<&String>| match value.map(String::as_str) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    // The label is what the webhook selects by; the annotation only counts once a webhook has been called, and only where no label speaks.
    let label = known(labels.get(SWITCH));
    let selected = match namespace_labels.get("istio-injection").map(String::as_str) {
        Some("enabled") => label != Some(false),
        Some("disabled") => false,
        _ if namespace_labels.contains_key(REVISION) => label != Some(false),
        _ => label == Some(true) || (labels.contains_key(REVISION) && label != Some(false)),
    };
    selected && label.or(known(annotations.get(SWITCH))).unwrap_or(true)
}

/// Labels that injection adds (spec §16.3); what the pod has stays.
pub(crate) fn add_labels(labels: &mut Labels, owner: &str) {
    let pick = |keys: &[&str], labels: &Labels| keys.iter().find_map(|key| labels.get(*key).cloned());
    let name = pick(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], labels);
    let mut name = name.unwrap_or_else(|| owner.to_owned());
    name.truncate(63);
    let revision = pick(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], labels);
    labels.insert("service.istio.io/canonical-name".into(), name);
    labels.insert("service.istio.io/canonical-revision".into(), revision.unwrap_or_else(|| "latest".into()));
    labels.insert("security.istio.io/tlsMode".into(), "istio".into());
}

/// Annotations that injection adds.
pub(crate) fn add_annotations(annotations: &mut Labels, app_container: &str) {
    let status = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["istio-envoy","istio-data","istio-token","istiod-ca-cert"],"imagePullSecrets":null,"revision":"default"}"#;
    annotations.insert("sidecar.istio.io/status".into(), status.into());
    annotations.insert(REVISION.into(), "default".into());
    for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
        annotations.entry(key.into()).or_insert_with(|| app_container.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Labels {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap())
            .collect()
    }

    #[test]
    fn the_table() {
        for (namespace, labels, annotations, expected) in [
            ("", "", "", false),
            ("istio-injection=enabled", "", "", true),
            ("istio-injection=enabled", "sidecar.istio.io/inject=false", "", false),
            ("istio-injection=enabled", "", "sidecar.istio.io/inject=false", false),
            ("istio-injection=enabled", "sidecar.istio.io/inject=true", "sidecar.istio.io/inject=false", true),
            ("istio-injection=enabled", "sidecar.istio.io/inject=no", "", true),
            ("istio-injection=disabled", "sidecar.istio.io/inject=true", "", false),
            ("istio-injection=disabled istio.io/rev=a", "", "", false),
            ("istio.io/rev=a", "", "", true),
            ("istio.io/rev=a", "sidecar.istio.io/inject=false", "", false),
            ("", "sidecar.istio.io/inject=true", "", true),
            ("", "istio.io/rev=a", "", true),
            ("", "istio.io/rev=a sidecar.istio.io/inject=false", "", false),
            ("", "", "sidecar.istio.io/inject=true", false),
        ] {
            let decided = decide("shop", &map(namespace), &map(labels), &map(annotations));
            assert_eq!(decided, expected, "{namespace:?} {labels:?} {annotations:?}");
        }
        assert!(!decide("kube-system", &map("istio-injection=enabled"), &map(""), &map("")));
    }
}
