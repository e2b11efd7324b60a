//! Istio's kinds as CustomResourceDefinitions, from the same tree that decoding reads, with the rules of `schemas/rules.txt`.
//!
//! Invariant: schemas are structural: no references, a type everywhere, conditions beside the structure only; all versions of a kind
//! have the same one. What an installation of Istio takes is taken: bounds and rules are those of its CRDs, which also keeps the
//! estimated costs of expressions within an API server's limits. Checking values against rules is left to the API server.

mod rules;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use self::rules::{Rule, rules};
use crate::kinds::{Kind, registry};
use crate::schema::{Definitions, EnumType, IntRange, Keys, ObjectType, Type};

/// The groups whose kinds an installation brings along.
pub const GROUPS: [&str; 4] = ["extensions.istio.io", "networking.istio.io", "security.istio.io", "telemetry.istio.io"];
/// The group of Istio's first authentication API, which Istio no longer has.
pub const LEGACY_GROUP: &str = "authentication.istio.io";

/// Kinds that mean nothing without a spec.
const NEED_SPEC: [&str; 5] = ["ServiceEntry", "TrafficExtension", "WasmPlugin", "WorkloadEntry", "WorkloadGroup"];

/// References do not nest deeper; a circle would.
const DEEPEST: usize = 32;

/// The definitions of all kinds of these groups, by name.
pub fn definitions(groups: &[&str]) -> Vec<Value> {
    let mut all: Vec<Value> = registry().iter().filter(|kind| groups.contains(&kind.group)).map(definition).collect();
    all.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
    all
}

/// One kind.
pub fn definition(kind: &Kind) -> Value {
    let mut names = json!({
        "categories": kind.categories,
        "kind": kind.kind,
        "listKind": format!("{}List", kind.kind),
        "plural": kind.plural,
        "singular": kind.singular,
    });
    if !kind.short_names.is_empty() {
        names["shortNames"] = json!(kind.short_names);
    }
    let schema = schema(kind);
    let versions: Vec<Value> = kind.versions.iter().map(|version| version_of(kind, version, &schema)).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", kind.plural, kind.group),
            "labels": {"app": "istio-pilot", "app.kubernetes.io/part-of": "istio"},
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "versions": versions,
        },
    })
}

fn version_of(kind: &Kind, version: &str, schema: &Value) -> Value {
    let columns: Vec<Value> = kind.columns.iter().filter_map(column).collect();
    let mut all = json!({ "name": version, "served": true, "storage": version == stored(kind) });
    if !columns.is_empty() {
        all["additionalPrinterColumns"] = columns.into();
    }
    all["schema"] = json!({ "openAPIV3Schema": schema });
    if kind.has_status() {
        all["subresources"] = json!({ "status": {} });
    }
    all
}

/// The version that Istio's CRDs store, so that either may follow the other.
fn stored(kind: &Kind) -> &'static str {
    if kind.kind == "Telemetry" { "v1alpha1" } else { kind.storage_version() }
}

/// A column beside the name, which every table has.
fn column(column: &crate::kinds::Column) -> Option<Value> {
    let (path, ty) = match column.name {
        "Age" => (".metadata.creationTimestamp", "date"),
        "Gateways" => (".spec.gateways", "string"),
        "Hosts" => (".spec.hosts", "string"),
        "Host" => (".spec.host", "string"),
        "Location" => (".spec.location", "string"),
        "Resolution" => (".spec.resolution", "string"),
        "Address" => (".spec.address", "string"),
        "Mode" => (".spec.mtls.mode", "string"),
        "Action" => (".spec.action", "string"),
        _ => return None,
    };
    Some(json!({ "name": column.name, "type": ty, "jsonPath": path, "description": column.description }))
}

fn schema(kind: &Kind) -> Value {
    let schema = kind.schema(kind.storage_version());
    let root = schema.definitions().get(schema.root_name());
    let mut properties = Map::new();
    if let Some(Type::Object(root)) = root {
        let writer = Writer { definitions: schema.definitions() };
        for name in ["spec", "status"] {
            let Some(field) = root.fields.get(name) else { continue };
            let mut written = writer.write(&field.ty, "", DEEPEST);
            if name == "spec" {
                apply(&mut written, rules(&format!("={}", kind.kind)));
            } else {
                // Others may report more, as Istio's control plane does.
                written["x-kubernetes-preserve-unknown-fields"] = true.into();
            }
            properties.insert(name.to_owned(), written);
        }
    }
    let mut written = json!({ "type": "object", "properties": properties });
    if NEED_SPEC.contains(&kind.kind) {
        written["required"] = json!(["spec"]);
    }
    written
}

