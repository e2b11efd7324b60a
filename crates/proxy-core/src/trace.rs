//! Which requests are traced, how that is told from proxy to proxy, and what a span says.
//!
//! Invariant: the marks in `x-request-id` and the choice by its digits are Envoy's, so that all proxies on a request's way choose alike. A
//! `traceparent` that is not one leaves everything as it came. Randomness is an argument.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::facts::Facts;
use crate::format::Values as _;
use crate::model::format::Operator;
use crate::model::tracing::{CustomTag, RouteTracing, TagValue, Tracing};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORCE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const CLIENT: HeaderName = HeaderName::from_static("x-client-trace-id");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C trace context.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The operation's name, for the next proxy.
pub const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Why a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is not.
    None,
    /// By its share.
    Sampling,
    /// By `x-envoy-force-trace`.
    Forced,
    /// By `x-client-trace-id`.
    Client,
}

impl Reason {
    /// The name of its counter below `http.<prefix>.tracing.`.
    #[must_use]
    pub fn counter(self) -> &'static str {
        match self {
            Self::None => "not_traceable",
            Self::Sampling => "random_sampling",
            Self::Forced => "service_forced",
            Self::Client => "client_enabled",
        }
    }
}

/// The mark of a UUID: the place of its version.
const MARK: usize = 14;
const UUID: usize = 36;

fn reason(id: &str) -> Reason {
    match id.as_bytes().get(MARK) {
        Some(b'9') if id.len() == UUID => Reason::Forced,
        Some(b'a') if id.len() == UUID => Reason::Sampling,
        Some(b'b') if id.len() == UUID => Reason::Client,
        _ => Reason::None,
    }
}

fn mark(headers: &mut HeaderMap, reason: Reason) {
    let Some(id) = headers.get(&REQUEST_ID) else { return };
    let mut bytes = id.as_bytes().to_vec();
    let mark = match reason {
        Reason::None => b'4',
        Reason::Sampling => b'a',
        Reason::Forced => b'9',
        Reason::Client => b'b',
    };
    if bytes.len() != UUID || bytes.get(MARK) == Some(&mark) {
        return;
    }
    if let Some(place) = bytes.get_mut(MARK) {
        *place = mark;
    }
    if let Ok(value) = HeaderValue::from_bytes(&bytes) {
        headers.insert(REQUEST_ID, value);
    }
}

/// A new request at the edge whose id was kept says nothing about tracing.
pub fn unmark(headers: &mut HeaderMap) {
    mark(headers, Reason::None);
}

/// Whether a request is traced, which its id is marked with.
pub fn decide(
    tracing: &Tracing,
    route: Option<&RouteTracing>,
    headers: &mut HeaderMap,
    mut random: impl FnMut() -> u64,
) -> Reason {
    if !tracing.by_request_id {
        return Reason::Sampling;
    }
    let shares = route.and_then(|r| r.shares).unwrap_or([tracing.client, tracing.random, tracing.overall]);
    let [client, by_share, overall] = shares.map(u64::from);
    let id = headers.get(&REQUEST_ID).and_then(|v| v.to_str().ok());
    let Some(digits) = id.and_then(|id| id.get(..8)).and_then(|d| u64::from_str_radix(d, 16).ok()) else {
        return Reason::None;
    };
    let place = digits % 10_000;
    let mut decided = id.map_or(Reason::None, reason);
    if decided == Reason::None {
        if headers.contains_key(&CLIENT) && random() % 10_000 < client {
            decided = Reason::Client;
        } else if headers.contains_key(&FORCE) {
            decided = Reason::Forced;
        } else if place < by_share {
            decided = Reason::Sampling;
        }
        if decided != Reason::None && tracing.pack {
            mark(headers, decided);
        }
    }
    if decided != Reason::None && place >= overall {
        decided = Reason::None;
        if tracing.pack {
            mark(headers, decided);
        }
    }
    decided
}

/// Where a request stands in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Trace.
    pub trace: [u8; 16],
    /// This span.
    pub span: [u8; 8],
    /// The span it belongs to.
    pub parent: Option<[u8; 8]>,
    /// It is sent.
    pub sampled: bool,
    /// `tracestate`.
    pub state: String,
}

/// W3C: sampled.
const SAMPLED: u32 = 1;
/// OpenTelemetry: it is known whether the parent is remote.
const KNOWS_REMOTE: u32 = 0x100;
/// OpenTelemetry: it is.
const IS_REMOTE: u32 = 0x200;

