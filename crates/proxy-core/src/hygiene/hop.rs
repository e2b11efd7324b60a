//! Hop-by-hop headers (RFC 9110 §7.6.1) and headers that only this proxy may write.
//!
//! Invariant: after [`strip_request`] nothing that speaks of the downstream connection goes upstream, except an upgrade that the route allows.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SERVER, TE, TRANSFER_ENCODING, UPGRADE, VIA};

use crate::model::hcm::{HttpConnectionManager, ServerHeader};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers that say something only between us and our neighbours; a client from outside must not set them.
const INTERNAL_ONLY: [&str; 15] = [
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
];

/// The protocol a request asks to upgrade to, lower case: `Connection: upgrade` together with `Upgrade`.
#[must_use]
pub fn requested_upgrade(headers: &HeaderMap) -> Option<String> {
    let wanted = tokens(headers).any(|t| t.eq_ignore_ascii_case("upgrade"));
    let kind = headers.get(UPGRADE)?.to_str().ok()?;
    (wanted && !kind.is_empty()).then(|| kind.to_ascii_lowercase())
}

/// Headers of which Envoy knows one value only: repeated ones become a list.
const SINGLE: [HeaderName; 15] = [
    http::header::AUTHORIZATION,
    http::header::USER_AGENT,
    http::header::CONTENT_TYPE,
    http::header::EXPECT,
    http::header::VIA,
    http::header::ORIGIN,
    http::header::ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("grpc-timeout"),
];

/// Joins repeated headers that mean one thing, so that nobody behind us takes another of them than our policies did.
pub fn join_repeated(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    for name in SINGLE {
        if headers.get_all(&name).iter().nth(1).is_none() {
            continue;
        }
        let all: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

/// The client closes after this request, in the words that only proxies read.
#[must_use]
pub fn wants_close(headers: &HeaderMap) -> bool {
    let close = |v: &str| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("close"));
    headers.get_all(PROXY_CONNECTION).iter().filter_map(|v| v.to_str().ok()).any(close)
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(CONNECTION).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim)
}

/// Removes what is per hop. With `keep_upgrade` (an allowed upgrade) `connection: upgrade` and `upgrade` stay.
/// `te` survives only as `te: trailers`, which gRPC needs.
pub fn strip_request(headers: &mut HeaderMap, keep_upgrade: bool) {
    let trailers = headers.get_all(TE).iter().filter_map(|v| v.to_str().ok());
    let trailers = trailers.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("trailers"));
    strip(headers, keep_upgrade);
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.remove(HTTP2_SETTINGS);
}

/// Removes what is per hop from a response. With `keep_upgrade` (status 101 of an allowed upgrade) `connection` and `upgrade` stay.
pub fn strip_response(headers: &mut HeaderMap, keep_upgrade: bool) {
    strip(headers, keep_upgrade);
}

fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> =
            tokens(headers).filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok()).collect();
        for name in nominated {
            // Framing and addressing are ours to decide; a client cannot nominate them away.
            let fixed = [UPGRADE, TE, http::header::HOST, http::header::CONTENT_LENGTH, http::header::AUTHORIZATION]
                .contains(&name)
                || name.as_str().starts_with("x-forwarded-");
            if !fixed {
                headers.remove(&name);
            }
        }
        headers.remove(CONNECTION);
    }
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

/// Removes headers that only internal callers may set, and the table's `internal_only_headers`.
pub fn strip_internal(headers: &mut HeaderMap, edge: bool, table: &[HeaderName]) {
    for name in INTERNAL_ONLY {
        headers.remove(name);
    }
    if edge {
        headers.remove("x-envoy-downstream-service-cluster");
        headers.remove("x-envoy-downstream-service-node");
        headers.remove("x-envoy-decorator-operation");
        headers.remove("x-envoy-original-path");
    }
    for name in table {
        headers.remove(name);
    }
}

/// `server` and `via` of a response.
pub fn finish_response(hcm: &HttpConnectionManager, headers: &mut HeaderMap) {
    let ours = HeaderValue::from_str(&hcm.server_name).ok();
    match (hcm.server_header, ours) {
        (ServerHeader::Overwrite, Some(name)) => {
            headers.insert(SERVER, name);
        }
        (ServerHeader::AppendIfAbsent, Some(name)) => {
            headers.entry(SERVER).or_insert(name);
        }
        _ => {}
    }
    append_via(hcm, headers);
}

/// Appends to `via`, where configured.
pub fn append_via(hcm: &HttpConnectionManager, headers: &mut HeaderMap) {
    if !hcm.via.is_empty()
        && let Ok(value) = HeaderValue::from_str(&hcm.via)
    {
        headers.append(VIA, value);
    }
}
