//! Answers that the engine gives itself, and what each failure looks like from outside.
//!
//! Invariant: one place maps a failure to status, body, flag and details (Envoy's texts); gRPC requests are answered in
//! gRPC: HTTP status 200, `grpc-status` in the headers.

use super::body::ResponseBody;
use super::exchange::Exchange;
use crate::names::{details, flag};
use crate::upstream::connect::ConnectError;
use bytes::Bytes;
use carrick_proxy_core::ext_authz::Change;
use carrick_proxy_core::hygiene::LocalReply;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{HeaderMap, Response, StatusCode};

/// Why a request is answered here.
#[derive(Debug)]
pub enum Failure {
    /// Refused before routing.
    Refused(LocalReply),
    /// No route.
    NoRoute,
    /// The route's cluster is not known.
    NoCluster(StatusCode),
    /// No endpoint may take it.
    NoHealthy,
    /// Circuit limits.
    Overflow,
    /// No connection.
    Connect(ConnectError),
    /// The connection broke before a response.
    Terminated,
    /// The upstream reset the stream before a response.
    Reset(String),
    /// What the upstream sent is not HTTP.
    NotHttp,
    /// The route's time is over.
    Timeout,
    /// One attempt's time is over.
    PerTryTimeout,
    /// One attempt was silent for too long.
    PerTryIdle,
    /// Nothing moved on the stream for too long.
    StreamIdle,
    /// The whole stream's time is over.
    MaxDuration,
    /// An upgrade that is not allowed.
    UpgradeRefused,
    /// The route answers itself.
    Direct(StatusCode, Bytes),
    /// The route redirects.
    Redirect(StatusCode, String),
    /// A filter answers.
    Filter(Box<Reply>),
}

/// A filter's answer.
#[derive(Debug)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: Bytes,
    /// Headers besides those of the body.
    pub headers: HeaderMap,
    /// Changes of the headers in the end.
    pub changes: Vec<Change>,
    /// Response code details.
    pub details: String,
    /// Response flag.
    pub flag: &'static str,
    /// gRPC status for gRPC requests, instead of the usual one of the HTTP status.
    pub grpc: Option<u32>,
    /// gRPC requests are answered in gRPC.
    pub local: bool,
}

impl Reply {
    /// An answer in plain text.
    pub fn new(status: StatusCode, body: Bytes, details: String) -> Self {
        Reply {
            status,
            body,
            headers: HeaderMap::new(),
            changes: Vec::new(),
            details,
            flag: flag::NONE,
            grpc: None,
            local: true,
        }
    }

    /// With a response flag.
    pub fn flagged(mut self, flag: &'static str) -> Self {
        self.flag = flag;
        self
    }
}

impl From<Reply> for Failure {
    fn from(reply: Reply) -> Self {
        Failure::Filter(Box::new(reply))
    }
}

