//! The subresource `scale`: one number of an object, in the same shape for every kind that has one.
//!
//! Invariant: nothing of the object but that number is changed, and the write goes through admission and webhooks as any other.

use super::apply;
use super::decode;
use super::negotiate::Form;
use super::objects::Call;
use super::patch::{self, Patch};
use super::respond::{self, Answer};
use crate::admission::Operation;
use crate::catalog::ScalePaths;
use crate::error::{ApiError, ApiResult, Cause};
use crate::selector::selector_text;
use crate::store::{name_of, resource_version_of};
use bytes::Bytes;
use serde_json::{Value, json};

impl Call<'_> {
    fn scale_paths(&self) -> ApiResult<&ScalePaths> {
        self.resource.scale.as_ref().ok_or(ApiError::NoSuchPath)
    }

    /// GET of a scale.
    pub fn scale(&self) -> ApiResult<Answer> {
        let paths = self.scale_paths()?;
        let object = self.api.store.get(&self.resource.id, &self.path.namespace, &self.path.name);
        let object = object.ok_or_else(|| ApiError::not_found(&self.resource.id, &self.path.name))?;
        let scale = shown(paths, &object);
        Ok(respond::json(200, &if self.form()? == Form::Table { self.scale_table(&scale) } else { scale }))
    }

    /// The table that Kubernetes makes of a Scale.
    fn scale_table(&self, scale: &Value) -> Value {
        let column = |name: &str, kind: &str, format: &str| json!({"name": name, "type": kind, "format": format, "description": "", "priority": 0});
        let number = |pointer: &str| scale.pointer(pointer).cloned().unwrap_or_else(|| json!(0));
        // A ConfigMap's last cell is its age.
        let maps = self.api.store.catalog().get("configmaps");
        let age = maps.and_then(|maps| maps.cells("v1", scale, self.api.store.clock().now()).pop());
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": scale.pointer("/metadata/resourceVersion")},
            "columnDefinitions": [
                column("Name", "string", "name"), column("Desired", "integer", ""), column("Available", "integer", ""),
                column("Age", "string", ""),
            ],
            "rows": [{
                "cells": [
                    scale.pointer("/metadata/name"), number("/spec/replicas"), number("/status/replicas"),
                    age,
                ],
                "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": scale.get("metadata")},
            }],
        })
    }

    /// PUT or PATCH of a scale.
    pub async fn write_scale(&self, verb: &str, body: &Bytes) -> ApiResult<Answer> {
        let paths = self.scale_paths()?;
        let sent = match verb {
            "update" => Sent::Whole(decode::document(&self.content_type, body)?.value),
            "patch" => Sent::Patch(Patch::parse(&self.resource, &self.content_type, body)?),
            _ => return Err(ApiError::MethodNotAllowed),
        };
        let change = |old: Option<&Value>, warnings: &mut Vec<String>| {
            let old = old.ok_or_else(|| ApiError::not_found(&self.resource.id, &self.path.name))?;
            let before = shown(paths, old);
            let scale = match &sent {
                Sent::Whole(scale) => scale.clone(),
                Sent::Patch(Patch::Apply(..)) => {
                    let accepted = "application/json-patch+json, application/merge-patch+json";
                    return Err(ApiError::UnsupportedMediaType(accepted.into()));
                }
                // A Scale has no lists: merging it is merging.
                Sent::Patch(Patch::Strategic(patch)) => {
                    let mut scale = before;
                    patch::merge(&mut scale, patch);
                    scale
                }
                Sent::Patch(patch) => patch.run(&self.resource, &self.path.version, &before)?,
            };
            let mut new = self.scaled(paths, old, &scale)?;
            warnings.extend(self.admit(&mut new, Operation::Update, Some(old))?);
            apply::track(&self.resource, &self.path, self.manager(), old, &mut new, self.api.store.now());
            Ok(new)
        };
        let (written, warnings) = self.write(change).await?;
        let mut answer = respond::json(200, &shown(paths, &written.object));
        respond::warn(&mut answer, &warnings);
        Ok(answer)
    }

    /// The object with the number that a scale asks for.
    fn scaled(&self, paths: &ScalePaths, old: &Value, scale: &Value) -> ApiResult<Value> {
        let invalid = |cause| Err(ApiError::invalid("autoscaling", "Scale", name_of(old), vec![cause]));
        let name = scale.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
        if name != self.path.name {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.path.name
            )));
        }
        if resource_version_of(scale).is_some_and(|sent| Some(sent) != resource_version_of(old)) {
            return Err(ApiError::modified(&self.resource.id, &self.path.name));
        }
        // A number that is left out is none.
        let wanted = scale.pointer("/spec/replicas").cloned().unwrap_or_else(|| json!(0));
        match wanted.as_i64() {
            Some(number) if i32::try_from(number).is_err() => {
                return invalid(Cause::invalid("spec.replicas", &wanted, "must fit into 32 bits"));
            }
            Some(number) if number < 0 => {
                return invalid(Cause::invalid("spec.replicas", &wanted, "must be greater than or equal to 0"));
            }
            Some(_) => {}
            None => return Err(ApiError::BadRequest("spec.replicas is no whole number".into())),
        }
        let mut new = old.clone();
        let mut at = &mut new;
        let mut steps = paths.wanted.split('/').skip(1).peekable();
        while let Some(step) = steps.next() {
            let Some(map) = at.as_object_mut() else {
                return invalid(Cause::invalid("spec.replicas", &wanted, "the object has no place for it"));
            };
            if steps.peek().is_none() {
                map.insert(step.to_owned(), wanted);
                break;
            }
            at = map.entry(step).or_insert_with(|| json!({}));
        }
        Ok(new)
    }
}

enum Sent {
    Whole(Value),
    Patch(Patch),
}

/// An object as its scale.
fn shown(paths: &ScalePaths, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let meta = |field: &str| object.pointer(&format!("/metadata/{field}")).cloned();
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata.extend(meta(field).map(|value| (field.to_owned(), value)));
    }
    let mut status = json!({"replicas": number(&paths.counted)});
    let selector = paths.selector.as_ref().and_then(|pointer| object.pointer(pointer)).map(selector_text);
    if let (Some(text), Some(map)) = (selector.filter(|t| !t.is_empty()), status.as_object_mut()) {
        map.insert("selector".into(), json!(text));
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        // None is left out.
        "spec": match number(&paths.wanted) {
            0 => json!({}),
            wanted => json!({"replicas": wanted}),
        },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_text() {
        let selector = json!({"matchLabels": {"app": "x"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"},
        ]});
        assert_eq!(selector_text(&selector), "app=x,tier in (a,b),!old");
        assert_eq!(selector_text(&json!("app=y")), "app=y");
    }
}
