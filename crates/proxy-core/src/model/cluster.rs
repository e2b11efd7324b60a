//! A cluster: where its endpoints come from, how connections to them are made and limited.
//!
//! Invariant: Envoy's defaults are applied; `transport.default` exists always (raw unless the resource says otherwise).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::hcm::{Http1Options, Http2Options};
use super::metadata::{Map, Metadata, Value};
use super::tls::UpstreamTls;

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Resource name.
    pub name: Name,
    /// Name in statistics (`alt_stat_name`, or the name).
    pub stat_name: Name,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// TCP (and TLS) connect within. Default 5 s.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub lb: LbPolicy,
    /// Below this share of healthy hosts health is ignored, in percent. Default 50; 0 = never panic.
    pub panic_threshold: f64,
    /// Weigh localities by their own weights (`locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// New hosts take less at first.
    pub slow_start: Option<SlowStart>,
    /// Endpoints are divided by their labels.
    pub subsets: Option<Subsets>,
    /// Active health checks; a host must pass all of them.
    pub health_checks: Vec<HealthCheck>,
    /// HTTP version and its options.
    pub http: HttpProtocol,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Transport sockets.
    pub transport: Transport,
    /// SNI from the Host header where the TLS context has none (HTTP only).
    pub auto_sni: bool,
    /// Header to take the SNI from instead of Host.
    pub auto_sni_header: Option<http::HeaderName>,
    /// Circuit limits for default priority.
    pub limits: CircuitLimits,
    /// Circuit limits for high priority.
    pub high_limits: CircuitLimits,
    /// Outlier detection, if on.
    pub outlier: Option<OutlierDetection>,
    /// Requests per connection; `None` = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Idle pooled connections close after. Default 1 h. `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Pooled connections close after.
    pub max_connection_duration: Option<Duration>,
    /// A request may take at most (whole stream).
    pub max_stream_duration: Option<Duration>,
    /// Keep-alive of upstream sockets.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Local address of upstream sockets.
    pub bind: Option<SocketAddr>,
    /// Local address for the other family, if given.
    pub bind_additional: Vec<SocketAddr>,
    /// Socket options set before connect: (level, name, value).
    pub socket_options: Vec<(i32, i32, i32)>,
    /// Connections are not shared between downstream connections.
    pub pool_per_downstream: bool,
    /// DNS settings, for DNS clusters.
    pub dns: DnsOptions,
    /// Original-destination settings.
    pub original_dst: OriginalDst,
    /// Free-form.
    pub metadata: Metadata,
}

/// Source of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// The connection's original destination.
    OriginalDst,
    /// In the cluster itself; see [`super::RuntimeConfig::endpoints`].
    Static,
    /// All addresses of the names in the cluster's endpoints.
    StrictDns,
    /// The first address of the one name.
    LogicalDns,
    /// EDS under this service name.
    Eds(Name),
    /// The host that a request or connection names (dynamic forward proxy).
    DynamicForward,
}

/// How a host's share grows after it appeared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// Full weight after this.
    pub window: Duration,
    /// Shape: 1 = linear. Default 1.
    pub aggression: f64,
    /// Least share of the weight, 0–1. Default 0.1.
    pub least: f64,
}

impl SlowStart {
    /// The share of its weight that a host of this age takes, above 0 and at most 1.
    #[must_use]
    pub fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let part = age.as_secs_f64().max(0.001) / self.window.as_secs_f64().max(0.001);
        part.powf(1.0 / self.aggression).max(self.least).min(1.0)
    }
}

/// `lb_subset_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct Subsets {
    /// Key sets that subsets are made of, each sorted.
    pub selectors: Vec<Vec<Name>>,
    /// Where a request goes whose labels name no subset, or an empty one.
    pub fallback: SubsetFallback,
}

/// `LbSubsetFallbackPolicy`.
#[derive(Debug, Clone, PartialEq)]
pub enum SubsetFallback {
    /// Nowhere.
    None,
    /// Any endpoint.
    Any,
    /// The endpoints with these labels.
    Default(Arc<Map<Value>>),
}

/// The endpoints a request may go to.
#[derive(Debug, Clone, PartialEq)]
pub enum SubsetChoice {
    /// All.
    Any,
    /// Those with these labels.
    Labels(Arc<Map<Value>>),
    /// None: no endpoint is healthy for it.
    None,
}

