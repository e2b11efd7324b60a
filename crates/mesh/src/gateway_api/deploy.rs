//! The Services by which gateways are reached that name none: `<gateway>-<class>`, in front of the pods that carry the gateway's name.
//!
//! Invariant: pure; a Service is asked for exactly while its Gateway is ours, has a listener that holds and names no Service itself.

use std::collections::{BTreeMap, BTreeSet};

use carrick_api::gateway_api::{GROUP, K8sGateway};
use serde_json::{Value, json};

use super::GATEWAY_LABEL;

/// Says that an object is made by the controller of gateways, so that nobody else's is touched.
pub const MANAGED_LABEL: &str = "gateway.istio.io/managed";
/// The controller, as a label's value.
const MANAGED_BY: &str = "istio.io-gateway-controller";
/// Asks for another type of Service.
const TYPE_ANNOTATION: &str = "networking.istio.io/service-type";
/// The longest name of a Service.
const LONGEST_NAME: usize = 63;

/// The Service of a gateway with these ports: numbers and protocols.
pub(super) fn service(gateway: &K8sGateway, ports: &BTreeMap<u16, &str>) -> Option<Value> {
    let meta = &gateway.metadata;
    let name = format!("{}-{}", meta.name, gateway.spec.gateway_class_name);
    let by_hostname =
        |a: &carrick_api::gateway_api::gateway::Address| a.kind.as_deref() == Some("Hostname") && !a.value.is_empty();
    if ports.is_empty() || name.len() > LONGEST_NAME || gateway.spec.addresses.iter().any(by_hostname) {
        return None;
    }
    let given = gateway.spec.infrastructure.clone().unwrap_or_default();
    let mut labels = given.labels;
    labels.insert(GATEWAY_LABEL.to_owned(), meta.name.clone());
    labels.insert("gateway.networking.k8s.io/gateway-class-name".to_owned(), gateway.spec.gateway_class_name.clone());
    labels.insert(MANAGED_LABEL.to_owned(), MANAGED_BY.to_owned());
    let kind = given.annotations.get(TYPE_ANNOTATION).or_else(|| meta.annotations.get(TYPE_ANNOTATION));
    let mut metadata = json!({"name": name, "namespace": meta.namespace, "labels": labels});
    if !meta.uid.is_empty()
        && let Some(map) = metadata.as_object_mut()
    {
        let owner = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Gateway", "name": meta.name, "uid": meta.uid, "controller": true});
        map.insert("ownerReferences".to_owned(), json!([owner]));
        map.insert("annotations".to_owned(), json!(given.annotations));
    }
    let ports: Vec<Value> = ports
        .iter()
        .map(|(number, protocol)| {
            let protocol = protocol.to_ascii_lowercase();
            json!({"name": format!("{protocol}-{number}"), "port": number, "protocol": "TCP", "appProtocol": protocol})
        })
        .collect();
    Some(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": kind.map_or("ClusterIP", String::as_str),
            "selector": {GATEWAY_LABEL: meta.name},
            "ports": ports,
        },
    }))
}

/// Ports of listeners, each once; of several protocols on one port the first.
pub(super) fn ports<'a>(all: impl Iterator<Item = (u16, &'a str)>) -> BTreeMap<u16, &'a str> {
    let mut seen = BTreeSet::new();
    all.filter(|(port, _)| seen.insert(*port)).collect()
}
