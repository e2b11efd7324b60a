//! JSON patch, merge patch and strategic merge patch on plain values.
//!
//! Invariant: a patch is a function of the old value; what it makes is bounded in size whatever the patch says.
//! What it leaves to others: reading and storing (`objects`), server-side apply (`apply`).

mod strategic;

pub use strategic::strategic;

use super::decode::{self, BODY_LIMIT};
use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult};
use serde_json::{Map, Value, json};

/// Operations in one JSON patch.
const OPERATIONS: usize = 10_000;

/// A parsed patch.
#[derive(Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
    /// Server-side apply: the configuration and its duplicate fields.
    Apply(Value, Vec<String>),
}

impl Patch {
    /// Parses a body by its content type.
    ///
    /// # Errors
    /// `UnsupportedMediaType` (also strategic merge of a custom kind), `BadRequest`.
    pub fn parse(resource: &Resource, content_type: &str, body: &[u8]) -> ApiResult<Self> {
        let accepted = || {
            let all = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
            let more = if resource.is_custom() { "" } else { ", application/strategic-merge-patch+json" };
            ApiError::UnsupportedMediaType(format!("{all}{more}"))
        };
        match content_type {
            "application/json-patch+json" => {
                let document = decode::json(body)?;
                if !document.value.is_array() {
                    let found = decode::go_name(&document.value);
                    let why = format!(
                        "error decoding patch: json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
                    );
                    return Err(ApiError::BadRequest(why));
                }
                let patch: json_patch::Patch = serde_json::from_value(document.value).map_err(|_| unfit())?;
                if patch.0.len() > OPERATIONS {
                    let why = format!("the patch has {} operations, at most {OPERATIONS} are allowed", patch.0.len());
                    return Err(ApiError::TooLarge(why));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(map(decode::json(body)?.value)?)),
            "application/strategic-merge-patch+json" if !resource.is_custom() => {
                Ok(Self::Strategic(map(decode::json(body)?.value)?))
            }
            "application/apply-patch+yaml" => {
                let first = body.iter().find(|b| !b.is_ascii_whitespace());
                let document = if first == Some(&b'{') { decode::json(body)? } else { decode::yaml(body)? };
                Ok(Self::Apply(map(document.value)?, document.duplicates))
            }
            "application/strategic-merge-patch+json" => Err(accepted()),
            _ => {
                let message = "415: Unsupported Media Type";
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                    "reason": "UnsupportedMediaType", "details": {}, "code": 415,
                });
                Err(ApiError::Told { code: 415, message: message.into(), status: Box::new(status) })
            }
        }
    }

    /// The value after the patch. `Apply` is not for here and leaves it as it is.
    ///
    /// # Errors
    /// `Invalid` for a JSON patch that does not fit, `BadRequest` for wrong directives.
    pub fn run(&self, resource: &Resource, version: &str, old: &Value) -> ApiResult<Value> {
        let mut new = old.clone();
        match self {
            Self::Json(patch) => run_json(resource, patch, &mut new)?,
            Self::Merge(patch) => merge(&mut new, patch),
            Self::Strategic(patch) => strategic(&mut new, patch, Some(resource.schema(version).cursor()))?,
            Self::Apply(..) => {}
        }
        if !new.is_object() {
            return Err(ApiError::BadRequest("the patch leaves no object".into()));
        }
        Ok(new)
    }
}

fn map(value: Value) -> ApiResult<Value> {
    if value.is_object() {
        return Ok(value);
    }
    let found = decode::go_name(&value);
    let why =
        format!("error decoding patch: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
    Err(ApiError::BadRequest(why))
}

/// Kubernetes tells no more of a JSON patch that does not fit.
fn unfit() -> ApiError {
    let message = "the server rejected our request due to an error in our request";
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Invalid", "details": {}, "code": 422,
    });
    ApiError::Told { code: 422, message: message.into(), status: Box::new(status) }
}

/// Whether a path names a member that a map of `value` lacks.
fn absent_member(value: &Value, path: &str) -> bool {
    let Some((map, _)) = path.rsplit_once('/') else { return false };
    value.pointer(path).is_none() && value.pointer(map).is_some_and(Value::is_object)
}

fn run_json(resource: &Resource, patch: &json_patch::Patch, value: &mut Value) -> ApiResult<()> {
    let name = crate::store::name_of(value).to_owned();
    let mut copied = 0_usize;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            // Copies of copies double each time.
            let size = value.pointer(&copy.from.to_string()).map_or(0, weight);
            copied = copied.saturating_add(size);
            if copied > BODY_LIMIT {
                return Err(ApiError::TooLarge("the patch copies too much".into()));
            }
        }
        let done = match operation {
            // Kubernetes' library takes a member that is not there for one that is to be added.
            json_patch::PatchOperation::Replace(replace) if absent_member(value, &replace.path.to_string()) => {
                let add = json_patch::AddOperation { path: replace.path.clone(), value: replace.value.clone() };
                json_patch::patch(value, &[json_patch::PatchOperation::Add(add)])
            }
            other => json_patch::patch(value, std::slice::from_ref(other)),
        };
        done.map_err(|error| {
            tracing::debug!(resource = %resource.id, name, %error, "a JSON patch does not fit");
            unfit()
        })?;
    }
    Ok(())
}

/// About how many bytes a value takes as text.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len().saturating_add(2),
        Value::Array(list) => list.iter().fold(2, |sum, v| sum.saturating_add(weight(v))),
        Value::Object(map) => map.iter().fold(2, |sum, (k, v)| sum.saturating_add(k.len()).saturating_add(weight(v))),
    }
}

/// RFC 7386: null removes, maps merge, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_follows_the_rfc() {
        for (old, patch, new) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": 1}), json!({"a": null}), json!({"b": 1})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [1]}), json!({"a": [2, 3]}), json!({"a": [2, 3]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut value = old;
            merge(&mut value, &patch);
            assert_eq!(value, new);
        }
    }

    #[test]
    fn json_patches_are_bounded() {
        let pods = crate::catalog::Catalog::of(carrick_api::kinds::registry());
        let pods = &pods.get("pods").unwrap();
        let parse = |text: &str| Patch::parse(pods, "application/json-patch+json", text.as_bytes());
        let mut text =
            String::from("[{\"op\":\"add\",\"path\":\"/x\",\"value\":\"0123456789012345678901234567890123456789\"}");
        for n in 0..60 {
            text.push_str(&format!(",{{\"op\":\"copy\",\"from\":\"\",\"path\":\"/y{n}\"}}"));
        }
        text.push(']');
        let error = parse(&text).unwrap().run(pods, "v1", &json!({})).unwrap_err();
        assert_eq!(error.code(), 413);
        let wrong =
            parse(r#"[{"op":"test","path":"/a","value":1}]"#).unwrap().run(pods, "v1", &json!({"a": 2})).unwrap_err();
        assert_eq!(wrong.code(), 422);
        for bad in ["", "{}", "[{\"op\":\"fly\"}]", "[{\"op\":\"add\",\"path\":\"x\",\"value\":1}]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
