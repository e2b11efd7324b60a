//! `carrick x check-inject`: which webhook injects a pod, and why the others do not.
//!
//! Invariant: selectors are judged as the API server does; the table is a function of webhooks and labels alone.

use anyhow::{Context, Result, bail};
use carrick_base::{Labels, Selector, label::Requirement};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Api, Client, ResourceExt};

use crate::{cluster::ProxyName, table::Table};

/// The rest of an injector's webhooks' names.
pub(super) const SUFFIX: &str = "sidecar-injector.istio.io";

/// One webhook's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) webhook: String,
    pub(crate) revision: String,
    pub(crate) injected: bool,
    pub(crate) reason: String,
}

/// The table about a pod, or about pods with certain labels.
///
/// # Errors
/// No such pod or namespace, no injector, or an API that refuses.
pub async fn run(client: &Client, target: Option<&str>, labels: Option<&str>, namespace: &str) -> Result<String> {
    let (labels, namespace) = match (target, labels) {
        (Some(target), None) => {
            let named = ProxyName::parse(target, namespace);
            let pod: Pod = named.pod(client).await?;
            (pod.labels().clone(), named.namespace)
        }
        (None, Some(text)) => {
            let pairs = text.split(',').map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
            let labels = pairs.collect::<Option<Labels>>().context("labels are KEY=VALUE, separated by commas")?;
            (labels, namespace.to_owned())
        }
        _ => bail!("name a pod (POD[.NAMESPACE], deploy/NAME), or labels of one (-l)"),
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let of_namespace =
        namespaces.get(&namespace).await.with_context(|| format!("namespace {namespace}"))?.labels().clone();
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut answers = Vec::new();
    for hook in hooks.list(&Default::default()).await? {
        if is_injector(&hook) {
            answers.push(judge(&hook, &of_namespace, &labels));
        }
    }
    if answers.is_empty() {
        bail!("no injection webhooks found");
    }
    answers.sort_by(|a, b| a.webhook.cmp(&b.webhook));
    Ok(show(&answers))
}

/// Whether a configuration is an injector's.
pub(crate) fn is_injector(hook: &MutatingWebhookConfiguration) -> bool {
    hook.webhooks.iter().flatten().any(|webhook| webhook.name.ends_with(SUFFIX))
}

/// The revision that a configuration injects for.
pub(crate) fn revision(hook: &MutatingWebhookConfiguration) -> String {
    hook.labels()
        .get("istio.io/tag")
        .or_else(|| hook.labels().get("istio.io/rev"))
        .cloned()
        .unwrap_or_else(|| "default".to_owned())
}

fn show(answers: &[Answer]) -> String {
    let mut table = Table::new(5, ["WEBHOOK", "REVISION", "INJECTED", "REASON"]);
    for answer in answers {
        let mark = if answer.injected { "✔" } else { "✘" };
        table.row([answer.webhook.as_str(), &answer.revision, mark, &answer.reason]);
    }
    let hooks: Vec<&str> =
        answers.iter().filter(|answer| answer.injected).map(|answer| answer.webhook.as_str()).collect();
    let mut text = table.to_string();
    if hooks.len() > 1 {
        text.push_str(&format!(
            "ERROR: multiple webhooks will inject, which can lead to errors: {}\n",
            hooks.join(", ")
        ));
    }
    text
}

/// What a configuration says of a pod.
pub(crate) fn judge(hook: &MutatingWebhookConfiguration, namespace: &Labels, pod: &Labels) -> Answer {
    let mut answer =
        Answer { webhook: hook.name_any(), revision: revision(hook), injected: false, reason: String::new() };
    for webhook in hook.webhooks.iter().flatten().filter(|webhook| webhook.name.ends_with(SUFFIX)) {
        let of_namespace = webhook.namespace_selector.as_ref();
        let of_pod = webhook.object_selector.as_ref();
        if matches(of_namespace, namespace) && matches(of_pod, pod) {
            let wanted = |selector: Option<&LabelSelector>, labels: &Labels| positive(selector, labels);
            let namespace_label = wanted(of_namespace, namespace).map(|pair| format!("Namespace label {pair} matches"));
            let pod_label = wanted(of_pod, pod);
            answer.injected = true;
            answer.reason = match (namespace_label, pod_label) {
                (Some(namespace), Some(pod)) => format!("{namespace}, and pod label {pod} matches"),
                (Some(namespace), None) => namespace,
                (None, Some(pod)) => format!("Pod label {pod} matches"),
                (None, None) => "No label prevents injection".to_owned(),
            };
            return answer;
        }
    }
    let says = |labels: &Labels, key: &str, value: &str| labels.get(key).is_some_and(|own| own == value);
    answer.reason = if says(pod, "sidecar.istio.io/inject", "false") {
        "Pod has sidecar.istio.io/inject=false label, preventing injection".to_owned()
    } else if says(namespace, "istio-injection", "disabled") {
        "Namespace has istio-injection=disabled label, preventing injection".to_owned()
    } else {
        let own = answer.revision.as_str();
        match namespace.get("istio.io/rev").or_else(|| pod.get("istio.io/rev")) {
            Some(other) if other != own => format!("No matching namespace labels (istio.io/rev={own}) or pod labels (istio.io/rev={own})"),
            _ if own == "default" => {
                "No matching namespace labels (istio-injection=enabled, istio.io/rev=default) or pod labels (istio.io/rev=default, sidecar.istio.io/inject=true)".to_owned()
            }
            _ => format!("No matching namespace labels (istio.io/rev={own}) or pod labels (istio.io/rev={own})"),
        }
    };
    answer
}

/// The first label that a selector asks for, and has.
fn positive(selector: Option<&LabelSelector>, labels: &Labels) -> Option<String> {
    let selector = selector?;
    let by_value = selector.match_labels.iter().flatten().map(|(key, _)| key);
    let by_expression = selector
        .match_expressions
        .iter()
        .flatten()
        .filter(|e| matches!(e.operator.as_str(), "In" | "Exists"))
        .map(|e| &e.key);
    let key = by_value.chain(by_expression).next()?;
    labels.get(key).map(|value| format!("{key}={value}"))
}

/// Whether labels are selected; no selector selects everything.
pub(crate) fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return true };
    let mut all: Vec<Requirement> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]))
        .collect();
    for expression in selector.match_expressions.iter().flatten() {
        let (key, values) = (expression.key.clone(), expression.values.clone().unwrap_or_default());
        all.push(match expression.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::NotExists(key),
            // The API server refuses such a selector; whatever it would select, it is not ours to guess.
            _ => return false,
        });
    }
    Selector::new(all).matches(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hook() -> MutatingWebhookConfiguration {
        let webhook = |name: &str, namespace: serde_json::Value, object: serde_json::Value| {
            json!({
                "name": format!("{name}.{SUFFIX}"), "admissionReviewVersions": ["v1"], "clientConfig": {}, "sideEffects": "None",
                "namespaceSelector": {"matchExpressions": namespace}, "objectSelector": {"matchExpressions": object},
            })
        };
        serde_json::from_value(json!({
            "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}},
            "webhooks": [
                webhook("namespace", json!([{"key": "istio-injection", "operator": "In", "values": ["enabled"]}]),
                    json!([{"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]}])),
                webhook("object", json!([{"key": "istio-injection", "operator": "DoesNotExist"}, {"key": "istio.io/rev", "operator": "DoesNotExist"}]),
                    json!([{"key": "sidecar.istio.io/inject", "operator": "In", "values": ["true"]}])),
            ],
        }))
        .unwrap()
    }

    #[test]
    fn reasons() {
        let labels =
            |text: &str| text.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        let judged = |namespace: &str, pod: &str| {
            let answer = judge(&hook(), &labels(namespace), &labels(pod));
            (answer.injected, answer.reason)
        };
        assert_eq!(
            judged("istio-injection=enabled", ""),
            (true, "Namespace label istio-injection=enabled matches".to_owned())
        );
        assert_eq!(
            judged("", "sidecar.istio.io/inject=true"),
            (true, "Pod label sidecar.istio.io/inject=true matches".to_owned())
        );
        let (injected, reason) = judged("istio-injection=enabled", "sidecar.istio.io/inject=false");
        assert!(!injected && reason.starts_with("Pod has sidecar.istio.io/inject=false label"));
        let (injected, reason) = judged("istio-injection=disabled", "sidecar.istio.io/inject=true");
        assert!(!injected && reason.starts_with("Namespace has istio-injection=disabled"));
        assert!(judged("", "").1.starts_with("No matching namespace labels"));
    }
}