const BEFORE: &str = "upstream connect error or disconnect/reset before headers. ";

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Failure::Refused(LocalReply::Status(s, _)) => StatusCode::from_u16(*s).unwrap_or(StatusCode::BAD_REQUEST),
            Failure::Refused(LocalReply::Redirect(_)) => StatusCode::TEMPORARY_REDIRECT,
            Failure::NoRoute => StatusCode::NOT_FOUND,
            Failure::NoCluster(s) | Failure::Direct(s, _) | Failure::Redirect(s, _) => *s,
            Failure::Timeout
            | Failure::PerTryTimeout
            | Failure::PerTryIdle
            | Failure::StreamIdle
            | Failure::MaxDuration => StatusCode::GATEWAY_TIMEOUT,
            Failure::UpgradeRefused => StatusCode::FORBIDDEN,
            Failure::NotHttp => StatusCode::BAD_GATEWAY,
            Failure::Filter(reply) => reply.status,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn flag(&self, retried: bool) -> &'static str {
        match (self, retried) {
            (Failure::NoRoute, _) => flag::NO_ROUTE,
            (Failure::Filter(reply), _) => reply.flag,
            (Failure::NoCluster(_), _) => flag::NO_CLUSTER,
            (Failure::NoHealthy, _) => flag::NO_HEALTHY,
            (Failure::Overflow, _) => flag::OVERFLOW,
            (Failure::Connect(ConnectError::Overflow), _) => flag::OVERFLOW,
            (Failure::Connect(_), false) => flag::CONNECT_FAILED,
            (Failure::Connect(_), true) => flag::CONNECT_FAILED_RETRIES,
            (Failure::Terminated, false) => flag::UPSTREAM_CLOSED,
            (Failure::Terminated, true) => flag::UPSTREAM_CLOSED_RETRIES,
            (Failure::Reset(_), false) => flag::UPSTREAM_RESET,
            (Failure::Reset(_), true) => flag::UPSTREAM_RESET_RETRIES,
            (Failure::Timeout | Failure::PerTryTimeout | Failure::PerTryIdle, _) => flag::UPSTREAM_TIMEOUT,
            (Failure::StreamIdle, _) => flag::STREAM_IDLE,
            (Failure::NotHttp, false) => flag::UPSTREAM_PROTOCOL,
            (Failure::NotHttp, true) => flag::UPSTREAM_PROTOCOL_RETRIES,
            _ => flag::NONE,
        }
    }

    fn details(&self) -> &'static str {
        match self {
            Failure::Refused(LocalReply::Status(_, d)) => d,
            Failure::Refused(LocalReply::Redirect(_)) => details::BAD_PATH,
            Failure::NoRoute => details::ROUTE_NOT_FOUND,
            Failure::NoCluster(_) => details::CLUSTER_NOT_FOUND,
            Failure::NoHealthy => details::NO_HEALTHY,
            Failure::Overflow | Failure::Connect(ConnectError::Overflow) => details::OVERLOAD,
            Failure::Connect(ConnectError::Timeout) => details::CONNECT_TIMEOUT,
            Failure::Connect(_) => details::CONNECT_FAILED,
            Failure::Terminated => details::TERMINATED,
            Failure::Reset(_) => details::REMOTE_RESET,
            Failure::NotHttp => details::PROTOCOL_ERROR,
            Failure::Timeout => details::RESPONSE_TIMEOUT,
            Failure::PerTryTimeout => details::PER_TRY_TIMEOUT,
            Failure::PerTryIdle => details::PER_TRY_IDLE,
            Failure::StreamIdle => details::STREAM_IDLE,
            Failure::MaxDuration => details::MAX_DURATION,
            Failure::UpgradeRefused => details::UPGRADE_FAILED,
            // Its own words, noted by the caller.
            Failure::Filter(_) => "",
            Failure::Direct(..) | Failure::Redirect(..) => details::DIRECT,
        }
    }

    /// Whether it is an answer of the proxy to the request, and not one that a filter speaks in somebody's name (a preflight).
    pub(super) fn is_local(&self) -> bool {
        !matches!(self, Failure::Filter(reply) if !reply.local)
    }

    /// Answered before the request's end was waited for: what is still to come of it is not worth reading (Envoy closes, too).
    fn is_early(&self) -> bool {
        // An authorizer takes longer than a body.
        if let Failure::Filter(reply) = self
            && reply.details.starts_with("ext_authz")
        {
            return false;
        }
        !matches!(
            self,
            Failure::Connect(_)
                | Failure::Terminated
                | Failure::Reset(_)
                | Failure::NotHttp
                | Failure::Timeout
                | Failure::PerTryTimeout
                | Failure::PerTryIdle
                | Failure::StreamIdle
                | Failure::MaxDuration
        )
    }

    fn text(&self, retried: bool) -> Bytes {
        let latest = if retried { "retried and the latest reset reason" } else { "reset reason" };
        match self {
            Failure::Direct(_, body) => body.clone(),
            Failure::Filter(reply) => reply.body.clone(),
            // What the codec refuses is named by its status.
            Failure::Refused(LocalReply::Status(_, details))
                if details.starts_with("http1.") || *details == "low_version" =>
            {
                Bytes::from_static(self.status().canonical_reason().unwrap_or_default().as_bytes())
            }
            Failure::NoHealthy => Bytes::from_static(b"no healthy upstream"),
            Failure::Timeout => Bytes::from_static(b"upstream request timeout"),
            Failure::PerTryTimeout | Failure::PerTryIdle => Bytes::from_static(b"upstream request timeout"),
            Failure::StreamIdle => Bytes::from_static(b"stream timeout"),
            Failure::MaxDuration => Bytes::from_static(b"downstream duration timeout"),
            Failure::Overflow | Failure::Connect(ConnectError::Overflow) => {
                Bytes::from(format!("{BEFORE}reset reason: overflow"))
            }
            Failure::Connect(ConnectError::Timeout) => Bytes::from(format!("{BEFORE}{latest}: connection timeout")),
            // What TLS broke at is for the log, not for the client.
            Failure::Connect(_) => Bytes::from(format!("{BEFORE}{latest}: remote connection failure")),
            Failure::Terminated => Bytes::from(format!("{BEFORE}{latest}: connection termination")),
            Failure::NotHttp => Bytes::from(format!("{BEFORE}{latest}: protocol error")),
            Failure::Reset(why) => Bytes::from(format!("{BEFORE}{latest}: {why}")),
            _ => Bytes::new(),
        }
    }
}

