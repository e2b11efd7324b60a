//! Injection webhooks that would inject twice, or lead nowhere.
//!
//! Invariant: every combination of labels that injection knows is taken by one webhook at most.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::injection::fits;
use crate::objects::{Labels, Object, items, labels, text, texts};
use crate::report::{Report, bracketed};

const REVISION: &str = "istio.io/rev";

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut hooks: Vec<(&Object, &Value)> = Vec::new();
    let mut revisions: BTreeSet<&str> = BTreeSet::new();
    for configuration in objects.of("admissionregistration.k8s.io", "MutatingWebhookConfiguration") {
        let own = items(&configuration.value, "webhooks");
        let found = revisions_of(configuration, own);
        if !found.is_empty() || own.iter().any(|hook| text(hook, "name").ends_with("istio.io")) {
            hooks.extend(own.iter().map(|hook| (configuration, hook)));
            revisions.extend(found);
        }
    }
    let name =
        |(configuration, hook): &(&Object, &Value)| format!("{}/{}", configuration.full_name(), text(hook, "name"));
    let of_namespaces = combinations("istio-injection", ["enabled", "disabled"], &revisions);
    let of_pods = combinations("sidecar.istio.io/inject", ["true", "false"], &revisions);
    for namespace in &of_namespaces {
        for pod in &of_pods {
            let takes = |(_, hook): &&(&Object, &Value)| {
                fits(hook.get("namespaceSelector"), namespace) && fits(hook.get("objectSelector"), pod)
            };
            let taken: Vec<&(&Object, &Value)> = hooks.iter().filter(takes).collect();
            if taken.len() < 2 {
                continue;
            }
            for own in &taken {
                let others: BTreeSet<String> = taken.iter().map(|o| name(o)).filter(|o| *o != name(own)).collect();
                if !others.is_empty() {
                    report.add(
                        "IST0139",
                        own.0,
                        "",
                        format!(
                            "Webhook overlaps with others: {}. This may cause injection to occur twice.",
                            bracketed(others)
                        ),
                    );
                }
            }
        }
    }
    for (configuration, hook) in &hooks {
        let Some(service) = hook.pointer("/clientConfig/service") else { continue };
        let (namespace, service) = (text(service, "namespace"), text(service, "name"));
        if objects.find("", "Service", namespace, service).is_none() {
            report.add(
                "IST0139",
                configuration,
                "",
                format!("Injector refers to a control plane service that does not exist: {namespace}/{service}."),
            );
        }
    }
}

fn revisions_of<'a>(configuration: &'a Object, hooks: &'a [Value]) -> Vec<&'a str> {
    let mut found: Vec<&str> =
        labels(configuration.at("/metadata/labels")).get(REVISION).copied().into_iter().collect();
    for selector in hooks.iter().flat_map(|hook| [hook.get("namespaceSelector"), hook.get("objectSelector")]).flatten()
    {
        found.extend(labels(selector.get("matchLabels").unwrap_or(&Value::Null)).get(REVISION));
        for expression in items(selector, "matchExpressions").iter().filter(|e| text(e, "key") == REVISION) {
            found.extend(texts(expression, "values"));
        }
    }
    found
}

/// Label sets: none, either value, and each of them with each revision.
fn combinations<'a>(label: &'a str, values: [&'a str; 2], revisions: &BTreeSet<&'a str>) -> Vec<Labels<'a>> {
    let mut sets = vec![Labels::new()];
    sets.extend(values.into_iter().map(|value| Labels::from([(label, value)])));
    let base = sets.clone();
    for revision in revisions {
        sets.extend(base.iter().cloned().map(|mut set| {
            set.insert(REVISION, revision);
            set
        }));
    }
    sets
}
