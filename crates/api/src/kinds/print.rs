//! Objects as rows of a table.
//!
//! Invariant: total functions over any JSON: a field that is missing or of a wrong type prints as Kubernetes prints an
//! absent one. Time is an argument.

mod kept;
mod pod;
mod workload;

pub(super) use self::kept::{
    controller_revision, ingress, ingress_class, pod_template, policy, policy_binding, priority_class, quota,
    runtime_class, storage_class, volume, volume_claim,
};
pub(super) use self::pod::pod;
pub(super) use self::workload::{
    autoscaler, cron_job, daemon_set, deployment, disruption_budget, job, network_policy, replica_set,
    replication_controller, stateful_set, webhooks,
};

use serde_json::{Map, Value};

use crate::timestamp::{Timestamp, human_duration};

/// In [`paths`]: the age of the object.
pub(super) const AGE: &str = "";

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn map<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    object.pointer(pointer).and_then(Value::as_object)
}

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

fn since(time: &str, now: Timestamp) -> String {
    match Timestamp::parse(time) {
        Some(time) => human_duration(now.seconds().saturating_sub(time.seconds())),
        None => UNKNOWN.to_owned(),
    }
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "/metadata/creationTimestamp"), now).into()
}

pub(super) fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub(super) fn name_created(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/metadata/creationTimestamp").into()]
}

/// The cells of a CRD's columns: the name, then the values at JSON pointers as the API server prints them.
pub(super) fn paths(object: &Value, now: Timestamp, pointers: &[&str]) -> Vec<Value> {
    let mut cells = vec![name(object)];
    cells.extend(pointers.iter().map(|pointer| match *pointer {
        AGE => age(object, now),
        pointer => match object.pointer(pointer) {
            Some(Value::String(text)) => text.as_str().into(),
            // An array prints as JSON, as a CRD's string column does.
            Some(value @ (Value::Array(_) | Value::Object(_))) => value.to_string().into(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string().into(),
            Some(Value::Null) | None => Value::Null,
        },
    }));
    cells
}

/// The status of a condition, as a CRD's column selects it by type; absent ones print as nothing.
pub(super) fn condition(object: &Value, type_: &str) -> Value {
    let found =
        items(object, "/status/conditions").iter().find(|c| c.get("type").and_then(Value::as_str) == Some(type_));
    found.and_then(|c| c.get("status")).filter(|s| s.is_string()).cloned().unwrap_or(Value::Null)
}

/// A gateway of the Gateway API: class, first address, whether it works.
pub(super) fn k8s_gateway(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = paths(object, now, &["/spec/gatewayClassName", "/status/addresses/0/value"]);
    cells.extend([condition(object, "Programmed"), age(object, now)]);
    cells
}

pub(super) fn gateway_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = paths(object, now, &["/spec/controllerName"]);
    cells.extend([condition(object, "Accepted"), age(object, now)]);
    cells.push(object.pointer("/spec/description").filter(|d| d.is_string()).cloned().unwrap_or(Value::Null));
    cells
}

pub(super) fn listener_set(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), condition(object, "Accepted"), condition(object, "Programmed"), age(object, now)]
}

/// What a condition says in words.
fn said(object: &Value, type_: &str) -> Value {
    let found =
        items(object, "/status/conditions").iter().find(|c| c.get("type").and_then(Value::as_str) == Some(type_));
    found.and_then(|c| c.get("message")).filter(|s| s.is_string()).cloned().unwrap_or(Value::Null)
}

pub(super) fn cm_certificate(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = [name(object), condition(object, "Ready")];
    let [secret, issuer] = ["/spec/secretName", "/spec/issuerRef/name"].map(|p| text(object, p).into());
    let delivery = ["Delivered", "Served"].map(|type_| condition(object, type_));
    let end = [issuer, said(object, "Ready"), age(object, now)];
    ready.into_iter().chain([secret]).chain(delivery).chain(end).collect()
}

pub(super) fn cm_certificate_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let answers = ["Approved", "Denied", "Ready"].map(|type_| condition(object, type_));
    let words = ["/spec/issuerRef/name", "/spec/username"].map(|p| text(object, p).into());
    let end = [said(object, "Ready"), age(object, now)];
    [name(object)].into_iter().chain(answers).chain(words).chain(end).collect()
}

pub(super) fn cm_issuer(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), condition(object, "Ready"), said(object, "Ready"), age(object, now)]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/status/phase").into(), age(object, now)]
}

fn count(object: &Value, pointers: &[&str]) -> Value {
    let total: usize = pointers.iter().filter_map(|p| map(object, p)).map(Map::len).sum();
    total.to_string().into()
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), count(object, &["/data", "/binaryData"]), age(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/type").into(), count(object, &["/data"]), age(object, now)]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/spec/holderIdentity").into(), age(object, now)]
}

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let type_ = text(object, "/spec/type");
    let cluster_ip = match items(object, "/spec/clusterIPs").first().and_then(Value::as_str) {
        Some(ip) => ip,
        None => text(object, "/spec/clusterIP"),
    };
    let selector = map(object, "/spec/selector").map(labels).unwrap_or_default();
    vec![
        name(object),
        type_.into(),
        or_none(cluster_ip),
        external_ip(object, type_).into(),
        or_none(&service_ports(object)),
        age(object, now),
        or_none(&selector),
    ]
}