impl Cluster {
    /// Which endpoints a request with these labels may go to; `filled` tells whether a subset has any endpoint.
    #[must_use]
    pub fn subset(&self, labels: Option<&Arc<Map<Value>>>, filled: &dyn Fn(&Map<Value>) -> bool) -> SubsetChoice {
        let Some(subsets) = &self.subsets else { return SubsetChoice::Any };
        if let Some(labels) = labels
            && subsets.selectors.iter().any(|keys| keys.iter().eq(labels.keys()))
            && filled(labels)
        {
            return SubsetChoice::Labels(Arc::clone(labels));
        }
        match &subsets.fallback {
            SubsetFallback::None => SubsetChoice::None,
            SubsetFallback::Any => SubsetChoice::Any,
            SubsetFallback::Default(labels) => SubsetChoice::Labels(Arc::clone(labels)),
        }
    }
}

/// An active health check.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// A check may take so long.
    pub timeout: Duration,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// Spread at random over so much more.
    pub jitter: Duration,
    /// Failures until a host is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes until it is healthy again; the first check of a new host counts alone.
    pub healthy_threshold: u32,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
    /// What is asked.
    pub kind: HealthCheckKind,
}

/// Kinds of health checks.
#[derive(Debug, Clone)]
pub enum HealthCheckKind {
    /// A request.
    Http {
        /// Method.
        method: http::Method,
        /// Host; empty = the cluster's name.
        host: Name,
        /// Path.
        path: Name,
        /// Additional headers.
        headers: Vec<(http::HeaderName, http::HeaderValue)>,
        /// Good statuses, `start..end`.
        statuses: Vec<(u16, u16)>,
        /// HTTP/2.
        h2: bool,
    },
    /// Bytes, or no more than a connection.
    Tcp {
        /// Sent.
        send: Vec<u8>,
        /// Each must come, in this order.
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Service asked for.
        service: Name,
        /// Host; empty = the cluster's name.
        authority: Name,
    },
}

/// Options of ORIGINAL_DST clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// Take the address from this request header.
    pub header: Option<http::HeaderName>,
    /// Replace the port.
    pub port_override: Option<u16>,
}

/// Options of DNS clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Refresh interval. Default 5 s.
    pub refresh: Duration,
    /// Which families.
    pub family: DnsFamily,
    /// Each refresh is put off by up to so much.
    pub jitter: Duration,
    /// The records' own lifetimes count, where they are known.
    pub respect_ttl: bool,
}

/// `dns_lookup_family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, and IPv4 if there is none.
    Auto,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    /// Both.
    All,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(5), family: DnsFamily::Auto, jitter: Duration::ZERO, respect_ttl: false }
    }
}

/// Load balancing policy.
#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    /// In turn.
    RoundRobin,
    /// The least loaded of a few drawn at random.
    LeastRequest {
        /// How many are drawn, at least 2.
        choices: u32,
        /// Exponent on load where weights differ. Default 1.
        bias: f64,
    },
    /// At random.
    Random,
    /// Ketama ring, XX_HASH.
    RingHash {
        /// Least entries. Default 1024.
        min: u64,
        /// Most entries. Default 8 M.
        max: u64,
        /// Hash host names instead of addresses.
        by_hostname: bool,
    },
    /// Maglev.
    Maglev {
        /// Table size, prime. Default 65537.
        table: u64,
        /// Hash host names instead of addresses.
        by_hostname: bool,
    },
    /// Decided by the cluster type (ORIGINAL_DST).
    ClusterProvided,
}

/// HTTP version towards endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// As the downstream request.
    UseDownstream,
    /// By ALPN.
    Auto,
}

/// Transport sockets of a cluster.
#[derive(Debug)]
pub struct Transport {
    /// Tried in order against endpoint metadata `envoy.transport_socket_match`.
    pub matches: Vec<TransportMatch>,
    /// If none matches.
    pub default: Arc<TransportSocket>,
}

/// One entry of `transport_socket_matches`.
#[derive(Debug)]
pub struct TransportMatch {
    /// Its name (`tlsMode-istio`).
    pub name: Name,
    /// All must be equal in the endpoint's metadata; empty = always.
    pub criteria: Map<Value>,
    /// The socket.
    pub socket: Arc<TransportSocket>,
}

