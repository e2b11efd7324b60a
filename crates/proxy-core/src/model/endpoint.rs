//! The endpoints of one cluster, grouped by priority and locality, with transport sockets already resolved.
//!
//! Invariant: every index in `priorities` is an index into `endpoints`; weights are ≥ 1; priorities are contiguous from 0.

use std::net::SocketAddr;

use super::Name;
use super::cluster::TransportIndex;
use super::metadata::Metadata;

/// Endpoints of a cluster.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// All of them; positions are stable within this value only. Across updates identify a host by its address.
    pub endpoints: Vec<Endpoint>,
    /// By priority.
    pub priorities: Vec<Priority>,
    /// Percent. Default 140.
    pub overprovisioning_factor: u32,
}

/// One endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Address, or a name for the proxy to resolve (DNS clusters only).
    pub address: EndpointAddress,
    /// Host name, if the resource has one.
    pub hostname: Name,
    /// Relative weight, ≥ 1.
    pub weight: u32,
    /// Health as told by EDS.
    pub health: Health,
    /// Priority, 0 first.
    pub priority: u32,
    /// Index into [`Priority::localities`].
    pub locality: usize,
    /// Transport socket of its cluster.
    pub transport: TransportIndex,
    /// Free-form.
    pub metadata: Metadata,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// IP and port.
    Socket(SocketAddr),
    /// DNS name and port.
    Dns {
        /// Name.
        host: Name,
        /// Port.
        port: u16,
    },
    /// Unix socket path.
    Pipe(Name),
}

/// Health as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Only when healthy ones are too few.
    Degraded,
    /// Takes none (UNHEALTHY, DRAINING, TIMEOUT), except in panic.
    Unhealthy,
}

/// Hosts of one priority.
#[derive(Debug, Default)]
pub struct Priority {
    /// Its localities.
    pub localities: Vec<LocalityEndpoints>,
    /// Indices of all its hosts.
    pub hosts: Vec<usize>,
    /// Whether all weights are equal.
    pub uniform: bool,
}

/// Hosts of one locality within a priority.
#[derive(Debug)]
pub struct LocalityEndpoints {
    /// Region, zone, sub-zone.
    pub locality: Locality,
    /// Weight, if given.
    pub weight: Option<u32>,
    /// Indices of its hosts.
    pub hosts: Vec<usize>,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Name0,
    /// Zone.
    pub zone: Name0,
    /// Sub-zone.
    pub sub_zone: Name0,
}

/// A name that may be empty.
pub type Name0 = Box<str>;

impl EndpointSet {
    /// The socket address of an endpoint, if it has one.
    #[must_use]
    pub fn socket(&self, index: usize) -> Option<SocketAddr> {
        match self.endpoints.get(index)?.address {
            EndpointAddress::Socket(address) => Some(address),
            _ => None,
        }
    }
}
