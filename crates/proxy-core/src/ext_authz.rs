//! External authorization: the question to the authorizer, and what its answer means.
//!
//! Invariant: as Envoy 1.40: over HTTP 200 approves, 5xx is a failure of the authorizer, everything else denies; over gRPC status OK
//! approves. Who sends the question is the caller's business, and so is what a failure to answer means.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use prost::Message;

use crate::decode::{basic, headers as decode_headers};
use crate::model::ext_authz::{ExtAuthz, ExtAuthzHere, HttpService};
use crate::model::headers::AppendAction;
use crate::model::matcher::StringMatcher;
use crate::model::metadata::{Map, Metadata, Value};
use crate::request::RequestHead;

/// Namespace of the filter's dynamic metadata.
pub const NAMESPACE: &str = "envoy.filters.http.ext_authz";
/// Path of the gRPC method.
pub const GRPC_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// What is known of the connection and the request besides its head.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The client.
    pub remote: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// The client's name: its first URI, DNS name, or subject.
    pub principal: &'a str,
    /// Our name.
    pub own_principal: &'a str,
    /// The client's certificate, PEM, percent-encoded.
    pub certificate: &'a str,
    /// SNI.
    pub server_name: &'a str,
    /// `HTTP/1.1`, …
    pub protocol: &'a str,
    /// Dynamic metadata so far.
    pub metadata: &'a Metadata,
    /// Seconds and nanoseconds of Unix time.
    pub time: (i64, i32),
    /// Number of the request.
    pub id: u64,
    /// The body, as far as it was read.
    pub body: Option<&'a Bytes>,
    /// Bytes of it that have come, also those beyond the limit.
    pub received: i64,
    /// There is more of it.
    pub partial: bool,
}

/// A change of one header.
pub type Change = (HeaderName, HeaderValue, AppendAction);

/// The authorizer's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The request passes.
    Approved(Box<Approved>),
    /// It is refused.
    Denied(Box<Denied>),
    /// The authorizer failed, or makes no sense.
    Failed,
}

/// What a request passes with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Approved {
    /// Changes of the request's headers.
    pub request: Vec<Change>,
    /// Appended, only to headers that are there.
    pub append: Vec<(HeaderName, HeaderValue)>,
    /// Headers to remove from the request.
    pub remove: Vec<HeaderName>,
    /// Changes of the response's headers.
    pub response: Vec<Change>,
    /// For the filter's namespace of dynamic metadata.
    pub metadata: Map<Value>,
    /// Query parameters to set.
    pub query_set: Vec<(String, String)>,
    /// Query parameters to remove.
    pub query_remove: Vec<String>,
}

/// How a request is refused.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Denied {
    /// Status.
    pub status: u16,
    /// Headers for the client.
    pub headers: Vec<Change>,
    /// Body for the client.
    pub body: Bytes,
    /// For the filter's namespace of dynamic metadata.
    pub metadata: Map<Value>,
}

impl Approved {
    /// Changes a request's headers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        change(headers, &self.request);
        for (name, value) in &self.append {
            // Envoy appends to what is there, and adds nothing new.
            if let Some(old) = crate::request::joined(headers, name, <[u8]>::to_vec) {
                let joined = [&old[..], b",", value.as_bytes()].concat();
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    headers.insert(name.clone(), joined);
                }
            }
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// The path with changed query parameters; `None` if they do not change.
    #[must_use]
    pub fn path(&self, path: &str) -> Option<String> {
        if self.query_set.is_empty() && self.query_remove.is_empty() {
            return None;
        }
        let (only, query) = crate::request::split_path(path);
        let gone = |key: &str| self.query_remove.iter().chain(self.query_set.iter().map(|(k, _)| k)).any(|k| k == key);
        let mut pairs: Vec<String> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let key = crate::matching::percent_decode(pair.split_once('=').map_or(pair, |(key, _)| key));
            if !gone(&key) {
                pairs.push(pair.to_owned());
            }
        }
        pairs.extend(self.query_set.iter().map(|(k, v)| format!("{k}={v}")));
        Some(if pairs.is_empty() { only.to_owned() } else { format!("{only}?{}", pairs.join("&")) })
    }
}