/// A transport socket.
// Each is behind one `Arc` per cluster; there are few.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum TransportSocket {
    /// Plain bytes.
    Raw,
    /// TLS.
    Tls(UpstreamTls),
    /// The PROXY protocol before either of the others. Such connections belong to one downstream connection.
    ProxyProtocol {
        /// Version.
        version: ProxyProtocol,
        /// What follows.
        inner: Arc<TransportSocket>,
    },
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

impl TransportSocket {
    /// TLS settings, if it is TLS at last.
    #[must_use]
    pub fn tls(&self) -> Option<&UpstreamTls> {
        match self {
            Self::Raw => None,
            Self::Tls(tls) => Some(tls),
            Self::ProxyProtocol { inner, .. } => inner.tls(),
        }
    }
}

/// Index of a transport socket within a cluster; `DEFAULT` = the default one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportIndex(pub u16);

impl TransportIndex {
    /// [`Transport::default`].
    pub const DEFAULT: Self = Self(u16::MAX);
}

impl Transport {
    /// The socket at an index (the default one for unknown indices).
    #[must_use]
    pub fn get(&self, index: TransportIndex) -> &Arc<TransportSocket> {
        self.matches.get(usize::from(index.0)).map_or(&self.default, |m| &m.socket)
    }
}

/// Circuit limits.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitLimits {
    /// Connections. Default 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection. Default 1024.
    pub max_pending_requests: u32,
    /// Requests in flight. Default 1024.
    pub max_requests: u32,
    /// Retries in flight. Default 3. Ignored with a budget.
    pub max_retries: u32,
    /// Retries relative to load.
    pub retry_budget: Option<RetryBudget>,
}

/// Retry budget.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests. Default 20.
    pub percent: f64,
    /// At least so many. Default 3.
    pub min_concurrency: u32,
}

impl Default for CircuitLimits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// Outlier detection settings, Envoy's defaults applied. Percentages are 0–100.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// Consecutive 5xx. Default 5.
    pub consecutive_5xx: u32,
    /// Consecutive 502/503/504. Default 5.
    pub consecutive_gateway_failure: u32,
    /// Consecutive locally originated failures. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// Chance that 5xx ejects. Default 100.
    pub enforcing_consecutive_5xx: u32,
    /// Chance that gateway failures eject. Default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// Chance that local failures eject. Default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Local and external errors are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Sweep interval. Default 10 s.
    pub interval: Duration,
    /// First ejection. Default 30 s.
    pub base_ejection_time: Duration,
    /// Longest ejection. Default max(300 s, base).
    pub max_ejection_time: Duration,
    /// Most hosts ejected, percent. Default 10.
    pub max_ejection_percent: u32,
    /// One host may be ejected whatever the percentage says.
    pub always_eject_one_host: bool,
    /// Success-rate ejection: chance. Default 100.
    pub enforcing_success_rate: u32,
    /// Hosts needed. Default 5.
    pub success_rate_minimum_hosts: u32,
    /// Requests per host and interval needed. Default 100.
    pub success_rate_request_volume: u32,
    /// Factor × 1000. Default 1900.
    pub success_rate_stdev_factor: u32,
    /// Success rate of local failures, with the split: chance. Default 100.
    pub enforcing_local_origin_success_rate: u32,
    /// Failure-percentage ejection: percentage. Default 85.
    pub failure_percentage_threshold: u32,
    /// Its chance. Default 0.
    pub enforcing_failure_percentage: u32,
    /// Its chance for local failures, with the split. Default 0.
    pub enforcing_failure_percentage_local_origin: u32,
    /// Hosts needed. Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// Requests per host and interval needed. Default 50.
    pub failure_percentage_request_volume: u32,
    /// Each ejection lasts up to so much longer. Default 0.
    pub max_ejection_time_jitter: Duration,
}

/// TCP keep-alive; `None` = the kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Probes.
    pub probes: Option<u32>,
    /// Idle seconds before the first.
    pub time: Option<u32>,
    /// Seconds between.
    pub interval: Option<u32>,
}

impl Cluster {
    /// The local address to bind for an upstream address of this family, if any is configured.
    #[must_use]
    pub fn bind_for(&self, upstream: IpAddr) -> Option<SocketAddr> {
        self.bind.into_iter().chain(self.bind_additional.iter().copied()).find(|a| a.is_ipv4() == upstream.is_ipv4())
    }
}
