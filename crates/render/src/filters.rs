//! Network filters: HTTP connection managers of both sides and TCP proxies (semantics §2.11–§2.13).
//!
//! Invariant: only filters that a stock Envoy has. What Istio's own `istio.alpn` does is done with Envoy's filter state: a route to a
//! cluster whose protocol follows the request sets the ALPN list of the upstream connection.

use std::collections::HashMap;

use carrick_mesh::{
    Security, names,
    view::{
        ListenerSettings, PathNormalization, RouteAlpn, TcpForward,
        cluster::NameLookup,
        gateway::{ClientCertHeader, Topology},
    },
};
use envoy_types::pb::{
    envoy::{
        config::{core::v3::SubstitutionFormatString, listener::v3::Filter, route::v3::RouteConfiguration},
        extensions::filters::{
            common::set_filter_state::v3::{FilterStateValue, filter_state_value},
            http::{
                cors::v3::Cors, fault::v3::HttpFault, router::v3::Router,
                set_filter_state::v3::Config as SetFilterState,
            },
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{
                        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
                        SetCurrentClientCertDetails, UpgradeConfig,
                    },
                },
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{
                        ClusterSpecifier, TcpAccessLogOptions, TunnelingConfig, WeightedCluster,
                        weighted_cluster::ClusterWeight,
                    },
                },
            },
        },
        r#type::v3::{HashPolicy, hash_policy},
    },
    google::protobuf::Any,
};

use crate::{
    access_log, dns, security,
    stats::{self, About, Side},
    tls, tracing, wire,
};

/// The HTTP filter that sets the ALPN list of upstream connections; also the key of its per-route configuration.
pub const ALPN_FILTER: &str = "carrick.alpn";
/// The HTTP filter that injects faults, by what a route says.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";
/// The HTTP filter that answers cross-origin questions, by what a route says.
pub const CORS_FILTER: &str = "envoy.filters.http.cors";
/// The filter state that overrides the ALPN list of an upstream connection (Envoy, well-known filter state).
const ALPN_STATE: &str = "envoy.network.application_protocols";

/// The expression that gives the ALPN list by the request's protocol. One constant, so that an engine without CEL can know it by its text.
pub fn alpn_by_request() -> String {
    let list = |all: &[&str]| all.join(",");
    format!(
        "%CEL(request.protocol == 'HTTP/2' ? '{}' : request.protocol == 'HTTP/1.0' ? 'istio-http/1.0,istio,http/1.0' : '{}')%",
        list(&tls::ALPN_HTTP2),
        list(&tls::ALPN_HTTP1)
    )
}

/// The per-route configuration that sets an ALPN list.
pub fn alpn_override(alpn: Option<RouteAlpn>) -> HashMap<String, Any> {
    let list = match alpn {
        None => return HashMap::new(),
        Some(RouteAlpn::ByRequest) => alpn_by_request(),
        Some(RouteAlpn::Http2) => tls::ALPN_HTTP2.join(","),
    };
    let format = SubstitutionFormatString { format: Some(access_log::inline(list)), ..Default::default() };
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(ALPN_STATE.to_owned())),
        value: Some(filter_state_value::Value::FormatString(format)),
        ..FilterStateValue::default()
    };
    let config = SetFilterState { on_request_headers: vec![value], ..SetFilterState::default() };
    HashMap::from([(ALPN_FILTER.to_owned(), wire::any(&config))])
}

/// An HTTP connection manager of the server side, with its routes inline.
pub fn inbound_http(
    settings: &ListenerSettings,
    stat: &str,
    routes: RouteConfiguration,
    security: &Security,
) -> Filter {
    let mut manager = manager(settings, Side::Server, stat);
    manager.server_name = "istio-envoy".to_owned();
    manager.forward_client_cert_details = ForwardClientCertDetails::AppendForward.into();
    manager.set_current_client_cert_details =
        Some(SetCurrentClientCertDetails { subject: wire::flag(true), dns: true, uri: true, ..Default::default() });
    manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
    manager.http_filters.extend(security::http_filters(security));
    manager.http_filters.extend(stats::http_filter(&settings.telemetry, Side::Server));
    manager.http_filters.push(router());
    http(&manager)
}

/// An HTTP connection manager of the client side, with its routes by RDS.
pub fn outbound_http(settings: &ListenerSettings, stat: &str, table: &str, dynamic: Option<&NameLookup>) -> Filter {
    let mut manager = manager(settings, Side::Client, stat);
    manager.route_specifier =
        Some(RouteSpecifier::Rds(Rds { config_source: wire::ads(), route_config_name: table.to_owned() }));
    manager.http_filters.extend(by_route());
    manager.http_filters.extend(dynamic.map(|names| {
        wire::http_filter("envoy.filters.http.dynamic_forward_proxy", wire::any(&dns::http_filter(names)))
    }));
    manager.http_filters.extend(stats::http_filter(&settings.telemetry, Side::Client));
    manager.http_filters.push(router());
    http(&manager)
}

/// Filters that do nothing unless a route says so, in Istio's order.
fn by_route() -> Vec<HttpFilter> {
    vec![
        wire::http_filter(ALPN_FILTER, wire::any(&SetFilterState::default())),
        wire::http_filter(FAULT_FILTER, wire::any(&HttpFault::default())),
        wire::http_filter(CORS_FILTER, wire::any(&Cors::default())),
    ]
}

