//! The objects that are questions: access reviews, token reviews, who am I, and requests for tokens.
//!
//! Invariant: nothing here is stored; the answer is the question with its `status` filled in.
//! What it leaves to others: the decisions (`authorize`) and signatures (`auth::tokens`).

use super::objects::Call;
use super::respond::{self, Answer};
use crate::auth::tokens::TokenSpec;
use crate::authorize::{Attributes, Decision, User};
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::rfc3339;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Shortest and longest life of a requested token, seconds.
const TOKEN_LIFE: std::ops::RangeInclusive<i64> = 600..=(365 * 24 * 3600);
const TOKEN_DEFAULT: i64 = 3600;

/// Answers a POST of a review or of a token request.
///
/// # Errors
/// As for any object, and `NoSuchPath` for reviews that are not known.
pub fn answer(call: &Call<'_>, body: &Bytes) -> ApiResult<Answer> {
    if call.path.subresource == "token" {
        return token(call, body);
    }
    let (mut object, warnings) = call.body(body)?;
    let status = match call.resource.plural.as_str() {
        "selfsubjectaccessreviews" => access(call, &call.user, &object)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            check_subject(call, &object)?;
            access(call, &subject(&object), &object)?
        }
        "selfsubjectrulesreviews" if text(&object, "/spec/namespace").is_empty() => {
            return Err(ApiError::BadRequest("no namespace on request".into()));
        }
        "selfsubjectrulesreviews" => rules(call, &object),
        "selfsubjectreviews" => json!({"userInfo": user_info(&call.user)}),
        "tokenreviews" if text(&object, "/spec/token").is_empty() => {
            return Err(ApiError::BadRequest("token is required for TokenReview in authentication".into()));
        }
        "tokenreviews" => token_review(call, &object),
        _ => return Err(ApiError::NoSuchPath),
    };
    match call.resource.plural.as_str() {
        // These two are made anew.
        "selfsubjectrulesreviews" => _ = object.as_object_mut().map(|map| map.insert("spec".into(), json!({}))),
        "selfsubjectreviews" => {
            let now = rfc3339(call.api.store.now());
            _ = object.as_object_mut().map(|map| map.insert("metadata".into(), json!({"creationTimestamp": now})));
        }
        _ => {
            let now = call.api.store.now();
            super::apply::track(&call.resource, &call.path, call.manager(), &json!({}), &mut object, now);
        }
    }
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), json!(call.resource.api_version(&call.path.version)));
        map.insert("status".into(), status);
    }
    let mut answer = respond::json(201, &object);
    respond::warn(&mut answer, &warnings);
    Ok(answer)
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if let Some(map) = info.as_object_mut() {
        if !user.uid.is_empty() {
            map.insert("uid".into(), json!(user.uid));
        }
        if !user.extra.is_empty() {
            map.insert("extra".into(), json!(user.extra));
        }
    }
    info
}

fn subject(object: &Value) -> User {
    let extra = object.pointer("/spec/extra").and_then(Value::as_object);
    let extra: BTreeMap<String, Vec<String>> =
        extra.into_iter().flatten().map(|(k, v)| (k.clone(), texts(Some(v)))).collect();
    User {
        name: text(object, "/spec/user"),
        uid: text(object, "/spec/uid"),
        groups: texts(object.pointer("/spec/groups")),
        extra,
    }
}

/// Kubernetes names no kind in what it says of reviews.
fn unasked(call: &Call<'_>, cause: Cause) -> ApiError {
    ApiError::invalid(&call.resource.group, "", "", vec![cause])
}

/// Somebody must be asked about, and a review in a namespace is about that namespace.
fn check_subject(call: &Call<'_>, object: &Value) -> ApiResult<()> {
    if text(object, "/spec/user").is_empty() && texts(object.pointer("/spec/groups")).is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(unasked(call, Cause::invalid("spec.user", &json!(""), why)));
    }
    let namespace = text(object, "/spec/resourceAttributes/namespace");
    if call.resource.namespaced
        && object.pointer("/spec/resourceAttributes").is_some()
        && namespace != call.path.namespace
    {
        let why = "must match metadata.namespace";
        return Err(unasked(call, Cause::invalid("spec.resourceAttributes.namespace", &json!(namespace), why)));
    }
    Ok(())
}

fn access(call: &Call<'_>, user: &User, object: &Value) -> ApiResult<Value> {
    let resource = object.pointer("/spec/resourceAttributes");
    let path = object.pointer("/spec/nonResourceAttributes");
    let attributes = match (resource, path) {
        (Some(wanted), None) => Attributes {
            verb: text(wanted, "/verb"),
            group: text(wanted, "/group"),
            version: text(wanted, "/version"),
            resource: text(wanted, "/resource"),
            subresource: text(wanted, "/subresource"),
            namespace: text(wanted, "/namespace"),
            name: text(wanted, "/name"),
            path: String::new(),
        },
        (None, Some(wanted)) => {
            Attributes { verb: text(wanted, "/verb"), path: text(wanted, "/path"), ..Attributes::default() }
        }
        (Some(_), Some(path)) => {
            let shown = json!({"Path": text(path, "/path"), "Verb": text(path, "/verb")});
            let why = "cannot be specified in combination with resourceAttributes";
            return Err(unasked(call, Cause::invalid("spec.nonResourceAttributes", &shown, why)));
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(unasked(call, Cause::invalid("spec.resourceAttributes", &Value::Null, why)));
        }
    };
    Ok(match call.api.authorizer.authorize(user, &attributes) {
        Decision::Allow { reason } if reason.is_empty() => json!({"allowed": true}),
        Decision::Deny { reason } if reason.is_empty() => json!({"allowed": false}),
        Decision::Allow { reason } => json!({"allowed": true, "reason": reason}),
        Decision::Deny { reason } => json!({"allowed": false, "reason": reason}),
    })
}

