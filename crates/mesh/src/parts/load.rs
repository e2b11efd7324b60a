//! Endpoints of one cluster: addresses, which of them take mesh TLS (semantics §3.4), which come first (§27).
//!
//! Invariant: sorted by priority, place and address, so that equal sets are equal values; only endpoints that take new traffic are here.

use std::sync::Arc;

use crate::model::{Address, Locality};

/// Endpoints of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Load {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Its endpoints, none of the groups empty.
    pub groups: Vec<LoadGroup>,
}

/// Endpoints of one place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoadGroup {
    /// The place.
    pub locality: Locality,
    /// 0 is used while it is healthy, then 1 and so on.
    pub priority: u32,
    /// The share of traffic that a rule gives the place; else the sum of its endpoints' weights.
    pub share: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<LoadEndpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadEndpoint {
    /// Where it is.
    pub address: Address,
    /// Whether mesh TLS is used to it.
    pub mtls: bool,
    /// `<workload>;<namespace>;<canonical name>;<revision>;<cluster>`, for telemetry; empty when unknown.
    pub workload: Arc<str>,
    /// Its share of traffic, relative to its neighbours'.
    pub weight: u32,
    /// The network that this is a gateway of, for all of its endpoints; `None` for the endpoint itself.
    pub gateway_of: Option<Arc<str>>,
}

impl Load {
    /// All endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &LoadEndpoint> {
        self.groups.iter().flat_map(|g| &g.endpoints)
    }
}