/// Changes headers.
pub fn change(headers: &mut HeaderMap, changes: &[Change]) {
    for (name, value, action) in changes {
        let present = headers.contains_key(name);
        match action {
            AppendAction::AppendOrAdd => {
                headers.append(name.clone(), value.clone());
            }
            AppendAction::AddIfAbsent if present => {}
            AppendAction::OverwriteIfExists if !present => {}
            AppendAction::AddIfAbsent | AppendAction::Overwrite | AppendAction::OverwriteIfExists => {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
}

fn any(list: &[StringMatcher], name: &str) -> bool {
    list.iter().any(|m| m.matches(name.as_bytes()))
}

/// The question over HTTP: method, path, host and headers; the body is the caller's.
#[must_use]
pub fn http_question(
    filter: &ExtAuthz,
    service: &HttpService,
    request: &RequestHead<'_>,
    context: &Context<'_>,
) -> (String, HeaderMap) {
    let path = if service.path_override.is_empty() {
        format!("{}{}", service.path_prefix, request.path)
    } else {
        service.path_override.to_string()
    };
    let allowed = filter.allowed_headers.as_deref().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for name in request.headers.keys() {
        let sent = (*name == AUTHORIZATION || any(allowed, name.as_str()))
            && !any(&filter.disallowed_headers, name.as_str())
            && *name != CONTENT_LENGTH
            && *name != http::header::HOST;
        if sent && let Some(Ok(value)) = crate::request::joined(request.headers, name, HeaderValue::from_bytes) {
            headers.insert(name.clone(), value);
        }
    }
    if filter.body.is_some() && context.body.is_some() {
        headers.insert(PARTIAL, HeaderValue::from_static(if context.partial { "true" } else { "false" }));
    }
    for (name, value) in &service.headers_to_add {
        headers.insert(name.clone(), value.clone());
    }
    (path, headers)
}

/// The answer over HTTP.
#[must_use]
pub fn http_answer(service: &HttpService, status: u16, headers: &HeaderMap, body: Bytes) -> Answer {
    let mut metadata = Map::default();
    for (name, value) in headers {
        if any(&service.metadata, name.as_str()) {
            let text = String::from_utf8_lossy(value.as_bytes());
            metadata.insert(name.as_str().into(), Value::Text((&*text).into()));
        }
    }
    if (500..600).contains(&status) {
        return Answer::Failed;
    }
    let matching = |list: &[StringMatcher], action| -> Vec<Change> {
        let taken = headers.iter().filter(|(name, _)| any(list, name.as_str()));
        taken.map(|(name, value)| (name.clone(), value.clone(), action)).collect()
    };
    if status != 200 {
        let always = ["www-authenticate", "location"];
        let all = headers.iter().filter(|(name, _)| match &service.client {
            None => **name != CONTENT_LENGTH && !is_hop(name.as_str()) && name.as_str() != TO_REMOVE,
            Some(list) => any(list, name.as_str()) || always.contains(&name.as_str()),
        });
        let headers = all.map(|(name, value)| (name.clone(), value.clone(), AppendAction::Overwrite)).collect();
        return Answer::Denied(Box::new(Denied { status, headers, body, metadata }));
    }
    let mut request = matching(&service.upstream, AppendAction::Overwrite);
    request.extend(matching(&service.upstream_append, AppendAction::AppendOrAdd));
    let removed = headers.get_all(TO_REMOVE).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    Answer::Approved(Box::new(Approved {
        request,
        remove: removed.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect(),
        response: matching(&service.client_on_success, AppendAction::AppendOrAdd),
        metadata,
        ..Approved::default()
    }))
}

fn is_hop(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "transfer-encoding" | "upgrade" | "proxy-connection" | "te")
}

/// The question over gRPC, framed.
#[must_use]
pub fn grpc_question(
    filter: &ExtAuthz,
    here: Option<&ExtAuthzHere>,
    request: &RequestHead<'_>,
    context: &Context<'_>,
) -> Bytes {
    use pb::attribute_context::{HttpRequest, Request};
    let body = context.body.filter(|_| filter.body.is_some());
    let raw = filter.body.is_some_and(|b| b.raw);
    let mut headers = sent_headers(filter, request);
    if body.is_some() {
        headers.insert(PARTIAL.as_str().to_owned(), context.partial.to_string());
    }
    let http = HttpRequest {
        id: context.id.to_string(),
        method: request.method.to_owned(),
        headers,
        path: request.path.to_owned(),
        host: request.authority.to_owned(),
        scheme: request.scheme.to_owned(),
        // What has been read of it so far, as Envoy tells it.
        size: context.received,
        protocol: context.protocol.to_owned(),
        body: body.filter(|_| !raw).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default(),
        raw_body: body.filter(|_| raw).map(|b| b.to_vec()).unwrap_or_default(),
        ..Default::default()
    };
    let attributes = pb::AttributeContext {
        request: Some(Request {
            time: Some(wkt::Timestamp { seconds: context.time.0, nanos: context.time.1 }),
            http: Some(http),
        }),
        context_extensions: here.map(|h| h.context.clone().into_iter().collect()).unwrap_or_default(),
        ..connection(filter, context)
    };
    frame(&pb::CheckRequest { attributes: Some(attributes) })
}

/// The question over gRPC about a connection of which nothing was read: who is connected with whom, and no request.
#[must_use]
pub fn connection_question(filter: &ExtAuthz, context: &Context<'_>) -> Bytes {
    frame(&pb::CheckRequest { attributes: Some(connection(filter, context)) })
}

fn connection(filter: &ExtAuthz, context: &Context<'_>) -> pb::AttributeContext {
    use pb::attribute_context::{Peer, TlsSession};
    let peer = |address: SocketAddr, principal: &str, certificate: &str| Peer {
        address: Some(core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: address.ip().to_canonical().to_string(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(address.port()))),
                ..Default::default()
            })),
        }),
        principal: principal.to_owned(),
        certificate: certificate.to_owned(),
        ..Default::default()
    };
    let named = filter.metadata_namespaces.iter().filter_map(|n| Some((n.to_string(), context.metadata.0.get(n)?)));
    let metadata = core::Metadata {
        filter_metadata: named.map(|(name, object)| (name, structure(object))).collect(),
        ..Default::default()
    };
    pb::AttributeContext {
        source: Some(peer(context.remote, context.principal, context.certificate)),
        destination: Some(peer(context.local, context.own_principal, "")),
        metadata_context: Some(metadata),
        tls_session: (filter.tls_session && !context.server_name.is_empty())
            .then(|| TlsSession { sni: context.server_name.to_owned() }),
        ..Default::default()
    }
}

