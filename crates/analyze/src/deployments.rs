//! Deployments: several services over the same pods, and users that belong to the proxy.
//!
//! Invariant: a service selects pods of its own namespace only.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::hosts::{in_mesh, is_control_plane};
use crate::objects::{Object, items, labels, number, selects, text};
use crate::report::{Report, bracketed};

/// The user of the proxy, whose traffic is never captured.
const PROXY_USER: i64 = 1337;

pub(crate) fn user_ids(report: &mut Report<'_>) {
    let objects = report.objects;
    let templates = objects.of("apps", "Deployment").iter().map(|d| (d, "/spec/template/spec"));
    let pods = objects.pods().iter().map(|pod| (pod, "/spec"));
    for (object, pointer) in pods.chain(templates).filter(|(object, ..)| !is_control_plane(object)) {
        let spec = object.at(pointer);
        let taken =
            |value: &Value| value.pointer("/securityContext/runAsUser").and_then(Value::as_i64) == Some(PROXY_USER);
        let mut own =
            items(spec, "containers").iter().filter(|c| !matches!(text(c, "name"), "istio-proxy" | "istio-operator"));
        if taken(spec) || own.any(taken) {
            report.add("IST0144", object, "", "User ID (UID) 1337 is reserved for the sidecar proxy.");
        }
    }
}

pub(crate) fn services(report: &mut Report<'_>) {
    let objects = report.objects;
    for deployment in objects.of("apps", "Deployment") {
        let waypoint = deployment.labels().get("gateway.istio.io/managed") == Some(&"istio.io-mesh-controller");
        if waypoint || !in_mesh(objects, deployment, "/spec/template") {
            continue;
        }
        let pod = labels(deployment.at("/spec/template/metadata/labels"));
        let behind: Vec<&Object> = objects
            .of("", "Service")
            .iter()
            .filter(|service| service.namespace() == deployment.namespace())
            .filter(|service| {
                let selector = labels(service.at("/spec/selector"));
                !selector.is_empty() && selects(&selector, &pod)
            })
            .collect();
        protocols(deployment, &behind, report);
        target_ports(deployment, &behind, report);
    }
}

fn protocols(deployment: &Object, services: &[&Object], report: &mut Report<'_>) {
    let mut ports: BTreeMap<i64, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for service in services {
        for port in items(service.spec(), "ports") {
            let protocol = Some(text(port, "protocol")).filter(|p| !p.is_empty()).unwrap_or("TCP").to_owned();
            ports.entry(number(port, "port")).or_default().entry(protocol).or_default().push(service.full_name());
        }
    }
    for (port, by_protocol) in ports.iter().filter(|(_, by_protocol)| by_protocol.len() > 1) {
        let mut names: Vec<&String> = by_protocol.values().flatten().collect();
        names.sort();
        report.add(
            "IST0116",
            deployment,
            "metadata.name",
            format!(
                "This deployment {} is associated with multiple services using port {port} but different protocols: {}",
                deployment.name(),
                bracketed(names)
            ),
        );
    }
}

fn target_ports(deployment: &Object, services: &[&Object], report: &mut Report<'_>) {
    let mut targets: BTreeMap<String, BTreeMap<i64, String>> = BTreeMap::new();
    for service in services {
        for port in items(service.spec(), "ports") {
            let own = number(port, "port");
            let target = match port.get("targetPort") {
                Some(Value::String(name)) if !name.is_empty() => name.clone(),
                Some(Value::Number(number)) if number.as_i64() != Some(0) => number.to_string(),
                _ => own.to_string(),
            };
            targets.entry(target).or_default().insert(own, service.full_name());
        }
    }
    for (target, by_port) in targets.iter().filter(|(_, by_port)| by_port.len() > 1) {
        let mut names: Vec<&String> = by_port.values().collect();
        names.sort();
        report.add("IST0137", deployment, "metadata.name", format!(
            "This deployment {} is associated with multiple services {} using targetPort {target:?} but different ports: {}.",
            deployment.name(),
            bracketed(names),
            bracketed(by_port.keys())
        ));
    }
}