impl Context {
    /// A span for a request: below the one that the headers name, else a new trace. `None` if the headers name none that could be
    /// followed.
    #[must_use]
    pub fn of(headers: &HeaderMap, traced: bool, mut random: impl FnMut() -> u64) -> Option<Self> {
        let mut span = || random().max(1).to_be_bytes();
        let Some(header) = headers.get(&TRACEPARENT) else {
            let (high, low) = (span(), span());
            let mut trace = [0; 16];
            trace.iter_mut().zip(high.into_iter().chain(low)).for_each(|(to, from)| *to = from);
            return Some(Self { trace, span: span(), parent: None, sampled: traced, state: String::new() });
        };
        let mut parts = header.to_str().ok()?.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || unhex::<1>(version).is_none() {
            return None;
        }
        let [flags] = unhex::<1>(flags)?;
        let (trace, parent) = (unhex::<16>(trace)?, unhex::<8>(parent)?);
        if trace == [0; 16] || parent == [0; 8] {
            return None;
        }
        let states: Vec<&str> = headers.get_all(&TRACESTATE).iter().filter_map(|v| v.to_str().ok()).collect();
        Some(Self {
            trace,
            span: span(),
            parent: Some(parent),
            sampled: traced && flags & 1 == 1,
            state: states.join(","),
        })
    }

    /// A span's flags. `own`: it is below one of ours.
    #[must_use]
    pub fn flags(&self, own: bool) -> u32 {
        let remote = if self.parent.is_some() && !own { IS_REMOTE } else { 0 };
        (u32::from(self.sampled) * SAMPLED) | KNOWS_REMOTE | remote
    }

    /// Tells the next one, on behalf of `span`.
    pub fn tell(&self, span: [u8; 8], headers: &mut HeaderMap) {
        let flags = if self.sampled { "01" } else { "00" };
        let text = format!("00-{}-{}-{flags}", hex(&self.trace), hex(&span));
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(TRACEPARENT, value);
        }
        if !self.state.is_empty()
            && let Ok(value) = HeaderValue::from_str(&self.state)
        {
            headers.insert(TRACESTATE, value);
        }
    }
}

/// Hexadecimal, lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N.saturating_mul(2) {
        return None;
    }
    let mut out = [0; N];
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *to = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(out)
}

/// A tag's value; `None` if it has none. `environment` answers for variables.
#[must_use]
pub fn tag(tag: &CustomTag, facts: &Facts<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let or = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
    let text = match &tag.value {
        TagValue::Literal(text) => text.to_string(),
        TagValue::Environment(name, default) => or(environment(name), default),
        TagValue::Header(name, default) => {
            let value = facts.request.and_then(|r| r.headers.get(name)).and_then(|v| v.to_str().ok());
            or(value.map(str::to_owned), default)
        }
        TagValue::Metadata(kind, path, default) => {
            let mut out = String::new();
            let found = facts.write(&Operator::Metadata(*kind, path.clone()), &mut out);
            or(found.then_some(out), default)
        }
        TagValue::Format(format) => format.text(facts),
    };
    (!text.is_empty()).then_some(text)
}

/// The attributes of a server's span, as Envoy names them.
#[must_use]
pub fn downstream(facts: &Facts<'_>, max_path: usize) -> Vec<(&'static str, String)> {
    let mut out = Vec::with_capacity(20);
    if let Some(request) = facts.request {
        let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok());
        let or = |value: Option<&str>| value.filter(|v| !v.is_empty()).unwrap_or("-").to_owned();
        if let Some(id) = header("x-request-id") {
            out.push(("guid:x-request-id", id.to_owned()));
        }
        let path = header("x-envoy-original-path").unwrap_or(request.path);
        let path = path.get(..max_path.min(path.len())).unwrap_or(path);
        out.push(("http.url", format!("{}://{}{path}", request.scheme, request.authority)));
        out.push(("http.method", request.method.to_owned()));
        out.push(("downstream_cluster", or(header("x-envoy-downstream-service-cluster"))));
        out.push(("user_agent", or(header("user-agent"))));
        out.push(("http.protocol", facts.protocol.unwrap_or("-").to_owned()));
        if let Some(peer) = facts.direct_remote {
            out.push(("peer.address", peer.ip().to_string()));
        }
        if let Some(id) = header("x-client-trace-id") {
            out.push(("guid:x-client-trace-id", id.to_owned()));
        }
    }
    out.push(("request_size", facts.bytes_received.to_string()));
    out.push(("response_size", facts.bytes_sent.to_string()));
    grpc(facts, &mut out);
    common(facts, &mut out);
    out
}