struct Writer<'a> {
    definitions: &'a Definitions,
}

impl Writer<'_> {
    /// A type at a place: `Definition.field`, with `[]` and `{}` for what lists and maps hold.
    fn write(&self, ty: &Type, place: &str, depth: usize) -> Value {
        let Some(depth) = depth.checked_sub(1) else { return any() };
        let mut written = match ty {
            Type::Ref(name) => match self.definitions.get(name) {
                Some(target) => self.definition(short(name), target, depth),
                None => any(),
            },
            Type::Object(object) => self.object("", object, depth),
            Type::Map { values, keys: Keys::Text | Keys::Number } => json!({
                "type": "object",
                "additionalProperties": self.write(values, &format!("{place}{{}}"), depth),
            }),
            Type::List { items, .. } => {
                json!({ "type": "array", "items": self.write(items, &format!("{place}[]"), depth) })
            }
            Type::String | Type::Quantity => json!({ "type": "string" }),
            Type::Bool => json!({ "type": "boolean" }),
            Type::Int(range) => integer(range),
            Type::Number => json!({ "type": "number", "format": "double" }),
            Type::IntOrString => json!({
                "anyOf": [{ "type": "integer" }, { "type": "string" }],
                "x-kubernetes-int-or-string": true,
            }),
            Type::Duration => duration(place),
            Type::Time => json!({ "type": "string", "format": "date-time" }),
            Type::Bytes => json!({ "type": "string", "format": "byte" }),
            Type::Enum(EnumType { values }) => {
                let names: Vec<&str> = values.iter().map(|(name, _)| &**name).collect();
                json!({ "type": "string", "enum": names })
            }
            Type::Any => any(),
        };
        apply(&mut written, rules(place));
        written
    }

    fn definition(&self, name: &str, ty: &Type, depth: usize) -> Value {
        match ty {
            Type::Object(object) => {
                let mut written = self.object(name, object, depth);
                apply(&mut written, rules(name));
                written
            }
            other => self.write(other, name, depth),
        }
    }

    fn object(&self, name: &str, object: &ObjectType, depth: usize) -> Value {
        let mut properties = Map::new();
        for (field, Field { description, ty }) in object.fields.iter().map(|(name, field)| (name, Field::of(field))) {
            let mut written = self.write(ty, &format!("{name}.{field}"), depth);
            if let (Some(description), Some(fields)) = (description, written.as_object_mut()) {
                fields.insert("description".to_owned(), Value::from(&**description));
            }
            properties.insert(field.to_string(), written);
        }
        let mut written = json!({ "type": "object" });
        if let Some(description) = &object.description {
            written["description"] = Value::from(&**description);
        }
        written["properties"] = properties.into();
        if object.enforce_required && !object.required.is_empty() {
            written["required"] = object.required.iter().map(|name| Value::from(&**name)).collect();
        }
        written
    }
}

struct Field<'a> {
    description: Option<&'a Arc<str>>,
    ty: &'a Type,
}

