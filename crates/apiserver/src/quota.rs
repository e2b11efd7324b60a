//! ResourceQuotas: what a namespace uses, counted from what is stored, and what one more object would make of it.
//!
//! Invariant: the count is always that of the store, so that a quota whose status is old refuses and allows the right writes all the same.
//! What it leaves to others: that two creations do not count at the same moment (`rest`), the status (`controllers::quotas`).

use carrick_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::error::{ApiError, ApiResult};
use crate::store::{Store, name_of};

/// The resource of quotas.
pub const QUOTAS: &str = "resourcequotas";

/// Amounts by the names that quotas have for them.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds that are counted under their plural alone.
const COUNTED: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// What every container must name where a quota is about it.
const NAMED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The amounts in a map of quantities.
pub fn amounts(map: Option<&Value>) -> Usage {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.into_iter().filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?))).collect()
}

/// What a pod asks for: the sum of its containers, or an init container's where that is more.
pub fn total(pod: &Value, part: &str) -> Usage {
    let list = |field: &str| pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array).into_iter().flatten();
    let of = |container: &Value| amounts(container.pointer(&format!("/resources/{part}")));
    let mut sum = Usage::new();
    for container in list("containers") {
        add(&mut sum, of(container));
    }
    let mut highest = Usage::new();
    for container in list("initContainers") {
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut sum, of(container));
            continue;
        }
        for (name, amount) in of(container) {
            let known = highest.entry(name).or_insert(amount);
            if amount > *known {
                *known = amount;
            }
        }
    }
    for (name, amount) in highest {
        let known = sum.entry(name).or_insert(amount);
        if amount > *known {
            *known = amount;
        }
    }
    sum
}

fn add(sum: &mut Usage, more: Usage) {
    for (name, amount) in more {
        let known = sum.entry(name).or_insert(Quantity::ZERO);
        *known = known.plus(amount);
    }
}

/// The limits of a quota.
pub fn hard(quota: &Value) -> Usage {
    let entries = quota.pointer("/spec/hard").and_then(Value::as_object).into_iter().flatten();
    entries.into_iter().filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?))).collect()
}

