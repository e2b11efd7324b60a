//! PeerAuthentication and DestinationRule, parsed (semantics §1.1, §4.5).
//!
//! Invariant: absent and UNSET are the same (`None`); durations are milliseconds; limits are absent rather than 0 when
//! unset. Which of several policies counts is decided in `peer_auth` and `rules`.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::scalar::Number;
use carrick_base::{HostPattern, Labels};

use super::{ExportTo, Origin, locality::LocalityPolicy};

/// What a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mesh TLS only.
    Strict,
}

impl MtlsMode {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

/// One PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuth {
    /// The object.
    pub origin: Origin,
    /// Labels it selects; empty selects the namespace, or the mesh from the root namespace.
    pub selector: Labels,
    /// Its mode; `None` is UNSET, which inherits.
    pub mode: Option<MtlsMode>,
    /// Modes by workload port; `None` is UNSET, which takes the workload's mode.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// TLS settings of a client, as written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// The mode.
    pub mode: ClientTlsMode,
    /// Server name; empty when not given.
    pub sni: Arc<str>,
    /// Exact names the server must have one of; empty when not given.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Path of the own certificate.
    pub client_certificate: Arc<str>,
    /// Path of the own key.
    pub private_key: Arc<str>,
    /// Path of the roots.
    pub ca_certificates: Arc<str>,
    /// Path of a revocation list.
    pub ca_crl: Arc<str>,
    /// A secret in place of the paths.
    pub credential_name: Arc<str>,
    /// Whether the server's certificate is not to be verified.
    pub insecure_skip_verify: bool,
}

/// `trafficPolicy.tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientTlsMode {
    /// Plaintext.
    Disable,
    /// TLS, server authenticated only.
    Simple,
    /// TLS with the named client certificate.
    Mutual,
    /// The mesh's own certificates.
    IstioMutual,
}

impl ClientTlsMode {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Simple => "SIMPLE",
            Self::Mutual => "MUTUAL",
            Self::IstioMutual => "ISTIO_MUTUAL",
        }
    }
}

/// `loadBalancer.simple`, and what replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum LoadBalancer {
    /// Fewest active requests of two random endpoints; the mesh's default.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// The address the client chose.
    Passthrough,
    /// By a hash of the request.
    ConsistentHash(ConsistentHash),
}

/// What a request is hashed by, and into what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConsistentHash {
    /// The hashed thing.
    pub key: HashKey,
    /// The table.
    pub table: HashTable,
}

/// The hashed thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// A request header.
    Header(Arc<str>),
    /// A cookie, made when absent if it has a lifetime.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its path.
        path: Arc<str>,
        /// Its lifetime in milliseconds.
        ttl: Option<u64>,
        /// More attributes, as name and value.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// The peer's address.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
}

/// The table of a consistent hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashTable {
    /// A ring of at least so many entries.
    Ring(u64),
    /// Maglev of that size, a prime.
    Maglev(u64),
}

/// `connectionPool`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ConnectionPool {
    /// Connections per cluster.
    pub max_connections: Option<u32>,
    /// Milliseconds to connect.
    pub connect_timeout: Option<u64>,
    /// Probes, time in seconds, interval in seconds.
    pub tcp_keepalive: Option<Keepalive>,
    /// Milliseconds a connection may live.
    pub max_connection_duration: Option<u64>,
    /// Milliseconds a TCP connection may be idle.
    pub tcp_idle_timeout: Option<u64>,
    /// Requests that may wait.
    pub max_pending_requests: Option<u32>,
    /// Requests at once.
    pub max_requests: Option<u32>,
    /// Requests before a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// Milliseconds an HTTP connection may be idle.
    pub http_idle_timeout: Option<u64>,
    /// HTTP/1.1 to HTTP/2 on the upstream side; `None` leaves it to the mesh.
    pub h2_upgrade: Option<bool>,
    /// Whether upstream speaks what downstream spoke.
    pub use_client_protocol: bool,
    /// Streams at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Milliseconds between pings on an HTTP/2 connection, and to wait for the answer.
    pub http2_keepalive: Option<(u64, u64)>,
}

/// TCP keep-alive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Unanswered probes before the peer counts as gone.
    pub probes: Option<u32>,
    /// Seconds of silence before the first probe.
    pub time: Option<u32>,
    /// Seconds between probes.
    pub interval: Option<u32>,
}

/// `outlierDetection`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutlierDetection {
    /// Errors in a row, 5xx; `None` is Envoy's 5, 0 disables.
    pub consecutive_5xx: Option<u32>,
    /// Errors in a row, gateway codes.
    pub consecutive_gateway: Option<u32>,
    /// Local errors counted apart.
    pub split_local_errors: bool,
    /// Local errors in a row.
    pub consecutive_local: Option<u32>,
    /// Milliseconds between sweeps.
    pub interval: u64,
    /// Milliseconds of the first ejection.
    pub base_ejection: u64,
    /// Most endpoints ejected, in percent.
    pub max_ejection_percent: u32,
    /// Below this percentage of healthy endpoints all are used.
    pub min_health_percent: u32,
}

/// `loadBalancer`: the algorithm and what goes with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Balancing {
    /// The algorithm.
    pub algorithm: LoadBalancer,
    /// How new endpoints are brought up.
    pub warmup: Option<Warmup>,
    /// Which endpoints come first.
    pub locality: Option<LocalityChoice>,
}

/// What a rule says of localities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalityChoice {
    /// `enabled: false`.
    Off,
    /// This, in place of the mesh's.
    Policy(Arc<LocalityPolicy>),
}

/// How new endpoints are brought up to their full share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Warmup {
    /// Milliseconds it takes.
    pub duration: u64,
    /// The share to begin with, in percent.
    pub minimum_percent: Number,
    /// The curve's exponent.
    pub aggression: Number,
}

/// `tunnel`: TCP inside of an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// The method is POST rather than CONNECT.
    pub post: bool,
    /// Where the tunnel leads.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
}

/// `retryBudget`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// Percent of active and pending requests that may be retries.
    pub percent: Number,
    /// Retries that are always allowed.
    pub minimum: u32,
}

/// Version of a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyHeader {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// The four blocks that a port level replaces as a group, and those that have no port level (semantics §4.4).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<Balancing>,
    /// Limits and timeouts.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS as a client.
    pub tls: Option<ClientTls>,
    /// The PROXY header that connections begin with.
    pub proxy_header: Option<ProxyHeader>,
    /// The tunnel that connections go through.
    pub tunnel: Option<Tunnel>,
    /// How many retries there may be.
    pub retry_budget: Option<RetryBudget>,
}

/// A policy with its port levels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortedPolicy {
    /// For all ports.
    pub base: TrafficPolicy,
    /// By service port.
    pub ports: BTreeMap<u16, TrafficPolicy>,
}

/// One subset.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subset {
    /// Its name.
    pub name: Arc<str>,
    /// Labels of its endpoints.
    pub labels: Labels,
    /// What it changes.
    pub policy: Option<PortedPolicy>,
    /// The rule it came from, which is another than the merged one's when rules were merged.
    pub origin: Origin,
}

/// One DestinationRule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    /// The object.
    pub origin: Origin,
    /// The hosts it is about.
    pub host: HostPattern,
    /// Who may use it.
    pub export_to: ExportTo,
    /// Labels of the clients it is for; `None` for all.
    pub workload_selector: Option<Labels>,
    /// What it sets.
    pub policy: Option<PortedPolicy>,
    /// Its subsets.
    pub subsets: Vec<Subset>,
}
