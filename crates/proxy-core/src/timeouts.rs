//! Time limits of a request.
//!
//! Invariant: a limit is `None` only where configuration says there is none; a caller's header can only be honoured where it is allowed.

use std::time::Duration;

use http::header::HeaderName;

use crate::model::filter::{HttpFilter, Router};
use crate::model::hcm::HttpConnectionManager;
use crate::model::route::RouteAction;
use crate::request::RequestHead;

const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ASKED: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");

/// The limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the end of the request to the end of the response.
    pub global: Option<Duration>,
    /// Of one attempt.
    pub per_try: Option<Duration>,
    /// No byte either way on the stream.
    pub idle: Option<Duration>,
    /// Of the whole stream.
    pub max_stream: Option<Duration>,
}

/// Works the limits out. `x-envoy-upstream-rq-timeout-ms` and `-per-try-timeout-ms` count as far as hygiene left them.
#[must_use]
pub fn timeouts(hcm: &HttpConnectionManager, action: &RouteAction, request: &RequestHead<'_>) -> Timeouts {
    let millis = |name: &HeaderName| {
        let text = request.headers.get(name)?.to_str().ok()?;
        text.trim().parse().ok().map(Duration::from_millis)
    };
    let nonzero = |d: Duration| (!d.is_zero()).then_some(d);
    let mut global = action.timeout;
    let mut max_stream = action.max_stream_duration.unwrap_or(hcm.max_stream_duration);
    if let Some(grpc) = action.grpc_timeout.filter(|_| request.is_grpc()) {
        let asked = request.headers.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(grpc_timeout);
        // A timeout of zero from the caller has run out already: the least that can be set.
        let asked = asked.map(|t| t.saturating_sub(grpc.offset).max(Duration::from_millis(1)));
        let limit = match (asked, grpc.max) {
            (Some(asked), Some(max)) => Some(asked.min(max)),
            (asked, max) => asked.or(max),
        };
        match (grpc.of_stream, asked) {
            (false, _) => global = limit,
            (true, Some(_)) => max_stream = limit,
            // Without the header the stream has its plain limit.
            (true, None) => {}
        }
    }
    if router(hcm).is_some_and(|r| r.respect_expected_rq_timeout)
        && let Some(expected) = millis(&EXPECTED)
    {
        global = nonzero(expected);
    }
    if let Some(asked) = millis(&ASKED) {
        global = nonzero(asked);
    }
    let per_try = millis(&PER_TRY)
        .or_else(|| action.retry.as_ref().and_then(|r| r.per_try_timeout))
        // An attempt never outlives the request.
        .filter(|t| global.is_none_or(|g| *t < g));
    Timeouts { global, per_try, idle: action.idle_timeout.unwrap_or(hcm.stream_idle_timeout), max_stream }
}

fn router(hcm: &HttpConnectionManager) -> Option<&Router> {
    match hcm.filters.last() {
        Some(HttpFilter::Router(router)) => Some(router),
        _ => None,
    }
}

/// Parses `grpc-timeout`: at most eight digits and a unit.
#[must_use]
pub fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}
