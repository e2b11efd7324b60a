//! LimitRanges: what pods are given that ask for nothing, and what nobody may ask for.
//!
//! Invariant: as Kubernetes' `LimitRanger`: defaults first, of all ranges of the namespace, then the bounds of each.

use carrick_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::section;
use crate::admission::AdmitContext;
use crate::error::{ApiError, ApiResult, Cause};
use crate::quota::{Usage as Amounts, amounts, total};
use crate::store::name_of;
use carrick_api::validate::is_label_key;

const LIMIT_RANGES: &str = "limitranges";
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn ranges(context: &AdmitContext<'_>) -> Vec<Value> {
    context.store.list(LIMIT_RANGES, Some(context.namespace)).items
}

fn limits(range: &Value) -> impl Iterator<Item = &Value> {
    range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten()
}

fn is_of(limit: &Value, kind: &str) -> bool {
    limit.get("type").and_then(Value::as_str) == Some(kind)
}

/// Fills a range in as Kubernetes does: what is not named follows from what is.
pub(super) fn complete(object: &mut Value) {
    for limit in object.pointer_mut("/spec/limits").and_then(Value::as_array_mut).into_iter().flatten() {
        if !is_of(limit, "Container") {
            continue;
        }
        for (into, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let known = limit.get(from).and_then(Value::as_object).cloned().unwrap_or_default();
            if known.is_empty() {
                continue;
            }
            if let Some(target) = section(limit, into) {
                for (name, value) in known {
                    target.entry(name).or_insert(value);
                }
            }
        }
    }
}

/// What makes a range useless.
pub(super) fn wrong(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (index, limit) in limits(object).enumerate() {
        let at = format!("spec.limits[{index}]");
        let kind = limit.get("type").and_then(Value::as_str).unwrap_or_default();
        if !is_label_key(kind) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
            causes.push(Cause::invalid(format!("{at}.type"), &json!(kind), why));
        }
        if seen.contains(&kind) {
            let message = format!("Duplicate value: {kind:?}");
            causes.push(Cause { reason: "FieldValueDuplicate", message, field: format!("{at}.type") });
        }
        seen.push(kind);
        let of = |field: &str| amounts(limit.get(field));
        if kind == "Pod" {
            for field in ["default", "defaultRequest"] {
                if !of(field).is_empty() {
                    let why = "may not be specified when `type` is 'Pod'";
                    causes.push(Cause::forbidden(format!("{at}.{field}"), why));
                }
            }
        }
        let (most, least) = (of("max"), of("min"));
        for (name, bound) in &least {
            if let Some(max) = most.get(name).filter(|max| bound > *max) {
                let why = format!("min value {bound} is greater than max value {max}");
                causes.push(Cause::invalid(format!("{at}.min[{name}]"), &json!(bound.to_string()), why));
            }
            if let Some(asked) = of("defaultRequest").get(name).filter(|asked| bound > *asked) {
                let why = format!("min value {bound} is greater than default request value {asked}");
                causes.push(Cause::invalid(format!("{at}.defaultRequest[{name}]"), &json!(asked.to_string()), why));
            }
            if let Some(usual) = of("default").get(name).filter(|usual| bound > *usual) {
                let why = format!("min value {bound} is greater than default value {usual}");
                causes.push(Cause::invalid(format!("{at}.default[{name}]"), &json!(bound.to_string()), why));
            }
        }
        for (name, bound) in &most {
            let above = |value: Option<&Quantity>| value.filter(|q| *q > bound).copied();
            if let Some(asked) = above(of("defaultRequest").get(name)) {
                let why = format!("default request value {asked} is greater than max value {bound}");
                causes.push(Cause::invalid(format!("{at}.defaultRequest[{name}]"), &json!(asked.to_string()), why));
            }
            if let Some(usual) = above(of("default").get(name)) {
                let why = format!("default value {usual} is greater than max value {bound}");
                causes.push(Cause::invalid(format!("{at}.default[{name}]"), &json!(bound.to_string()), why));
            }
        }
    }
    causes
}

/// Gives a new pod's containers what the namespace's ranges say, and refuses what they forbid.
pub(super) fn pod(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let ranges = ranges(context);
    for range in &ranges {
        give(object, range);
    }
    let mut wrong = Vec::new();
    for limit in ranges.iter().flat_map(limits) {
        if is_of(limit, "Container") {
            for field in ["containers", "initContainers"] {
                let containers = object.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
                for container in containers.into_iter().flatten() {
                    let asked = amounts(container.pointer("/resources/requests"));
                    bounds(limit, "Container", &asked, &amounts(container.pointer("/resources/limits")), &mut wrong);
                }
            }
        } else if is_of(limit, "Pod") {
            bounds(limit, "Pod", &total(object, "requests"), &total(object, "limits"), &mut wrong);
        }
    }
    refuse("pods", object, wrong)
}

/// Refuses a claim for more or less storage than the namespace's ranges allow.
pub(super) fn claim(object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    const KIND: &str = "PersistentVolumeClaim";
    let asked = amounts(object.pointer("/spec/resources/requests"));
    let mut wrong = Vec::new();
    let ranges = ranges(context);
    for limit in ranges.iter().flat_map(limits).filter(|l| is_of(l, KIND)) {
        for (name, bound) in amounts(limit.get("min")) {
            wrong.extend(minimum(KIND, &name, bound, &asked, &Amounts::new()));
        }
        for (name, bound) in amounts(limit.get("max")) {
            let begin = format!("maximum {name} usage per {KIND} is {bound}");
            match asked.get(&name) {
                None => wrong.push(format!("{begin}.  No request is specified")),
                Some(given) if *given > bound => wrong.push(format!("{begin}, but request is {given}")),
                Some(_) => {}
            }
        }
    }
    refuse("persistentvolumeclaims", object, wrong)
}

