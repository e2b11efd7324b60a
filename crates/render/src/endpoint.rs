//! Endpoint assignments (semantics §3.3, §3.4): addresses, and the mark that makes Envoy choose the TLS socket.
//!
//! Invariant: an endpoint without the mark is only ever matched by the plaintext socket.

use carrick_mesh::view::{Load, LoadEndpoint};
use envoy_types::pb::{envoy::config::core::v3::HealthStatus, google::protobuf::Any};

use crate::wire::{
    self,
    stable::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, Metadata, Struct},
};

/// The assignment of one cluster.
pub fn assignment(load: &Load) -> Any {
    let lb_endpoints: Vec<_> = load.endpoints.iter().map(endpoint).collect();
    let weight = u32::try_from(lb_endpoints.len()).ok().and_then(wire::number);
    let locality = LocalityLbEndpoints {
        locality: Some(envoy_types::pb::envoy::config::core::v3::Locality::default()),
        lb_endpoints,
        load_balancing_weight: weight,
    };
    let endpoints = if load.endpoints.is_empty() { Vec::new() } else { vec![locality] };
    let message = ClusterLoadAssignment { cluster_name: load.cluster.to_string(), endpoints };
    wire::any_as("envoy.config.endpoint.v3.ClusterLoadAssignment", &message)
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
    LbEndpoint {
        endpoint: Some(Endpoint { address: wire::address(&wire::host(from.ip), from.port) }),
        health_status: HealthStatus::Healthy.into(),
        metadata: (!metadata.filter_metadata.is_empty()).then_some(metadata),
        load_balancing_weight: wire::number(1),
    }
}
