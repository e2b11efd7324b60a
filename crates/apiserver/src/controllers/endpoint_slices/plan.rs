//! A service and its pods → the slices there should be, and the writes that make it so.
//!
//! Invariant: pure, and stable: the same service and pods give the same slices, slices are changed in place where they
//! can be, and an unchanged service gives no write.

use std::collections::BTreeMap;
use std::net::IpAddr;

use carrick_api::core::IntOrString;
use carrick_api::{Pod, Service, ServicePort};
use serde_json::{Map, Value, json};

const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Endpoints of one slice; more are spread over several.
const SLICE_LIMIT: usize = 1000;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Create(Value),
    Update(Value),
    Delete(Value),
}

/// Whether a slice is this controller's.
pub(super) fn is_ours(slice: &Value) -> bool {
    slice.pointer("/metadata/labels").and_then(|l| l.get(MANAGED_BY_LABEL)).and_then(Value::as_str) == Some(MANAGER)
}

/// Whether a service's selector takes a pod. A service without a selector takes none: its endpoints are somebody else's.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty() && selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
}

/// The content of a slice, before it has a name.
struct Content {
    address_type: &'static str,
    ports: Value,
    endpoints: Vec<Value>,
}

/// The writes that bring the existing slices to what they should say.
pub(super) fn plan<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>, existing: &[&Value]) -> Vec<Step> {
    let managed = !service.spec.selector.is_empty()
        && service.spec.type_ != "ExternalName"
        && service.metadata.deletion_timestamp.is_none();
    let wanted = if managed { contents(service, pods) } else { Vec::new() };
    let mut left: Vec<&Value> = existing.to_vec();
    let mut steps = Vec::new();
    for content in wanted {
        let same_type = |slice: &&Value| slice.get("addressType").and_then(Value::as_str) == Some(content.address_type);
        let same_ports = |slice: &&Value| same_type(slice) && slice.get("ports") == Some(&content.ports);
        let position = left.iter().position(same_ports).or_else(|| left.iter().position(same_type));
        match position.map(|p| left.remove(p)) {
            Some(slice) => steps.extend(changed(slice, service, &content).map(Step::Update)),
            None => {
                let taken: Vec<&str> =
                    existing.iter().map(|s| crate::store::name_of(s)).chain(steps.iter().map(step_name)).collect();
                let name = free_name(service, content.address_type, &taken);
                steps.push(Step::Create(slice(service, &name, &content)));
            }
        }
    }
    steps.extend(left.into_iter().cloned().map(Step::Delete));
    steps
}

fn step_name(step: &Step) -> &str {
    match step {
        Step::Create(slice) | Step::Update(slice) | Step::Delete(slice) => crate::store::name_of(slice),
    }
}

fn contents<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Vec<Content> {
    // Pods that name their ports differently cannot share a slice.
    let mut groups: BTreeMap<(&'static str, String), Content> = BTreeMap::new();
    let families = families(service);
    for pod in pods.filter(|pod| selects(service, pod) && !pod.is_terminal()) {
        let ports = ports(service, pod);
        for ip in pod.ips() {
            let Ok(parsed) = ip.parse::<IpAddr>() else { continue };
            let address_type = if parsed.is_ipv4() { "IPv4" } else { "IPv6" };
            if !families.contains(&address_type) {
                continue;
            }
            let group = groups.entry((address_type, ports.to_string())).or_insert_with(|| Content {
                address_type,
                ports: ports.clone(),
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint(service, pod, ip));
        }
    }
    if groups.is_empty() {
        // A service without pods has one empty slice, which says that somebody looked.
        let address_type = families.first().copied().unwrap_or("IPv4");
        return vec![Content { address_type, ports: Value::Null, endpoints: Vec::new() }];
    }
    groups.into_values().flat_map(chunks).collect()
}

fn chunks(content: Content) -> Vec<Content> {
    let Content { address_type, ports, endpoints } = content;
    let parts = endpoints.chunks(SLICE_LIMIT);
    parts.map(|part| Content { address_type, ports: ports.clone(), endpoints: part.to_vec() }).collect()
}

fn families(service: &Service) -> Vec<&'static str> {
    let six = service.spec.addresses().any(|ip| ip.contains(':'));
    let four = service.spec.addresses().any(|ip| ip.contains('.'));
    match (four, six) {
        (true, true) => vec!["IPv4", "IPv6"],
        (false, true) => vec!["IPv6"],
        _ => vec!["IPv4"],
    }
}

/// The service's ports as they are on one pod. A named port that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Value {
    let resolved = service.spec.ports.iter().filter_map(|port| {
        let number = target(port, pod)?;
        let mut out = Map::new();
        out.insert("name".into(), port.name.clone().into());
        out.insert("port".into(), number.into());
        out.insert("protocol".into(), transport(port).into());
        if let Some(protocol) = &port.app_protocol {
            out.insert("appProtocol".into(), protocol.clone().into());
        }
        Some(Value::Object(out))
    });
    Value::Array(resolved.collect())
}