/// An HTTP connection manager of a gateway, with its routes by RDS (semantics §9.12).
pub fn gateway_http(
    settings: &ListenerSettings,
    topology: &Topology,
    security: &Security,
    stat: &str,
    table: &str,
) -> Filter {
    let mut manager = manager(settings, Side::Gateway, stat);
    manager.server_name = "istio-envoy".to_owned();
    manager.use_remote_address = wire::flag(true);
    manager.xff_num_trusted_hops = topology.trusted_proxies;
    manager.forward_client_cert_details = match topology.client_cert {
        ClientCertHeader::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        ClientCertHeader::Sanitize => ForwardClientCertDetails::Sanitize,
        ClientCertHeader::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        ClientCertHeader::AppendForward => ForwardClientCertDetails::AppendForward,
        ClientCertHeader::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    }
    .into();
    let sets = matches!(topology.client_cert, ClientCertHeader::SanitizeSet | ClientCertHeader::AppendForward);
    manager.set_current_client_cert_details = sets.then(|| SetCurrentClientCertDetails {
        subject: wire::flag(true),
        cert: true,
        dns: true,
        uri: true,
        ..Default::default()
    });
    manager.route_specifier =
        Some(RouteSpecifier::Rds(Rds { config_source: wire::ads(), route_config_name: table.to_owned() }));
    manager.http_filters.extend(security::http_filters(security));
    manager.http_filters.extend(by_route());
    manager.http_filters.extend(stats::http_filter(&settings.telemetry, Side::Gateway));
    manager.http_filters.push(router());
    http(&manager)
}

/// A TCP proxy to a cluster, with what counts its connections.
pub fn tcp_counted(settings: &ListenerSettings, side: Side, cluster: &str, idle_timeout: Option<u64>) -> Vec<Filter> {
    let count = stats::network_filter(&settings.telemetry, side);
    count.into_iter().chain([tcp(settings, side, cluster, idle_timeout)]).collect()
}

/// A TCP proxy to a cluster.
pub fn tcp(settings: &ListenerSettings, side: Side, cluster: &str, idle_timeout: Option<u64>) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        access_log: access_log::all(&settings.telemetry, side, About::Connections),
        access_log_options: connected(settings),
        idle_timeout: idle_timeout.and_then(wire::millis),
        ..TcpProxy::default()
    };
    wire::network_filter("envoy.filters.network.tcp_proxy", wire::any(&proxy))
}

/// The filters that forward a connection: to one cluster or to several by weight, through a tunnel, or to the name it asks for.
pub fn tcp_forward(settings: &ListenerSettings, side: Side, to: &TcpForward) -> Vec<Filter> {
    let first = to.clusters.first().map_or(names::BLACK_HOLE, |(cluster, _)| cluster);
    let cluster_specifier = match to.clusters.as_slice() {
        [] | [_] => ClusterSpecifier::Cluster(first.to_owned()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| ClusterWeight { name: name.to_string(), weight: *weight, ..Default::default() })
                .collect(),
        }),
    };
    let source = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {});
    let proxy = TcpProxy {
        stat_prefix: first.to_owned(),
        cluster_specifier: Some(cluster_specifier),
        access_log: access_log::all(&settings.telemetry, side, About::Connections),
        access_log_options: connected(settings),
        idle_timeout: to.idle_timeout.and_then(wire::millis),
        hash_policy: to.source_hash.then_some(HashPolicy { policy_specifier: Some(source) }).into_iter().collect(),
        tunneling_config: to.tunnel.as_ref().map(|(host, post)| TunnelingConfig {
            hostname: host.to_string(),
            use_post: *post,
            ..TunnelingConfig::default()
        }),
        ..TcpProxy::default()
    };
    let lookup = to.dynamic.as_ref().map(|(names, port)| {
        wire::network_filter(
            "envoy.filters.network.sni_dynamic_forward_proxy",
            wire::any(&dns::sni_filter(names, *port)),
        )
    });
    let count = stats::network_filter(&settings.telemetry, side);
    let proxy = wire::network_filter("envoy.filters.network.tcp_proxy", wire::any(&proxy));
    lookup.into_iter().chain(count).chain([proxy]).collect()
}

fn manager(settings: &ListenerSettings, side: Side, stat: &str) -> HttpConnectionManager {
    let (normalize, merge, slashes) = match settings.paths {
        PathNormalization::None => (false, false, PathWithEscapedSlashesAction::KeepUnchanged),
        PathNormalization::Base => (true, false, PathWithEscapedSlashesAction::KeepUnchanged),
        PathNormalization::MergeSlashes => (true, true, PathWithEscapedSlashesAction::KeepUnchanged),
        PathNormalization::DecodeAndMergeSlashes => (true, true, PathWithEscapedSlashesAction::UnescapeAndForward),
    };
    HttpConnectionManager {
        stat_prefix: stat.to_owned(),
        stream_idle_timeout: wire::millis(0),
        use_remote_address: wire::flag(false),
        normalize_path: wire::flag(normalize),
        merge_slashes: merge,
        path_with_escaped_slashes_action: slashes.into(),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        access_log: access_log::all(&settings.telemetry, side, About::Requests),
        http_filters: stats::agent::take(&settings.telemetry, side).into_iter().collect(),
        tracing: settings.telemetry.tracing.as_deref().map(tracing::tracing),
        request_id_extension: settings.telemetry.tracing.as_deref().and_then(tracing::request_id),
        proxy_100_continue: true,
        ..HttpConnectionManager::default()
    }
}

/// Connections that the agent counts are told of when they begin, too.
fn connected(settings: &ListenerSettings) -> Option<TcpAccessLogOptions> {
    let options = TcpAccessLogOptions { flush_access_log_on_connected: true, ..TcpAccessLogOptions::default() };
    stats::agent::counts(&settings.telemetry).then_some(options)
}

fn router() -> HttpFilter {
    wire::http_filter("envoy.filters.http.router", wire::any(&Router::default()))
}

fn http(manager: &HttpConnectionManager) -> Filter {
    wire::network_filter("envoy.filters.network.http_connection_manager", wire::any(manager))
}