fn sent_headers(filter: &ExtAuthz, request: &RequestHead<'_>) -> HashMap<String, String> {
    let sent = |name: &str| {
        filter.allowed_headers.as_ref().is_none_or(|list| any(list, name)) && !any(&filter.disallowed_headers, name)
    };
    let mut headers = HashMap::new();
    let pseudo = [
        (":authority", request.authority),
        (":method", request.method),
        (":path", request.path),
        (":scheme", request.scheme),
    ];
    for (name, value) in pseudo {
        if sent(name) {
            headers.insert(name.to_owned(), value.to_owned());
        }
    }
    for name in request.headers.keys().filter(|n| **n != http::header::HOST && sent(n.as_str())) {
        let text = crate::request::joined(request.headers, name, |v| String::from_utf8_lossy(v).into_owned());
        headers.extend(text.map(|t| (name.as_str().to_owned(), t)));
    }
    headers
}

fn structure(object: &Map<Value>) -> wkt::Struct {
    wkt::Struct { fields: object.iter().map(|(k, v)| (k.to_string(), value(v))).collect() }
}

fn value(from: &Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match from {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(*number),
        Value::Text(text) => Kind::StringValue(text.to_string()),
        Value::List(list) => Kind::ListValue(wkt::ListValue { values: list.iter().map(value).collect() }),
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    wkt::Value { kind: Some(kind) }
}

/// A message in gRPC's framing.
fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut out = Vec::with_capacity(body.len().saturating_add(5));
    out.push(0);
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&body);
    out.into()
}

