//! The metadata the server owns: uid, creation time, generation, generated names, and what may not change.
//!
//! Invariant: after `prepare_create`/`prepare_update` an object's identity is the server's, whatever the client sent.
//! What it leaves to others: resourceVersion (the revision) and deletion (`delete`).

use carrick_api::validate::{is_label_key, is_label_value};

use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult, Cause};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Longest name (a DNS subdomain).
const NAME_LIMIT: usize = 253;
const SUFFIX: usize = 5;
/// No vowels and no look-alikes, so that generated names spell nothing.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// Time as `metav1.Time` writes it, in whole seconds.
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.to_offset(time::UtcOffset::UTC).format(SECONDS).unwrap_or_default()
}

fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
}

/// `metadata.name`, or empty.
pub fn name_of(object: &Value) -> &str {
    meta_str(object, "name")
}

/// `metadata.namespace`, or empty.
pub fn namespace_of(object: &Value) -> &str {
    meta_str(object, "namespace")
}

/// `apiVersion`, or empty.
pub fn api_version_of(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or("")
}

/// `metadata.resourceVersion` as a number; 0 for one that is none.
pub fn resource_version_of(object: &Value) -> Option<u64> {
    let text = meta_str(object, "resourceVersion");
    if text.is_empty() { None } else { Some(text.parse().unwrap_or(0)) }
}

pub(super) fn needs_name(object: &Value) -> bool {
    name_of(object).is_empty() && !meta_str(object, "generateName").is_empty()
}

pub(super) fn clear_name(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.shift_remove("name");
    }
}

/// A name with a random end.
pub fn generated(prefix: &str) -> String {
    let keep = NAME_LIMIT.saturating_sub(SUFFIX + 1);
    let prefix: String = prefix.chars().take(keep.min(58)).collect();
    let suffix = (0..SUFFIX).filter_map(|_| {
        let at = rand::random_range(0..SUFFIX_ALPHABET.len());
        SUFFIX_ALPHABET.get(at).map(|b| char::from(*b))
    });
    prefix.chars().chain(suffix).collect()
}

/// Makes `metadata` a map and hands it out.
fn metadata(object: &mut Value) -> ApiResult<&mut Map<String, Value>> {
    let object = object.as_object_mut().ok_or_else(|| ApiError::BadRequest("the object is not a map".into()))?;
    object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
        .ok_or_else(|| ApiError::BadRequest("metadata is not a map".into()))
}

fn dns_label(name: &str, dots: bool) -> bool {
    let limit = if dots { NAME_LIMIT } else { 63 };
    let part_ok = |part: &str| {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| ok(*b))
            && bytes.last().is_some_and(|b| ok(*b))
            && bytes.iter().all(|b| ok(*b) || *b == b'-')
    };
    name.len() <= limit && if dots { name.split('.').all(part_ok) } else { part_ok(name) }
}

/// Names are DNS subdomains, except where Kubernetes only asks for a path segment.
fn check_name(kind: &Resource, name: &str) -> Option<Cause> {
    let value = json!(name);
    if kind.group == "rbac.authorization.k8s.io" {
        let why = match name {
            "." | ".." => format!("may not be '{name}'"),
            _ => format!("may not contain '{}'", name.chars().find(|c| matches!(c, '/' | '%'))?),
        };
        return Some(Cause::invalid("metadata.name", &value, why));
    }
    if kind.id.as_ref() == "namespaces" && name.contains('.') {
        return Some(Cause::invalid("metadata.name", &value, "must not contain dots"));
    }
    if kind.id.as_ref() == "namespaces" || kind.id.as_ref() == "services" {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        return (!dns_label(name, false)).then(|| Cause::invalid("metadata.name", &value, why));
    }
    let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    (!dns_label(name, true)).then(|| Cause::invalid("metadata.name", &value, why))
}

/// Keys of labels and annotations are qualified names (an annotation's in any case), values of labels are short words.
fn check_labels(meta: &Map<String, Value>) -> Vec<Cause> {
    let entries = |field: &str| meta.get(field).and_then(Value::as_object).into_iter().flatten();
    let key = |field: &str, key: &str| {
        let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        (!is_label_key(key)).then(|| Cause::invalid(format!("metadata.{field}"), &json!(key), why))
    };
    let value = |value: &Value| {
        let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
        (!value.as_str().is_some_and(is_label_value)).then(|| Cause::invalid("metadata.labels", value, why))
    };
    let labels = entries("labels").flat_map(|(k, v)| [key("labels", k), value(v)]);
    let annotations = entries("annotations").map(|(k, _)| key("annotations", &k.to_ascii_lowercase()));
    labels.chain(annotations).flatten().collect()
}

