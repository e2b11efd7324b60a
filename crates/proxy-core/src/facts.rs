//! The ready-made [`Values`] over a request, its connection and its outcome.
//!
//! Invariant: only what is set is told; times are given as finished text or milliseconds, no clock is read.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;

use crate::format::Values;
use crate::model::format::{GrpcStyle, HeaderKey, MetadataKind, Operator, Plain, WhichPath};
use crate::model::metadata::{Metadata, Value};
use crate::request::RequestHead;

/// What is known when a format is evaluated. Fill what there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The request.
    pub request: Option<RequestHead<'a>>,
    /// Response status.
    pub status: Option<u16>,
    /// Response headers.
    pub response: Option<&'a HeaderMap>,
    /// Response trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// `HTTP/1.1`, `HTTP/2`, ….
    pub protocol: Option<&'a str>,
    /// Local address (original destination).
    pub local: Option<SocketAddr>,
    /// The client's address after x-forwarded-for.
    pub remote: Option<SocketAddr>,
    /// The directly connected peer.
    pub direct_remote: Option<SocketAddr>,
    /// URI SAN of the client's certificate.
    pub peer_uri_san: Option<&'a str>,
    /// URI SAN of our certificate.
    pub local_uri_san: Option<&'a str>,
    /// Subject of the client's certificate.
    pub peer_subject: Option<&'a str>,
    /// SHA-256 of the client's certificate, hexadecimal.
    pub peer_fingerprint: Option<&'a str>,
    /// `TLSv1.3`, ….
    pub tls_version: Option<&'a str>,
    /// OpenSSL name of the suite.
    pub tls_cipher: Option<&'a str>,
    /// SNI.
    pub server_name: Option<&'a str>,
    /// Chosen endpoint.
    pub upstream: Option<SocketAddr>,
    /// Our address towards it.
    pub upstream_local: Option<SocketAddr>,
    /// Cluster name.
    pub cluster: Option<&'a str>,
    /// `HTTP/1.1`, … towards it.
    pub upstream_protocol: Option<&'a str>,
    /// Route name.
    pub route: Option<&'a str>,
    /// Filter chain name.
    pub chain: Option<&'a str>,
    /// Route metadata.
    pub route_metadata: Option<&'a Metadata>,
    /// Cluster metadata.
    pub cluster_metadata: Option<&'a Metadata>,
    /// Endpoint metadata.
    pub endpoint_metadata: Option<&'a Metadata>,
    /// What filters found out about the request.
    pub dynamic_metadata: Option<&'a Metadata>,
    /// Texts in filter state.
    pub filter_state: &'a [(crate::model::Name, String)],
    /// Start of the request, since 1970.
    pub start: Option<Duration>,
    /// Milliseconds from start to end.
    pub duration_ms: Option<u64>,
    /// Milliseconds from start to the last byte of the request.
    pub request_ms: Option<u64>,
    /// Milliseconds from start to the first byte of the response.
    pub response_ms: Option<u64>,
    /// Bytes of request body (or from the client).
    pub bytes_received: u64,
    /// Bytes of response body (or to the client).
    pub bytes_sent: u64,
    /// Short flags, `UF,URX`.
    pub flags: Option<&'a str>,
    /// Why this response.
    pub code_details: Option<&'a str>,
    /// Why the connection ended.
    pub termination_details: Option<&'a str>,
    /// Why TLS upstream failed.
    pub upstream_failure: Option<&'a str>,
    /// Why TLS downstream failed.
    pub downstream_failure: Option<&'a str>,
    /// TLS version towards the endpoint.
    pub upstream_tls: Option<&'a str>,
    /// Attempts made.
    pub attempts: Option<u32>,
    /// Connection number.
    pub connection_id: Option<u64>,
    /// gRPC status that the upstream told.
    pub grpc_told: Option<u16>,
    /// gRPC status number, told or made of the HTTP status.
    pub grpc_status: Option<u16>,
    /// Trace and span, hexadecimal.
    pub trace: Option<(&'a str, &'a str)>,
    /// Name of this machine.
    pub hostname: Option<&'a str>,
}

