//! Definitions at admission: what is filled in, and what makes one unacceptable.
//!
//! Invariant: a definition that passes can be acted on: one storage version, structural schemas, rules and patterns that
//! compile. A change that would lose stored objects is refused.

use super::{cel, structural, text};
use crate::error::Cause;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const SCHEMA: &str = "/schema/openAPIV3Schema";
const APPROVED: &str = "api-approved.kubernetes.io";

fn is_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let inner = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && inner
}

/// Fills in what a definition leaves open.
pub fn complete(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = text(names, "kind").to_owned();
        for (field, value) in [("singular", kind.to_ascii_lowercase()), ("listKind", format!("{kind}List"))] {
            if text(names, field).is_empty() && !kind.is_empty() {
                names.insert(field.into(), json!(value));
            }
        }
    }
    let conversion = spec.entry("conversion").or_insert_with(|| json!({}));
    if let Some(conversion) = conversion.as_object_mut()
        && text(conversion, "strategy").is_empty()
    {
        conversion.insert("strategy".into(), json!("None"));
    }
}

/// Everything that is wrong with a definition.
pub fn causes(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let empty = Map::new();
    let spec = object.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let names = spec.get("names").and_then(Value::as_object).unwrap_or(&empty);
    let (group, plural) = (text(spec, "group"), text(names, "plural"));
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &json!(name), why));
    }
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if !group.contains('.') || !group.split('.').all(is_label) {
        causes.push(Cause::invalid("spec.group", &json!(group), "should be a domain with at least one dot"));
    }
    let guarded = ["k8s.io", "kubernetes.io"].iter().any(|g| group == *g || group.ends_with(&format!(".{g}")));
    let approved = object.pointer("/metadata/annotations").and_then(|a| a.get(APPROVED)).is_some();
    if guarded && !approved {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        causes.push(Cause::required(format!("metadata.annotations[{APPROVED}]"), why));
    }
    match text(spec, "scope") {
        "Namespaced" | "Cluster" => {}
        "" => causes.push(Cause::required("spec.scope", "")),
        other => causes.push(unsupported("spec.scope", other, "\"Cluster\", \"Namespaced\"")),
    }
    names_causes(names, &mut causes);
    conversion(spec, &mut causes);
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(true)) {
        let why = "must be false";
        causes.push(Cause::invalid("spec.preserveUnknownFields", &json!(true), why));
    }
    versions(spec, old, &mut causes);
    if spec.get("versions").and_then(Value::as_array).is_some_and(|all| all.len() == 1) {
        causes.iter_mut().for_each(hoist);
    }
    if let Some(old) = old {
        for field in ["group", "scope"] {
            let was = old.pointer(&format!("/spec/{field}"));
            if was != spec.get(field) {
                let value = spec.get(field).cloned().unwrap_or_default();
                causes.push(Cause::invalid(format!("spec.{field}"), &value, "field is immutable"));
            }
        }
        let established = old.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let is = |c: &Value| c.get("type") == Some(&json!("Established")) && c.get("status") == Some(&json!("True"));
        if established.into_iter().any(is) {
            for field in ["kind", "plural"] {
                let now = names.get(field).cloned().unwrap_or_default();
                if old.pointer(&format!("/spec/names/{field}")) != Some(&now) {
                    causes.push(Cause::invalid(format!("spec.names.{field}"), &now, "field is immutable"));
                }
            }
        }
        lost_versions(object, old, &mut causes);
    }
    causes
}

/// Where there is one version, Kubernetes names its parts as if they were the definition's own.
fn hoist(cause: &mut Cause) {
    let Some(rest) = cause.field.strip_prefix("spec.versions[0].") else { return };
    let own = match rest.strip_prefix("schema.openAPIV3Schema") {
        Some("") if cause.message == "Required value" => return,
        Some(rest) => format!("spec.validation.openAPIV3Schema{rest}"),
        None if ["subresources", "additionalPrinterColumns", "selectableFields"]
            .iter()
            .any(|p| rest.starts_with(p)) =>
        {
            format!("spec.{rest}")
        }
        None => return,
    };
    cause.field = own;
}

