//! Destination rules: hosts that do not exist, subsets without pods, servers that nobody verifies.
//!
//! Invariant: what a service entry lists by itself counts as its pods.

use serde_json::Value;

use crate::hosts::Hosts;
use crate::objects::{Labels, Object, items, labels, selects, text, texts};
use crate::report::Report;

pub(crate) fn certificates(report: &mut Report<'_>) {
    let objects = report.objects;
    for rule in objects.networking("DestinationRule") {
        let selected = !rule.at("/spec/workloadSelector").is_null();
        let unverified = |tls: &Value| {
            let mode = mode(tls)?;
            let by_name = !text(tls, "credentialName").is_empty() && selected;
            (text(tls, "caCertificates").is_empty() && !by_name).then_some(mode)
        };
        let head = format!("DestinationRule {} in namespace {}", rule.full_name(), rule.namespace());
        let host = text(rule.spec(), "host");
        if let Some(mode) = unverified(rule.at("/spec/trafficPolicy/tls")) {
            report.add("IST0128", rule, "spec.trafficPolicy.tls", format!("{head} has TLS mode set to {mode} but no caCertificates are set to validate server identity for host: {host}"));
        }
        for (index, port) in items(rule.at("/spec/trafficPolicy"), "portLevelSettings").iter().enumerate() {
            if let Some(mode) = port.get("tls").and_then(unverified) {
                let number = port.pointer("/port/number").map(ToString::to_string).unwrap_or_default();
                report.add("IST0129", rule, &format!("spec.trafficPolicy.portLevelSettings[{index}].tls"), format!("{head} has TLS mode set to {mode} but no caCertificates are set to validate server identity for host: {host} at port number:{number}"));
            }
        }
    }
}

/// SIMPLE or MUTUAL.
fn mode(tls: &Value) -> Option<&'static str> {
    match tls.get("mode") {
        Some(Value::String(name)) if name == "SIMPLE" => Some("SIMPLE"),
        Some(Value::String(name)) if name == "MUTUAL" => Some("MUTUAL"),
        Some(Value::Number(number)) if number.as_i64() == Some(1) => Some("SIMPLE"),
        Some(Value::Number(number)) if number.as_i64() == Some(2) => Some("MUTUAL"),
        _ => None,
    }
}

pub(crate) fn subsets(report: &mut Report<'_>) {
    let objects = report.objects;
    let hosts = Hosts::of(objects);
    let nodes = objects.of("", "Node");
    for rule in objects.networking("DestinationRule") {
        let host = text(rule.spec(), "host");
        let found = hosts.find(rule.namespace(), &texts(rule.spec(), "exportTo"), host);
        if found.is_none() && !(host.starts_with('*') && hosts.any(host)) {
            report.add(
                "IST0174",
                rule,
                "spec.host",
                format!("The host {host} defined in the DestinationRule does not match any services in the mesh."),
            );
            continue;
        }
        let entry = found.and_then(|found| found.entry);
        for (index, subset) in items(rule.spec(), "subsets").iter().enumerate() {
            let mut wanted = labels(subset.get("labels").unwrap_or(&Value::Null));
            if let Some(entry) = entry {
                wanted.extend(labels(entry.at("/spec/workloadSelector/labels")));
            }
            let pods = objects.pods().iter().any(|pod| selects(&wanted, &placed(pod, nodes)));
            let mut workloads = objects.networking("WorkloadEntry").iter();
            let machines = workloads.any(|w| selects(&wanted, &labels(w.at("/spec/labels"))));
            let listed = entry.is_some_and(|entry| {
                items(entry.spec(), "endpoints")
                    .iter()
                    .any(|e| selects(&wanted, &labels(e.get("labels").unwrap_or(&Value::Null))))
            });
            if !(pods || machines || listed) {
                report.add("IST0173", rule, &format!("spec.subsets[{index}]"), format!("The Subset {} defined in the DestinationRule does not select any pods. Which may lead to 503 UH (NoHealthyUpstream).", text(subset, "name")));
            }
        }
    }
}

/// A pod's labels, with those that name its place.
fn placed<'a>(pod: &'a Object, nodes: &'a [Object]) -> Labels<'a> {
    let mut all = pod.labels();
    let name = pod.text_at("/spec/nodeName");
    if name.is_empty() {
        return all;
    }
    all.insert("kubernetes.io/hostname", name);
    if let Some(node) = nodes.iter().find(|node| node.name() == name) {
        let own = node.labels();
        for label in ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"] {
            if let Some(value) = own.get(label).filter(|value| !value.is_empty()) {
                all.insert(label, value);
            }
        }
    }
    all
}