fn transport(port: &ServicePort) -> &str {
    if port.protocol.is_empty() { "TCP" } else { &port.protocol }
}

fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::Text(name)) => {
            let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
            let mut all = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
            let same = |protocol: &str| if protocol.is_empty() { "TCP" } else { protocol } == transport(port);
            all.find(|p| p.name == *name && same(&p.protocol)).map(|p| p.container_port)
        }
    }
}

fn endpoint(service: &Service, pod: &Pod, ip: &str) -> Value {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pod.is_ready();
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    let mut out = json!({
        "addresses": [ip],
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    });
    if let Some(out) = out.as_object_mut() {
        if !pod.spec.node_name.is_empty() {
            out.insert("nodeName".into(), pod.spec.node_name.clone().into());
        }
        if !pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name {
            out.insert("hostname".into(), pod.spec.hostname.clone().into());
        }
    }
    out
}

fn labels(service: &Service) -> Value {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS_LABEL);
    labels.insert(SERVICE_LABEL.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGER.into());
    if service.spec.is_headless() {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    json!(labels)
}

fn owner(service: &Service) -> Value {
    json!([{
        "apiVersion": "v1",
        "kind": "Service",
        "name": service.metadata.name,
        "uid": service.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

fn slice(service: &Service, name: &str, content: &Content) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "generateName": format!("{}-", service.metadata.name),
            "namespace": service.metadata.namespace,
            "labels": labels(service),
            "ownerReferences": owner(service),
        },
        "addressType": content.address_type,
        "endpoints": listed(&content.endpoints),
        "ports": content.ports,
    })
}

/// Kubernetes writes null for none.
fn listed(endpoints: &[Value]) -> Value {
    if endpoints.is_empty() { Value::Null } else { endpoints.into() }
}

/// The slice with the new content; `None` when it says that already.
fn changed(slice: &Value, service: &Service, content: &Content) -> Option<Value> {
    let mut new = slice.clone();
    let map = new.as_object_mut()?;
    map.insert("endpoints".into(), listed(&content.endpoints));
    map.insert("ports".into(), content.ports.clone());
    let metadata = map.get_mut("metadata")?.as_object_mut()?;
    metadata.insert("labels".into(), labels(service));
    metadata.insert("ownerReferences".into(), owner(service));
    (new != *slice).then_some(new)
}

/// A name that depends on the service alone, so that a slice made again has the name it had.
fn free_name(service: &Service, address_type: &str, taken: &[&str]) -> String {
    let mut attempt = 0u32;
    loop {
        let text = format!(
            "{}/{}/{}/{address_type}/{attempt}",
            service.metadata.namespace, service.metadata.name, service.metadata.uid
        );
        let name = format!("{}-{}", service.metadata.name, suffix(&text));
        if !taken.contains(&name.as_str()) {
            return name;
        }
        attempt = attempt.saturating_add(1);
    }
}

/// Five characters from a text (FNV-1a), in the alphabet of generated names.
fn suffix(text: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let size = ALPHABET.len() as u64;
    let letters = std::iter::repeat_with(|| {
        let letter = usize::try_from(hash % size).ok().and_then(|i| ALPHABET.get(i)).copied().unwrap_or(b'x');
        hash /= size;
        char::from(letter)
    });
    letters.take(5).collect()
}
