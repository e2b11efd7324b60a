//! Endpoint assignments (semantics §3.3, §3.4): addresses, and the mark that makes Envoy choose the TLS socket.
//!
//! Invariant: an endpoint without the mark is only ever matched by the plaintext socket.

use carrick_mesh::view::{Load, LoadEndpoint, LoadGroup};
use envoy_types::pb::{
    envoy::config::core::v3::{HealthStatus, Locality},
    google::protobuf::Any,
};

use crate::wire::{
    self,
    stable::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, Metadata, Struct},
};

/// The host name of endpoints that take mesh TLS, which nothing resolves or sends. Envoy keeps a host, and its open
/// connections, when only metadata change; another host name makes it another host. Without it a client would go on
/// in plaintext over a pooled connection for as long as that is used, after its server has become able to do better.
const MESH_TLS: &str = "mesh-tls";

/// The assignment of one cluster.
pub fn assignment(load: &Load) -> Any {
    wire::any_as("envoy.config.endpoint.v3.ClusterLoadAssignment", &message(load))
}

/// The same, as part of a cluster.
pub fn message(load: &Load) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: load.cluster.to_string(),
        endpoints: load.groups.iter().map(locality).collect(),
    }
}

fn locality(group: &LoadGroup) -> LocalityLbEndpoints {
    let sum = || group.endpoints.iter().fold(0_u32, |sum, e| sum.saturating_add(e.weight));
    LocalityLbEndpoints {
        locality: Some(Locality {
            region: group.locality.region.to_string(),
            zone: group.locality.zone.to_string(),
            sub_zone: group.locality.subzone.to_string(),
        }),
        lb_endpoints: group.endpoints.iter().map(endpoint).collect(),
        load_balancing_weight: wire::number(group.share.unwrap_or_else(sum)),
        priority: group.priority,
    }
}

fn endpoint(from: &LoadEndpoint) -> LbEndpoint {
    let mut metadata = Metadata::default();
    if from.mtls {
        let mark = Struct::from([("tlsMode", "istio".into())]);
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), mark);
    }
    if !from.workload.is_empty() {
        let istio = Struct::from([("workload", (&*from.workload).into())]);
        metadata.filter_metadata.insert("istio".to_owned(), istio);
    }
    let hostname = if from.mtls { MESH_TLS } else { "" };
    LbEndpoint {
        endpoint: Some(Endpoint { address: wire::endpoint(&from.address), hostname: hostname.to_owned() }),
        health_status: HealthStatus::Healthy.into(),
        metadata: (!metadata.filter_metadata.is_empty()).then_some(metadata),
        load_balancing_weight: wire::number(from.weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_changes_its_way_of_tls_is_another_host() {
        let from = |mtls| LoadEndpoint {
            address: carrick_mesh::model::Address::parse("10.0.0.1", 80),
            mtls,
            workload: "".into(),
            weight: 1,
            gateway_of: None,
        };
        let hostname = |mtls| endpoint(&from(mtls)).endpoint.unwrap().hostname;
        assert_ne!(hostname(true), hostname(false));
    }
}