/// What one object uses, under all names that a quota might have.
fn used_by(resource: &str, object: &Value) -> Usage {
    let one = Quantity::whole(1);
    let mut usage = Usage::from([(format!("count/{resource}"), one)]);
    if resource == "pods" && matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
        return usage;
    }
    if COUNTED.contains(&resource) {
        usage.insert(resource.to_owned(), one);
    }
    match resource {
        "pods" => usage.extend(compute(&total(object, "requests"), &total(object, "limits"))),
        "services" => {
            let ports = object.pointer("/spec/ports").and_then(Value::as_array).map_or(0, Vec::len);
            let ports = Quantity::whole(i64::try_from(ports).unwrap_or(i64::MAX));
            match text(object, "/spec/type") {
                "NodePort" => drop(usage.insert("services.nodeports".into(), ports)),
                "LoadBalancer" => {
                    let none = object.pointer("/spec/allocateLoadBalancerNodePorts") == Some(&Value::Bool(false));
                    usage.insert("services.loadbalancers".into(), one);
                    usage.insert("services.nodeports".into(), if none { Quantity::ZERO } else { ports });
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            let storage = object.pointer("/spec/resources/requests/storage").and_then(Quantity::of);
            usage.extend(storage.map(|s| ("requests.storage".to_owned(), s)));
            let class = text(object, "/spec/storageClassName");
            if !class.is_empty() {
                let named = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
                usage.insert(named("persistentvolumeclaims"), one);
                usage.extend(storage.map(|s| (named("requests.storage"), s)));
            }
        }
        _ => {}
    }
    usage
}

fn compute(requests: &Usage, limits: &Usage) -> Usage {
    let mut usage = Usage::new();
    for (name, amount) in requests {
        usage.insert(format!("requests.{name}"), *amount);
        if !name.contains('/') {
            usage.insert(name.clone(), *amount);
        }
    }
    usage.extend(limits.iter().map(|(name, amount)| (format!("limits.{name}"), *amount)));
    usage
}

/// The resource whose objects a quota's name counts.
fn counts(name: &str) -> &str {
    if let Some(resource) = name.strip_prefix("count/") {
        return resource;
    }
    let claims = name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/");
    match name {
        _ if claims => "persistentvolumeclaims",
        "services" | "services.nodeports" | "services.loadbalancers" => "services",
        _ if COUNTED.contains(&name) => name,
        _ => "pods",
    }
}

/// Whether an object is of those that a quota's scopes are about.
fn in_scope(quota: &Value, resource: &str, object: &Value) -> bool {
    let plain = quota.pointer("/spec/scopes").and_then(Value::as_array).into_iter().flatten();
    let plain = plain.filter_map(Value::as_str).map(|name| (name, "Exists", None));
    let chosen = quota.pointer("/spec/scopeSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let chosen =
        chosen.map(|e| (text(e, "/scopeName"), text(e, "/operator"), e.get("values").and_then(Value::as_array)));
    plain.chain(chosen).all(|(name, operator, values)| {
        if resource != "pods" {
            return false;
        }
        let ends = object.pointer("/spec/activeDeadlineSeconds").is_some_and(|v| !v.is_null());
        let nothing = || total(object, "requests").is_empty() && total(object, "limits").is_empty();
        match name {
            "Terminating" => ends,
            "NotTerminating" => !ends,
            "BestEffort" => nothing(),
            "NotBestEffort" => !nothing(),
            "PriorityClass" => {
                let class = text(object, "/spec/priorityClassName");
                let listed = values.into_iter().flatten().any(|v| v.as_str() == Some(class));
                match operator {
                    "In" => listed,
                    "NotIn" => !listed,
                    "DoesNotExist" => class.is_empty(),
                    _ => !class.is_empty(),
                }
            }
            _ => false,
        }
    })
}

/// What a namespace uses of what a quota limits.
pub fn used(store: &Store, quota: &Value, namespace: &str) -> Usage {
    let hard = hard(quota);
    let mut used: Usage = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let mut resources: Vec<&str> = hard.keys().map(|name| counts(name)).collect();
    resources.sort_unstable();
    resources.dedup();
    for resource in resources {
        for object in store.list(resource, Some(namespace)).items {
            if !in_scope(quota, resource, &object) {
                continue;
            }
            for (name, amount) in used_by(resource, &object) {
                if let Some(sum) = used.get_mut(&name) {
                    *sum = sum.plus(amount);
                }
            }
        }
    }
    used
}

/// Refuses an object that would use more than a quota of its namespace allows. `old` is what it replaces.
///
/// # Errors
/// `Forbidden`.
pub fn check(store: &Store, resource: &str, namespace: &str, object: &Value, old: Option<&Value>) -> ApiResult<()> {
    for quota in store.list(QUOTAS, Some(namespace)).items {
        let hard = hard(&quota);
        if !in_scope(&quota, resource, object) || !hard.keys().any(|name| counts(name) == resource) {
            continue;
        }
        let refused = |why: String| ApiError::forbidden(resource, name_of(object), why);
        if resource == "pods" && old.is_none() {
            unnamed(object, &hard).map_err(|why| refused(format!("failed quota: {}: {why}", name_of(&quota))))?;
        }
        let mut more = used_by(resource, object);
        if let Some(old) = old.filter(|old| in_scope(&quota, resource, old)) {
            let before = used_by(resource, old);
            more.retain(|name, amount| before.get(name).is_none_or(|b| *amount > *b));
            for (name, amount) in &mut more {
                if let Some(before) = before.get(name) {
                    *amount = amount.minus(*before);
                }
            }
        }
        more.retain(|name, amount| hard.contains_key(name) && amount.nano() > 0);
        if more.is_empty() {
            continue;
        }
        let used = used(store, &quota, namespace);
        let over: Vec<&String> = more
            .iter()
            .filter(|(name, amount)| {
                let sum = used.get(*name).copied().unwrap_or(Quantity::ZERO).plus(**amount);
                hard.get(*name).is_some_and(|limit| sum > *limit)
            })
            .map(|(name, _)| name)
            .collect();
        if !over.is_empty() {
            let shown = |usage: &Usage| {
                let parts: Vec<String> = over.iter().filter_map(|n| Some(format!("{n}={}", usage.get(*n)?))).collect();
                parts.join(",")
            };
            return Err(refused(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                name_of(&quota),
                shown(&more),
                shown(&used),
                shown(&hard)
            )));
        }
    }
    Ok(())
}

/// Every container must say how much of what a quota limits it wants.
fn unnamed(pod: &Value, hard: &Usage) -> Result<(), String> {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for field in ["containers", "initContainers"] {
        let containers = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            for name in NAMED.iter().filter(|name| hard.contains_key(**name)) {
                let (part, of) = match name.split_once('.') {
                    Some((part, of)) => (part, of),
                    None => ("requests", *name),
                };
                if container.pointer(&format!("/resources/{part}/{of}")).is_none() {
                    missing.entry(name).or_default().push(text(container, "/name"));
                }
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = missing.iter().map(|(name, of)| format!("{name} for: {}", of.join(","))).collect();
    Err(format!("must specify {}", told.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_needs_its_containers_or_its_largest_start() {
        let cpu = |amount: &str| json!({"resources": {"requests": {"cpu": amount}}});
        let mut pod = json!({"spec": {"containers": [cpu("100m"), cpu("200m")], "initContainers": [cpu("250m")]}});
        assert_eq!(total(&pod, "requests")["cpu"].to_string(), "300m");
        pod["spec"]["initContainers"][0] = cpu("1");
        assert_eq!(total(&pod, "requests")["cpu"].to_string(), "1");
    }

    #[test]
    fn what_counts_for_what() {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}}]}});
        let usage = used_by("pods", &pod);
        let shown = |name: &str| usage.get(name).map(ToString::to_string);
        assert_eq!(shown("pods").as_deref(), Some("1"));
        assert_eq!(shown("requests.cpu").as_deref(), Some("1"));
        assert_eq!(shown("limits.memory").as_deref(), Some("1Gi"));
        assert_eq!(shown("memory"), None);
        let port = json!({"port": 80});
        let service = json!({"spec": {"type": "NodePort", "ports": [port, port]}});
        assert_eq!(used_by("services", &service)["services.nodeports"].to_string(), "2");
        for (name, resource) in [
            ("requests.cpu", "pods"),
            ("requests.storage", "persistentvolumeclaims"),
            ("fast.storageclass.storage.k8s.io/requests.storage", "persistentvolumeclaims"),
            ("count/deployments.apps", "deployments.apps"),
            ("secrets", "secrets"),
        ] {
            assert_eq!(counts(name), resource, "{name}");
        }
        let hard =
            Usage::from([("requests.cpu".to_owned(), Quantity::whole(1)), ("memory".to_owned(), Quantity::whole(1))]);
        assert_eq!(unnamed(&pod, &hard).unwrap_err(), "must specify memory for: a");
    }
}
