//! The client side of a sidecar: which addresses it listens for, and where their traffic goes (semantics §7).
//!
//! Invariant: listeners are sorted by name, at most one for an address and port; every route table a listener names is in `routes`, every
//! cluster a route or listener names is in `clusters` or is one of the built-in three.

use std::{net::IpAddr, sync::Arc};

use super::{Cluster, ListenerSettings, inbound::Families};

/// The client side's whole input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outbound {
    /// The port everything is redirected to, 15001; `None` where packets are not intercepted.
    pub listen_port: Option<u16>,
    /// Address families of the pod.
    pub families: Families,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// Whether traffic to what nobody declared may leave.
    pub allow_any: bool,
    /// Milliseconds to connect, for the passthrough cluster.
    pub connect_timeout: u64,
    /// Listeners other than the one on `listen_port`.
    pub listeners: Vec<Arc<OutboundListener>>,
    /// Route tables.
    pub routes: Vec<Arc<RouteTable>>,
    /// Clusters.
    pub clusters: Vec<Arc<Cluster>>,
}

/// One listener that 15001 hands connections to, by their original destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutboundListener {
    /// `<address>_<port>`.
    pub name: Arc<str>,
    /// The original destination's address; `None` for any.
    pub address: Option<IpAddr>,
    /// Where `address` is `None`: of the IPv6 family.
    pub v6: bool,
    /// The original destination's port.
    pub port: u16,
    /// What is done.
    pub target: OutboundTarget,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// Whether what is not HTTP may leave (HTTP listeners).
    pub allow_any: bool,
}

/// What a listener does with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OutboundTarget {
    /// HTTP by a route table; the rest to the passthrough or nowhere.
    Http {
        /// The table's name.
        routes: Arc<str>,
    },
    /// HTTP by a route table when the first bytes are HTTP, else to a cluster.
    Auto {
        /// The table's name.
        routes: Arc<str>,
        /// The cluster for everything else.
        cluster: Arc<str>,
    },
    /// To a cluster, unread.
    Tcp {
        /// The cluster.
        cluster: Arc<str>,
    },
}

/// One route table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteTable {
    /// `<port>` or `<fqdn>:<port>`.
    pub name: Arc<str>,
    /// Virtual hosts, sorted by name.
    pub hosts: Vec<Arc<VirtualHost>>,
    /// What follows them: `Some(true)` lets the rest out, `Some(false)` answers 502, `None` has no last host.
    pub rest: Option<bool>,
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
}

/// One route. All requests match, until VirtualServices bring conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// `default`.
    pub name: Arc<str>,
    /// The cluster.
    pub cluster: Arc<str>,
    /// For telemetry: `<fqdn>:<port>/*`.
    pub operation: Arc<str>,
    /// The ALPN list mesh TLS offers for requests of this route, where the cluster's own list is for what is not HTTP.
    pub alpn: Option<RouteAlpn>,
    /// The cluster hashes requests to choose endpoints, by this.
    pub hash: Option<crate::model::policy::HashKey>,
}

/// The ALPN list of mesh TLS for HTTP towards a port of undeclared protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteAlpn {
    /// By what downstream spoke, since upstream speaks the same.
    ByRequest,
    /// HTTP/2 always.
    Http2,
}
