//! Storage, quotas, ingresses and classes as rows.
//!
//! Invariant: as Kubernetes' printers.

use serde_json::Value;

use super::{NONE, age, items, labels, map, name, or_none, shortened, text};
use crate::timestamp::Timestamp;

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object.pointer("/metadata/annotations").and_then(|a| a.get(key)?.as_str()).unwrap_or_default()
}

fn flag(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer) == Some(&Value::Bool(true))
}

/// `RWO,ROX`.
fn modes(object: &Value, pointer: &str) -> Value {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    let listed: Vec<&str> = items(object, pointer).iter().map(short).filter(|m| !m.is_empty()).collect();
    listed.join(",").into()
}

fn or_unset(text: &str) -> Value {
    if text.is_empty() { "<unset>".into() } else { text.into() }
}

fn class(object: &Value) -> &str {
    match annotation(object, "volume.beta.kubernetes.io/storage-class") {
        "" => text(object, "/spec/storageClassName"),
        class => class,
    }
}

pub(in crate::kinds) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let kind = match object.pointer("/spec/paramKind") {
        Some(Value::Object(_)) => {
            format!("{}/{}", text(object, "/spec/paramKind/apiVersion"), text(object, "/spec/paramKind/kind"))
        }
        _ => "<unset>".to_owned(),
    };
    vec![name(object), items(object, "/spec/validations").len().into(), kind.into(), age(object, now)]
}

pub(in crate::kinds) fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let at = |field: &str| text(object, &format!("/spec/paramRef/{field}"));
    let parameters = match (at("namespace"), at("name")) {
        (_, "") => "<unset>".to_owned(),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(object), text(object, "/spec/policyName").into(), parameters.into(), age(object, now)]
}

pub(in crate::kinds) fn volume_claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
    let bound = !text(object, "/spec/volumeName").is_empty();
    let capacity = if bound { text(object, "/status/capacity/storage") } else { "" };
    let modes = if bound { modes(object, "/status/accessModes") } else { "".into() };
    vec![
        name(object),
        if deleting { "Terminating".into() } else { text(object, "/status/phase").into() },
        text(object, "/spec/volumeName").into(),
        capacity.into(),
        modes,
        class(object).into(),
        or_unset(text(object, "/spec/volumeAttributesClassName")),
        age(object, now),
        or_unset(text(object, "/spec/volumeMode")),
    ]
}

pub(in crate::kinds) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
    let claim = match text(object, "/spec/claimRef/name") {
        "" => String::new(),
        claim => format!("{}/{claim}", text(object, "/spec/claimRef/namespace")),
    };
    vec![
        name(object),
        text(object, "/spec/capacity/storage").into(),
        modes(object, "/spec/accessModes"),
        text(object, "/spec/persistentVolumeReclaimPolicy").into(),
        if deleting { "Terminating".into() } else { text(object, "/status/phase").into() },
        claim.into(),
        class(object).into(),
        or_unset(text(object, "/spec/volumeAttributesClassName")),
        text(object, "/status/reason").into(),
        age(object, now),
        or_unset(text(object, "/spec/volumeMode")),
    ]
}

pub(in crate::kinds) fn pod_template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let containers = items(object, "/template/spec/containers");
    let all = |field: &str| containers.iter().map(|c| text(c, field)).collect::<Vec<_>>().join(",").into();
    let own = map(object, "/template/metadata/labels").map(labels).unwrap_or_default();
    vec![name(object), all("/name"), all("/image"), or_none(&own)]
}

pub(in crate::kinds) fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let mut hard: Vec<_> = map(object, "/status/hard").into_iter().flatten().collect();
    hard.sort_by(|a, b| a.0.cmp(b.0));
    for (resource, most) in hard {
        let used = object.pointer("/status/used").and_then(|u| u.get(resource)?.as_str()).unwrap_or("0");
        let line = format!("{resource}: {used}/{}", most.as_str().unwrap_or_default());
        if resource.starts_with("limits.") { limits.push(line) } else { requests.push(line) }
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age(object, now)]
}

pub(in crate::kinds) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = items(object, "/metadata/ownerReferences").iter().find(|o| flag(o, "/controller"));
    let controller = owner.map_or_else(String::new, |owner| {
        let group = text(owner, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
        let kind = text(owner, "/kind").to_lowercase();
        let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
        format!("{kind}/{}", text(owner, "/name"))
    });
    let revision = object.get("revision").and_then(Value::as_i64).unwrap_or(0);
    vec![name(object), or_none(&controller), revision.to_string().into(), age(object, now)]
}

pub(in crate::kinds) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let class = match text(object, "/spec/ingressClassName") {
        "" => annotation(object, "kubernetes.io/ingress.class"),
        class => class,
    };
    let rules = items(object, "/spec/rules").iter().map(|rule| text(rule, "/host"));
    let hosts: Vec<String> = rules.map(|host| if host.is_empty() { "*" } else { host }.to_owned()).collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { shortened(&hosts, 3, ",") };
    let given = items(object, "/status/loadBalancer/ingress").iter();
    let addresses: Vec<&str> =
        given.map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") }).collect();
    let ports = if items(object, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![name(object), or_none(class), hosts.into(), addresses.join(",").into(), ports.into(), age(object, now)]
}

pub(in crate::kinds) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match (text(object, "/spec/parameters/kind"), text(object, "/spec/parameters/apiGroup")) {
        ("", _) => NONE.to_owned(),
        (kind, "") => format!("{kind}/{}", text(object, "/spec/parameters/name")),
        (kind, group) => format!("{kind}.{group}/{}", text(object, "/spec/parameters/name")),
    };
    vec![name(object), text(object, "/spec/controller").into(), parameters.into(), age(object, now)]
}

pub(in crate::kinds) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/handler").into(), age(object, now)]
}

pub(in crate::kinds) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let value = object.get("value").and_then(Value::as_i64).unwrap_or(0);
    vec![
        name(object),
        value.into(),
        flag(object, "/globalDefault").into(),
        age(object, now),
        text(object, "/preemptionPolicy").into(),
    ]
}

pub(in crate::kinds) fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| annotation(object, key) == "true");
    let own = text(object, "/metadata/name");
    let policy = |pointer: &str, default: &'static str| match text(object, pointer) {
        "" => Value::from(default),
        other => other.into(),
    };
    vec![
        if is_default { format!("{own} (default)").into() } else { own.into() },
        text(object, "/provisioner").into(),
        policy("/reclaimPolicy", "Delete"),
        policy("/volumeBindingMode", "Immediate"),
        flag(object, "/allowVolumeExpansion").into(),
        age(object, now),
    ]
}
