//! The schemas of Kubernetes' own kinds, converted from the JSON schemas that k8s-openapi carries.
//!
//! Invariant: the conversion loses nothing that strict decoding needs; what the JSON schemas lack (merge keys) is added
//! from `merge_keys`. Converting is done per kind, when the kind is first asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::{Definitions, Field, IntRange, Keys, ListMerge, ObjectType, Type, merge_keys};

/// A converted kind: the name of its own definition, and all definitions.
pub(crate) struct Converted {
    pub root: Arc<str>,
    pub definitions: Definitions,
}

/// Converts the schema of a k8s-openapi type with everything it refers to.
pub(crate) fn definitions_of<T: JsonSchema>() -> Converted {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    // Asking for a subschema puts the type itself among the definitions, under its own name.
    let _reference = generator.subschema_for::<T>();
    let definitions = generator.take_definitions(false);
    let definitions = definitions.into_iter().map(|(name, schema)| {
        let ty = convert(&name, &schema);
        (Arc::from(name), ty)
    });
    Converted { root: T::schema_name().as_ref().into(), definitions: definitions.collect() }
}

fn convert(definition: &str, schema: &Value) -> Type {
    let Some(schema) = schema.as_object() else { return Type::Any };
    if let Some(reference) = reference(schema) {
        return Type::Ref(reference);
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        return if definition.ends_with(".Quantity") { Type::Quantity } else { Type::IntOrString };
    }
    let format = schema.get("format").and_then(Value::as_str);
    match schema.get("type").and_then(Value::as_str) {
        Some("string") if format == Some("date-time") => Type::Time,
        Some("string") if format == Some("byte") => Type::Bytes,
        Some("string") => Type::String,
        Some("boolean") => Type::Bool,
        Some("integer") if format == Some("int64") => Type::Int(IntRange { as_text: false, ..IntRange::INT64 }),
        Some("integer") => Type::Int(IntRange::INT32),
        Some("number") => Type::Number,
        Some("array") => {
            let items = schema.get("items").map_or(Type::Any, |items| convert("", items));
            Type::List { items: Box::new(items), merge: ListMerge::Atomic }
        }
        Some("object") => convert_object(definition, schema),
        _ => Type::Any,
    }
}

fn convert_object(definition: &str, schema: &Map<String, Value>) -> Type {
    if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
        return Type::Map { keys: Keys::Text, values: Box::new(convert("", values)) };
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Type::Any };
    let mut fields = BTreeMap::new();
    for (name, schema) in properties {
        let mut ty = convert("", schema);
        if let Type::List { merge, .. } = &mut ty {
            *merge = merge_keys::of(definition, name);
        }
        fields.insert(Arc::from(name.as_str()), Field { description: description(schema), ty });
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    // Every kind of k8s-openapi declares its metadata as required, which no server asks for.
    let required = required.filter_map(Value::as_str).filter(|name| *name != "metadata").map(Arc::from).collect();
    Type::Object(ObjectType {
        description: description_of(schema),
        fields,
        required,
        enforce_required: false,
        open: false,
        whole: false,
    })
}

/// The name of the definition that a schema refers to, also where the reference sits in an `allOf` beside a description.
fn reference(schema: &Map<String, Value>) -> Option<Arc<str>> {
    let direct = schema.get("$ref").and_then(Value::as_str);
    let nested = || schema.get("allOf")?.as_array()?.first()?.get("$ref")?.as_str();
    let path = direct.or_else(nested)?;
    Some(path.rsplit('/').next().unwrap_or(path).into())
}

fn description(schema: &Value) -> Option<Arc<str>> {
    schema.as_object().and_then(description_of)
}

fn description_of(schema: &Map<String, Value>) -> Option<Arc<str>> {
    schema.get("description").and_then(Value::as_str).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_converts_whole_and_the_merge_table_fits_it() {
        let pod = definitions_of::<k8s_openapi::api::core::v1::Pod>();
        assert_eq!(&*pod.root, "io.k8s.api.core.v1.Pod");
        assert!(pod.definitions.contains_key("io.k8s.api.core.v1.Container"));
        let Some(Type::Object(meta)) = pod.definitions.get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else {
            panic!("no ObjectMeta")
        };
        assert!(meta.fields.contains_key("ownerReferences"));
        for (name, ty) in &pod.definitions {
            check_references(name, ty, &pod.definitions);
        }
    }

    fn check_references(place: &str, ty: &Type, all: &Definitions) {
        match ty {
            Type::Ref(name) => assert!(all.contains_key(name), "{place} refers to {name}"),
            Type::List { items, .. } => check_references(place, items, all),
            Type::Map { values, .. } => check_references(place, values, all),
            Type::Object(object) => {
                object.fields.iter().for_each(|(name, f)| check_references(&format!("{place}.{name}"), &f.ty, all))
            }
            _ => {}
        }
    }

    #[test]
    fn every_place_of_the_merge_table_exists() {
        use k8s_openapi::api::{admissionregistration::v1 as admission, apps::v1 as apps, core::v1 as core};
        let mut all = definitions_of::<core::Pod>().definitions;
        all.extend(definitions_of::<core::Service>().definitions);
        all.extend(definitions_of::<core::ServiceAccount>().definitions);
        all.extend(definitions_of::<core::Namespace>().definitions);
        all.extend(definitions_of::<core::Node>().definitions);
        all.extend(definitions_of::<apps::Deployment>().definitions);
        all.extend(definitions_of::<apps::ReplicaSet>().definitions);
        all.extend(definitions_of::<apps::StatefulSet>().definitions);
        all.extend(definitions_of::<apps::DaemonSet>().definitions);
        all.extend(definitions_of::<admission::MutatingWebhookConfiguration>().definitions);
        all.extend(definitions_of::<admission::ValidatingWebhookConfiguration>().definitions);
        all.extend(definitions_of::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>().definitions);
        all.extend(definitions_of::<core::PersistentVolumeClaim>().definitions);
        all.extend(definitions_of::<k8s_openapi::api::policy::v1::PodDisruptionBudget>().definitions);
        all.extend(definitions_of::<k8s_openapi::api::certificates::v1::CertificateSigningRequest>().definitions);
        for (definition, field) in merge_keys::places() {
            let Some(Type::Object(object)) = all.get(definition) else { panic!("no {definition}") };
            let is_list = object.fields.get(field).is_some_and(|f| matches!(f.ty, Type::List { .. }));
            assert!(is_list, "{definition}.{field} is not a list");
        }
    }
}
