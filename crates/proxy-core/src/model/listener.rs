//! A listener, its inspectors, its filter chains, and the index that finds a chain.
//!
//! Invariant: `chains` is what the index points into; no two chains have the same match (such a listener is rejected, as in Envoy).
//! The search itself is in `crate::chain`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::access_log::AccessLog;
use super::filter::FilterStateSet;
use super::hcm::HttpConnectionManager;
use super::stats::Stats;
use super::tls::DownstreamTls;
use super::{Name, metadata::Metadata};
use crate::model::cluster::TcpKeepalive;

/// A listener. It is bound only if `bind_to_port`; otherwise it is reached by original destination from one that is.
#[derive(Debug)]
pub struct Listener {
    /// Resource name.
    pub name: Name,
    /// The address and port it stands for.
    pub address: SocketAddr,
    /// More addresses of the same listener (dual stack).
    pub additional_addresses: Vec<SocketAddr>,
    /// Whether a socket is bound.
    pub bind_to_port: bool,
    /// Hand accepted connections to the listener of their original destination.
    pub use_original_dst: bool,
    /// The `original_dst` listener filter is present: the local address of a connection is the one before redirection.
    pub restore_original_dst: bool,
    /// INBOUND or OUTBOUND as the control plane says.
    pub direction: Direction,
    /// Which inspectors look at the first bytes.
    pub inspectors: Inspectors,
    /// How long the inspectors may wait for bytes; `None` = for ever (Envoy's 0). Envoy's default of 15 s is already applied.
    pub listener_filters_timeout: Option<Duration>,
    /// After that time, go on with what is known instead of closing.
    pub continue_on_listener_filters_timeout: bool,
    /// All filter chains, in resource order, without the default chain.
    pub chains: Vec<Arc<FilterChain>>,
    /// The chain when none matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Finds the chain.
    pub index: ChainIndex,
    /// `listen(2)` backlog, if given.
    pub backlog: Option<u32>,
    /// IP_TRANSPARENT on the listening socket.
    pub transparent: bool,
    /// IP_FREEBIND on the listening socket.
    pub freebind: bool,
    /// The `original_src` listener filter is present: what is connected to for a client sees its address. The mark of such packets; 0: none.
    pub original_src: Option<u32>,
    /// Keep-alive on accepted sockets.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Access logs of connections that found no chain (and others, as Envoy does at listener level).
    pub access_logs: Vec<AccessLog>,
    /// Free-form.
    pub metadata: Metadata,
}

/// Traffic direction of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Not told.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// The protocol inspectors of a listener.
#[derive(Debug, Clone, Default)]
pub struct Inspectors {
    /// `proxy_protocol`: a header before everything else says who the client is.
    pub proxy: Option<ProxyHeader>,
    /// `tls_inspector`: ClientHello → transport protocol, SNI, ALPN.
    pub tls: Option<Inspector>,
    /// `http_inspector`: first line → application protocol `http/1.0`, `http/1.1` or `h2c`. Skipped when TLS was detected.
    pub http: Option<Inspector>,
}

/// What a listener wants of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Connections without a header are taken as they are.
    pub optional: bool,
    /// Version 1 (text) is accepted.
    pub v1: bool,
    /// Version 2 (binary) is accepted.
    pub v2: bool,
}

/// One inspector and where it is off.
#[derive(Debug, Clone, Default)]
pub struct Inspector {
    /// Predicate over the (original) destination port under which the inspector does not run.
    pub disabled: PortPredicate,
}

/// `ListenerFilterChainMatchPredicate`, reduced to what it can ask: the destination port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PortPredicate {
    /// Never true.
    #[default]
    Never,
    /// Always true.
    Always,
    /// `start <= port < end`.
    Range {
        /// First port.
        start: u32,
        /// One past the last.
        end: u32,
    },
    /// Any of them.
    Or(Vec<PortPredicate>),
    /// All of them.
    And(Vec<PortPredicate>),
    /// The opposite.
    Not(Box<PortPredicate>),
}

/// A filter chain that this engine runs.
#[derive(Debug)]
pub struct FilterChain {
    /// Name, or empty.
    pub name: Name,
    /// What the resource said about matching (for display; the index is what decides).
    pub matching: ChainMatch,
    /// Terminate TLS first; `None` = raw.
    pub tls: Option<DownstreamTls>,
    /// The handshake must finish within this time; `None` = no limit.
    pub transport_socket_connect_timeout: Option<Duration>,
    /// Values that connections put into filter state before the terminal filter (`set_filter_state` network filter).
    pub on_new_connection: Vec<FilterStateSet>,
    /// Where the cluster goes wherever is asked: the port, on the host of the SNI (`sni_dynamic_forward_proxy`).
    pub sni_port: Option<u16>,
    /// RBAC network filters, in order: asked when the first byte has come.
    pub rbac: Vec<Arc<super::rbac::RbacFilter>>,
    /// Authorizers that are asked about connections, each with the number of RBAC filters that come before it.
    pub ext_authz: Vec<(usize, Arc<super::ext_authz::ExtAuthz>)>,
    /// `istio.stats` before a TCP proxy: what is counted of connections.
    pub stats: Option<Arc<Stats>>,
    /// The terminal filter.
    pub kind: ChainKind,
    /// Free-form.
    pub metadata: Metadata,
}