fn external_ip(object: &Value, type_: &str) -> String {
    let listed: Vec<&str> = items(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match type_ {
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = items(object, "/status/loadBalancer/ingress").iter();
            let mut all: Vec<&str> = ingress
                .map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") })
                .collect();
            all.extend(listed);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ if listed.is_empty() => NONE.to_owned(),
        _ => listed.join(","),
    }
}

fn service_ports(object: &Value) -> String {
    let ports = items(object, "/spec/ports").iter().map(|port| {
        let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        match port.get("nodePort").and_then(Value::as_u64) {
            Some(node) if node != 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

fn labels(map: &Map<String, Value>) -> String {
    let mut pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    pairs.join(",")
}

/// At most `limit` items, then how many more there are.
fn shortened(all: &[String], limit: usize, separator: &str) -> String {
    match all.len().checked_sub(limit) {
        Some(more) if more > 0 => {
            format!("{} + {more} more...", all.iter().take(limit).cloned().collect::<Vec<_>>().join(separator))
        }
        _ => all.join(separator),
    }
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let addresses = items(subset, "/addresses");
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| text(a, "/ip").to_owned()));
        }
        for port in ports {
            let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
            all.extend(addresses.iter().map(|a| format!("{}:{number}", text(a, "/ip"))));
        }
    }
    vec![name(object), or_none(&shortened(&all, 3, ",")), age(object, now)]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(object, "/ports")
        .iter()
        .map(|port| match port.get("port").and_then(Value::as_u64) {
            Some(number) => number.to_string(),
            None if text(port, "/name").is_empty() => "*".to_owned(),
            None => text(port, "/name").to_owned(),
        })
        .collect();
    let addresses: Vec<String> = items(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| items(endpoint, "/addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let unset = |text: String| if text.is_empty() { Value::from("<unset>") } else { text.into() };
    vec![
        name(object),
        text(object, "/addressType").into(),
        unset(shortened(&ports, 3, ",")),
        unset(shortened(&addresses, 3, ",")),
        age(object, now),
    ]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = items(object, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in map(object, "/metadata/labels").into_iter().flatten() {
        match (key.strip_prefix("node-role.kubernetes.io/"), key.as_str(), value.as_str()) {
            (Some(role), _, _) if !role.is_empty() => roles.push(role),
            (_, "kubernetes.io/role", Some(role)) if !role.is_empty() => roles.push(role),
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |type_: &str| {
        let found = items(object, "/status/addresses").iter().find(|a| text(a, "/type") == type_);
        or_none(found.map(|a| text(a, "/address")).unwrap_or_default())
    };
    let info = |field: &str| {
        let value = text(object, &format!("/status/nodeInfo/{field}"));
        if value.is_empty() { UNKNOWN.into() } else { Value::from(value) }
    };
    vec![
        name(object),
        status.into(),
        or_none(&roles.join(",")),
        age(object, now),
        text(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// A CertificateSigningRequest: approved or not, and whether there is a certificate.
pub(super) fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |type_: &str| items(object, "/status/conditions").iter().any(|c| text(c, "/type") == type_);
    let mut said: Vec<&str> = ["Approved", "Denied", "Failed"].into_iter().filter(|type_| has(type_)).collect();
    if !text(object, "/status/certificate").is_empty() {
        said.push("Issued");
    }
    let said = if said.is_empty() { "Pending".to_owned() } else { said.join(",") };
    let life = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        name(object),
        age(object, now),
        text(object, "/spec/signerName").into(),
        or_none(text(object, "/spec/username")),
        life.map_or_else(|| or_none(""), |life| human_duration(life).into()),
        said.into(),
    ]
}

/// Both kinds of events: the core group's, and `events.k8s.io`'s with its `deprecated…` fields.
pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        pointers.iter().map(|p| text(object, p)).find(|t| !t.is_empty()).unwrap_or_default().to_owned()
    };
    let seen = |pointers: &[&str]| {
        let time = first_of(pointers);
        if time.is_empty() { Value::from(UNKNOWN) } else { since(&time, now).into() }
    };
    let about = if object.get("regarding").is_some() { "/regarding" } else { "/involvedObject" };
    let kind = text(object, &format!("{about}/kind")).to_lowercase();
    let target = format!("{kind}/{}", text(object, &format!("{about}/name")));
    let component =
        first_of(&["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let host = first_of(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    let times =
        ["/count", "/deprecatedCount", "/series/count"].iter().find_map(|p| object.pointer(p).and_then(Value::as_u64));
    vec![
        seen(&["/series/lastObservedTime", "/lastTimestamp", "/deprecatedLastTimestamp", "/eventTime"]),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        target.into(),
        text(object, &format!("{about}/fieldPath")).into(),
        source.into(),
        first_of(&["/message", "/note"]).trim().into(),
        seen(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]),
        times.unwrap_or(1).to_string().into(),
        name(object),
    ]
}

pub(super) fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
    let subjects = |kind: &str| {
        let named = items(object, "/subjects").iter().filter(|s| text(s, "/kind") == kind);
        let names: Vec<String> = named
            .map(|s| match (kind, text(s, "/namespace")) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(s, "/name")),
                _ => text(s, "/name").to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![name(object), role.into(), age(object, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}
