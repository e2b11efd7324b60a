//! The Services by which gateways are reached that name none: `<gateway>-<class>`, in front of the pods that carry the gateway's name.
//!
//! Invariant: pure; a Service is asked for exactly while its Gateway is ours, has a listener that holds and names no Service itself.

use std::collections::{BTreeMap, BTreeSet};

use carrick_api::gateway_api::{GROUP, K8sGateway};
use serde_json::{Value, json};

use super::{GATEWAY_LABEL, Overlays};

/// Says that an object is made by the controller of gateways, so that nobody else's is touched.
pub const MANAGED_LABEL: &str = "gateway.istio.io/managed";
/// The controller, as a label's value.
const MANAGED_BY: &str = "istio.io-gateway-controller";
/// Asks for another type of Service.
const TYPE_ANNOTATION: &str = "networking.istio.io/service-type";
/// The longest name of a Service.
const LONGEST_NAME: usize = 63;

/// Gives what is made for a gateway another name.
const NAME_ANNOTATION: &str = "gateway.istio.io/name-override";
/// Names an account of the user's own for a gateway's pods.
const ACCOUNT_ANNOTATION: &str = "gateway.istio.io/service-account";
/// The control plane, among several, that is to care for a gateway.
const REVISION_LABEL: &str = "istio.io/rev";
/// The Gateway API's own labels and annotations, which are not for others to set.
const RESERVED: &str = "gateway.networking.k8s.io/";
/// Annotations that are about a Gateway and not about what is made for it.
const ABOUT_GATEWAY: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    NAME_ANNOTATION,
    ACCOUNT_ANNOTATION,
    "gateway.istio.io/controller-version",
];

/// What is to be made for a gateway that names no Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayService {
    /// The Service, without a `type` where nobody asks for one.
    pub service: Value,
    /// The account of its pods, where they are not to have one of their own.
    pub account: Option<String>,
    /// The revision that the Gateway names.
    pub revision: Option<String>,
    /// What is laid over the objects, one after the other.
    pub overlays: Vec<Overlays>,
}

/// The Service of a gateway with these ports: numbers and protocols.
pub(super) fn service(
    gateway: &K8sGateway,
    ports: &BTreeMap<u16, &str>,
    overlays: Vec<Overlays>,
) -> Option<GatewayService> {
    let meta = &gateway.metadata;
    let annotation = |name: &str| meta.annotations.get(name).filter(|value| !value.is_empty());
    let usual = || format!("{}-{}", meta.name, gateway.spec.gateway_class_name);
    let name = annotation(NAME_ANNOTATION).cloned().unwrap_or_else(usual);
    let by_hostname =
        |a: &carrick_api::gateway_api::gateway::Address| a.kind.as_deref() == Some("Hostname") && !a.value.is_empty();
    if ports.is_empty() || name.len() > LONGEST_NAME || gateway.spec.addresses.iter().any(by_hostname) {
        return None;
    }
    let given = gateway.spec.infrastructure.clone().unwrap_or_default();
    // What infrastructure does not say is as on the Gateway.
    let either = |given: BTreeMap<String, String>, own: &BTreeMap<String, String>| {
        let mut all = if given.is_empty() { own.clone() } else { given };
        all.retain(|name, _| !name.starts_with(RESERVED) && !ABOUT_GATEWAY.contains(&name.as_str()));
        all
    };
    let kind = given.annotations.get(TYPE_ANNOTATION).or_else(|| annotation(TYPE_ANNOTATION)).cloned();
    let annotations = either(given.annotations, &meta.annotations);
    let mut labels = either(given.labels, &meta.labels);
    labels.insert(GATEWAY_LABEL.to_owned(), meta.name.clone());
    labels.insert("gateway.networking.k8s.io/gateway-class-name".to_owned(), gateway.spec.gateway_class_name.clone());
    labels.insert(MANAGED_LABEL.to_owned(), MANAGED_BY.to_owned());
    let mut metadata = json!({"name": name, "namespace": meta.namespace, "labels": labels});
    if !meta.uid.is_empty()
        && let Some(map) = metadata.as_object_mut()
    {
        let owner = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Gateway", "name": meta.name, "uid": meta.uid, "controller": true});
        map.insert("ownerReferences".to_owned(), json!([owner]));
        map.insert("annotations".to_owned(), json!(annotations));
    }
    let ports: Vec<Value> = ports
        .iter()
        .map(|(number, protocol)| {
            let protocol = protocol.to_ascii_lowercase();
            json!({"name": format!("{protocol}-{number}"), "port": number, "protocol": "TCP", "appProtocol": protocol})
        })
        .collect();
    let mut spec = json!({ "selector": { GATEWAY_LABEL: meta.name }, "ports": ports });
    if let (Some(kind), Some(spec)) = (kind, spec.as_object_mut()) {
        spec.insert("type".to_owned(), kind.into());
    }
    Some(GatewayService {
        service: json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec }),
        account: annotation(ACCOUNT_ANNOTATION).cloned(),
        revision: meta.labels.get(REVISION_LABEL).cloned(),
        overlays,
    })
}

/// Ports of listeners, each once; of several protocols on one port the first.
pub(super) fn ports<'a>(all: impl Iterator<Item = (u16, &'a str)>) -> BTreeMap<u16, &'a str> {
    let mut seen = BTreeSet::new();
    all.filter(|(port, _)| seen.insert(*port)).collect()
}