/// Owners must be named in full, one of them at most is the controller; finalizers are qualified names.
fn check_references(kind: &Resource, meta: &Map<String, Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let owners = meta.get("ownerReferences").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |owner: &Value, field: &str| owner.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    for owner in owners {
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, field).is_empty() {
                causes.push(Cause::invalid(format!("metadata.ownerReferences.{field}"), &json!(""), why));
            }
        }
    }
    let mut leads = owners.iter().filter(|o| o.get("controller") == Some(&Value::Bool(true)));
    if let (Some(first), Some(second)) = (leads.next(), leads.next()) {
        let named = |owner: &Value| format!("{}/{}", text(owner, "kind"), text(owner, "name"));
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
            named(first),
            named(second)
        );
        causes.push(Cause::invalid("metadata.ownerReferences", &json!(owners), why));
    }
    for (index, finalizer) in meta.get("finalizers").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        if !is_label_key(name) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
            causes.push(Cause::invalid("metadata.finalizers", finalizer, why));
        }
        let known = matches!(name, "orphan" | "foregroundDeletion" | "kubernetes");
        // Definitions are no kind of the core's, and have one of their own.
        if !name.contains('/') && !known && !kind.is_custom() && kind.group != "apiextensions.k8s.io" {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid(format!("metadata.finalizers[{index}]"), finalizer, why));
        }
    }
    causes
}

/// Kubernetes' own kinds that say which form of their desired state they are at; of the others none does.
const WITH_GENERATION: [&str; 16] = [
    "endpointslices.discovery.k8s.io",
    "pods",
    "deployments.apps",
    "daemonsets.apps",
    "statefulsets.apps",
    "jobs.batch",
    "cronjobs.batch",
    "ingresses.networking.k8s.io",
    "priorityclasses.scheduling.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "replicasets.apps",
];

/// Kinds without a desired state (ConfigMap, Event) have no generation; custom ones always do.
fn has_generation(kind: &Resource) -> bool {
    kind.is_custom() || WITH_GENERATION.contains(&kind.id.as_ref())
}

/// What is wrong with the metadata of a new object that has a name.
pub fn causes(kind: &Resource, object: &Value) -> Vec<Cause> {
    let meta = object.get("metadata").and_then(Value::as_object).filter(|_| !name_of(object).is_empty());
    meta.map(|meta| wrong(kind, meta, name_of(object))).unwrap_or_default()
}

fn wrong(kind: &Resource, meta: &Map<String, Value>, name: &str) -> Vec<Cause> {
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or("").to_owned();
    let mut causes: Vec<Cause> = Vec::new();
    if !prefix.is_empty() {
        // A dash at the end is followed by the rest of the name.
        let shown = prefix.strip_suffix('-').map_or_else(|| prefix.clone(), |p| format!("{p}a"));
        causes.extend(check_name(kind, &shown).map(|mut cause| {
            cause.message = cause.message.replacen(&json!(shown).to_string(), &json!(prefix).to_string(), 1);
            Cause { field: "metadata.generateName".into(), ..cause }
        }));
    }
    causes.extend(check_name(kind, name));
    causes.extend(check_labels(meta));
    causes.extend(check_references(kind, meta));
    causes
}

/// Fills and checks the metadata of a new object.
pub(super) fn prepare_create(kind: &Resource, object: &mut Value, now: OffsetDateTime) -> ApiResult<()> {
    let generation = has_generation(kind);
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), json!(kind.storage_api_version()));
        map.insert("kind".into(), json!(kind.kind));
    }
    let meta = metadata(object)?;
    if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(ApiError::unnamed(500, "resourceVersion should not be set on objects to be created"));
    }
    let text =
        |meta: &Map<String, Value>, field: &str| meta.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    if text(meta, "name").is_empty() {
        let prefix = text(meta, "generateName");
        if prefix.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(&kind.group, &kind.kind, "", vec![cause]));
        }
        meta.insert("name".into(), json!(generated(&prefix)));
    }
    let name = text(meta, "name");
    let causes = wrong(kind, meta, &name);
    if !causes.is_empty() {
        return Err(ApiError::invalid(&kind.group, &kind.kind, &name, causes));
    }
    if !kind.namespaced {
        meta.shift_remove("namespace");
    }
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"] {
        meta.shift_remove(field);
    }
    // A Job was named by its uid at admission.
    let known = meta.get("uid").and_then(Value::as_str).is_some_and(|uid| uuid::Uuid::parse_str(uid).is_ok());
    if !(known && kind.id.as_ref() == "jobs.batch") {
        meta.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    }
    meta.insert("creationTimestamp".into(), json!(rfc3339(now)));
    if generation {
        meta.insert("generation".into(), json!(1));
    }
    tidy(meta);
    Ok(())
}

/// Empty maps and nulls in metadata mean absence.
fn tidy(meta: &mut Map<String, Value>) {
    meta.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
}

/// A Deployment's annotations are part of what is desired; but for the number of its revision, which is counted here.
fn notes_differ(kind: &Resource, old: &Value, new: &Value) -> bool {
    let notes = |object: &Value| {
        let mut notes = object.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
        notes.shift_remove("deployment.kubernetes.io/revision");
        notes
    };
    kind.id.as_ref() == "deployments.apps" && notes(old) != notes(new)
}

