//! Which writes a hook is asked about: rules, `matchPolicy`, selectors of namespaces and objects.
//!
//! Invariant: what cannot be understood counts as a match, so that a rule is never passed by because it is odd.
//! What it leaves to others: `matchConditions`.

use super::Request;
use crate::admission::Operation;
use crate::error::{ApiError, ApiResult};
use serde_json::{Map, Value};

/// The version in which the hook wants to see the resource, when one of its rules is about this write.
pub fn version(request: &Request<'_>, hook: &Value) -> Option<String> {
    let rules: Vec<&Value> = hook.get("rules").and_then(Value::as_array).into_iter().flatten().collect();
    if rules.iter().any(|rule| covers(request, rule, request.version)) {
        return Some(request.version.to_owned());
    }
    if hook.get("matchPolicy").and_then(Value::as_str) == Some("Exact") {
        return None;
    }
    let others = request.resource.versions.iter().filter(|v| *v != request.version);
    others.into_iter().find(|v| rules.iter().any(|rule| covers(request, rule, v))).cloned()
}

fn covers(request: &Request<'_>, rule: &Value, version: &str) -> bool {
    let resource = request.resource;
    let has = |field: &str, wanted: &str| {
        let list = rule.get(field).and_then(Value::as_array);
        list.into_iter().flatten().any(|v| v == "*" || v == wanted)
    };
    let scope = match rule.get("scope").and_then(Value::as_str) {
        // A namespace lies in itself, but it is an object of the cluster.
        Some("Namespaced") => resource.namespaced,
        Some("Cluster") => !resource.namespaced,
        _ => true,
    };
    let resources = rule.get("resources").and_then(Value::as_array);
    let named = resources.into_iter().flatten().filter_map(Value::as_str).any(|name| {
        let (plural, sub) = name.split_once('/').unwrap_or((name, ""));
        (plural == "*" || plural == resource.plural) && (sub == request.subresource || (sub == "*" && name != "*"))
    });
    scope
        && named
        && has("apiGroups", &resource.group)
        && has("apiVersions", version)
        && has("operations", operation(request.operation))
}

/// The word for an operation in rules and reviews.
pub fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    }
}

/// Whether the selectors of namespace and object choose this write.
///
/// # Errors
/// `NotFound` for a namespace that must be looked at and is not there.
pub fn selected(request: &Request<'_>, hook: &Value, object: Option<&Value>, old: Option<&Value>) -> ApiResult<bool> {
    let by_object = hook.get("objectSelector");
    let is_chosen = |o: Option<&Value>| o.is_some_and(|o| selects(by_object, labels(o)));
    if !is_empty(by_object) && !is_chosen(object) && !is_chosen(old) {
        return Ok(false);
    }
    let by_namespace = hook.get("namespaceSelector");
    if is_empty(by_namespace) {
        return Ok(true);
    }
    if request.resource.id.as_ref() == "namespaces" {
        let shown = object.or(old);
        return Ok(shown.is_none_or(|o| selects(by_namespace, labels(o))));
    }
    if !request.resource.namespaced {
        return Ok(true);
    }
    let namespace = request.store.get("namespaces", "", request.namespace);
    let namespace = namespace.ok_or_else(|| ApiError::not_found("namespaces", request.namespace))?;
    Ok(selects(by_namespace, labels(&namespace)))
}

fn is_empty(selector: Option<&Value>) -> bool {
    selector.and_then(Value::as_object).is_none_or(Map::is_empty)
}

/// The labels of an object.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object.pointer("/metadata/labels").and_then(Value::as_object)
}

/// A `metav1.LabelSelector` on labels.
pub fn selects(selector: Option<&Value>, labels: Option<&Map<String, Value>>) -> bool {
    let Some(selector) = selector else { return true };
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let equal = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    equal.into_iter().all(|(key, value)| label(key) == value.as_str())
        && expressions.into_iter().all(|expression| {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default();
            let is = label(key);
            let listed = || {
                let values = expression.get("values").and_then(Value::as_array);
                values.into_iter().flatten().any(|v| v.as_str() == is)
            };
            match expression.get("operator").and_then(Value::as_str) {
                Some("In") => is.is_some() && listed(),
                Some("NotIn") => is.is_none() || !listed(),
                Some("Exists") => is.is_some(),
                Some("DoesNotExist") => is.is_none(),
                _ => true,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_choose() {
        let labels = json!({"a": "1", "b": "2"});
        let chosen = |selector: Value| selects(Some(&selector), labels.as_object());
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "3"]}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["1"]}]}), true),
            (json!({"matchExpressions": [{"key": "c", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]}), true),
            (json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), false),
        ] {
            assert_eq!(chosen(selector.clone()), expected, "{selector}");
        }
    }
}
