//! The client side of a sidecar: which addresses it listens for, and where their traffic goes (semantics §7).
//!
//! Invariant: listeners are sorted by name, at most one for an address and port; every route table a listener names is in `routes`, every
//! cluster a route or listener names is in `clusters` or is one of the built-in three.

use std::{net::IpAddr, sync::Arc};

use super::{Cluster, ClusterKind, ListenerSettings, Route, cluster::NameLookup, inbound::Families};
use crate::model::{
    policy::{HashKey, LoadBalancer},
    service::Prefix,
};

/// The client side's whole input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outbound {
    /// The port everything is redirected to, 15001; `None` where packets are not intercepted.
    pub listen_port: Option<u16>,
    /// Address families of the pod.
    pub families: Families,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// The cluster of traffic to what nobody declared: the passthrough, nowhere, or a proxy that a Sidecar names.
    pub rest: Arc<str>,
    /// Milliseconds to connect, for the passthrough cluster.
    pub connect_timeout: u64,
    /// Listeners other than the one on `listen_port`.
    pub listeners: Vec<Arc<OutboundListener>>,
    /// Route tables.
    pub routes: Vec<Arc<RouteTable>>,
    /// Clusters.
    pub clusters: Vec<Arc<Cluster>>,
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// Every address of a family.
    Any {
        /// IPv6.
        v6: bool,
    },
    /// One address.
    Ip(IpAddr),
    /// A path.
    Unix(Arc<str>),
}

impl Bind {
    /// The listener's name: `<address>_<port>`, or the path.
    pub fn name(&self, port: u16) -> Arc<str> {
        match self {
            Self::Any { v6: false } => format!("0.0.0.0_{port}").into(),
            Self::Any { v6: true } => format!("[::]_{port}").into(),
            Self::Ip(ip) => format!("{ip}_{port}").into(),
            Self::Unix(path) => path.clone(),
        }
    }
}

/// One listener: 15001 hands connections to it by their original destination, or it is listened on for real.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutboundListener {
    /// `<address>_<port>`.
    pub name: Arc<str>,
    /// The original destination's address.
    pub bind: Bind,
    /// The original destination's port.
    pub port: u16,
    /// Listened on for real.
    pub bound: bool,
    /// The route table of what is HTTP.
    pub http: Option<Arc<str>>,
    /// Chains of what is not HTTP, by server name or destination; no two of the same match.
    pub chains: Vec<TcpChain>,
    /// Where everything goes that neither `http` nor a chain takes.
    pub tcp: Option<TcpForward>,
    /// The cluster of what not even `tcp` takes.
    pub rest: Arc<str>,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// Some HTTP goes to clusters that resolve the name a request asks for.
    pub dynamic: Option<NameLookup>,
}

/// One chain of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpChain {
    /// Server names of the ClientHello, one of which it must have; empty takes any connection.
    pub server_names: Vec<Arc<str>>,
    /// Ranges of the original destination; empty is any.
    pub prefixes: Vec<Prefix>,
    /// Where it goes.
    pub forward: TcpForward,
}

/// Where a connection goes, unread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpForward {
    /// Clusters and their weights.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// Milliseconds a connection may be idle.
    pub idle_timeout: Option<u64>,
    /// The cluster hashes the client's address.
    pub source_hash: bool,
    /// The tunnel that the connection goes through: `host:port`, and whether by POST.
    pub tunnel: Option<(Arc<str>, bool)>,
    /// The cluster resolves the server name that the connection asks for; and the port it is then reached on.
    pub dynamic: Option<(NameLookup, u16)>,
}

impl TcpForward {
    /// To one cluster, with what its rule says of TCP connections.
    pub fn to(cluster: &Cluster) -> Self {
        let tunnel = cluster.tunnel.as_ref();
        Self {
            clusters: vec![(cluster.name.clone(), 1)],
            idle_timeout: cluster.limits.pool.tcp_idle_timeout,
            source_hash: matches!(
                &cluster.load_balancer,
                LoadBalancer::ConsistentHash(hash) if hash.key == HashKey::SourceIp
            ),
            tunnel: tunnel.map(|t| (format!("{}:{}", t.host, t.port).into(), t.post)),
            dynamic: cluster.names.filter(|_| cluster.kind == ClusterKind::DynamicForward).map(|n| (n, cluster.port)),
        }
    }
}

/// What happens to requests that no virtual host of a table takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rest {
    /// They go to this cluster.
    Forward(Arc<str>),
    /// They are answered with 502.
    Refuse,
}

/// One route table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteTable {
    /// `<port>`, `<fqdn>:<port>` or a path.
    pub name: Arc<str>,
    /// Virtual hosts, sorted by name.
    pub hosts: Vec<Arc<VirtualHost>>,
    /// What follows them; `None` has no last host.
    pub rest: Option<Rest>,
}

/// One virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VirtualHost {
    /// `<fqdn>:<port>`.
    pub name: Arc<str>,
    /// Names and addresses it answers to; unique within the table.
    pub domains: Vec<Arc<str>>,
    /// Its routes, first match wins.
    pub routes: Vec<Route>,
    /// Plain HTTP is redirected to HTTPS.
    pub require_tls: bool,
}