/// How versions become each other; where a webhook is, is looked at by whoever looks at other webhooks.
fn conversion(spec: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let own = |field: &str| spec.get("conversion").and_then(|c| c.get(field)).filter(|v| !v.is_null());
    let webhook = own("webhook");
    match own("strategy").and_then(Value::as_str) {
        None | Some("None") => {
            if webhook.is_some() {
                let why = "should not be set when strategy is not set to Webhook";
                causes.push(Cause::forbidden("spec.conversion.webhookClientConfig", why));
            }
        }
        Some("Webhook") => {
            if webhook.and_then(|w| w.get("clientConfig")).is_none() {
                let why = "required when strategy is set to Webhook";
                causes.push(Cause::required("spec.conversion.webhookClientConfig", why));
            }
            let field = "spec.conversion.conversionReviewVersions";
            let versions =
                webhook.and_then(|w| w.get("conversionReviewVersions")).cloned().unwrap_or_else(|| json!([]));
            let known = |v: &Value| v == "v1" || v == "v1beta1";
            let listed = versions.as_array().map(Vec::as_slice).unwrap_or_default();
            if listed.is_empty() {
                causes.push(Cause::required(field, ""));
            } else if !listed.iter().any(known) {
                causes.push(Cause::invalid(field, &versions, "must include at least one of v1, v1beta1"));
            }
        }
        Some(other) => causes.push(unsupported("spec.conversion.strategy", other, "\"None\", \"Webhook\"")),
    }
}

fn unsupported(field: &str, value: &str, supported: &str) -> Cause {
    let message = format!("Unsupported value: {value:?}: supported values: {supported}");
    Cause { reason: "FieldValueNotSupported", message, field: field.into() }
}

fn names_causes(names: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let kind = text(names, "kind");
    if !kind.is_empty() && kind == text(names, "listKind") {
        let why = "kind and listKind may not be the same";
        causes.push(Cause::invalid("spec.names.listKind", &json!(kind), why));
    }
    for field in ["shortNames", "categories"] {
        let listed = names.get(field).and_then(Value::as_array).into_iter().flatten().enumerate();
        for (index, name) in listed.filter(|(_, name)| !name.as_str().is_some_and(is_label)) {
            let why = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
            causes.push(Cause::invalid(format!("spec.names.{field}[{index}]"), name, why));
        }
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = text(names, field);
        if value.is_empty() {
            causes.push(Cause::required(format!("spec.names.{field}"), ""));
        } else if !is_label(&value.to_ascii_lowercase()) || (field.len() > 4 && field != "listKind" && !is_label(value))
        {
            let why = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
            causes.push(Cause::invalid(format!("spec.names.{field}"), &json!(value), why));
        }
    }
}

fn versions(spec: &Map<String, Value>, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let was = old.and_then(|o| o.pointer("/spec/versions")?.as_array()).map(Vec::as_slice).unwrap_or_default();
    let versions = spec.get("versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        causes.push(Cause::required("spec.versions", "must have at least one version"));
    }
    let stored = versions.iter().filter(|v| v.get("storage") == Some(&Value::Bool(true))).count();
    if stored != 1 && !versions.is_empty() {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &json!(versions), why));
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{index}]");
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
        if !is_label(name) {
            causes.push(Cause::invalid(format!("{at}.name"), &json!(name), "must be a DNS-1035 label"));
        }
        if !seen.insert(name) {
            let why = "must contain unique version names";
            causes.push(Cause::invalid(format!("{at}.name"), &json!(name), why));
        }
        printed(version, &at, causes);
        pointed(version, &at, causes);
        let at = format!("{at}.schema.openAPIV3Schema");
        match version.pointer(SCHEMA) {
            None => causes.push(Cause::required(at, "")),
            Some(schema) => {
                // A schema that is already in force goes on to be.
                let same = |old: &Value| old.get("name") == version.get("name") && old.pointer(SCHEMA) == Some(schema);
                if was.iter().any(same) {
                    continue;
                }
                let status = version.pointer("/subresources/status").is_some_and(|s| !s.is_null());
                let found = structural::check(schema, &at, status);
                // Rules speak of types, so these have to be right.
                let is_structural = found.is_empty();
                causes.extend(found);
                if is_structural {
                    causes.extend(cel::check(schema, &at));
                }
            }
        }
    }
}

/// Columns that `kubectl get` shows, and the warning of a version that is going.
fn printed(version: &Value, at: &str, causes: &mut Vec<Cause>) {
    if version.get("deprecationWarning").is_some() && version.get("deprecated") != Some(&Value::Bool(true)) {
        let field = format!("{at}.deprecationWarning");
        let value = version.get("deprecationWarning").cloned().unwrap_or_default();
        causes.push(Cause::invalid(field, &value, "can only be set for deprecated versions"));
    }
    let columns = version.get("additionalPrinterColumns").and_then(Value::as_array);
    for (index, column) in columns.into_iter().flatten().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{index}]");
        let own = |field: &str| column.get(field).and_then(Value::as_str).unwrap_or_default();
        for field in ["name", "type", "jsonPath"] {
            if own(field).is_empty() {
                causes.push(Cause::required(format!("{at}.{field}"), ""));
            }
        }
        let (kind, path) = (own("type"), own("jsonPath"));
        if !kind.is_empty() && !["boolean", "date", "integer", "number", "string"].contains(&kind) {
            let why = "must be one of boolean,date,integer,number,string";
            causes.push(Cause::invalid(format!("{at}.type"), &json!(kind), why));
        }
        let formats = ["binary", "byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
        if !own("format").is_empty() && !formats.contains(&own("format")) {
            let why = format!("must be one of {}", formats.join(","));
            causes.push(Cause::invalid(format!("{at}.format"), &json!(own("format")), why));
        }
        if !path.is_empty() && !path.starts_with(['.', '[']) {
            causes.push(Cause::invalid(
                format!("{at}.JSONPath"),
                &json!(path),
                "must be a simple json path starting with .",
            ));
        }
    }
}