impl Values for Facts<'_> {
    fn write(&self, op: &Operator, out: &mut String) -> bool {
        match op {
            Operator::Req(first, second) => either(first, second.as_ref(), |key| self.request_header(key, out)),
            Operator::Resp(first, second) => either(first, second.as_ref(), |key| self.response_header(key, out)),
            Operator::Trailer(first, second) => either(first, second.as_ref(), |key| header(self.trailers, key, out)),
            Operator::StartTime(format) => match self.start {
                Some(start) => {
                    crate::format::time::write(start, format, out);
                    true
                }
                None => false,
            },
            Operator::GrpcStatus(style) => self.grpc_status.is_some_and(|status| match style {
                GrpcStyle::Number => shown(Some(status), out),
                GrpcStyle::Camel => text(Some(grpc_name(status)), out) || shown(Some(status), out),
                GrpcStyle::Snake => {
                    let name = grpc_name(status);
                    for (i, c) in name.char_indices() {
                        if i > 0 && c.is_ascii_uppercase() && name != "OK" {
                            out.push('_');
                        }
                        out.push(c.to_ascii_uppercase());
                    }
                    !name.is_empty() || shown(Some(status), out)
                }
            }),
            Operator::QueryParam(name) => {
                let query = self.request.as_ref().and_then(RequestHead::query).unwrap_or_default();
                let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                text(pairs.into_iter().find(|(n, _)| *n == &**name).map(|(_, v)| v), out)
            }
            Operator::ReqWithoutQuery(first, second) => {
                let start = out.len();
                let found = either(first, second.as_ref(), |key| self.request_header(key, out));
                if let Some(at) = out.get(start..).and_then(|t| t.find('?')) {
                    out.truncate(start.saturating_add(at));
                }
                found
            }
            Operator::Path { query, which } => self.path(*query, *which, out),
            Operator::FilterState(key) => {
                text(self.filter_state.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()), out)
            }
            Operator::Metadata(kind, path) => self.metadata(*kind, path, out),
            Operator::Environment(_) => false,
            Operator::ByProtocol { cases, otherwise } => {
                let case = cases.iter().find(|(protocol, _)| self.protocol == Some(&**protocol));
                text(Some(case.map_or(otherwise, |(_, text)| text)), out)
            }
            Operator::Plain(plain) => self.plain(*plain, out),
        }
    }
}

pub(crate) fn either(first: &HeaderKey, second: Option<&HeaderKey>, mut write: impl FnMut(&HeaderKey) -> bool) -> bool {
    write(first) || second.is_some_and(write)
}

fn text(value: Option<&str>, out: &mut String) -> bool {
    match value {
        Some(value) if !value.is_empty() => {
            out.push_str(value);
            true
        }
        _ => false,
    }
}

fn shown(value: Option<impl std::fmt::Display>, out: &mut String) -> bool {
    value.is_some_and(|value| write!(out, "{value}").is_ok())
}

pub(crate) fn header(headers: Option<&HeaderMap>, key: &HeaderKey, out: &mut String) -> bool {
    let (Some(headers), HeaderKey::Name(name)) = (headers, key) else { return false };
    // Like Envoy, only the first value.
    match headers.get(name) {
        Some(value) => {
            out.push_str(&String::from_utf8_lossy(value.as_bytes()));
            true
        }
        None => false,
    }
}

/// The status' name; empty if there is none.
fn grpc_name(status: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::from(status)).copied().unwrap_or_default()
}

/// Envoy's long names of response flags.
const FLAGS: &[(&str, &str)] = &[
    ("DC", "DownstreamConnectionTermination"),
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
];

fn long_flags(flags: &str, out: &mut String) -> bool {
    for (i, flag) in flags.split(',').enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(FLAGS.iter().find(|(short, _)| *short == flag).map_or(flag, |(_, long)| long));
    }
    !flags.is_empty()
}

