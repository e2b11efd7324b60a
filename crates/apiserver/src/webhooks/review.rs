//! `AdmissionReview`: the question as Kubernetes puts it, and the answer.
//!
//! Invariant: an answer counts only when it is of the kind that was asked for and carries the question's uid.
//! What it leaves to others: the way there and back (`call`).

use super::matching::operation;
use super::{Chosen, Request};
use crate::admission::Operation;
use crate::catalog::Resource;
use crate::error::ApiError;
use crate::store::name_of;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// Versions of the review that we speak.
pub const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// What a hook answered.
pub struct Verdict {
    /// Whether the write may be done.
    pub allowed: bool,
    /// The `Status` that goes with a refusal.
    pub status: Option<Value>,
    /// Changes to the object.
    pub patch: Option<json_patch::Patch>,
    /// For the client.
    pub warnings: Vec<String>,
    /// For the log.
    pub annotations: Map<String, Value>,
}

/// An object as a version shows it.
pub fn versioned(resource: &Resource, version: &str, mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), json!(resource.api_version(version)));
    }
    object
}

/// The question and its uid.
pub fn request(request: &Request<'_>, chosen: &Chosen, object: Option<&Value>, old: Option<&Value>) -> (String, Value) {
    let uid = uuid::Uuid::new_v4().to_string();
    let resource = request.resource;
    let kind = |version: &str| json!({"group": resource.group, "version": version, "kind": resource.kind});
    let plural = |version: &str| json!({"group": resource.group, "version": version, "resource": resource.plural});
    let shown = |o: Option<&Value>| o.map_or(Value::Null, |o| versioned(resource, &chosen.version, o.clone()));
    let name = if request.name.is_empty() { object.map_or("", name_of) } else { request.name };
    let user = request.user;
    let mut info = json!({"username": user.name, "groups": user.groups});
    if let Some(map) = info.as_object_mut() {
        if !user.uid.is_empty() {
            map.insert("uid".into(), json!(user.uid));
        }
        if !user.extra.is_empty() {
            map.insert("extra".into(), json!(user.extra));
        }
    }
    let mut asked = json!({
        "uid": uid,
        "kind": kind(&chosen.version),
        "resource": plural(&chosen.version),
        "requestKind": kind(request.version),
        "requestResource": plural(request.version),
        "operation": operation(request.operation),
        "userInfo": info,
        "object": shown(object.filter(|_| request.operation != Operation::Delete)),
        "oldObject": shown(old),
        "dryRun": request.dry_run,
        "options": request.options,
    });
    if let Some(map) = asked.as_object_mut() {
        let namespace =
            if resource.id.as_ref() == "namespaces" && request.namespace.is_empty() { name } else { request.namespace };
        for (field, value) in [
            ("subResource", request.subresource),
            ("requestSubResource", request.subresource),
            ("name", name),
            ("namespace", namespace),
        ] {
            if !value.is_empty() {
                map.insert(field.into(), json!(value));
            }
        }
    }
    let listed = chosen.hook.entry.get("admissionReviewVersions").and_then(Value::as_array);
    let version = listed.into_iter().flatten().filter_map(Value::as_str).find(|v| VERSIONS.contains(v)).unwrap_or("v1");
    let review = json!({
        "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": asked,
    });
    (uid, review)
}

