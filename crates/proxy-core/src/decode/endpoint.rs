//! Endpoints of a cluster.
//!
//! Invariant: transport sockets are resolved against the cluster they belong to; priorities without hosts stay, so that numbers hold.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::bad::{At, Bad, given, only};
use super::basic::{Place, metadata, number, place};
use crate::model::cluster::{Cluster, Transport, TransportIndex, TransportMatch};
use crate::model::endpoint::{Endpoint, EndpointAddress, EndpointSet, Health, Locality, LocalityEndpoints, Priority};
use crate::model::metadata::Metadata;

/// Envoy's bound on priorities.
const MAX_PRIORITY: u32 = 128;

/// What can be checked without a cluster.
pub fn check(value: &pb::ClusterLoadAssignment) -> Result<(), Bad> {
    only!(value, pb::ClusterLoadAssignment { cluster_name, endpoints, policy } refuse { named_endpoints });
    for (i, group) in value.endpoints.iter().enumerate() {
        check_group(group).at_index("endpoints", i)?;
    }
    given("policy", &value.policy, factor).map(|_| ())
}

fn factor(policy: &pb::cluster_load_assignment::Policy) -> Result<u32, Bad> {
    use pb::cluster_load_assignment::Policy;
    only!(policy, Policy { overprovisioning_factor } refuse { drop_overloads, endpoint_stale_after, weighted_priority_health });
    match number(&policy.overprovisioning_factor) {
        Some(0) => Err(Bad::field("overprovisioning_factor", "must be greater than zero")),
        factor => Ok(factor.unwrap_or(140)),
    }
}

fn members(group: &pb::LocalityLbEndpoints) -> Result<&[pb::LbEndpoint], Bad> {
    use pb::locality_lb_endpoints::LbConfig as C;
    match &group.lb_config {
        None => Ok(&group.lb_endpoints),
        Some(C::LoadBalancerEndpoints(list)) => Ok(&list.lb_endpoints),
        Some(C::LedsClusterLocalityConfig(_)) => Err(Bad::unsupported("leds_cluster_locality_config")),
    }
}

fn check_group(group: &pb::LocalityLbEndpoints) -> Result<(), Bad> {
    only!(group, pb::LocalityLbEndpoints { locality, lb_endpoints, load_balancing_weight, priority, lb_config } refuse { metadata, proximity });
    if group.priority > MAX_PRIORITY {
        return Err(Bad::field("priority", "out of range"));
    }
    for (i, member) in members(group)?.iter().enumerate() {
        endpoint(member).at_index("lb_endpoints", i)?;
    }
    Ok(())
}

fn endpoint(value: &pb::LbEndpoint) -> Result<Endpoint, Bad> {
    only!(value, pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } refuse {});
    let inner = match &value.host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(_)) => return Err(Bad::unsupported("endpoint_name")),
        None => return Err(Bad::field("endpoint", "missing")),
    };
    only!(inner, pb::Endpoint { address, hostname } refuse { health_check_config, additional_addresses, observability_name });
    let address = inner.address.as_ref().ok_or_else(|| Bad::field("endpoint.address", "missing"))?;
    Ok(Endpoint {
        address: match place(address).at("endpoint.address")? {
            Place::Socket(address) => EndpointAddress::Socket(address),
            Place::Name(host, port) => EndpointAddress::Dns { host: host.into(), port },
            Place::Pipe(path) => EndpointAddress::Pipe(path.into()),
        },
        hostname: if inner.hostname.is_empty() { Arc::default() } else { inner.hostname.as_str().into() },
        weight: match number(&value.load_balancing_weight) {
            Some(0) => return Err(Bad::field("load_balancing_weight", "must be greater than zero")),
            weight => weight.unwrap_or(1),
        },
        health: match core::HealthStatus::try_from(value.health_status) {
            Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => Health::Healthy,
            Ok(core::HealthStatus::Degraded) => Health::Degraded,
            Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Draining | core::HealthStatus::Timeout) => {
                Health::Unhealthy
            }
            Err(_) => return Err(Bad::field("health_status", "unknown value")),
        },
        priority: 0,
        locality: 0,
        transport: TransportIndex::DEFAULT,
        metadata: metadata(&value.metadata).at("metadata")?,
    })
}

/// The endpoints for a cluster.
pub fn endpoints(value: &pb::ClusterLoadAssignment, cluster: &Cluster) -> Result<EndpointSet, Bad> {
    check(value)?;
    let mut set = EndpointSet {
        overprovisioning_factor: given("policy", &value.policy, factor)?.unwrap_or(140),
        ..EndpointSet::default()
    };
    for group in &value.endpoints {
        let level = usize::try_from(group.priority).map_err(|_| Bad::field("priority", "out of range"))?;
        while set.priorities.len() <= level {
            set.priorities.push(Priority { uniform: true, ..Priority::default() });
        }
        let Some(priority) = set.priorities.get_mut(level) else { continue };
        let mut hosts = Vec::new();
        for member in members(group)? {
            let mut endpoint = endpoint(member)?;
            endpoint.priority = group.priority;
            endpoint.locality = priority.localities.len();
            endpoint.transport = match_transport(&cluster.transport, &endpoint.metadata);
            hosts.push(set.endpoints.len());
            set.endpoints.push(endpoint);
        }
        priority.hosts.extend(&hosts);
        priority.localities.push(LocalityEndpoints {
            locality: locality(group.locality.as_ref()),
            weight: number(&group.load_balancing_weight),
            hosts,
        });
    }
    for priority in &mut set.priorities {
        let weight = |i: &usize| set.endpoints.get(*i).map(|e| e.weight);
        let first = priority.hosts.first().and_then(weight);
        priority.uniform = priority.hosts.iter().all(|i| weight(i) == first);
        priority.hosts.shrink_to_fit();
        priority.localities.shrink_to_fit();
        priority.localities.iter_mut().for_each(|locality| locality.hosts.shrink_to_fit());
    }
    // There is one for each cluster known, most with a single host.
    set.endpoints.shrink_to_fit();
    set.priorities.shrink_to_fit();
    Ok(set)
}

fn locality(value: Option<&core::Locality>) -> Locality {
    value.map_or_else(Locality::default, |l| Locality {
        region: l.region.as_str().into(),
        zone: l.zone.as_str().into(),
        sub_zone: l.sub_zone.as_str().into(),
    })
}

/// The same endpoints for a cluster, as a shared value.
pub fn shared(value: &pb::ClusterLoadAssignment, cluster: &Cluster) -> Result<Arc<EndpointSet>, Bad> {
    endpoints(value, cluster).map(Arc::new)
}

/// The transport socket for an endpoint by its own metadata.
#[must_use]
pub fn match_transport(transport: &Transport, endpoint: &Metadata) -> TransportIndex {
    let have = endpoint.namespace("envoy.transport_socket_match");
    let fits = |m: &TransportMatch| m.criteria.iter().all(|(k, v)| have.and_then(|h| h.get(k)) == Some(v));
    let found = transport.matches.iter().position(fits).and_then(|at| u16::try_from(at).ok());
    found.map_or(TransportIndex::DEFAULT, TransportIndex)
}