/// Where Kubernetes keeps an object, which it tells in some of its errors.
fn registry_key(kind: &Resource, namespace: &str, name: &str) -> String {
    let folder = match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "services") => "services/specs".to_owned(),
        ("", "endpoints") => "services/endpoints".to_owned(),
        ("", "nodes") => "minions".to_owned(),
        ("networking.k8s.io", "ingresses") => "ingress".to_owned(),
        (group, plural) if kind.is_custom() || group == "apiextensions.k8s.io" => format!("{group}/{plural}"),
        (_, plural) => plural.to_owned(),
    };
    let place = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("/registry/{folder}/{place}{name}")
}

/// Everything outside metadata and, where it is written apart, status.
fn desired_differs(kind: &Resource, old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return true };
    let status = kind.has_status || !kind.is_custom();
    let outside = |key: &str| !(matches!(key, "metadata" | "apiVersion" | "kind") || status && key == "status");
    old.iter().filter(|(k, _)| outside(k)).any(|(k, v)| new.get(k) != Some(v))
        || new.keys().any(|k| outside(k) && !old.contains_key(k))
}

/// Gives `wanted` the identity of `old`; `None` when nothing changes.
pub(super) fn prepare_update(kind: &Resource, old: &Value, mut wanted: Value) -> ApiResult<Option<Value>> {
    let name = name_of(old).to_owned();
    let no_meta = Map::new();
    let old_meta = old.get("metadata").and_then(Value::as_object).unwrap_or(&no_meta);
    if let Some(map) = wanted.as_object_mut() {
        map.insert("apiVersion".into(), json!(kind.storage_api_version()));
        map.insert("kind".into(), json!(kind.kind));
    }
    let changed = desired_differs(kind, old, &wanted) || notes_differ(kind, old, &wanted);
    let generation = has_generation(kind);
    let deleting = old_meta.contains_key("deletionTimestamp");
    let meta = metadata(&mut wanted)?;
    let given_uid = meta.get("uid").and_then(Value::as_str).unwrap_or("");
    let uid = old_meta.get("uid").and_then(Value::as_str).unwrap_or("");
    if !given_uid.is_empty() && given_uid != uid {
        return Err(ApiError::Conflict {
            subject: crate::error::Subject::of(&kind.id, &name),
            why: format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {given_uid}, UID in object meta: {uid}",
                registry_key(kind, namespace_of(old), &name)
            ),
        });
    }
    if ["labels", "annotations"].iter().any(|field| meta.get(*field) != old_meta.get(*field)) {
        let causes = check_labels(meta);
        if !causes.is_empty() {
            return Err(ApiError::invalid(&kind.group, &kind.kind, &name, causes));
        }
    }
    if ["ownerReferences", "finalizers"].iter().any(|field| meta.get(*field) != old_meta.get(*field)) {
        let causes = check_references(kind, meta);
        if !causes.is_empty() {
            return Err(ApiError::invalid(&kind.group, &kind.kind, &name, causes));
        }
    }
    if deleting {
        let finalizers =
            |m: &Map<String, Value>| m.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        let had = finalizers(old_meta);
        if let Some(new) = finalizers(meta).iter().find(|f| !had.contains(f)) {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{new}}}"
            );
            return Err(ApiError::invalid(
                &kind.group,
                &kind.kind,
                &name,
                vec![Cause::forbidden("metadata.finalizers", why)],
            ));
        }
    }
    let kept = [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ];
    for field in kept {
        // Deletion marks are set and shortened by `delete` only.
        match old_meta.get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.shift_remove(field),
        };
    }
    meta.shift_remove("selfLink");
    meta.insert("resourceVersion".into(), old_meta.get("resourceVersion").cloned().unwrap_or(Value::Null));
    if generation && changed {
        let next = old_meta.get("generation").and_then(Value::as_u64).unwrap_or(0).saturating_add(1);
        meta.insert("generation".into(), json!(next));
    }
    tidy(meta);
    Ok((wanted != *old).then_some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_words() {
        let refused = |meta: Value| check_labels(meta.as_object().unwrap()).len();
        for good in [
            json!({}),
            json!({ "labels": { "a": "", "example.com/b_c": "D.e-1" } }),
            json!({ "annotations": { "Some.Example/Key": "any text, {even this}" } }),
        ] {
            assert_eq!(refused(good.clone()), 0, "{good}");
        }
        for bad in [
            json!({ "labels": { "a b": "c" } }),
            json!({ "labels": { "": "c" } }),
            json!({ "labels": { "a": "b c" } }),
            json!({ "labels": { "a": 5 } }),
            json!({ "labels": { "a": "x".repeat(64) } }),
            json!({ "annotations": { "a/b/c": "" } }),
        ] {
            assert_eq!(refused(bad.clone()), 1, "{bad}");
        }
    }
}