/// Where the numbers of a scale stand, and the fields that one may select by.
fn pointed(version: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (field, places) in [
        ("specReplicasPath", &[".spec"][..]),
        ("statusReplicasPath", &[".status"]),
        ("labelSelectorPath", &[".spec", ".status"]),
    ] {
        let path = version.pointer(&format!("/subresources/scale/{field}")).and_then(Value::as_str).unwrap_or_default();
        let field = format!("{at}.subresources.scale.{field}");
        if path.is_empty() {
            if places.len() == 1 && version.pointer("/subresources/scale").is_some() {
                causes.push(Cause::required(field, ""));
            }
        } else if !places.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('.'))) {
            let why = format!("should be a json path under {}", places.join(" or "));
            causes.push(Cause::invalid(field, &json!(path), why));
        }
    }
    let fields = version.get("selectableFields").and_then(Value::as_array);
    for (index, path) in fields.into_iter().flatten().map(|f| f.get("jsonPath")).enumerate() {
        let path = path.and_then(Value::as_str).unwrap_or_default();
        let step = |schema: &Value, name: &str| schema.get("properties")?.get(name).cloned();
        let steps = path.strip_prefix('.').unwrap_or_default().split('.');
        let found =
            steps.into_iter().try_fold(version.pointer(SCHEMA).cloned().unwrap_or_default(), |s, n| step(&s, n));
        if found.is_none() {
            let why = "is an invalid path: does not refer to a valid field";
            causes.push(Cause::invalid(format!("{at}.selectableFields[{index}].jsonPath"), &json!(path), why));
        }
    }
}

/// A version that objects may still be stored in stays.
fn lost_versions(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let versions = object.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
    let names: BTreeSet<&str> = versions.filter_map(|v| v.get("name").and_then(Value::as_str)).collect();
    let stored = old.pointer("/status/storedVersions").and_then(Value::as_array).into_iter().flatten();
    for (index, version) in stored.filter_map(Value::as_str).enumerate() {
        if !names.contains(version) {
            let why = "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions";
            let why = why.replace("v1", version);
            causes.push(Cause::invalid(format!("status.storedVersions[{index}]"), &json!(version), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(change: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({
            "metadata": {"name": "things.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object", "properties": {}}},
                }}}]},
        });
        change(&mut object);
        complete(&mut object);
        object
    }

    #[test]
    fn what_is_wrong_is_named() {
        let fields = |change: fn(&mut Value)| {
            causes(&definition(change), None).into_iter().map(|c| c.field).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(fields(|_| ()), "");
        assert_eq!(fields(|d| d["metadata"]["name"] = json!("x")), "metadata.name");
        assert_eq!(fields(|d| d["spec"]["scope"] = json!("Everywhere")), "spec.scope");
        assert_eq!(fields(|d| d["spec"]["versions"][0]["storage"] = json!(false)), "spec.versions");
        assert_eq!(
            fields(|d| d["spec"]["conversion"] = json!({"strategy": "Webhook"})),
            "spec.conversion.webhookClientConfig spec.conversion.conversionReviewVersions"
        );
        let schema = "spec.validation.openAPIV3Schema";
        let at = |field: &str| format!("{schema}.{field}");
        assert_eq!(
            fields(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({})),
            at("properties[spec].type")
        );
        assert_eq!(
            fields(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
                json!({"type": "string", "pattern": "("})),
            at("properties[spec].pattern")
        );
        assert_eq!(
            fields(|d| d["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.none"}])),
            "spec.selectableFields[0].jsonPath"
        );
        assert_eq!(
            fields(|d| d["spec"]["versions"][0]["subresources"] =
                json!({"scale": {"specReplicasPath": ".status.x", "statusReplicasPath": ".status.y"}})),
            "spec.subresources.scale.specReplicasPath"
        );
        assert_eq!(
            fields(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
                json!([{"rule": "self.x ("}])),
            at("x-kubernetes-validations[0].rule")
        );
    }
}