/// The answer over gRPC: the framed message of a call that ended with status OK.
#[must_use]
pub fn grpc_answer(framed: &[u8]) -> Answer {
    let message = match framed.split_at_checked(5) {
        Some(([0, a, b, c, d], rest)) => {
            let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
            rest.get(..length)
        }
        _ => None,
    };
    let Some(answer) = message.and_then(|m| pb::CheckResponse::decode(m).ok()) else { return Answer::Failed };
    let metadata = |own: &Option<wkt::Struct>| own.as_ref().map(fields).unwrap_or_default();
    let code = answer.status.as_ref().map_or(0, |s| s.code);
    use pb::check_response::HttpResponse as R;
    match &answer.http_response {
        _ if code == 0 => {
            let Some(R::OkResponse(ok)) = &answer.http_response else {
                let metadata = metadata(&answer.dynamic_metadata);
                return Answer::Approved(Box::new(Approved { metadata, ..Approved::default() }));
            };
            let Some((request, append)) = replaced_or_appended(&ok.headers) else { return Answer::Failed };
            let removable = |n: &&String| !n.starts_with(':') && !n.eq_ignore_ascii_case("host");
            let remove = ok.headers_to_remove.iter().filter(removable);
            let Some(response) = ok.response_headers_to_add.iter().map(one_change).collect() else {
                return Answer::Failed;
            };
            Answer::Approved(Box::new(Approved {
                request,
                append,
                remove: remove.filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()).collect(),
                response,
                metadata: metadata(&answer.dynamic_metadata.clone().or_else(|| ok.dynamic_metadata.clone())),
                query_set: ok.query_parameters_to_set.iter().map(|q| (q.key.clone(), q.value.clone())).collect(),
                query_remove: ok.query_parameters_to_remove.clone(),
            }))
        }
        Some(R::DeniedResponse(denied)) => {
            let status = denied.status.as_ref().and_then(|s| u16::try_from(s.code).ok()).filter(|s| *s >= 200);
            // What is only to be appended has nothing to be appended to.
            let headers = replaced_or_appended(&denied.headers).map(|(replaced, _)| replaced);
            Answer::Denied(Box::new(Denied {
                status: status.unwrap_or(403),
                headers: if let Some(headers) = headers { headers } else { return Answer::Failed },
                body: denied.body.clone().into(),
                metadata: metadata(&answer.dynamic_metadata),
            }))
        }
        Some(R::ErrorResponse(_)) => Answer::Failed,
        _ => Answer::Denied(Box::new(Denied {
            status: 403,
            metadata: metadata(&answer.dynamic_metadata),
            ..Denied::default()
        })),
    }
}

type Appended = (HeaderName, HeaderValue);

/// Headers of requests and denials: only the old `append` counts here; everything else replaces.
fn replaced_or_appended(options: &[core::HeaderValueOption]) -> Option<(Vec<Change>, Vec<Appended>)> {
    let (mut replaced, mut appended) = (Vec::new(), Vec::new());
    for option in options {
        let (name, value, _) = one_change(option)?;
        if option.append.as_ref().is_some_and(|a| a.value) {
            appended.push((name, value));
        } else {
            replaced.push((name, value, AppendAction::Overwrite));
        }
    }
    Some((replaced, appended))
}

/// A header of a response.
fn one_change(option: &core::HeaderValueOption) -> Option<Change> {
    use core::header_value_option::HeaderAppendAction as A;
    let header = option.header.as_ref()?;
    let name = decode_headers::name(&header.key).ok()?;
    let bytes = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let action = match (&option.append, A::try_from(option.append_action).ok()?) {
        (Some(append), _) if append.value => AppendAction::AppendOrAdd,
        (Some(_), _) => AppendAction::Overwrite,
        (None, A::AppendIfExistsOrAdd) => AppendAction::AppendOrAdd,
        (None, A::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
        (None, A::AddIfAbsent) => AppendAction::AddIfAbsent,
        (None, A::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    Some((name, HeaderValue::from_bytes(bytes).ok()?, action))
}

fn fields(object: &wkt::Struct) -> Map<Value> {
    let entries = object.fields.iter().filter_map(|(k, v)| Some((k.as_str().into(), basic::json(v, 0).ok()?)));
    entries.collect()
}
