//! Endpoints of one cluster: addresses, and which of them take mesh TLS (semantics §3.4).
//!
//! Invariant: sorted by address, so that equal sets are equal values; only endpoints that take new traffic are here.

use std::{net::IpAddr, sync::Arc};

/// Endpoints of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Load {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Its endpoints.
    pub endpoints: Vec<LoadEndpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadEndpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// Whether mesh TLS is used to it.
    pub mtls: bool,
    /// `<workload>;<namespace>;<canonical name>;<revision>;<cluster>`, for telemetry; empty when unknown.
    pub workload: Arc<str>,
}