fn rules(call: &Call<'_>, object: &Value) -> Value {
    let found = call.api.authorizer.rules(&call.user, &text(object, "/spec/namespace"));
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in found {
        if rule.non_resource_urls.is_empty() {
            let mut entry = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty()
                && let Some(map) = entry.as_object_mut()
            {
                map.insert("resourceNames".into(), json!(rule.resource_names));
            }
            resources.push(entry);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn token_review(call: &Call<'_>, object: &Value) -> Value {
    let audiences = texts(object.pointer("/spec/audiences"));
    match call.api.tokens.verify(&text(object, "/spec/token"), &audiences) {
        Ok(verified) => {
            json!({"authenticated": true, "user": user_info(&verified.user), "audiences": verified.audiences})
        }
        Err(error) => {
            tracing::debug!(%error, "a token is none");
            json!({"user": {}, "error": "invalid bearer token"})
        }
    }
}

/// POST of `serviceaccounts/NAME/token`.
fn token(call: &Call<'_>, body: &Bytes) -> ApiResult<Answer> {
    let (namespace, name) = (&call.path.namespace, &call.path.name);
    let account = call.api.store.get("serviceaccounts", namespace, name);
    let account = account.ok_or_else(|| ApiError::not_found("serviceaccounts", name))?;
    let mut request = super::decode::document(&call.content_type, body)?.value;
    if !request.is_object() || !matches!(request.get("kind").and_then(Value::as_str), None | Some("TokenRequest")) {
        let text = |field: &str| request.get(field).and_then(Value::as_str).unwrap_or_default();
        let (kind, version) = (text("kind"), text("apiVersion"));
        let bare = version.rsplit('/').next().unwrap_or_default();
        let why = format!(
            "{kind} in version {bare:?} cannot be handled as a TokenRequest: converting ({bare}.{kind}) to (authentication.TokenRequest): unknown conversion"
        );
        return Err(ApiError::BadRequest(why));
    }
    let invalid = |cause| ApiError::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]);
    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(TOKEN_DEFAULT);
    if !TOKEN_LIFE.contains(&seconds) {
        let (value, field) = (json!(seconds), "spec.expirationSeconds");
        let short = seconds < *TOKEN_LIFE.start();
        let why = if short {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than a year"
        };
        return Err(invalid(Cause::invalid(field, &value, why)));
    }
    let pod = match request.pointer("/spec/boundObjectRef").filter(|r| r.is_object()) {
        None => None,
        Some(bound) if text(bound, "/kind") == "Pod" => Some(bound_pod(call, bound)?),
        Some(bound) => {
            let (group, version) = match text(bound, "/apiVersion").split_once('/') {
                Some((group, version)) => (group.to_owned(), version.to_owned()),
                None => (String::new(), text(bound, "/apiVersion")),
            };
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={}", text(bound, "/kind"));
            return Err(ApiError::BadRequest(why));
        }
    };
    let audiences = texts(request.pointer("/spec/audiences"));
    let spec = TokenSpec {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: text(&account, "/metadata/uid"),
        audiences: audiences.clone(),
        seconds,
        pod,
    };
    let (token, expires) = call.api.tokens.issue(&spec).map_err(|e| ApiError::Internal(e.to_string()))?;
    if let Some(map) = request.as_object_mut() {
        map.insert("kind".into(), json!("TokenRequest"));
        map.insert("apiVersion".into(), json!("authentication.k8s.io/v1"));
        let now = rfc3339(call.api.store.now());
        let uid = account.pointer("/metadata/uid");
        let metadata = json!({"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": now});
        map.insert("metadata".into(), metadata);
        let spec = map.entry("spec").or_insert_with(|| json!({}));
        if let Some(spec) = spec.as_object_mut() {
            let audiences = if audiences.is_empty() { vec![crate::auth::tokens::ISSUER.to_owned()] } else { audiences };
            spec.insert("audiences".into(), json!(audiences));
            spec.insert("expirationSeconds".into(), json!(seconds));
            spec.entry("boundObjectRef").or_insert(Value::Null);
        }
        map.insert("status".into(), json!({"token": token, "expirationTimestamp": rfc3339(expires)}));
    }
    Ok(respond::json(201, &request))
}

/// Name and uid of the pod a token is to be bound to; it must run as the service account.
fn bound_pod(call: &Call<'_>, bound: &Value) -> ApiResult<(String, String)> {
    let name = text(bound, "/name");
    let pod =
        call.api.store.get("pods", &call.path.namespace, &name).ok_or_else(|| ApiError::not_found("pods", &name))?;
    let uid = text(&pod, "/metadata/uid");
    let wanted = text(bound, "/uid");
    if !wanted.is_empty() && wanted != uid {
        return Err(ApiError::Conflict {
            subject: crate::error::Subject::of("pods", &name),
            why: format!("the UID in the bound object reference ({wanted}) does not match the UID in record ({uid})"),
        });
    }
    let account = text(&pod, "/spec/serviceAccountName");
    if account != call.path.name && !(account.is_empty() && call.path.name == "default") {
        let why = format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name",
            call.path.name
        );
        return Err(ApiError::BadRequest(why));
    }
    Ok((name, uid))
}
