//! The runtime configuration: what a worker reads, in the form that makes reading cheap.
//!
//! Invariant: a value of these types has been validated; every index in it is in range, every regex compiled and anchored,
//! every reference by name either resolves in the same [`RuntimeConfig`] or is an error the proxy answers (503, reset).
//! Building them is `decode`'s work, choosing among them that of the decision modules.

pub mod access_log;
pub mod cluster;
pub mod collector;
pub mod endpoint;
pub mod expr;
pub mod ext_authz;
pub mod filter;
pub mod format;
pub mod hcm;
pub mod headers;
pub mod jwt;
pub mod listener;
pub mod matcher;
pub mod metadata;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod stats;
pub mod steps;
pub mod tls;
pub mod tracing;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

pub use cluster::Cluster;
pub use endpoint::{Endpoint, EndpointSet};
pub use listener::{ChainKind, FilterChain, Listener};
pub use route::RouteTable;

/// A shared name: of a cluster, listener, route configuration, secret.
pub type Name = Arc<str>;

/// Everything a worker needs to serve, as one immutable value. Parts that an update did not touch are the same `Arc`s as before,
/// so `Arc::ptr_eq` tells a worker what changed.
#[derive(Debug, Default, Clone)]
pub struct RuntimeConfig {
    /// Grows with each change of the visible configuration; 0 is the empty configuration.
    pub generation: u64,
    /// The listeners that are warm.
    pub listeners: Listeners,
    /// Clusters that are warm, by name.
    pub clusters: HashMap<Name, Arc<Cluster>>,
    /// Endpoints by *cluster* name (not EDS service name), transport sockets resolved. Present for every EDS and STATIC cluster in
    /// `clusters`; for DNS clusters the endpoints carry host names for the proxy to resolve; absent for ORIGINAL_DST.
    pub endpoints: HashMap<Name, Arc<EndpointSet>>,
    /// Route tables by route configuration name (RDS). Inline tables live in their HTTP connection manager.
    pub routes: HashMap<Name, Arc<RouteTable>>,
}

/// Listeners in both orders of look-up.
#[derive(Debug, Default, Clone)]
pub struct Listeners {
    /// By name, in order.
    pub by_name: BTreeMap<Name, Arc<Listener>>,
    /// By the address they stand for, bound or not.
    pub by_address: HashMap<SocketAddr, Arc<Listener>>,
}

impl RuntimeConfig {
    /// The route table an HTTP chain uses now. `None` only if an RDS table was removed after its listener warmed (404 then).
    #[must_use]
    pub fn route_table<'a>(&'a self, source: &'a hcm::RouteSource) -> Option<&'a Arc<RouteTable>> {
        match source {
            hcm::RouteSource::Rds(name) => self.routes.get(name),
            hcm::RouteSource::Inline(table) => Some(table),
        }
    }
}