/// The terminal network filter.
#[derive(Debug)]
pub enum ChainKind {
    /// `envoy.filters.network.tcp_proxy`.
    Tcp(TcpProxy),
    /// `envoy.filters.network.http_connection_manager`.
    Http(Box<HttpConnectionManager>),
}

/// Forwarding of bytes.
#[derive(Debug)]
pub struct TcpProxy {
    /// The bytes go through a tunnel that an HTTP request opens.
    pub tunnel: Option<Box<Tunnel>>,
    /// Only endpoints of these subset labels.
    pub subset: super::route::SubsetLabels,
    /// Where to.
    pub cluster: TcpTarget,
    /// Name in statistics.
    pub stat_prefix: Name,
    /// No bytes either way for so long → close. `None` = never. Envoy's default of 1 h is already applied.
    pub idle_timeout: Option<Duration>,
    /// Connect attempts in all, at least 1.
    pub max_connect_attempts: u32,
    /// The connection ends after so long whatever it does.
    pub max_connection_duration: Option<Duration>,
    /// Hash the source IP for consistent hashing.
    pub hash_source_ip: bool,
    /// Access logs, at the end of the connection.
    pub access_logs: Vec<AccessLog>,
}

/// Target of a TCP proxy.
#[derive(Debug, Clone)]
pub enum TcpTarget {
    /// One cluster.
    Cluster(Name),
    /// By weight; the sum is > 0.
    Weighted {
        /// Cluster and weight (> 0 each).
        clusters: Vec<(Name, u32)>,
        /// Sum of weights.
        total: u32,
    },
}

/// `tunneling_config`: CONNECT to the upstream, then bytes.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Target of the CONNECT, `host:port`.
    pub hostname: super::format::Format,
    /// Headers of the request.
    pub headers: super::headers::HeaderOps,
}

/// `FilterChainMatch` as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination prefixes.
    pub prefix_ranges: Vec<IpNet>,
    /// Lower-case server names; `.example.com` stands for `*.example.com`.
    pub server_names: Vec<Box<str>>,
    /// `tls`, `raw_buffer` or empty.
    pub transport_protocol: Box<str>,
    /// ALPN values.
    pub application_protocols: Vec<Box<str>>,
    /// Prefixes of the directly connected peer.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Where the peer must be.
    pub source_type: SourceType,
    /// Prefixes of the source.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.ConnectionSourceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// Same address, or loopback.
    SameIpOrLoopback,
    /// Anywhere else.
    External,
}

/// Nested look-up in Envoy's order of precedence. Each level is decided finally: no back-tracking to a less specific entry of an
/// earlier level. Leaves are indices into [`Listener::chains`].
#[derive(Debug, Default)]
pub struct ChainIndex {
    /// Destination port → next; key 0 = chains without one.
    pub ports: HashMap<u16, IpLevel<NameLevel>>,
}

/// Longest prefix first; the empty requirement is stored as 0.0.0.0/0 and ::/0.
#[derive(Debug)]
pub struct IpLevel<T>(pub Vec<(IpNet, T)>);

/// Server names.
#[derive(Debug, Default)]
pub struct NameLevel {
    /// Whole names.
    pub exact: HashMap<Box<str>, TextLevel<TextLevel<SourceLevel>>>,
    /// `.suffix` entries.
    pub suffix: HashMap<Box<str>, TextLevel<TextLevel<SourceLevel>>>,
    /// No requirement.
    pub any: Option<TextLevel<TextLevel<SourceLevel>>>,
}

/// A handful of texts (transport protocols, then ALPN values); the empty text means no requirement.
#[derive(Debug)]
pub struct TextLevel<T>(pub Vec<(Box<str>, T)>);

/// Directly connected peer's prefix, then type.
pub type SourceLevel = IpLevel<SourceTypes>;

/// By source type, then source prefix, then source port (0 = any).
#[derive(Debug, Default)]
pub struct SourceTypes {
    /// Any.
    pub any: Option<IpLevel<Vec<(u16, usize)>>>,
    /// Same IP or loopback.
    pub local: Option<IpLevel<Vec<(u16, usize)>>>,
    /// External.
    pub external: Option<IpLevel<Vec<(u16, usize)>>>,
}

impl<T> Default for IpLevel<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Default for TextLevel<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}
