//! The kinds with a rule or two: namespaces, secrets, config maps, roles and bindings.
//!
//! Invariant: nobody grants what they do not have, unless the verbs `escalate` or `bind` say that they may.

use serde_json::{Value, json};

use super::{check, default, section, text};
use crate::admission::AdmitContext;
use crate::error::{ApiError, ApiResult, Cause};
use crate::rbac::{PolicyRule, Rbac};
use crate::store::name_of;

/// Namespaces that the server itself needs.
const UNDELETABLE: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Largest sum of a secret's or config map's values, in bytes.
const DATA_LIMIT: usize = 1 << 20;

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn check_delete(object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let name = name_of(object);
    if context.resource == "namespaces" && UNDELETABLE.contains(&name) {
        return Err(ApiError::forbidden("namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

pub(super) fn namespace(object: &mut Value) {
    let name = name_of(object).to_owned();
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
    if !name.is_empty()
        && let Some(labels) = section(object, "metadata").map(|m| m.entry("labels").or_insert_with(|| json!({})))
    {
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name.into());
        }
    }
    if deleting {
        return;
    }
    if let Some(spec) = section(object, "spec") {
        let empty = spec.get("finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if empty {
            spec.insert("finalizers".into(), json!(["kubernetes"]));
        }
    }
    if let Some(status) = section(object, "status") {
        default(status, "phase", "Active");
    }
}

/// A signing request says who made it, which is not the maker's to say, and never asks for something else.
pub(super) fn signing_request(object: &mut Value, context: &AdmitContext<'_>) {
    let Some(map) = object.as_object_mut() else { return };
    match context.old {
        Some(old) => {
            map.insert("spec".to_owned(), old.get("spec").cloned().unwrap_or_default());
        }
        None => {
            if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("username".to_owned(), context.user.name.clone().into());
                spec.insert("groups".to_owned(), context.user.groups.clone().into());
                spec.shift_remove("extra");
                match context.user.uid.as_str() {
                    "" => drop(spec.shift_remove("uid")),
                    uid => drop(spec.insert("uid".to_owned(), uid.into())),
                }
            }
        }
    }
}

pub(super) fn secret(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    use base64::Engine as _;
    let Some(map) = object.as_object_mut() else { return Ok(()) };
    default(map, "type", "Opaque");
    // Plain texts are a convenience of writing: they are stored with the rest.
    if let Some(Value::Object(plain)) = map.shift_remove("stringData") {
        let data = map.entry("data").or_insert_with(|| json!({}));
        if data.is_null() {
            *data = json!({});
        }
        if let Some(data) = data.as_object_mut() {
            for (key, value) in plain {
                let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
                data.insert(key, encoded.into());
            }
        }
    }
    let mut causes = data_problems(object, &["data"]);
    if let Some(old) = context.old {
        if old.get("type") != object.get("type") {
            causes.push(Cause::invalid("type", object.get("type").unwrap_or(&Value::Null), "field is immutable"));
        }
        causes.extend(immutable_problems(object, old, &["data"]));
    }
    for (type_, keys) in [
        ("kubernetes.io/tls", &["tls.crt", "tls.key"][..]),
        ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"][..]),
    ] {
        if object.get("type").and_then(Value::as_str) == Some(type_) {
            let missing = keys.iter().filter(|key| object.get("data").and_then(|d| d.get(**key)).is_none());
            causes.extend(missing.map(|key| Cause::required(format!("data[{key}]"), "")));
        }
    }
    check(object, context, causes)
}

pub(super) fn config_map(object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let mut causes = data_problems(object, &["data", "binaryData"]);
    if let Some(old) = context.old {
        causes.extend(immutable_problems(object, old, &["data", "binaryData"]));
    }
    check(object, context, causes)
}

fn data_problems(object: &Value, fields: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut size = 0usize;
    for field in fields {
        for (key, value) in object.get(*field).and_then(Value::as_object).into_iter().flatten() {
            size = size.saturating_add(value.as_str().map_or(0, str::len));
            let good = !key.is_empty() && key.len() <= 253 && key != "." && !key.starts_with("..");
            if !good || !key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), why));
            }
        }
    }
    if size > DATA_LIMIT.saturating_mul(4) / 3 {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {DATA_LIMIT} bytes"),
            field: "data".into(),
        });
    }
    causes
}

fn immutable_problems(object: &Value, old: &Value, fields: &[&str]) -> Vec<Cause> {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let mut causes = Vec::new();
    if object.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(Cause::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    let changed = fields.iter().filter(|f| object.get(**f) != old.get(**f));
    causes.extend(changed.map(|f| Cause::forbidden(*f, "field is immutable when `immutable` is set")));
    causes
}

pub(super) fn check_role(rbac: &Rbac, object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let rules = PolicyRule::list(object);
    let unchanged = context.old.is_some_and(|old| PolicyRule::list(old) == rules);
    let resource = context.resource.split('.').next().unwrap_or_default();
    if unchanged || rbac.may(context.user, "escalate", RBAC, resource, context.namespace, name_of(object)) {
        return Ok(());
    }
    covered(rbac, &rules, object, context)
}

pub(super) fn binding(rbac: &Rbac, object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    if let Some(reference) = section(object, "roleRef") {
        default(reference, "apiGroup", RBAC);
    }
    for subject in
        object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
    {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default(subject, "apiGroup", RBAC);
        }
    }
    let mut causes = Vec::new();
    for (index, subject) in object.get("subjects").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let field = |name: &str| subject.get(name).and_then(Value::as_str).unwrap_or_default();
        if field("kind") == "ServiceAccount" && field("namespace").is_empty() {
            causes.push(Cause::required(format!("subjects[{index}].namespace"), ""));
        }
        if field("name").is_empty() {
            causes.push(Cause::required(format!("subjects[{index}].name"), ""));
        }
    }
    if let Some(old) = context.old
        && old.get("roleRef") != object.get("roleRef")
    {
        causes.push(Cause::invalid("roleRef", object.get("roleRef").unwrap_or(&Value::Null), "cannot change roleRef"));
    }
    check(object, context, causes)?;
    let unchanged = context.old.is_some_and(|old| old.get("subjects") == object.get("subjects"));
    let role = object.pointer("/roleRef/name").and_then(Value::as_str).unwrap_or_default();
    let cluster = object.pointer("/roleRef/kind").and_then(Value::as_str) == Some("ClusterRole");
    let resource = if cluster { "clusterroles" } else { "roles" };
    if unchanged || rbac.may(context.user, "bind", RBAC, resource, context.namespace, role) {
        return Ok(());
    }
    let found = if cluster {
        context.store.get("clusterroles.rbac.authorization.k8s.io", "", role)
    } else {
        context.store.get("roles.rbac.authorization.k8s.io", context.namespace, role)
    };
    match found {
        Some(found) => covered(rbac, &PolicyRule::list(&found), object, context),
        // What a role will say once it exists nobody can have now.
        None => Err(ApiError::not_found(&format!("{resource}.{RBAC}"), role)),
    }
}

fn covered(rbac: &Rbac, rules: &[PolicyRule], object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let missing = rbac.not_covered(context.user, context.namespace, rules);
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} is attempting to grant RBAC permissions not currently held: {}",
        context.user.name,
        missing.join("; ")
    );
    Err(ApiError::forbidden(context.resource, name_of(object), why))
}