/// The response for a failure, noted in the exchange. `retried`: the request was retried and no retry is left.
pub fn respond(failure: &Failure, retried: bool, exchange: &mut Exchange) -> Response<ResponseBody> {
    let status = failure.status();
    let text = failure.text(retried);
    exchange.flags = failure.flag(retried);
    exchange.details = failure.details();
    // After a request that made no sense nothing is believed to be one.
    // What follows a request for another protocol may be that protocol.
    exchange.closing |= status == StatusCode::BAD_REQUEST
        || matches!(failure, Failure::UpgradeRefused)
        || (exchange.has_body && failure.is_early());
    if let Failure::Connect(e) = failure {
        let why = e.to_string();
        // The details say it too, as one word.
        if let Some(start) = exchange.details.strip_suffix('}')
            && !matches!(e, ConnectError::Overflow | ConnectError::Timeout)
        {
            let word: String = why.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
            exchange.own_details = Some(format!("{start}|{word}}}").into());
        }
        exchange.failure = Some(why);
    }
    let stats = &exchange.conn.stats;
    match failure {
        Failure::NoRoute => stats.no_route.inc(),
        Failure::NoCluster(_) => stats.no_cluster.inc(),
        _ => {}
    }
    let mut response = Response::new(ResponseBody::Empty);
    let redirect = match failure {
        Failure::Redirect(_, to) | Failure::Refused(LocalReply::Redirect(to)) => HeaderValue::from_str(to).ok(),
        _ => None,
    };
    let filter = match failure {
        Failure::Filter(reply) => Some(&**reply),
        _ => None,
    };
    if let Some(reply) = filter {
        exchange.own_details = Some(reply.details.as_str().into());
        *response.headers_mut() = reply.headers.clone();
    }
    if let Some(to) = redirect {
        response.headers_mut().insert(LOCATION, to);
    }
    if exchange.is_grpc && filter.is_none_or(|r| r.local) {
        // A stream that may not last longer has missed its deadline, whatever its HTTP status would be.
        let usual = if matches!(failure, Failure::MaxDuration) { 4 } else { u32::from(grpc_code(status.as_u16())) };
        let code = filter.and_then(|r| r.grpc).unwrap_or(usual);
        grpc(&mut response, code, if exchange.is_head { b"" } else { &text });
        exchange.grpc_status = i32::try_from(code).ok();
        if let Some(reply) = filter {
            carrick_proxy_core::ext_authz::change(response.headers_mut(), &reply.changes);
        }
        return response;
    }
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if matches!(failure, Failure::Overflow | Failure::Connect(ConnectError::Overflow)) {
        headers.insert(HeaderName::from_static("x-envoy-overloaded"), HeaderValue::from_static("true"));
    }
    if !(exchange.is_head && text.is_empty()) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    if !text.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        *response.body_mut() = ResponseBody::Full(Some(text));
    }
    if let Some(reply) = filter {
        carrick_proxy_core::ext_authz::change(response.headers_mut(), &reply.changes);
    }
    response
}

fn grpc(response: &mut Response<ResponseBody>, code: u32, text: &[u8]) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(code));
    // Percent-encoded as the gRPC protocol wants it.
    let mut message = String::with_capacity(text.len());
    for b in text {
        match b {
            b' '..=b'~' if *b != b'%' => message.push(char::from(*b)),
            other => message.push_str(&format!("%{other:02X}")),
        }
    }
    if let Ok(value) = HeaderValue::from_str(&message)
        && !message.is_empty()
    {
        headers.insert(HeaderName::from_static("grpc-message"), value);
    }
}

/// gRPC's own mapping of HTTP statuses.
pub fn grpc_code(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
