//! Envoy's substitution format strings, parsed.
//!
//! Invariant: a [`Format`] holds only operators that `crate::format` can evaluate; others were rejected at build time.

use std::sync::Arc;

use http::HeaderName;

use super::Name;

/// A parsed format string.
#[derive(Debug, Clone, Default)]
pub struct Format {
    /// Parts in order.
    pub parts: Vec<Part>,
}

/// Literal or operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Literal(Arc<str>),
    /// `%OPERATOR(args):max%`
    Value {
        /// Which.
        op: Operator,
        /// Cut after so many bytes.
        max: Option<usize>,
    },
}

/// What can be asked of a connection, request or response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// `%REQ(X?Y)%`: header, or alternative header. Pseudo headers by their `:name`.
    Req(HeaderKey, Option<HeaderKey>),
    /// `%RESP(X?Y)%`
    Resp(HeaderKey, Option<HeaderKey>),
    /// `%TRAILER(X?Y)%`
    Trailer(HeaderKey, Option<HeaderKey>),
    /// `%START_TIME(format)%`; the text is the strftime format (see `crate::format::time`).
    StartTime(Name),
    /// `%DYNAMIC_METADATA(ns:key…)%` and friends: namespace and path. Empty where nothing sets them.
    Metadata(MetadataKind, Vec<Name>),
    /// `%FILTER_STATE(key:PLAIN)%`
    FilterState(Name),
    /// `%ENVIRONMENT(X)%`: resolved by the caller.
    Environment(Name),
    /// `%CEL(request.protocol == 'X' ? 'a' : 'b')%`: the one CEL form this engine evaluates, a choice by the request's protocol.
    ByProtocol {
        /// Protocol (`HTTP/2`, …) and text.
        cases: Vec<(Name, Name)>,
        /// Text of all other protocols.
        otherwise: Name,
    },
    /// `%GRPC_STATUS(…)%`
    GrpcStatus(GrpcStyle),
    /// `%QUERY_PARAM(x)%`
    QueryParam(Name),
    /// `%REQ_WITHOUT_QUERY(X?Y)%`
    ReqWithoutQuery(HeaderKey, Option<HeaderKey>),
    /// `%PATH(…)%`
    Path {
        /// With its query.
        query: bool,
        /// Which path.
        which: WhichPath,
    },
    /// Anything without arguments.
    Plain(Plain),
}

/// How a gRPC status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcStyle {
    /// `InvalidArgument`
    Camel,
    /// `INVALID_ARGUMENT`
    Snake,
    /// `3`
    Number,
}

/// Which path of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichPath {
    /// As the client sent it, if it was changed; else as it is.
    OriginalOrPath,
    /// As the client sent it, if it was changed.
    Original,
    /// As it is.
    Path,
}

/// A header in a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:path`
    Path,
    /// `:method`
    Method,
    /// `:authority`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// `:protocol`
    Protocol,
    /// A header.
    Name(HeaderName),
}

/// Where metadata is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataKind {
    /// `%DYNAMIC_METADATA%`
    Dynamic,
    /// `%CLUSTER_METADATA%`
    Cluster,
    /// `%UPSTREAM_METADATA%`
    Upstream,
    /// `%ROUTE_METADATA%` (also `%METADATA(ROUTE:…)%`)
    Route,
}

macro_rules! plain {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// Operators without arguments.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Plain { $(#[doc = $text] $variant),* }

        impl Plain {
            /// The operator of this name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
            /// Its name in format strings.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

plain! {
    Protocol = "PROTOCOL",
    ResponseCode = "RESPONSE_CODE",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ResponseFlags = "RESPONSE_FLAGS",
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG",
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    Duration = "DURATION",
    RequestDuration = "REQUEST_DURATION",
    ResponseDuration = "RESPONSE_DURATION",
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT",
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT",
    UpstreamProtocol = "UPSTREAM_PROTOCOL",
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    UpstreamTlsVersion = "UPSTREAM_TLS_VERSION",
    DownstreamTransportFailureReason = "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT",
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN",
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN",
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT",
    DownstreamPeerFingerprint256 = "DOWNSTREAM_PEER_FINGERPRINT_256",
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION",
    DownstreamTlsCipher = "DOWNSTREAM_TLS_CIPHER",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    RouteName = "ROUTE_NAME",
    VirtualClusterName = "VIRTUAL_CLUSTER_NAME",
    ConnectionId = "CONNECTION_ID",
    StreamId = "STREAM_ID",
    TraceId = "TRACE_ID",
    SpanId = "SPAN_ID",
    AccessLogType = "ACCESS_LOG_TYPE",
    Hostname = "HOSTNAME",
    FilterChainName = "FILTER_CHAIN_NAME",
}
