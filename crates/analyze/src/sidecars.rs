//! Sidecars that select nothing, or the same pods.
//!
//! Invariant: a sidecar without labels is its namespace's; one with labels is for pods of its own namespace.

use std::collections::BTreeMap;

use crate::hosts::in_ambient;
use crate::objects::{Object, labels, selector_text, selects};
use crate::report::{Report, bracketed};

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut of_namespace: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    let mut of_pod: BTreeMap<String, (&Object, Vec<&Object>)> = BTreeMap::new();
    for sidecar in objects.networking("Sidecar") {
        let wanted = labels(sidecar.at("/spec/workloadSelector/labels"));
        if wanted.is_empty() {
            of_namespace.entry(sidecar.namespace()).or_default().push(sidecar);
            continue;
        }
        let own = objects.pods().iter().filter(|pod| pod.namespace() == sidecar.namespace());
        let mut found = false;
        for pod in own.filter(|pod| selects(&wanted, &pod.labels())) {
            found = true;
            of_pod.entry(pod.full_name()).or_insert((pod, Vec::new())).1.push(sidecar);
        }
        if !found {
            report.not_found(sidecar, "spec.workloadSelector", "selector", &selector_text(&wanted));
        }
    }
    for (pod, sidecars) in of_pod.values() {
        if in_ambient(pod) {
            for sidecar in sidecars {
                report.add(
                    "IST0167",
                    sidecar,
                    "",
                    "The policy has no impact: selected workload is in ambient mode, the policy has no impact.",
                );
            }
        } else if sidecars.len() > 1 {
            for sidecar in sidecars {
                report.add("IST0110", sidecar, "metadata.name", format!("The Sidecars {} in namespace {:?} select the same workload pod {:?}, which can lead to undefined behavior.", names(sidecars), pod.namespace(), pod.name()));
            }
        }
    }
    for (namespace, sidecars) in &of_namespace {
        let labels = objects.namespace_labels(namespace).unwrap_or_default();
        let injected = labels.get("istio-injection") == Some(&"enabled")
            || labels.get("istio.io/rev").is_some_and(|r| !r.is_empty());
        if !injected && labels.get("istio.io/dataplane-mode") == Some(&"ambient") {
            for sidecar in sidecars {
                report.add(
                    "IST0167",
                    sidecar,
                    "",
                    "The policy has no impact: namespace is in ambient mode, the policy has no impact.",
                );
            }
        } else if sidecars.len() > 1 {
            for sidecar in sidecars {
                report.add("IST0111", sidecar, "", format!("The Sidecars {} in namespace {namespace:?} have no workload selector, which can lead to undefined behavior.", names(sidecars)));
            }
        }
    }
}

/// The names of some objects, in order.
pub(crate) fn names(objects: &[&Object]) -> String {
    let mut names: Vec<&str> = objects.iter().map(|object| object.name()).collect();
    names.sort_unstable();
    bracketed(names)
}
