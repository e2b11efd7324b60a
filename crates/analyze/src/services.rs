//! Services whose ports do not say their protocol, and services that differ between clusters.
//!
//! Invariant: UDP says enough; ports of Istio's own services are nobody's business.

use std::collections::{BTreeMap, BTreeSet};

use carrick_api::{Protocol, from_value, protocol};
use serde_json::Value;

use crate::hosts::is_control_plane;
use crate::objects::{Object, items, number, text};
use crate::report::{Report, bracketed};

const MANAGED: [&str; 3] = ["istio.io-gateway-controller", "istio.io-mesh-controller", "istio.io-eastwest-controller"];

pub(crate) fn port_names(report: &mut Report<'_>) {
    let objects = report.objects;
    for service in objects.of("", "Service") {
        let managed = service.labels().get("gateway.istio.io/managed").is_some_and(|by| MANAGED.contains(by));
        if managed || is_control_plane(service) {
            continue;
        }
        let external = text(service.spec(), "type") == "ExternalName";
        for (index, port) in items(service.spec(), "ports").iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            let name = text(port, "name");
            let sniffed = is_sniffed(port);
            if external && (sniffed || name == "tcp") {
                report.add("IST0150", service, &field, "Port name for ExternalName service is invalid. Proxy may prevent tcp named ports and unmatched traffic for ports serving TCP protocol from being forwarded correctly");
            } else if sniffed {
                let target = match port.get("targetPort") {
                    Some(Value::String(name)) => name.clone(),
                    _ => number(port, "targetPort").to_string(),
                };
                report.add("IST0118", service, &field, format!("Port name {name} (port: {}, targetPort: {target}) doesn't follow the naming convention of Istio port.", number(port, "port")));
            }
        }
    }
}

fn is_sniffed(port: &Value) -> bool {
    from_value(port).is_ok_and(|port| protocol::of_service_port(&port) == Protocol::Auto)
}

pub(crate) fn clusters(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut by_name: BTreeMap<String, Vec<&Object>> = BTreeMap::new();
    for service in objects.of("", "Service").iter().filter(|s| s.origin.cluster.is_some()) {
        by_name.entry(service.full_name()).or_default().push(service);
    }
    for services in by_name.values() {
        let Some((first, others)) = services.split_first() else { continue };
        let (mut odd, mut why) = (BTreeSet::new(), BTreeSet::new());
        let headless = |s: &Object| text(s.spec(), "clusterIP") == "None";
        let ports = |s: &Object| {
            let mut list = items(s.spec(), "ports").to_vec();
            list.sort_by_key(|port| text(port, "name").to_owned());
            list
        };
        for other in others {
            let mut differs = |reason: &str| {
                odd.extend([first, other].map(|s| s.origin.cluster.clone().unwrap_or_default()));
                why.insert(reason.to_owned());
            };
            if headless(first) != headless(other) {
                differs("service has mixed mode like headless and clusterIP");
            }
            if text(first.spec(), "type") != text(other.spec(), "type") {
                differs("service type is inconsistent");
            }
            if ports(first) != ports(other) {
                differs("service ports are inconsistent");
            }
        }
        if !odd.is_empty() {
            let why = why.into_iter().collect::<Vec<_>>().join("; ");
            report.add("IST0170", first, "", format!("The service {} in namespace {:?} is inconsistent across clusters {}, which can lead to undefined behaviors. The inconsistent behaviors are: {why}.", first.name(), first.namespace(), bracketed(odd.iter().map(|c| format!("{c:?}")))));
        }
    }
}
