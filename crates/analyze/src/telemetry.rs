//! Telemetries that select nothing or the same pods, or name no provider.
//!
//! Invariant: a provider that the mesh has by default needs no name.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::objects::{Object, items, labels, selector_text, selects, text};
use crate::report::Report;
use crate::sidecars::names;

fn all<'a>(report: &Report<'a>) -> &'a [Object] {
    report.objects.of("telemetry.istio.io", "Telemetry")
}

pub(crate) fn defaults(report: &mut Report<'_>) {
    let mut of_namespace: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    for telemetry in all(report).iter().filter(|t| t.at("/spec/selector").is_null()) {
        if telemetry.at("/spec/targetRef").is_null() && items(telemetry.spec(), "targetRefs").is_empty() {
            of_namespace.entry(telemetry.namespace()).or_default().push(telemetry);
        }
    }
    for (namespace, list) in of_namespace.iter().filter(|(_, list)| list.len() > 1) {
        for telemetry in list {
            report.add("IST0160", telemetry, "", format!("The Telemetries {} in namespace {namespace:?} have no workload selector, which can lead to undefined behavior.", names(list)));
        }
    }
}

pub(crate) fn lightstep(report: &mut Report<'_>) {
    let providers: Vec<&str> = items(report.objects.mesh(), "extensionProviders")
        .iter()
        .filter(|provider| provider.get("lightstep").is_some())
        .map(|provider| text(provider, "name"))
        .collect();
    for telemetry in all(report) {
        for provider in items(telemetry.spec(), "tracing").iter().flat_map(|tracing| items(tracing, "providers")) {
            let name = text(provider, "name");
            if providers.contains(&name) {
                report.add("IST0002", telemetry, "", format!("Deprecated: The Lightstep provider {name} is deprecated, please migrate to OpenTelemetry provider."));
            }
        }
    }
}

pub(crate) fn providers(report: &mut Report<'_>) {
    let mesh = report.objects.mesh();
    if !items(mesh.pointer("/defaultProviders").unwrap_or(&Value::Null), "accessLogging").is_empty() {
        return;
    }
    for telemetry in all(report) {
        for (index, logging) in items(telemetry.spec(), "accessLogging").iter().enumerate() {
            let off = logging.get("disabled").and_then(Value::as_bool) == Some(true);
            if !off && items(logging, "providers").is_empty() {
                report.add(
                    "IST0157",
                    telemetry,
                    &format!("spec.accessLogging[{index}]"),
                    format!(
                        "The Telemetry {} in namespace {:?} with empty providers will be ignored.",
                        telemetry.name(),
                        telemetry.namespace()
                    ),
                );
            }
        }
    }
}

pub(crate) fn selectors(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut of_pod: BTreeMap<String, (&Object, Vec<&Object>)> = BTreeMap::new();
    for telemetry in all(report) {
        let wanted = labels(telemetry.at("/spec/selector/matchLabels"));
        if wanted.is_empty() {
            continue;
        }
        let own = objects.pods().iter().filter(|pod| pod.namespace() == telemetry.namespace());
        let mut found = false;
        for pod in own.filter(|pod| selects(&wanted, &pod.labels())) {
            found = true;
            of_pod.entry(pod.full_name()).or_insert((pod, Vec::new())).1.push(telemetry);
        }
        if !found {
            report.not_found(telemetry, "spec.selector", "selector", &selector_text(&wanted));
        }
    }
    for (pod, list) in of_pod.values().filter(|(_, list)| list.len() > 1) {
        for telemetry in list {
            report.add("IST0159", telemetry, "metadata.name", format!("The Telemetries {} in namespace {:?} select the same workload pod {:?}, which can lead to undefined behavior.", names(list), pod.namespace(), pod.name()));
        }
    }
}
