//! Answers: JSON bodies, `Status` objects, warnings, streams.
//!
//! Invariant: every error leaves as a `Status` with its code; every answer says `no-cache`.
//! What it leaves to others: what is said.

use crate::error::ApiError;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING, WWW_AUTHENTICATE};
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
    let mut answer = json(error.code(), &error.to_status());
    match error {
        ApiError::TooManyRequests(_) | ApiError::Unavailable(_) | ApiError::Timeout { .. } => {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        ApiError::Unauthorized => {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    answer
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
