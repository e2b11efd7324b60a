//! Who owns what of a new object: its creator what was sent and defaulted, nobody what was given to it besides.
//!
//! Invariant: what a creator asked for by name is the creator's, also where it would have been given.

use super::track;
use crate::catalog::Resource;
use crate::rest::request::ResourcePath;
use serde_json::{Value, json};
use time::OffsetDateTime;

/// Notes what of a new object its creator has set; `sent` is what was asked for.
pub fn note_creation(
    resource: &Resource,
    path: &ResourcePath,
    manager: &str,
    sent: &Value,
    object: &mut Value,
    now: OffsetDateTime,
) {
    const GIVEN: [(&str, &[&str]); 5] = [
        ("namespaces", &["finalizers"]),
        ("services", &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"]),
        ("pods", &["serviceAccount", "serviceAccountName", "priority", "preemptionPolicy", "tolerations"]),
        ("jobs.batch", &["selector"]),
        ("certificatesigningrequests.certificates.k8s.io", &["username", "uid", "groups", "extra"]),
    ];
    let mut own = object.clone();
    let given = GIVEN.iter().find(|(id, _)| *id == &*resource.id).map_or(&[][..], |(_, fields)| fields);
    if let Some(spec) = own.get_mut("spec").and_then(Value::as_object_mut) {
        let asked = |field: &str| sent.get("spec").is_some_and(|spec| spec.get(field).is_some());
        spec.retain(|field, _| !given.contains(&field.as_str()) || asked(field));
    }
    match &*resource.id {
        "pods" => {
            without_token(&mut own, "/spec/volumes");
            for list in ["containers", "initContainers"] {
                let count = own.pointer(&format!("/spec/{list}")).and_then(Value::as_array).map_or(0, Vec::len);
                (0..count).for_each(|index| without_token(&mut own, &format!("/spec/{list}/{index}/volumeMounts")));
            }
        }
        "jobs.batch" => {
            for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
                if let Some(own) = own.pointer_mut(labels).and_then(Value::as_object_mut) {
                    own.retain(|label, _| sent.pointer(labels).is_some_and(|asked| asked.get(label).is_some()));
                }
            }
        }
        _ => {}
    }
    track(resource, path, manager, &json!({}), &mut own, now);
    let fields = own.pointer_mut("/metadata/managedFields").map(Value::take);
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        match fields {
            Some(fields) => _ = meta.insert("managedFields".into(), fields),
            None => _ = meta.shift_remove("managedFields"),
        }
    }
}

/// Takes the service account's token out of a list of volumes or mounts.
fn without_token(object: &mut Value, list: &str) {
    let is_token = |entry: &Value| {
        entry.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with("kube-api-access-"))
    };
    if let Some(list) = object.pointer_mut(list).and_then(Value::as_array_mut) {
        list.retain(|entry| !is_token(entry));
    }
}