fn refuse(resource: &str, object: &Value, mut wrong: Vec<String>) -> ApiResult<()> {
    let mut seen = std::collections::BTreeSet::new();
    wrong.retain(|why| seen.insert(why.clone()));
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(ApiError::forbidden(resource, name_of(object), one)),
        many => Err(ApiError::forbidden(resource, name_of(object), format!("[{}]", many.join(", ")))),
    }
}

fn give(object: &mut Value, range: &Value) {
    let mut defaults = (Map::new(), Map::new());
    for limit in limits(range).filter(|l| is_of(l, "Container")) {
        for (into, from) in [(&mut defaults.0, "defaultRequest"), (&mut defaults.1, "default")] {
            let given = limit.get(from).and_then(Value::as_object).into_iter().flatten();
            into.extend(given.into_iter().map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    let mut told = Vec::new();
    for (field, called) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = object.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (part, word, wanted) in [("requests", "request", &defaults.0), ("limits", "limit", &defaults.1)] {
                let mut set = Vec::new();
                let has = |key: &String| container.pointer(&format!("/resources/{part}")).and_then(|m| m.get(key));
                let missing: Vec<_> = wanted.iter().filter(|(key, _)| has(key).is_none()).collect();
                if missing.is_empty() {
                    continue;
                }
                let Some(resources) = section(container, "resources") else { continue };
                let target = resources.entry(part).or_insert_with(|| json!({}));
                for (key, value) in missing {
                    if let Some(target) = target.as_object_mut() {
                        target.insert(key.clone(), value.clone());
                        set.push(key.as_str());
                    }
                }
                set.sort_unstable();
                told.push(format!("{} {word} for {called} {name}", set.join(", ")));
            }
        }
    }
    if !told.is_empty()
        && let Some(metadata) = section(object, "metadata")
        && let Some(annotations) = metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
    {
        annotations.insert(ANNOTATION.into(), format!("LimitRanger plugin set: {}", told.join("; ")).into());
    }
}

fn minimum(kind: &str, name: &str, bound: Quantity, asked: &Amounts, limited: &Amounts) -> Option<String> {
    let begin = format!("minimum {name} usage per {kind} is {bound}");
    match (asked.get(name), limited.get(name)) {
        (None, _) => Some(format!("{begin}.  No request is specified")),
        (Some(given), _) if *given < bound => Some(format!("{begin}, but request is {given}")),
        (_, Some(given)) if *given < bound => Some(format!("{begin}, but limit is {given}")),
        _ => None,
    }
}

fn bounds(limit: &Value, kind: &str, asked: &Amounts, limited: &Amounts, wrong: &mut Vec<String>) {
    for (name, bound) in amounts(limit.get("min")) {
        wrong.extend(minimum(kind, &name, bound, asked, limited));
    }
    for (name, bound) in amounts(limit.get("max")) {
        let begin = format!("maximum {name} usage per {kind} is {bound}");
        match (limited.get(&name), asked.get(&name)) {
            (None, _) => wrong.push(format!("{begin}.  No limit is specified")),
            (Some(given), _) if *given > bound => wrong.push(format!("{begin}, but limit is {given}")),
            (_, Some(given)) if *given > bound => wrong.push(format!("{begin}, but request is {given}")),
            _ => {}
        }
    }
    for (name, bound) in amounts(limit.get("maxLimitRequestRatio")) {
        let begin = format!("{name} max limit to request ratio per {kind} is {bound}");
        let some = |known: Option<&Quantity>| known.copied().filter(|q| q.nano() != 0);
        match (some(asked.get(&name)), some(limited.get(&name))) {
            (None, _) => wrong.push(format!("{begin}, but no request is specified or request is 0")),
            (_, None) => wrong.push(format!("{begin}, but no limit is specified or limit is 0")),
            (Some(asked), Some(limited)) => {
                let ratio = limited.nano() as f64 / asked.nano() as f64;
                if ratio * 1e9 > bound.nano() as f64 {
                    wrong.push(format!("{begin}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_follows_from_what_is() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}});
        complete(&mut range);
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"cpu": "1"}));
        assert_eq!(limit["defaultRequest"], json!({"cpu": "1", "memory": "1Mi"}));
    }

    #[test]
    fn bounds_are_told_as_kubernetes_does() {
        let limit = json!({"min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}});
        let cpu = |amount: &str| amounts(Some(&json!({"cpu": amount})));
        let told = |asked: &Amounts, limited: &Amounts| {
            let mut wrong = Vec::new();
            bounds(&limit, "Container", asked, limited, &mut wrong);
            wrong
        };
        assert_eq!(told(&cpu("500m"), &cpu("1")), Vec::<String>::new());
        assert_eq!(told(&cpu("4"), &cpu("4")), ["maximum cpu usage per Container is 1, but limit is 4"]);
        assert_eq!(
            told(&cpu("200m"), &cpu("1")),
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 5.000000"]
        );
        assert_eq!(told(&Amounts::new(), &Amounts::new()).len(), 3);
    }
}