/// The attributes of an attempt's span.
#[must_use]
pub fn upstream(facts: &Facts<'_>) -> Vec<(&'static str, String)> {
    let mut out = Vec::with_capacity(10);
    if let Some(protocol) = facts.upstream_protocol {
        out.push(("http.protocol", protocol.to_owned()));
    }
    if let Some(address) = facts.upstream {
        out.push(("upstream_address", address.to_string()));
        out.push(("peer.address", address.to_string()));
    }
    common(facts, &mut out);
    out
}

fn grpc(facts: &Facts<'_>, out: &mut Vec<(&'static str, String)>) {
    let Some(request) = facts.request.filter(|r| r.is_grpc()) else { return };
    let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    if let Some(status) = facts.grpc_told {
        out.push(("grpc.status_code", status.to_string()));
    }
    if let Some((_, rest)) = request.path_only().split_once('/') {
        out.push(("grpc.path", format!("/{rest}")));
    }
    out.push(("grpc.authority", request.authority.to_owned()));
    for (tag, name) in [("grpc.content_type", "content-type"), ("grpc.timeout", "grpc-timeout")] {
        if let Some(value) = header(name) {
            out.push((tag, value));
        }
    }
}

fn common(facts: &Facts<'_>, out: &mut Vec<(&'static str, String)>) {
    out.push(("component", "proxy".to_owned()));
    if let Some(cluster) = facts.cluster.filter(|_| facts.upstream.is_some()) {
        out.push(("upstream_cluster", cluster.to_owned()));
        out.push(("upstream_cluster.name", cluster.to_owned()));
    }
    out.push(("http.status_code", facts.status.unwrap_or(0).to_string()));
    out.push(("response_flags", facts.flags.unwrap_or("-").to_owned()));
    if facts.status.is_none_or(|s| s == 0 || s >= 500) {
        out.push(("error", "true".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracing(client: u32, random: u32, overall: u32) -> Tracing {
        Tracing {
            client,
            random,
            overall,
            max_path: 256,
            tags: Vec::new(),
            spawn_upstream: false,
            operation: None,
            upstream_operation: None,
            no_propagation: false,
            by_request_id: true,
            pack: true,
            tracer: None,
        }
    }

    #[test]
    fn ids_are_marked_and_shares_kept() {
        // 0x00000064 = 100: in the first 1.01 %.
        let id = "00000064-aaaa-4aaa-aaaa-aaaaaaaaaaaa";
        for (shares, header, before, reason, after) in [
            ((10_000, 10_000, 10_000), "", '4', Reason::Sampling, 'a'),
            ((10_000, 100, 10_000), "", '4', Reason::None, '4'),
            ((10_000, 101, 10_000), "", '4', Reason::Sampling, 'a'),
            ((10_000, 0, 10_000), "x-envoy-force-trace", '4', Reason::Forced, '9'),
            ((10_000, 0, 10_000), "x-client-trace-id", '4', Reason::Client, 'b'),
            ((0, 0, 10_000), "x-client-trace-id", '4', Reason::None, '4'),
            ((10_000, 0, 10_000), "", 'a', Reason::Sampling, 'a'),
            ((10_000, 0, 100), "", '9', Reason::None, '4'),
        ] {
            let (client, random, overall) = shares;
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", id.replacen("-4", &format!("-{before}"), 1).parse().unwrap());
            if !header.is_empty() {
                headers.insert(header, "1".parse().unwrap());
            }
            assert_eq!(
                decide(&tracing(client, random, overall), None, &mut headers, || 5),
                reason,
                "{shares:?} {header}"
            );
            let shown = headers["x-request-id"].to_str().unwrap();
            assert_eq!(shown.chars().nth(MARK), Some(after), "{shares:?} {header}");
        }
        assert_eq!(decide(&tracing(1, 1, 1), None, &mut HeaderMap::new(), || 0), Reason::None);
    }

    #[test]
    fn contexts_go_on() {
        let mut headers = HeaderMap::new();
        let fresh = Context::of(&headers, false, || 7).unwrap();
        fresh.tell(fresh.span, &mut headers);
        assert_eq!(headers[TRACEPARENT], "00-00000000000000070000000000000007-0000000000000007-00");
        headers.insert(TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        headers.insert(TRACESTATE, "a=b".parse().unwrap());
        assert!(!Context::of(&headers, false, || 7).unwrap().sampled, "both must want it");
        let below = Context::of(&headers, true, || 7).unwrap();
        assert!(below.sampled && below.state == "a=b");
        assert_eq!(hex(&below.parent.unwrap()), "b7ad6b7169203331");
        for bad in [
            "",
            "00",
            "00-0-0-0",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            headers.insert(TRACEPARENT, bad.parse().unwrap());
            assert!(Context::of(&headers, true, || 7).is_none(), "{bad}");
        }
    }
}
