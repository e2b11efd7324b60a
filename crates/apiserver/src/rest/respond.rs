//! Answers: JSON bodies, `Status` objects, warnings, streams.
//!
//! Invariant: every error leaves as a `Status` with its code; every answer says `no-cache`.
//! What it leaves to others: what is said.

use crate::error::ApiError;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::convert::Infallible;

/// Body of every answer.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub type Answer = Response<Body>;

/// Bytes as a body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A raw answer.
pub fn raw(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(bytes));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

/// Plain text.
pub fn text(code: u16, body: impl Into<String>) -> Answer {
    raw(code, "text/plain; charset=utf-8", body.into())
}

/// JSON.
pub fn json(code: u16, value: &Value) -> Answer {
    raw(code, "application/json", line(value))
}

/// One JSON document with the line end that kubectl's raw output expects.
pub fn line(value: &Value) -> Vec<u8> {
    // A `Value` always serializes: its keys are strings.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// An error as a `Status`.
pub fn error(error: &ApiError) -> Answer {
    if matches!(error, ApiError::NoSuchPage) {
        return text(error.code(), format!("{error}\n"));
    }
    let mut answer = json(error.code(), &error.to_status());
    match error {
        ApiError::TooManyRequests(_) | ApiError::Unavailable(_) | ApiError::Timeout { .. } => {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    answer
}

/// A JSON answer as YAML; anything else as it is.
pub async fn as_yaml(answer: Answer) -> Answer {
    let json = HeaderValue::from_static("application/json");
    if answer.headers().get(CONTENT_TYPE) != Some(&json) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let Ok(bytes) = body.collect().await.map(http_body_util::Collected::to_bytes);
    let read = serde_json::from_slice::<Value>(&bytes).ok();
    let Some(text) = read.and_then(|value| serde_saphyr::to_string(&sorted(value)).ok()) else {
        return Response::from_parts(head, full(bytes));
    };
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
    Response::from_parts(head, full(text))
}

/// Maps in the order of their keys, in which Kubernetes writes YAML.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Adds `Warning: 299 - "…"` headers; long ones are cut, many are dropped.
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings.iter().take(32) {
        let clean: String = warning.chars().filter(|c| !c.is_control()).take(256).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}
