//! Forms of objects and lists on the wire: plain, `Table`, `PartialObjectMetadata`.
//!
//! Invariant: whatever the form, objects carry the version that was asked for.
//! What it leaves to others: the cells (`catalog`).

use super::negotiate::Form;
use crate::catalog::Resource;
use serde_json::{Value, json};
use std::time::SystemTime;

/// How to show objects of one resource.
#[derive(Clone)]
pub struct Shape<'a> {
    /// The resource.
    pub resource: &'a Resource,
    /// Version asked for.
    pub version: &'a str,
    /// Form asked for.
    pub form: Form,
    /// `includeObject`: `None`, `Metadata` (default) or `Object`.
    pub include: Option<&'a str>,
    /// For ages.
    pub now: SystemTime,
}

/// Metadata of a list.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    /// Revision.
    pub revision: u64,
    /// Token of the next page.
    pub next: Option<String>,
    /// Items after this page.
    pub remaining: Option<u64>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some(map) = meta.as_object_mut() {
            if let Some(next) = &self.next {
                map.insert("continue".into(), json!(next));
            }
            if let Some(remaining) = self.remaining {
                map.insert("remainingItemCount".into(), json!(remaining));
            }
        }
        meta
    }
}

impl Shape<'_> {
    /// An object in the version asked for.
    pub fn versioned(&self, mut object: Value) -> Value {
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), json!(self.resource.api_version(self.version)));
        }
        // An object that was stored before its definition had a default has it all the same.
        if let Some(definition) = self.resource.definition() {
            definition.default(self.resource.versions.first().map_or("", String::as_str), &mut object);
            definition.default(self.version, &mut object);
        }
        object
    }

    /// An object in a list: one of Kubernetes' own kinds does not repeat what the list says.
    pub fn item(&self, object: Value) -> Value {
        let mut object = self.versioned(object);
        if let (false, Some(map)) = (self.resource.is_custom(), object.as_object_mut()) {
            map.shift_remove("apiVersion");
            map.shift_remove("kind");
        }
        object
    }

    fn metadata(object: &Value) -> Value {
        json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
        })
    }

    /// One object. `first` matters in watches: only the first table says its columns.
    pub fn one(&self, object: Value, first: bool) -> Value {
        match self.form {
            Form::Plain => self.versioned(object),
            Form::Metadata => Self::metadata(&object),
            Form::Table => {
                let meta = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_else(|| json!(""));
                self.table(json!({"resourceVersion": meta}), vec![object], first)
            }
        }
    }

    /// A list.
    pub fn list(&self, objects: Vec<Value>, meta: &ListMeta) -> Value {
        match self.form {
            Form::Plain => {
                let items: Vec<Value> = objects.into_iter().map(|o| self.item(o)).collect();
                json!({
                    "kind": self.resource.list_kind(), "apiVersion": self.resource.api_version(self.version),
                    "metadata": meta.value(), "items": items,
                })
            }
            Form::Metadata => {
                let items: Vec<Value> = objects.iter().map(Self::metadata).collect();
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": meta.value(), "items": items,
                })
            }
            Form::Table => self.table(meta.value(), objects, true),
        }
    }

    /// A watch's bookmark.
    pub fn bookmark(&self, revision: u64, initial_end: bool) -> Value {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end && let Some(map) = meta.as_object_mut() {
            map.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        match self.form {
            Form::Plain => json!({
                "kind": self.resource.kind, "apiVersion": self.resource.api_version(self.version), "metadata": meta,
            }),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
            }
            Form::Table => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta});
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null, "rows": [{"cells": [], "object": object}],
                })
            }
        }
    }

    fn table(&self, meta: Value, objects: Vec<Value>, columns: bool) -> Value {
        let definitions = self.resource.columns(self.version);
        let rows: Vec<Value> = objects
            .into_iter()
            .map(|object| {
                let cells = self.resource.cells(self.version, &object, self.now);
                let shown = match self.include {
                    Some("None") => Value::Null,
                    Some("Object") => self.versioned(object),
                    _ => Self::metadata(&object),
                };
                json!({"cells": cells, "object": shown})
            })
            .collect();
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
            "columnDefinitions": if columns { Value::Array(definitions) } else { Value::Null },
            "rows": rows,
        })
    }
}