impl Facts<'_> {
    /// The endpoint, if there is a connection to it.
    fn connected(&self) -> Option<SocketAddr> {
        self.upstream.filter(|_| self.upstream_local.is_some())
    }

    fn path(&self, query: bool, which: WhichPath, out: &mut String) -> bool {
        let Some(request) = self.request else { return false };
        let original = request.headers.get("x-envoy-original-path").and_then(|v| v.to_str().ok());
        let path = match which {
            WhichPath::Original => original,
            WhichPath::Path => Some(request.path),
            WhichPath::OriginalOrPath => Some(original.unwrap_or(request.path)),
        };
        text(path.map(|p| if query { p } else { p.split_once('?').map_or(p, |(p, _)| p) }), out)
    }

    fn request_header(&self, key: &HeaderKey, out: &mut String) -> bool {
        let Some(request) = self.request else { return false };
        match key {
            HeaderKey::Path => text(Some(request.path), out),
            HeaderKey::Method => text(Some(request.method), out),
            HeaderKey::Authority => text(Some(request.authority), out),
            HeaderKey::Scheme => text(Some(request.scheme), out),
            _ => header(Some(request.headers), key, out),
        }
    }

    fn response_header(&self, key: &HeaderKey, out: &mut String) -> bool {
        match key {
            HeaderKey::Status => shown(self.status, out),
            _ => header(self.response, key, out),
        }
    }

    fn metadata(&self, kind: MetadataKind, path: &[crate::model::Name], out: &mut String) -> bool {
        let source = match kind {
            MetadataKind::Dynamic => self.dynamic_metadata,
            MetadataKind::Cluster => self.cluster_metadata,
            MetadataKind::Upstream => self.endpoint_metadata,
            MetadataKind::Route => self.route_metadata,
        };
        let Some((namespace, [first, rest @ ..])) = path.split_first() else { return false };
        let mut value = source.and_then(|m| m.namespace(namespace)).and_then(|n| n.get(first));
        for key in rest {
            value = match value {
                Some(Value::Object(object)) => object.get(key),
                _ => None,
            };
        }
        match value {
            Some(Value::Text(value)) => text(Some(value), out),
            Some(Value::Number(number)) => shown(Some(number), out),
            Some(Value::Bool(value)) => shown(Some(value), out),
            _ => false,
        }
    }

    fn plain(&self, plain: Plain, out: &mut String) -> bool {
        match plain {
            Plain::Protocol => text(self.protocol, out),
            Plain::ResponseCode => shown(Some(self.status.unwrap_or(0)), out),
            Plain::ResponseCodeDetails => text(self.code_details, out),
            // No flag is a dash in every form.
            Plain::ResponseFlags => text(Some(self.flags.unwrap_or("-")), out),
            Plain::ResponseFlagsLong => long_flags(self.flags.unwrap_or("-"), out),
            Plain::ConnectionTerminationDetails => text(self.termination_details, out),
            Plain::BytesReceived => shown(Some(self.bytes_received), out),
            Plain::BytesSent => shown(Some(self.bytes_sent), out),
            Plain::Duration => shown(self.duration_ms, out),
            Plain::RequestDuration => shown(self.request_ms, out),
            Plain::ResponseDuration => shown(self.response_ms, out),
            Plain::ResponseTxDuration => {
                shown(self.duration_ms.zip(self.response_ms).map(|(all, first)| all.saturating_sub(first)), out)
            }
            Plain::GrpcStatusNumber => shown(self.grpc_status, out),
            Plain::UpstreamHost => shown(self.upstream, out),
            Plain::UpstreamRemoteAddress => shown(self.connected(), out),
            Plain::UpstreamCluster | Plain::UpstreamClusterRaw => text(self.cluster, out),
            Plain::UpstreamLocalAddress => shown(self.upstream_local, out),
            Plain::UpstreamLocalAddressWithoutPort => shown(self.upstream_local.map(|a| a.ip()), out),
            Plain::UpstreamLocalPort => shown(self.upstream_local.map(|a| a.port()), out),
            Plain::UpstreamRemoteAddressWithoutPort => shown(self.connected().map(|a| a.ip()), out),
            Plain::UpstreamRemotePort => shown(self.connected().map(|a| a.port()), out),
            Plain::UpstreamProtocol => text(self.upstream_protocol, out),
            // One word, whatever the reason says.
            Plain::UpstreamTransportFailureReason => self.upstream_failure.is_some_and(|why| {
                out.extend(why.chars().map(|c| if c.is_whitespace() { '_' } else { c }));
                !why.is_empty()
            }),
            Plain::UpstreamRequestAttemptCount => shown(self.attempts, out),
            Plain::UpstreamTlsVersion => text(self.upstream_tls, out),
            Plain::DownstreamTransportFailureReason => text(self.downstream_failure, out),
            Plain::DownstreamLocalAddress => shown(self.local, out),
            Plain::DownstreamLocalAddressWithoutPort => shown(self.local.map(|a| a.ip()), out),
            Plain::DownstreamLocalPort => shown(self.local.map(|a| a.port()), out),
            Plain::DownstreamRemoteAddress => shown(self.remote, out),
            Plain::DownstreamRemoteAddressWithoutPort => shown(self.remote.map(|a| a.ip()), out),
            Plain::DownstreamRemotePort => shown(self.remote.map(|a| a.port()), out),
            Plain::DownstreamDirectRemoteAddress => shown(self.direct_remote, out),
            Plain::DownstreamDirectRemoteAddressWithoutPort => shown(self.direct_remote.map(|a| a.ip()), out),
            Plain::DownstreamDirectRemotePort => shown(self.direct_remote.map(|a| a.port()), out),
            Plain::DownstreamPeerUriSan => text(self.peer_uri_san, out),
            Plain::DownstreamLocalUriSan => text(self.local_uri_san, out),
            Plain::DownstreamPeerSubject => text(self.peer_subject, out),
            Plain::DownstreamPeerFingerprint256 => text(self.peer_fingerprint, out),
            Plain::DownstreamTlsVersion => text(self.tls_version, out),
            Plain::DownstreamTlsCipher => text(self.tls_cipher, out),
            Plain::RequestedServerName => text(self.server_name, out),
            Plain::RouteName => text(self.route, out),
            Plain::VirtualClusterName => false,
            Plain::ConnectionId => shown(self.connection_id, out),
            Plain::StreamId => {
                self.request.is_some_and(|r| text(r.headers.get("x-request-id").and_then(|v| v.to_str().ok()), out))
            }
            Plain::TraceId => text(self.trace.map(|(trace, _)| trace), out),
            Plain::SpanId => text(self.trace.map(|(_, span)| span), out),
            Plain::AccessLogType => {
                text(Some(if self.request.is_some() { "DownstreamEnd" } else { "TcpConnectionEnd" }), out)
            }
            Plain::Hostname => text(self.hostname, out),
            Plain::FilterChainName => text(self.chain, out),
        }
    }
}
