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
    /// The endpoints whose metadata carries all of these labels (namespace `envoy.lb`), grouped as here.
    #[must_use]
    pub fn with_labels(&self, labels: &super::metadata::Map<super::metadata::Value>) -> Self {
        let fits = |e: &Endpoint| {
            let have = e.metadata.namespace("envoy.lb");
            labels.iter().all(|(k, v)| have.and_then(|h| h.get(k)) == Some(v))
        };
        let mut kept = Vec::new();
        let mut place = vec![None; self.endpoints.len()];
        for (old, endpoint) in self.endpoints.iter().enumerate() {
            if fits(endpoint) {
                if let Some(slot) = place.get_mut(old) {
                    *slot = Some(kept.len());
                }
                kept.push(endpoint.clone());
            }
        }
        let moved = |hosts: &[usize]| hosts.iter().filter_map(|h| place.get(*h).copied().flatten()).collect::<Vec<_>>();
        let priorities = self.priorities.iter().map(|p| Priority {
            localities: p
                .localities
                .iter()
                .map(|l| LocalityEndpoints { locality: l.locality.clone(), weight: l.weight, hosts: moved(&l.hosts) })
                .collect(),
            hosts: moved(&p.hosts),
            uniform: p.uniform,
        });
        let priorities = priorities.collect();
        Self { endpoints: kept, priorities, overprovisioning_factor: self.overprovisioning_factor }
    }

    /// What identifies an endpoint among all: its address, or for a Unix socket one that no host can have, made from its path.
    #[must_use]
    pub fn key(&self, index: usize) -> Option<SocketAddr> {
        match &self.endpoints.get(index)?.address {
            EndpointAddress::Socket(address) => Some(*address),
            EndpointAddress::Pipe(path) => {
                // Below ff00::/8, which is multicast: never a stream's peer.
                let hash = u128::from(crate::xxhash::xxh64(path.as_bytes(), 0));
                Some(SocketAddr::new(std::net::Ipv6Addr::from(0xff00_u128 << 112 | hash).into(), 0))
            }
            EndpointAddress::Dns { .. } => None,
        }
    }

    /// The socket address of an endpoint, if it has one.
    #[must_use]
    pub fn socket(&self, index: usize) -> Option<SocketAddr> {
        match self.endpoints.get(index)?.address {
            EndpointAddress::Socket(address) => Some(address),
            _ => None,
        }
    }
}
