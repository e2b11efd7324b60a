//! Deletion: at once, after a grace period, or when the last finalizer is gone.
//!
//! Invariant: an object with finalizers is never removed; one whose deletion was asked for and that nothing holds any
//! longer is removed by the write that lets it go.
//! What it leaves to others: who ends a pod's process and removes finalizers (controllers, the pod runner), and
//! emptying a namespace.

use super::{Store, metadata, storage_error, with_revision};
use crate::error::{ApiError, ApiResult, Subject};
use crate::storage::{Expect, Key, StorageError};
use serde_json::{Value, json};

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds; `Some(0)` removes at once whatever still runs.
    pub grace_period_seconds: Option<i64>,
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object has this resourceVersion.
    pub resource_version: Option<String>,
    /// `metadata.finalizers` to add first (`orphan`, `foregroundDeletion`).
    pub finalizer: Option<String>,
    /// Store nothing.
    pub dry_run: bool,
}

/// What became of it.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// Removed; the last form.
    Gone(Value),
    /// Marked: goes when its finalizers or its grace period allow.
    Pending(Value),
}

/// Whether nothing holds an object whose deletion was asked for.
pub(super) fn is_finished(object: &Value) -> bool {
    let Some(meta) = object.get("metadata").and_then(Value::as_object) else { return false };
    meta.contains_key("deletionTimestamp")
        && !held(object)
        && meta.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
}

fn held(object: &Value) -> bool {
    let some = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    // A namespace's own finalizers stand in its spec.
    some("/metadata/finalizers")
        || (object.get("kind").and_then(Value::as_str) == Some("Namespace") && some("/spec/finalizers"))
}

/// Seconds until a pod that runs somewhere is to be gone; everything else goes at once.
fn grace(object: &Value, asked: Option<i64>) -> i64 {
    let is = |pointer: &str, value: &str| object.pointer(pointer).and_then(Value::as_str) == Some(value);
    if !is("/kind", "Pod") {
        return 0;
    }
    let placed = object.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
    if !placed || is("/status/phase", "Succeeded") || is("/status/phase", "Failed") {
        return 0;
    }
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    match asked.or(own).unwrap_or(30) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

pub(super) async fn delete(
    store: &Store,
    resource: &str,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> ApiResult<Deleted> {
    let kind = store.resource(resource)?;
    let key = Key::new(resource, namespace, name);
    for _ in 0..super::WRITE_ATTEMPTS {
        let record = store.engine.get(&key).ok_or_else(|| ApiError::not_found(resource, name))?;
        let mut object =
            super::decode_record(&record).ok_or_else(|| ApiError::Internal("a stored object cannot be read".into()))?;
        check(&object, resource, name, options)?;
        let before = object.clone();
        let grace = grace(&object, options.grace_period_seconds);
        // What empties a kind holds its definition until that is done.
        let own = (resource == crate::custom::RESOURCE).then_some(crate::custom::FINALIZER);
        mark(&mut object, grace, [own, options.finalizer.as_deref()], store.now());
        let gone = is_finished(&object);
        if options.dry_run {
            return Ok(if gone { Deleted::Gone(object) } else { Deleted::Pending(object) });
        }
        if !gone && object == before {
            return Ok(Deleted::Pending(object));
        }
        if kind.id.as_ref() == "namespaces"
            && let Some(map) = object.as_object_mut()
        {
            map.insert("status".into(), json!({"phase": "Terminating"}));
        }
        let op = super::op(&key, Expect::Revision(record.revision), Some(&before), (!gone).then_some(&object))?;
        match store.engine.commit(vec![op]).await {
            Ok(changes) => {
                let object = with_revision(object, super::revision_of(&changes));
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Pending(object) });
            }
            Err(StorageError::Changed(_)) => {}
            Err(error) => return Err(storage_error(resource, name, error)),
        }
    }
    Err(ApiError::modified(resource, name))
}

fn check(object: &Value, resource: &str, name: &str, options: &DeleteOptions) -> ApiResult<()> {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    let group = resource.split_once('.').map_or("", |(_, group)| group);
    let conflict = |what: &str, wanted: &str, is: &str, end: &str| ApiError::Conflict {
        subject: Subject { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned() },
        why: format!("the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). {end}"),
    };
    let meta =
        |field: &str| object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or("").to_owned();
    if let Some(uid) = &options.uid
        && *uid != meta("uid")
    {
        return Err(conflict("UID", uid, &meta("uid"), "The object might have been deleted and then recreated"));
    }
    if let Some(version) = &options.resource_version
        && *version != meta("resourceVersion")
    {
        return Err(conflict(
            "ResourceVersion",
            version,
            &meta("resourceVersion"),
            "The object might have been modified",
        ));
    }
    Ok(())
}

/// Sets the deletion marks; an earlier deletion's grace can only become shorter.
fn mark(object: &mut Value, grace: i64, finalizers: [Option<&str>; 2], now: time::OffsetDateTime) {
    let is_namespace = object.get("kind").and_then(Value::as_str) == Some("Namespace");
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let first = !meta.contains_key("deletionTimestamp");
    let left = meta.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    if first || left.is_some_and(|l| grace < l) {
        let at = now.checked_add(time::Duration::seconds(grace.clamp(0, 86_400 * 365))).unwrap_or(now);
        meta.insert("deletionTimestamp".into(), json!(metadata::rfc3339(at)));
        if !is_namespace {
            meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
        }
    }
    if first {
        if let Some(generation) = meta.get("generation").and_then(Value::as_u64) {
            meta.insert("generation".into(), json!(generation.saturating_add(1)));
        }
        for finalizer in finalizers.into_iter().flatten() {
            let list = meta.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.iter().any(|f| f == finalizer)
            {
                list.push(json!(finalizer));
            }
        }
    }
}
