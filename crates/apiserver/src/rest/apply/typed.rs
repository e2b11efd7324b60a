//! What server-side apply says of a configuration that its schema cannot hold.
//!
//! Invariant: an apply drops nothing: what is unknown or of a wrong type is refused, in the words of Kubernetes' library
//! for typed merging.
//! What it leaves to others: the form of texts (times, quantities), which decoding looks at.

use super::fields::{item_key, item_value, readable};
use crate::catalog::Resource;
use crate::error::ApiError;
use carrick_api::schema::{Cursor, ListMerge, Reason, Type};
use serde_json::Value;

/// The refusal, if there is something to refuse.
pub fn unfit(resource: &Resource, version: &str, config: &Value) -> Option<ApiError> {
    let schema = resource.schema(version);
    let found = schema.check(config).into_iter().filter_map(|error| {
        let why = match &error.reason {
            Reason::Unknown => "field not declared in schema".to_owned(),
            Reason::WrongType { expected, .. } => mistyped(expected, at(config, &error.path)?),
            _ => return None,
        };
        Some(format!("{}: {why}", place(schema.cursor(), config, &error.path)))
    });
    // What is unknown ends the search.
    let mut found: Vec<String> = found.collect();
    if let Some(first) = found.iter().position(|told| told.ends_with("not declared in schema")) {
        found.truncate(first.saturating_add(1));
    }
    let told = match found.as_slice() {
        [] => return None,
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let group = &resource.group;
    Some(ApiError::unnamed(
        500,
        format!(
            "failed to create typed patch object ({}/{}; {group}/{version}, Kind={}): {told}",
            text("/metadata/namespace"),
            text("/metadata/name"),
            resource.kind
        ),
    ))
}

/// The steps of a path: names, and places in lists.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty())
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    steps(path).try_fold(value, below)
}

fn below<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match value {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    }
}

/// `spec.ports[0].name` as `.spec.ports[port=80].name`.
fn place(root: Cursor<'_>, config: &Value, path: &str) -> String {
    let (mut value, mut cursor, mut told) = (Some(config), Some(root), String::new());
    for step in steps(path) {
        let item = value.and_then(|v| below(v, step));
        if value.is_some_and(Value::is_array) {
            told.push_str(&match (cursor.and_then(Cursor::list_merge), item) {
                (Some(ListMerge::Map(keys)), Some(item)) => match item_key(item, keys) {
                    Some(key) => readable(key.trim_start_matches("k:")),
                    None => format!("[{step}]"),
                },
                (Some(ListMerge::Set), Some(item)) => format!("[={}]", item_value(item).trim_start_matches("v:")),
                _ => format!("[{step}]"),
            });
            cursor = cursor.and_then(Cursor::items);
        } else {
            told.push('.');
            told.push_str(step);
            cursor = cursor.filter(|c| !matches!(c.ty(), Type::Any)).and_then(|c| c.field(step));
        }
        value = item;
    }
    told
}

fn mistyped(expected: &str, value: &Value) -> String {
    match expected {
        "string" => format!("expected string, got &value.valueUnstructured{{Value:{}}}", go(value)),
        "integer" | "number" => format!("expected numeric (int or float), got {}", go_type(value)),
        "boolean" => format!("expected boolean, got &{{{}}}", bare(value)),
        "object" => format!("expected map, got &{{{}}}", bare(value)),
        "array" => format!("expected list, got &{{{}}}", bare(value)),
        _ => format!("expected any scalar, got &{{{}}}", bare(value)),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go writes it in its own syntax.
fn go(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[]interface {{}}{{{}}}", list.iter().map(go).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key:?}:{}", go(value))).collect();
            format!("map[string]interface {{}}{{{}}}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

/// A value as Go prints it.
pub fn printed(value: &Value) -> String {
    bare(value)
}

fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(bare).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", bare(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn as_kubernetes_tells_it() {
        let catalog = Catalog::of(carrick_api::kinds::registry());
        for (resource, object, told) in [
            ("configmaps", json!({"data": {"a": "1"}}), None),
            ("configmaps", json!({"nope": 1}), Some(".nope: field not declared in schema")),
            (
                "configmaps",
                json!({"data": {"a": 1}}),
                Some(".data.a: expected string, got &value.valueUnstructured{Value:1}"),
            ),
            (
                "deployments.apps",
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": true}]}}}}),
                Some(
                    ".spec.template.spec.containers[name=\"a\"].image: expected string, got &value.valueUnstructured{Value:true}",
                ),
            ),
            (
                "deployments.apps",
                json!({"spec": {"replicas": "3", "paused": 1}}),
                Some(
                    "errors:\n  .spec.replicas: expected numeric (int or float), got string\n  .spec.paused: expected boolean, got &{1}",
                ),
            ),
        ] {
            let resource = catalog.get(resource).unwrap();
            let refused = unfit(&resource, "v1", &object).map(|error| error.to_string());
            let begin =
                format!("failed to create typed patch object (/; {}/v1, Kind={}): ", resource.group, resource.kind);
            assert_eq!(refused, told.map(|told| format!("{begin}{told}")), "{object}");
        }
    }
}