impl<'a> Field<'a> {
    fn of(field: &'a crate::schema::Field) -> Self {
        Self { description: field.description.as_ref(), ty: &field.ty }
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(crate::schema::ISTIO_PREFIX).unwrap_or(name)
}

/// A protobuf Struct: an object of any shape.
fn any() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn integer(range: &IntRange) -> Value {
    let mut written = json!({ "type": "integer" });
    if range.min >= 0 {
        written["minimum"] = range.min.into();
        if let Ok(max) = u32::try_from(range.max) {
            written["maximum"] = max.into();
        }
    } else {
        written["format"] = range.format.into();
    }
    written
}

fn duration(place: &str) -> Value {
    let mut written = json!({ "type": "string" });
    if !rules(place).iter().any(|rule| matches!(rule, Rule::AnyLength)) {
        written["x-kubernetes-validations"] = json!([{
            "rule": "duration(self) >= duration('1ms')",
            "message": "a duration of at least 1ms, such as 10s or 1m30s",
        }]);
    }
    written
}

fn apply(written: &mut Value, rules: &[Rule]) {
    let mut choices = Vec::new();
    for rule in rules {
        match rule {
            Rule::Between { what, min, max } => {
                for (bound, value) in [("min", min), ("max", max)] {
                    if let Some(value) = value {
                        written[what.keyword(bound)] = (*value).into();
                    }
                }
            }
            Rule::Pattern(pattern) => written["pattern"] = pattern.as_str().into(),
            Rule::Format(format) => written["format"] = format.as_str().into(),
            Rule::Null => written["nullable"] = true.into(),
            Rule::AnyLength => {}
            Rule::Key(field) => {
                written["x-kubernetes-list-type"] = "map".into();
                written["x-kubernetes-list-map-keys"] = json!([field]);
            }
            Rule::Choice(fields) => {
                let required = |field: &String| json!({ "required": [field] });
                let none = json!({ "not": { "anyOf": fields.iter().map(required).collect::<Vec<_>>() } });
                choices.push(std::iter::once(none).chain(fields.iter().map(required)).collect::<Vec<_>>());
            }
            Rule::Expression { rule, message } => {
                let entry = json!({ "rule": rule, "message": message });
                match written["x-kubernetes-validations"].as_array_mut() {
                    Some(all) => all.push(entry),
                    None => written["x-kubernetes-validations"] = json!([entry]),
                }
            }
        }
    }
    match choices.as_slice() {
        [] => {}
        [only] => written["oneOf"] = only.clone().into(),
        several => {
            written["allOf"] = several.iter().map(|choice| json!({ "oneOf": choice })).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of Kubernetes' structural schemas, as far as our writer could break them.
    fn structural(schema: &Value, at: &str, wrong: &mut Vec<String>) {
        let Some(fields) = schema.as_object() else { return wrong.push(format!("{at}: no object")) };
        let has = |name: &str| fields.contains_key(name);
        if has("$ref") || has("definitions") {
            wrong.push(format!("{at}: a reference"));
        }
        if !has("type") && !has("x-kubernetes-int-or-string") {
            wrong.push(format!("{at}: no type"));
        }
        if has("properties") && has("additionalProperties") {
            wrong.push(format!("{at}: both fields and any keys"));
        }
        for junctor in ["allOf", "anyOf", "oneOf"] {
            for part in schema[junctor].as_array().into_iter().flatten() {
                if !has("x-kubernetes-int-or-string") && part.to_string().contains("\"type\"") {
                    wrong.push(format!("{at}: a type inside {junctor}"));
                }
            }
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            if schema["properties"].get(required.as_str().unwrap_or_default()).is_none() {
                wrong.push(format!("{at}: {required} is needed and unknown"));
            }
        }
        for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten() {
            if !schema["items"]["required"].as_array().is_some_and(|all| all.contains(key)) {
                wrong.push(format!("{at}: items may lack their key {key}"));
            }
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            structural(child, &format!("{at}.{name}"), wrong);
        }
        for (inner, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
            if let Some(child) = fields.get(inner) {
                structural(child, &format!("{at}{mark}"), wrong);
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        let mut wrong = Vec::new();
        let all: Vec<Value> = definitions(&GROUPS).into_iter().chain(definitions(&[LEGACY_GROUP])).collect();
        assert_eq!(all.len(), 17);
        for definition in &all {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1);
            for version in versions {
                let at = format!("{} {}", definition["metadata"]["name"], version["name"]);
                structural(&version["schema"]["openAPIV3Schema"], &at, &mut wrong);
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
    }

    #[test]
    fn rules_reach_their_places() {
        let all = definitions(&GROUPS);
        let find = |name: &str| all.iter().find(|d| d["spec"]["names"]["kind"] == name).unwrap();
        let spec = |name: &str| &find(name)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let entry = spec("ServiceEntry");
        assert_eq!(entry["properties"]["ports"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(entry["properties"]["hosts"]["minItems"], 1);
        let endpoint = &entry["properties"]["endpoints"]["items"];
        assert_eq!(endpoint["x-kubernetes-validations"].as_array().unwrap().len(), 2);
        assert_eq!(spec("WorkloadEntry")["x-kubernetes-validations"].as_array().unwrap().len(), 2);
        let template = &spec("WorkloadGroup")["properties"]["template"];
        assert_eq!(template["x-kubernetes-validations"].as_array().unwrap().len(), 1);
        let hash = &spec("DestinationRule")["properties"]["trafficPolicy"]["properties"]["loadBalancer"]["properties"]
            ["consistentHash"];
        assert_eq!(hash["allOf"].as_array().unwrap().len(), 2);
        assert!(hash["properties"]["httpCookie"]["properties"]["ttl"].get("x-kubernetes-validations").is_none());
        assert_eq!(
            find("VirtualService")["spec"]["versions"][0]["additionalPrinterColumns"][1]["jsonPath"],
            ".spec.hosts"
        );
    }
}
