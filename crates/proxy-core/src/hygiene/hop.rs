//! Hop-by-hop headers (RFC 9110 §7.6.1) and headers that only this proxy may write.
//!
//! Invariant: after [`drop_nominated`] and [`strip_request`] nothing that speaks of the downstream connection goes upstream, except an upgrade that the route allows.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SERVER, TE, UPGRADE, VIA};

use crate::model::hcm::{HttpConnectionManager, ServerHeader};

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

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

/// The same where the proxy is the edge of what is trusted.
const EDGE_ONLY: [&str; 4] = [
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-decorator-operation",
    "x-envoy-original-path",
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

/// Tokens of `connection` at most.
const MOST_NOMINATED: usize = 9;
/// A nominated `te` is shorter.
const TE_LIMIT: usize = 256;

/// Takes away what `connection` nominates, before policies and routes look at the request, so that they see what goes on. Nothing is
/// taken from a request for another protocol: there the neighbour sees all of it, too.
///
/// # Errors
/// The client nominates what tells where it comes from, or too much.
pub fn drop_nominated(headers: &mut HeaderMap) -> Result<(), Nominated> {
    if !headers.contains_key(CONNECTION) || requested_upgrade(headers).is_some_and(|kind| kind != "h2c") {
        return Ok(());
    }
    let nominated: Vec<String> = tokens(headers).filter(|t| !t.is_empty()).map(str::to_ascii_lowercase).collect();
    if nominated.len() > MOST_NOMINATED {
        return Err(Nominated);
    }
    for name in nominated {
        match &*name {
            "close" | "keep-alive" | "upgrade" | "http2-settings" | "connection" => {}
            "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" => return Err(Nominated),
            name if name.starts_with(':') => return Err(Nominated),
            // How long a request is cannot be taken back.
            "content-length" | "transfer-encoding" => {}
            // What is left of it is decided when it goes on.
            "te" => {
                if headers.get(TE).is_some_and(|v| v.len() >= TE_LIMIT) {
                    return Err(Nominated);
                }
            }
            name => drop(headers.remove(name)),
        }
    }
    Ok(())
}

/// `connection` nominates what it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("headers nominated in connection are refused")]
pub struct Nominated;

/// Removes what is per hop. With `keep_upgrade` (an allowed upgrade) `connection: upgrade` and `upgrade` stay.
/// `te` survives only as `te: trailers`, which gRPC needs.
pub fn strip_request(headers: &mut HeaderMap, keep_upgrade: bool) {
    let trailers = headers.get_all(TE).iter().filter_map(|v| v.to_str().ok());
    let trailers = trailers.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("trailers"));
    strip(headers, keep_upgrade, |name| is_per_hop(name) || matches!(name.as_str(), "te" | "http2-settings"));
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what is per hop from a response. With `keep_upgrade` (status 101 of an allowed upgrade) `connection` and `upgrade` stay.
pub fn strip_response(headers: &mut HeaderMap, keep_upgrade: bool) {
    // What goes anyway, and what is ours to decide: an upgrade, and how long the body is.
    let fixed =
        |t: &&str| ["keep-alive", "close", "upgrade", "content-length"].iter().any(|f| t.eq_ignore_ascii_case(f));
    let nominated: Vec<HeaderName> = tokens(headers)
        .filter(|token| !fixed(token))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in nominated {
        headers.remove(name);
    }
    strip(headers, keep_upgrade, is_per_hop);
}

/// Whether a header ends here, of whichever message.
fn is_per_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "upgrade" | "keep-alive" | "proxy-connection" | "transfer-encoding")
}

fn strip(headers: &mut HeaderMap, keep_upgrade: bool, ends_here: impl Fn(&HeaderName) -> bool) {
    let goes = |name: &&HeaderName| ends_here(name) && !(keep_upgrade && *name == UPGRADE);
    // Most messages have none of them, or one.
    while let Some(name) = headers.keys().find(goes).cloned() {
        headers.remove(name);
    }
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Removes headers that only internal callers may set, and the table's `internal_only_headers`.
pub fn strip_internal(headers: &mut HeaderMap, edge: bool, table: &[HeaderName]) {
    let ours = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with("x-envoy-") && (INTERNAL_ONLY.contains(&name) || (edge && EDGE_ONLY.contains(&name)))
    };
    // Nearly all requests have none of them.
    while let Some(name) = headers.keys().find(ours).cloned() {
        headers.remove(name);
    }
    for name in table {
        headers.remove(name);
    }
}

/// `server` and `via` of a response.
pub fn finish_response(hcm: &HttpConnectionManager, headers: &mut HeaderMap) {
    match hcm.server_header {
        ServerHeader::Overwrite => {
            headers.insert(SERVER, hcm.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers.entry(SERVER).or_insert_with(|| hcm.server_name.clone());
        }
        ServerHeader::PassThrough => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        HeaderMap::from_iter(lines.iter().map(line))
    }

    /// What is left after Envoy 1.40's answers to the same requests.
    #[test]
    fn nominated_headers_go_before_anybody_looks() {
        for (lines, left) in [
            (&[("connection", "x-a, Close"), ("x-a", "1"), ("x-b", "2")][..], Some("connection x-b")),
            (&[("connection", "authorization"), ("authorization", "x")], Some("connection")),
            (&[("connection", "host"), ("host", "a")], Some("connection")),
            (&[("connection", "te"), ("te", "trailers, deflate")], Some("connection te")),
            (&[("connection", "content-length"), ("content-length", "1")], Some("connection content-length")),
            (&[("connection", "upgrade, x-a"), ("upgrade", "foo"), ("x-a", "1")], Some("connection upgrade x-a")),
            (&[("connection", "upgrade, x-a"), ("x-a", "1")], Some("connection")),
            (&[("connection", "x-forwarded-for")], None),
            (&[("connection", "x-forwarded-host")], None),
            (&[("connection", "X-Forwarded-Proto")], None),
            (&[("connection", ":path")], None),
            (&[("connection", "a,b,c,d,e,f,g,h,i")], Some("connection")),
            (&[("connection", "a,b,c,d,e,f,g,h,i,j")], None),
        ] {
            let mut headers = headers(lines);
            let outcome = drop_nominated(&mut headers);
            let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(outcome.ok().map(|()| names.join(" ")).as_deref(), left, "{lines:?}");
        }
        let mut long = headers(&[("connection", "te"), ("te", &"a".repeat(256))]);
        assert_eq!(drop_nominated(&mut long), Err(Nominated));
    }
}
