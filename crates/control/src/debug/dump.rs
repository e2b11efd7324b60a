//! `/debug/config_dump?proxyID=`: what a proxy is to have, in the shape of Envoy's own dump.

use super::{Pages, answer};
use carrick_envoy_json::{Names, to_json};
use carrick_runtime::admin::Response;
use carrick_xds::{Any, ResourceSet, TypeUrl};
use envoy_types::pb::envoy::admin::v3::{
    ClustersConfigDump, ConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump, clusters_config_dump,
    endpoints_config_dump, listeners_config_dump, routes_config_dump,
};
use envoy_types::util::pack_any;
use http::StatusCode;

pub(super) fn page(pages: &Pages, proxy: Option<&str>) -> Response {
    let Some(proxy) = proxy else {
        return Response::text(StatusCode::BAD_REQUEST, "proxyID names a proxy: its node id or name.namespace\n");
    };
    let Some(connection) = pages.connections.find(proxy) else {
        return Response::text(StatusCode::NOT_FOUND, "no such proxy is connected\n");
    };
    let set = connection.sets.borrow().clone();
    match to_json(&dump(&set), Names::Proto) {
        Ok(json) => answer(StatusCode::OK, &json),
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn dump(set: &ResourceSet) -> ConfigDump {
    let all = |type_url: &TypeUrl| -> Vec<(String, String, Option<Any>)> {
        set.of(type_url)
            .into_iter()
            .flat_map(|map| map.values())
            .map(|r| (r.name.to_string(), r.version.to_string(), Some(r.body.clone())))
            .collect()
    };
    let clusters = ClustersConfigDump {
        version_info: set.version().to_string(),
        dynamic_active_clusters: all(&TypeUrl::Cluster)
            .into_iter()
            .map(|(_, version_info, cluster)| clusters_config_dump::DynamicCluster {
                version_info,
                cluster,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let listeners = ListenersConfigDump {
        version_info: set.version().to_string(),
        dynamic_listeners: all(&TypeUrl::Listener)
            .into_iter()
            .map(|(name, version_info, listener)| listeners_config_dump::DynamicListener {
                name,
                active_state: Some(listeners_config_dump::DynamicListenerState {
                    version_info,
                    listener,
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let routes = RoutesConfigDump {
        dynamic_route_configs: all(&TypeUrl::Route)
            .into_iter()
            .map(|(_, version_info, route_config)| routes_config_dump::DynamicRouteConfig {
                version_info,
                route_config,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let endpoints = EndpointsConfigDump {
        dynamic_endpoint_configs: all(&TypeUrl::Endpoint)
            .into_iter()
            .map(|(_, version_info, endpoint_config)| endpoints_config_dump::DynamicEndpointConfig {
                version_info,
                endpoint_config,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    ConfigDump { configs: vec![pack_any(clusters), pack_any(endpoints), pack_any(listeners), pack_any(routes)] }
}
