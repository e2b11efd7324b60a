//! `carrick x injector list`: namespaces and the revisions their pods have; webhooks and the namespaces they inject.
//!
//! Invariant: read only; both tables are functions of what the API has.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::check::{SUFFIX, is_injector, matches, revision};
use crate::table::Table;

/// Both tables.
///
/// # Errors
/// When the API refuses.
pub async fn run(client: &Client, root: &str) -> Result<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), root);
    let all = Default::default();
    let namespaces = namespaces.list(&all).await?.items;
    let pods = pods.list(&all).await?.items;
    let hooks: Vec<_> = hooks.list(&all).await?.items.into_iter().filter(is_injector).collect();
    let mut images = BTreeMap::new();
    for hook in &hooks {
        let rev = hook.labels().get("istio.io/rev").cloned().unwrap_or_default();
        let name = match rev.as_str() {
            "" | "default" => "istio-sidecar-injector".to_owned(),
            rev => format!("istio-sidecar-injector-{rev}"),
        };
        let map = maps.get_opt(&name).await?;
        images.insert(hook.name_any(), image(map.as_ref()));
    }
    Ok(show(&namespaces, &pods, &hooks, &images))
}

/// The proxy's image by an injector's values.
fn image(map: Option<&ConfigMap>) -> String {
    let values = map.and_then(|map| map.data.as_ref()?.get("values"));
    let values: Option<Value> = values.and_then(|text| carrick_api::parse::documents(text.as_bytes()).ok()?.pop());
    let Some(values) = values else { return "<unknown>".to_owned() };
    let text = |pointer: &str| values.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let tag = match text("/global/tag") {
        tag if tag.is_empty() => env!("CARGO_PKG_VERSION").to_owned(),
        tag => tag,
    };
    format!("{}/{}:{tag}", text("/global/hub"), text("/global/proxy/image"))
}

fn hidden(namespace: &str) -> bool {
    carrick_inject::IGNORED_NAMESPACES.contains(&namespace)
}

/// Whether a webhook injects pods of a namespace that say nothing themselves.
fn injects(hook: &MutatingWebhookConfiguration, namespace: &Namespace) -> bool {
    let nothing = BTreeMap::new();
    hook.webhooks.iter().flatten().filter(|webhook| webhook.name.ends_with(SUFFIX)).any(|webhook| {
        matches(webhook.namespace_selector.as_ref(), namespace.labels())
            && matches(webhook.object_selector.as_ref(), &nothing)
    })
}

fn show(
    namespaces: &[Namespace],
    pods: &[Pod],
    hooks: &[MutatingWebhookConfiguration],
    images: &BTreeMap<String, String>,
) -> String {
    let mut first = Table::new(1, ["NAMESPACE", "ISTIO-REVISION", "POD-REVISIONS"]);
    for namespace in namespaces.iter().filter(|namespace| !hidden(&namespace.name_any())) {
        let name = namespace.name_any();
        let Some(hook) = hooks.iter().find(|hook| injects(hook, namespace)) else { continue };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| pod.namespace().as_deref() == Some(&name)) {
            let status = pod.annotations().get("sidecar.istio.io/status");
            let status: Option<Value> = status.and_then(|text| serde_json::from_str(text).ok());
            if let Some(revision) = status.as_ref().and_then(|s| s.get("revision")?.as_str()) {
                *counts.entry(revision.to_owned()).or_default() += 1;
            }
        }
        let counts: Vec<String> = counts.iter().map(|(revision, count)| format!("{revision}: {count}")).collect();
        first.row([name, revision(hook), if counts.is_empty() { "<none>".to_owned() } else { counts.join(", ") }]);
    }
    let mut second = Table::new(1, ["NAMESPACES", "INJECTOR-HOOK", "ISTIO-REVISION", "SIDECAR-IMAGE"]);
    for hook in hooks {
        let injected: Vec<String> = namespaces
            .iter()
            .filter(|namespace| !hidden(&namespace.name_any()) && injects(hook, namespace))
            .map(ResourceExt::name_any)
            .collect();
        let named = if injected.is_empty() { "DOES NOT AUTOINJECT".to_owned() } else { injected.join(",") };
        let name = hook.name_any();
        let image = images.get(&name).cloned().unwrap_or_else(|| "<unknown>".to_owned());
        second.row([named, name, revision(hook), image]);
    }
    format!("{first}\n{second}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_tables() {
        let namespace = |name: &str, labels: Value| -> Namespace {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let namespaces = [
            namespace("kube-system", json!({"istio-injection": "enabled"})),
            namespace("plain", json!({})),
            namespace("shop", json!({"istio-injection": "enabled"})),
        ];
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "shop",
            "annotations": {"sidecar.istio.io/status": "{\"revision\":\"default\"}"}}}))
        .unwrap();
        let hook = |name: &str, revision: &str, label: Value| -> MutatingWebhookConfiguration {
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"istio.io/rev": revision}},
                "webhooks": [{"name": format!("namespace.{SUFFIX}"), "admissionReviewVersions": ["v1"], "clientConfig": {}, "sideEffects": "None",
                    "namespaceSelector": {"matchLabels": label}}],
            })).unwrap()
        };
        let hooks = [
            hook("injector", "default", json!({"istio-injection": "enabled"})),
            hook("injector-b", "b", json!({"istio.io/rev": "b"})),
        ];
        let images = BTreeMap::from([("injector".to_owned(), "h/p:1".to_owned())]);
        let text = show(&namespaces, &[pod], &hooks, &images);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["shop", "default", "default:", "1"]);
        assert_eq!(rows[2], Vec::<&str>::new());
        assert_eq!(rows[4], ["shop", "injector", "default", "h/p:1"]);
        assert_eq!(rows[5], ["DOES", "NOT", "AUTOINJECT", "injector-b", "b", "<unknown>"]);
    }
}