/// The answer to the question with `uid`, asked as `apiVersion` of `answer` must say.
///
/// # Errors
/// Why it is no answer.
pub fn read(answer: &(String, Value), uid: &str, mutating: bool) -> Result<Verdict, String> {
    let (version, answer) = answer;
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/kind") != "AdmissionReview" || text("/apiVersion") != version {
        return Err(format!(
            "received invalid webhook response: expected webhook response of {version}, Kind=AdmissionReview, got {}, Kind={}",
            text("/apiVersion"),
            text("/kind")
        ));
    }
    let Some(response) = answer.get("response").filter(|r| r.is_object()) else {
        return Err("received invalid webhook response: webhook response was absent".into());
    };
    if version.ends_with("/v1") && text("/response/uid") != uid {
        return Err(format!(
            "received invalid webhook response: expected response.uid={uid:?}, got {:?}",
            text("/response/uid")
        ));
    }
    let patch = match response.get("patch").and_then(Value::as_str).filter(|p| !p.is_empty()) {
        None => None,
        Some(_) if !mutating => {
            return Err("received invalid webhook response: validating webhook may not return response.patch".into());
        }
        Some(encoded) => {
            let sort = text("/response/patchType");
            if version.ends_with("/v1") && sort != "JSONPatch" {
                return Err(format!(
                    "received invalid webhook response: webhook returned invalid response.patchType of {sort:?}"
                ));
            }
            let bytes = STANDARD.decode(encoded).map_err(|e| format!("the patch is not base64: {e}"))?;
            Some(serde_json::from_slice(&bytes).map_err(|e| format!("the patch is not a JSON patch: {e}"))?)
        }
    };
    let warnings = response.get("warnings").and_then(Value::as_array);
    Ok(Verdict {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        status: response.get("status").filter(|s| s.is_object()).cloned(),
        patch,
        warnings: warnings.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        annotations: response.get("auditAnnotations").and_then(Value::as_object).cloned().unwrap_or_default(),
    })
}

/// The error a client gets when a hook says no: the hook's own `Status`, completed.
pub fn refusal(hook: &str, status: Option<Value>) -> ApiError {
    let denied = format!("admission webhook {hook:?} denied the request");
    let mut status = status.and_then(|s| s.as_object().cloned()).unwrap_or_default();
    let text = |status: &Map<String, Value>, field: &str| {
        status.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned)
    };
    let message = match text(&status, "message").or_else(|| text(&status, "reason")) {
        Some(why) => format!("{denied}: {why}"),
        None => format!("{denied} without explanation"),
    };
    let code = status.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok()).unwrap_or(0);
    let code = if (400..600).contains(&code) { code } else { 400 };
    status.insert("kind".into(), json!("Status"));
    status.insert("apiVersion".into(), json!("v1"));
    status.insert("status".into(), json!("Failure"));
    status.insert("message".into(), json!(message));
    status.insert("code".into(), json!(code));
    status.entry("metadata").or_insert_with(|| json!({}));
    ApiError::Told { code, message, status: Box::new(Value::Object(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(response: Value, mutating: bool) -> Result<Verdict, String> {
        let version = "admission.k8s.io/v1".to_owned();
        read(
            &(version.clone(), json!({"kind": "AdmissionReview", "apiVersion": version, "response": response})),
            "u",
            mutating,
        )
    }

    #[test]
    fn only_an_answer_is_an_answer() {
        assert!(read_one(json!({"uid": "u", "allowed": true}), false).unwrap().allowed);
        assert!(!read_one(json!({"uid": "u"}), false).unwrap().allowed);
        assert!(read_one(json!({"uid": "other", "allowed": true}), false).is_err());
        assert!(read_one(json!(null), false).is_err());
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        let patching = json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"});
        assert!(read_one(patching.clone(), true).unwrap().patch.is_some());
        assert!(read_one(patching, false).is_err());
        assert!(read_one(json!({"uid": "u", "allowed": true, "patch": "!", "patchType": "JSONPatch"}), true).is_err());
        assert!(read_one(json!({"uid": "u", "allowed": true, "patch": patch}), true).is_err());
    }

    #[test]
    fn refusals_are_worded_as_kubernetes_words_them() {
        let told = |status: Value| {
            let error = refusal("a.b.c", Some(status));
            (error.code(), error.to_string())
        };
        let denied = "admission webhook \"a.b.c\" denied the request";
        assert_eq!(told(json!({"message": "no", "code": 403})), (403, format!("{denied}: no")));
        assert_eq!(told(json!({"reason": "Tired"})), (400, format!("{denied}: Tired")));
        assert_eq!(told(json!({"code": 200})), (400, format!("{denied} without explanation")));
    }
}
