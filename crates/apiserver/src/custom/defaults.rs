//! Defaults of a schema, filled in where a field is absent.
//!
//! Invariant: doing it twice changes nothing the second time; a `null` where none is allowed counts as absent when there
//! is a default.

use serde_json::Value;

const DEEPEST: usize = 64;

/// Completes `value` by `schema`.
pub fn apply(schema: &Value, value: &mut Value, depth: usize) {
    if depth > DEEPEST {
        return;
    }
    let deeper = depth.saturating_add(1);
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            for (name, property) in properties.into_iter().flatten() {
                if let Some(default) = property.get("default") {
                    let nullable = property.get("nullable") == Some(&Value::Bool(true));
                    let absent = map.get(name).is_none_or(|v| v.is_null() && !nullable);
                    if absent {
                        map.insert(name.clone(), default.clone());
                    }
                }
                if let Some(child) = map.get_mut(name) {
                    apply(property, child, deeper);
                }
            }
            if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                for (name, child) in map.iter_mut() {
                    if properties.is_none_or(|p| !p.contains_key(name)) {
                        apply(values, child, deeper);
                    }
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                list.iter_mut().for_each(|item| apply(items, item, deeper));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_reach_as_deep_as_objects_do() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 3}}},
            "b": {"type": "object", "properties": {"n": {"default": 4}}},
            "l": {"type": "array", "items": {"properties": {"x": {"default": "y"}}}},
            "m": {"additionalProperties": {"properties": {"x": {"default": 1}}}},
            "null": {"nullable": true, "default": 1},
        }});
        let mut value = json!({"l": [{}, {"x": "z"}], "m": {"k": {}}, "null": null});
        apply(&schema, &mut value, 0);
        let whole = json!({
            "l": [{"x": "y"}, {"x": "z"}], "m": {"k": {"x": 1}}, "null": null, "a": {"n": 3},
        });
        assert_eq!(value, whole);
    }
}
