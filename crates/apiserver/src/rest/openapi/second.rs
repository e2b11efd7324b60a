//! The schemas as OpenAPI v2, for clients from before version 3 (kubectl up to 1.26 validates and explains with it).
//!
//! Invariant: says what the documents of version 3 say, less what version 2 cannot: where a value may be of several
//! types, nothing is said of its type.
//! What it leaves to others: the wire (`gnostic`).

use super::{kind, root_path};
use crate::catalog::Catalog;
use serde_json::{Map, Value, json};

/// The whole document.
pub fn document(catalog: &Catalog) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for resource in catalog.iter() {
        for version in &resource.versions {
            let (root, components) = resource.components(version);
            for (name, component) in components {
                let mut schema = schema(&component);
                if name == root {
                    let mut kinds = definitions
                        .get(&name)
                        .and_then(|d: &Value| d.get(KINDS)?.as_array().cloned())
                        .unwrap_or_default();
                    kinds.push(kind(&resource, version));
                    schema[KINDS] = kinds.into();
                    definitions.insert(name, schema);
                } else {
                    definitions.entry(name).or_insert(schema);
                }
            }
            if resource.stored {
                let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
                let path = format!("/{}{scope}/{}/{{name}}", root_path(&resource.group, version), resource.plural);
                let query = |name: &str| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true});
                let parameters = ["dryRun", "fieldManager", "fieldValidation", "force"].map(query);
                let patch = json!({
                    "x-kubernetes-action": "patch", "x-kubernetes-group-version-kind": kind(&resource, version),
                    "parameters": parameters,
                    "responses": {"200": {"description": "OK"}},
                });
                paths.insert(path, json!({"patch": patch}));
            }
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": super::super::version::GIT_VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

const KINDS: &str = "x-kubernetes-group-version-kind";
/// What is taken as it is.
const KEPT: [&str; 6] = ["description", "type", "format", "required", "enum", "default"];

fn schema(from: &Value) -> Value {
    let mut to = Map::new();
    let Some(from) = from.as_object() else { return Value::Object(to) };
    let text = |field: &str| from.get(field).cloned();
    let reference = |schema: &Value| {
        let path = schema.get("$ref").and_then(Value::as_str)?;
        Some(json!(path.replace("#/components/schemas/", "#/definitions/")))
    };
    let wrapped = from.get("allOf").and_then(Value::as_array).and_then(|l| l.first()).and_then(reference);
    if let Some(path) = reference(&Value::Object(from.clone())).or(wrapped) {
        to.insert("$ref".into(), path);
        to.extend(text("description").map(|d| ("description".to_owned(), d)));
        return Value::Object(to);
    }
    let flag = |field: &str| from.get(field) == Some(&Value::Bool(true));
    to.extend(
        from.iter()
            .filter(|(k, _)| k.starts_with("x-kubernetes-") && *k != "x-kubernetes-validations")
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    if flag("x-kubernetes-int-or-string") {
        to.extend(text("description").map(|d| ("description".to_owned(), d)));
        to.insert("type".into(), json!("string"));
        to.insert("format".into(), json!("int-or-string"));
        return Value::Object(to);
    }
    if flag("x-kubernetes-preserve-unknown-fields") || flag("nullable") {
        // Anything may stand here.
        to.extend(text("description").map(|d| ("description".to_owned(), d)));
        return Value::Object(to);
    }
    to.extend(KEPT.iter().filter_map(|k| Some(((*k).to_owned(), from.get(*k)?.clone()))));
    if let Some(properties) = from.get("properties").and_then(Value::as_object) {
        let all: Map<String, Value> = properties.iter().map(|(name, p)| (name.clone(), schema(p))).collect();
        to.insert("properties".into(), Value::Object(all));
    }
    if let Some(values) = from.get("additionalProperties").filter(|v| v.is_object()) {
        to.insert("additionalProperties".into(), schema(values));
    }
    if let Some(items) = from.get("items") {
        to.insert("items".into(), schema(items));
    }
    Value::Object(to)
}
