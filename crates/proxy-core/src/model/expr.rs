//! Expressions of log filters and metric labels, parsed.
//!
//! Invariant: attributes and functions are known ones. Reading and evaluating them is in `crate::expr`.

use std::sync::Arc;

use http::HeaderName;

/// An expression.
#[derive(Debug, Clone)]
pub enum Expr {
    /// null, true, 1, 1.5, 'text'.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// Of the request, response or connection.
    Attribute(Attribute),
    /// `a ? b : c`
    If(Box<[Expr; 3]>),
    /// Two operands.
    Binary(Binary, Box<[Expr; 2]>),
    /// `!a`
    Not(Box<Expr>),
    /// `-a`
    Negative(Box<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `'x' in request.headers`
    HasHeader(Side, Box<Expr>),
    /// `has(a.b)`
    Has(Attribute),
    /// `size(a)`
    Size(Box<Expr>),
    /// `a.matches('…')`
    Matches(Box<Expr>, regex::Regex),
}

/// Operators and functions of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Add,
    In,
    StartsWith,
    EndsWith,
    Contains,
}

/// Whose headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request's.
    Request,
    /// The response's.
    Response,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A header.
    Header(Side, HeaderName),
    /// Anything of [`ATTRIBUTES`].
    Plain(Plain),
}

macro_rules! attributes {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// Attributes without a key.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Plain { $(#[doc = $text] $variant),* }

        /// Their names.
        pub const ATTRIBUTES: &[(&str, Plain)] = &[$(($text, Plain::$variant)),*];
    };
}

attributes! {
    RequestPath = "request.path",
    RequestUrlPath = "request.url_path",
    RequestQuery = "request.query",
    RequestHost = "request.host",
    RequestScheme = "request.scheme",
    RequestMethod = "request.method",
    RequestReferer = "request.referer",
    RequestUserAgent = "request.useragent",
    RequestId = "request.id",
    RequestProtocol = "request.protocol",
    RequestSize = "request.size",
    ResponseCode = "response.code",
    ResponseCodeDetails = "response.code_details",
    ResponseGrpcStatus = "response.grpc_status",
    ResponseSize = "response.size",
    SourceAddress = "source.address",
    SourcePort = "source.port",
    DestinationAddress = "destination.address",
    DestinationPort = "destination.port",
    ConnectionId = "connection.id",
    ConnectionMtls = "connection.mtls",
    ConnectionServerName = "connection.requested_server_name",
    ConnectionTlsVersion = "connection.tls_version",
    ConnectionUriPeer = "connection.uri_san_peer_certificate",
    ConnectionUriLocal = "connection.uri_san_local_certificate",
    ConnectionSubjectPeer = "connection.subject_peer_certificate",
    ConnectionDigestPeer = "connection.sha256_peer_certificate_digest",
    ConnectionTermination = "connection.termination_details",
    UpstreamAddress = "upstream.address",
    UpstreamPort = "upstream.port",
    UpstreamLocalAddress = "upstream.local_address",
    UpstreamFailure = "upstream.transport_failure_reason",
    UpstreamAttempts = "upstream.request_attempt_count",
    XdsClusterName = "xds.cluster_name",
    XdsRouteName = "xds.route_name",
    XdsChainName = "xds.filter_chain_name",
}

impl Expr {
    /// The text of an expression that depends on nothing.
    #[must_use]
    pub fn as_literal(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}
