//! `/clusters` and `/listeners`: the state behind the configuration.
//!
//! Invariant: hosts are those of the endpoints in force; numbers are the engine's counters.

use std::collections::HashMap;

use carrick_runtime::admin::{Request, Response};
use carrick_xds::TypeUrl;
use envoy_types::pb::envoy::admin::v3::{
    ClusterStatus, Clusters, HostHealthStatus, HostStatus, ListenerStatus, Listeners,
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Address, HealthStatus, SocketAddress, address, socket_address};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use http::StatusCode;
use prost::Message;

use super::message;
use crate::native::NativeEngine;

/// `/clusters`, as text or with `format=json`.
pub fn clusters(native: &NativeEngine, request: &Request) -> Response {
    let statuses = statuses(native);
    if request.query("format").is_some() {
        return message(request, &Clusters { cluster_statuses: statuses });
    }
    let mut text = String::new();
    for status in &statuses {
        text.push_str(&format!("{0}::observability_name::{0}\n{0}::added_via_api::true\n", status.name));
        for host in &status.host_statuses {
            let address = host.address.as_ref().map(show).unwrap_or_default();
            let health = host.health_status.as_ref().map_or(0, |h| h.eds_health_status);
            let flags = if health == i32::from(HealthStatus::Healthy) { "healthy" } else { "/failed_eds_health" };
            text.push_str(&format!("{}::{address}::health_flags::{flags}\n", status.name));
            text.push_str(&format!("{}::{address}::weight::{}\n", status.name, host.weight));
        }
    }
    Response::text(StatusCode::OK, text)
}

fn statuses(native: &NativeEngine) -> Vec<ClusterStatus> {
    let (clusters, endpoints) =
        native.book(|book| (book.resources(&TypeUrl::Cluster), book.resources(&TypeUrl::Endpoint)));
    let assignments: HashMap<String, ClusterLoadAssignment> = endpoints
        .iter()
        .filter_map(|(name, body, _)| {
            Some((name.to_string(), ClusterLoadAssignment::decode(body.value.as_slice()).ok()?))
        })
        .collect();
    clusters
        .iter()
        .filter_map(|(_, body, _)| Cluster::decode(body.value.as_slice()).ok())
        .map(|cluster| {
            let eds = cluster.eds_cluster_config.as_ref();
            let service = eds.map_or("", |eds| eds.service_name.as_str());
            let key = if service.is_empty() { cluster.name.as_str() } else { service };
            let assignment = match eds {
                Some(_) => assignments.get(key),
                None => cluster.load_assignment.as_ref(),
            };
            ClusterStatus {
                name: cluster.name.clone(),
                added_via_api: true,
                host_statuses: assignment.map(hosts).unwrap_or_default(),
                observability_name: cluster.name.clone(),
                eds_service_name: service.to_owned(),
                ..ClusterStatus::default()
            }
        })
        .collect()
}

fn hosts(assignment: &ClusterLoadAssignment) -> Vec<HostStatus> {
    let mut hosts = Vec::new();
    for group in &assignment.endpoints {
        for endpoint in &group.lb_endpoints {
            let Some(lb_endpoint::HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { continue };
            // Envoy shows UNKNOWN as HEALTHY: nobody said otherwise.
            let health = match HealthStatus::try_from(endpoint.health_status) {
                Ok(HealthStatus::Unknown) | Err(_) => HealthStatus::Healthy,
                Ok(other) => other,
            };
            hosts.push(HostStatus {
                address: host.address.clone(),
                health_status: Some(HostHealthStatus {
                    eds_health_status: health.into(),
                    ..HostHealthStatus::default()
                }),
                weight: endpoint.load_balancing_weight.as_ref().map_or(1, |w| w.value),
                hostname: host.hostname.clone(),
                priority: group.priority,
                locality: Some(group.locality.clone().unwrap_or_default()),
                ..HostStatus::default()
            });
        }
    }
    hosts
}

fn show(address: &Address) -> String {
    match &address.address {
        Some(address::Address::SocketAddress(SocketAddress { address, port_specifier, .. })) => match port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) => format!("{address}:{port}"),
            _ => address.clone(),
        },
        Some(address::Address::Pipe(pipe)) => pipe.path.clone(),
        _ => String::new(),
    }
}

/// `/listeners`, as text or with `format=json`.
pub fn listeners(native: &NativeEngine, request: &Request) -> Response {
    let all: Vec<Listener> = native
        .book(|book| book.resources(&TypeUrl::Listener))
        .iter()
        .filter_map(|(_, body, _)| Listener::decode(body.value.as_slice()).ok())
        .collect();
    if request.query("format").is_some() {
        let listener_statuses = all
            .into_iter()
            .map(|l| ListenerStatus { name: l.name, local_address: l.address, ..ListenerStatus::default() })
            .collect();
        return message(request, &Listeners { listener_statuses });
    }
    let text: String =
        all.iter().map(|l| format!("{}::{}\n", l.name, l.address.as_ref().map(show).unwrap_or_default())).collect();
    Response::text(StatusCode::OK, text)
}
