//! The HTTP connection manager of a chain: codec, limits, what is done to each request before and after routing.
//!
//! Invariant: Envoy's defaults are already applied; an `Option<Duration>` of `None` means "no limit", never "unset".

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::Name;
use super::access_log::AccessLog;
use super::filter::HttpFilter;
use super::route::RouteTable;
pub use super::route::Upgrade;
use super::tracing::Tracing;

/// `envoy.filters.network.http_connection_manager`.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Which codec.
    pub codec: Codec,
    /// Name in statistics.
    pub stat_prefix: Name,
    /// Where routes come from.
    pub routes: RouteSource,
    /// The filters in order, the router last. Inert ones are left out.
    pub filters: Vec<HttpFilter>,
    /// `server` header of responses.
    pub server_name: HeaderValue,
    /// What to do with an upstream's `server` header.
    pub server_header: ServerHeader,
    /// Value for the `via` header, if not empty.
    pub via: Name,
    /// XFCC handling.
    pub xfcc: ForwardClientCert,
    /// Path hygiene.
    pub path: PathOptions,
    /// Host header hygiene.
    pub host: HostOptions,
    /// Trust and write client addresses.
    pub addresses: AddressOptions,
    /// x-request-id.
    pub request_id: RequestIdOptions,
    /// Rewrite of the scheme to this, if set.
    pub scheme_overwrite: Option<Name>,
    /// No activity on a stream for so long → 408/504. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// Request headers must arrive within. Default none.
    pub request_headers_timeout: Option<Duration>,
    /// Idle connection without streams → closed. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Connection drained after so long.
    pub max_connection_duration: Option<Duration>,
    /// Stream reset after so long.
    pub max_stream_duration: Option<Duration>,
    /// Connection drained after so many requests; `None` = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Most headers per message. Default 100.
    pub max_headers_count: u32,
    /// Bytes of request headers. Default 60 KiB.
    pub max_request_headers_bytes: u32,
    /// Headers with `_`.
    pub underscores: Underscores,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Upgrades allowed by default, lower case (`websocket`, `connect`).
    pub upgrades: Vec<Upgrade>,
    /// Forward 100-continue instead of answering it.
    pub proxy_100_continue: bool,
    /// Access logs.
    pub access_logs: Vec<AccessLog>,
    /// Tracing.
    pub tracing: Option<Arc<Tracing>>,
}

/// Codec choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the HTTP/2 preface.
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Source of the route table.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// From [`super::RuntimeConfig::routes`].
    Rds(Name),
    /// In place.
    Inline(Arc<RouteTable>),
}

/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    /// Replace.
    Overwrite,
    /// Only where missing.
    AppendIfAbsent,
    /// Leave.
    PassThrough,
}

/// XFCC mode and details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardClientCert {
    /// Mode.
    pub mode: XfccMode,
    /// `Subject=`.
    pub subject: bool,
    /// `Cert=`.
    pub cert: bool,
    /// `Chain=`.
    pub chain: bool,
    /// `DNS=`.
    pub dns: bool,
    /// `URI=`.
    pub uri: bool,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XfccMode {
    /// Remove.
    Sanitize,
    /// Keep what an mTLS peer sent.
    ForwardOnly,
    /// Keep and append, on mTLS.
    AppendForward,
    /// Replace, on mTLS.
    SanitizeSet,
    /// Keep always.
    AlwaysForwardOnly,
}

/// Path hygiene switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathOptions {
    /// RFC 3986 dot segments and percent-encoding case.
    pub normalize: bool,
    /// `//` → `/`.
    pub merge_slashes: bool,
    /// `%2F`, `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// As they are.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescape and go on.
    UnescapeAndForward,
}

/// Host header switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostOptions {
    /// Strip the port if it is the listener's.
    pub strip_matching_port: bool,
    /// Strip any port.
    pub strip_any_port: bool,
    /// Strip a trailing dot.
    pub strip_trailing_dot: bool,
}

/// Client address switches.
#[derive(Debug, Clone, Default)]
pub struct AddressOptions {
    /// Trust the connection's address and write it (edge).
    pub use_remote_address: bool,
    /// Hops of x-forwarded-for to trust.
    pub xff_num_trusted_hops: u32,
    /// Do not append to x-forwarded-for.
    pub skip_xff_append: bool,
    /// Extra internal ranges; `None` = RFC 1918 etc.
    pub internal: Option<Vec<ipnet::IpNet>>,
    /// Write x-forwarded-port.
    pub append_x_forwarded_port: bool,
}

/// x-request-id switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestIdOptions {
    /// Make one where missing. Default true.
    pub generate: bool,
    /// Keep one that comes from outside.
    pub preserve_external: bool,
    /// Put it on the response.
    pub always_set_in_response: bool,
}

/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// Allowed.
    #[default]
    Allow,
    /// 400.
    Reject,
    /// Dropped.
    Drop,
}

/// HTTP/1 options (downstream and upstream).
#[derive(Debug, Clone, Default)]
pub struct Http1Options {
    /// Accept HTTP/1.0 requests (else 426).
    pub accept_http_10: bool,
    /// Host of an HTTP/1.0 request without one.
    pub default_host_for_http_10: Name,
    /// Header name case.
    pub header_case: HeaderCase,
}

/// Case of header names on the HTTP/1 wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderCase {
    /// Lower.
    #[default]
    Lower,
    /// Each-Word.
    ProperWords,
    /// As received.
    Preserve,
}

/// HTTP/2 options (downstream and upstream).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    /// HPACK table. Default 4096.
    pub hpack_table_size: u32,
    /// Concurrent streams. Default 1024 (Envoy 1.40).
    pub max_concurrent_streams: u32,
    /// Stream window. Default 16 MiB.
    pub initial_stream_window: u32,
    /// Connection window. Default 24 MiB.
    pub initial_connection_window: u32,
    /// Extended CONNECT.
    pub allow_connect: bool,
    /// Send PING after this.
    pub keepalive_interval: Option<Duration>,
    /// And close if no answer within. Only with `keepalive_interval`.
    pub keepalive_timeout: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window: 16 * 1024 * 1024,
            initial_connection_window: 24 * 1024 * 1024,
            allow_connect: false,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}
