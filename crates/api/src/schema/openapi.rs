//! The schema as OpenAPI v3 components, for `kubectl explain` and client-side validation.
//!
//! Invariant: derived from the same tree that decoding uses, so the two cannot disagree.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{EnumType, ListMerge, ObjectType, Schema, Type};

/// Where references point to.
const COMPONENTS: &str = "#/components/schemas/";

impl Schema {
    /// The OpenAPI v3 schemas of the kind and of everything it refers to, by name. References point into
    /// `#/components/schemas/`.
    pub fn openapi_components(&self) -> Map<String, Value> {
        let mut components = BTreeMap::new();
        let mut pending = vec![self.root_name().to_owned()];
        while let Some(name) = pending.pop() {
            let Some(ty) = self.definitions().get(name.as_str()) else { continue };
            if components.contains_key(&name) {
                continue;
            }
            references(ty, &mut pending);
            components.insert(name, schema_of(ty));
        }
        components.into_iter().collect()
    }

    /// A reference to the kind's own component.
    pub fn openapi_reference(&self) -> Value {
        json!({ "$ref": format!("{COMPONENTS}{}", self.root_name()) })
    }
}

fn references(ty: &Type, found: &mut Vec<String>) {
    match ty {
        Type::Ref(name) => found.push(name.to_string()),
        Type::Object(object) => object.fields.values().for_each(|field| references(&field.ty, found)),
        Type::Map { values, .. } => references(values, found),
        Type::List { items, .. } => references(items, found),
        _ => {}
    }
}

fn schema_of(ty: &Type) -> Value {
    match ty {
        Type::Object(object) => object_schema(object),
        Type::Map { values, .. } => json!({ "type": "object", "additionalProperties": schema_of(values) }),
        Type::List { items, merge } => list_schema(items, merge),
        Type::String => json!({ "type": "string" }),
        Type::Bool => json!({ "type": "boolean" }),
        Type::Int(range) => json!({ "type": "integer", "format": range.format }),
        Type::Number => json!({ "type": "number", "format": "double" }),
        Type::IntOrString => {
            json!({ "x-kubernetes-int-or-string": true, "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        Type::Quantity => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
        Type::Duration => json!({ "type": "string" }),
        Type::Time => json!({ "type": "string", "format": "date-time" }),
        Type::Bytes => json!({ "type": "string", "format": "byte" }),
        Type::Enum(EnumType { values }) => {
            let names: Vec<&str> = values.iter().map(|(name, _)| &**name).collect();
            json!({ "type": "string", "enum": names })
        }
        Type::Any => json!({ "x-kubernetes-preserve-unknown-fields": true }),
        Type::Ref(name) => json!({ "$ref": format!("{COMPONENTS}{name}") }),
    }
}

fn list_schema(items: &Type, merge: &ListMerge) -> Value {
    let mut schema = json!({ "type": "array", "items": schema_of(items) });
    match merge {
        ListMerge::Atomic => schema["x-kubernetes-list-type"] = "atomic".into(),
        ListMerge::Set => {
            schema["x-kubernetes-list-type"] = "set".into();
            schema["x-kubernetes-patch-strategy"] = "merge".into();
        }
        ListMerge::Map(keys) => {
            let keys: Vec<&str> = keys.iter().map(|k| &**k).collect();
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-patch-strategy"] = "merge".into();
            schema["x-kubernetes-patch-merge-key"] = keys.first().copied().unwrap_or_default().into();
            schema["x-kubernetes-list-map-keys"] = keys.into();
        }
    }
    schema
}

fn object_schema(object: &ObjectType) -> Value {
    let mut properties = Map::new();
    for (name, field) in &object.fields {
        let mut schema = schema_of(&field.ty);
        if let Some(description) = &field.description {
            // OpenAPI 3.0 ignores what stands beside a reference, hence the wrapping.
            if schema.get("$ref").is_some() {
                schema = json!({ "allOf": [schema] });
            }
            schema["description"] = Value::from(&**description);
        }
        properties.insert(name.to_string(), schema);
    }
    let mut schema = json!({ "type": "object" });
    if let Some(description) = &object.description {
        schema["description"] = Value::from(&**description);
    }
    schema["properties"] = Value::Object(properties);
    if !object.required.is_empty() {
        schema["required"] = object.required.iter().map(|r| Value::from(&**r)).collect();
    }
    schema
}
