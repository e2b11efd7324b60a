//! Schemas of CustomResourceDefinitions, converted into the tree that decoding, pruning and applying read.
//!
//! Invariant: only the structure is taken: types, fields, how lists merge. Bounds, patterns, enums, defaults, rules and
//! which fields must be there (after defaulting) stay in the text and are checked by whoever serves the kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Definitions, Field, IntRange, Keys, ListMerge, ObjectType, Schema, Type};

/// References do not nest deeper than a server lets schemas nest.
const DEEPEST: usize = 64;

impl Schema {
    /// The tree of a CRD's `openAPIV3Schema`; `metadata` is the server's own.
    pub fn of_structural(name: &str, schema: &Value) -> Self {
        let mut root = match convert(schema, 0) {
            Type::Object(object) => object,
            _ => ObjectType { open: true, ..ObjectType::default() },
        };
        let metadata = super::definitions_of::<k8s_openapi::api::core::v1::ConfigMap>();
        let mut definitions: Definitions = metadata.definitions;
        let meta: Arc<str> = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta".into();
        definitions.retain(|name, _| name.contains(".apis.meta.v1."));
        let field = |ty| Field { description: None, ty };
        root.fields.insert("apiVersion".into(), field(Type::String));
        root.fields.insert("kind".into(), field(Type::String));
        root.fields.insert("metadata".into(), field(Type::Ref(meta)));
        definitions.insert(name.into(), Type::Object(root));
        Self::new(name, definitions.into())
    }
}

fn flag(schema: &Map<String, Value>, name: &str) -> bool {
    schema.get(name) == Some(&Value::Bool(true))
}

fn convert(schema: &Value, depth: usize) -> Type {
    let Some(schema) = schema.as_object().filter(|_| depth <= DEEPEST) else { return Type::Any };
    if flag(schema, "x-kubernetes-int-or-string") {
        return Type::IntOrString;
    }
    let format = schema.get("format").and_then(Value::as_str);
    match schema.get("type").and_then(Value::as_str) {
        Some("string") if format == Some("date-time") => Type::Time,
        Some("string") if format == Some("byte") => Type::Bytes,
        Some("string") => Type::String,
        Some("boolean") => Type::Bool,
        Some("integer") if format == Some("int32") => Type::Int(IntRange::INT32),
        Some("integer") => Type::Int(IntRange { as_text: false, ..IntRange::INT64 }),
        Some("number") => Type::Number,
        Some("array") => {
            let items = schema.get("items").map_or(Type::Any, |items| convert(items, depth.saturating_add(1)));
            Type::List { items: Box::new(items), merge: list_merge(schema) }
        }
        Some("object") => object(schema, depth),
        _ => Type::Any,
    }
}

fn list_merge(schema: &Map<String, Value>) -> ListMerge {
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListMerge::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
            ListMerge::Map(keys.filter_map(Value::as_str).map(Arc::from).collect())
        }
        _ => ListMerge::Atomic,
    }
}

fn object(schema: &Map<String, Value>, depth: usize) -> Type {
    let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let whole = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
    let deeper = depth.saturating_add(1);
    match schema.get("additionalProperties") {
        Some(Value::Bool(true)) => return Type::Map { keys: Keys::Text, values: Box::new(Type::Any) },
        Some(values @ Value::Object(_)) => {
            return Type::Map { keys: Keys::Text, values: Box::new(convert(values, deeper)) };
        }
        _ => {}
    }
    let mut fields = BTreeMap::new();
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let description = schema.get("description").and_then(Value::as_str).map(Arc::from);
        fields.insert(Arc::from(name.as_str()), Field { description, ty: convert(schema, deeper) });
    }
    if flag(schema, "x-kubernetes-embedded-resource") {
        for (name, ty) in [("apiVersion", Type::String), ("kind", Type::String), ("metadata", Type::Any)] {
            fields.entry(name.into()).or_insert(Field { description: None, ty });
        }
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let required = required.filter_map(Value::as_str).map(Arc::from).collect();
    let description = schema.get("description").and_then(Value::as_str).map(Arc::from);
    Type::Object(ObjectType { description, fields, required, enforce_required: false, open, whole })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_pruned_but_not_where_they_are_kept() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "integer"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "n": {"type": "object"},
                }},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
            }},
        }});
        let schema = Schema::of_structural("com.example.v1.Thing", &schema);
        let mut value = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}, "spec": {
            "b": 1, "free": {"x": {"y": 1}, "n": {"gone": 1}}, "map": {"k": "v"},
        }});
        let told: Vec<String> = schema.check(&value).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["unknown field \"spec.b\"", "unknown field \"spec.free.n.gone\""]);
        schema.prune(&mut value);
        assert_eq!(value["spec"], json!({"free": {"x": {"y": 1}, "n": {}}, "map": {"k": "v"}}));
    }
}
