//! Route configurations: tables of the client side, and the single routes of the server side (semantics §2.10, §7.6–§7.9).
//!
//! Invariant: no route has a timeout of its own; retries never repeat what may have been acted upon unless the server refused it.

use carrick_mesh::{
    model::policy::HashKey,
    view::{Rest, Route, RouteTable, VirtualHost},
};
use envoy_types::pb::envoy::{
    config::route::v3::{
        self as api, Decorator, DirectResponseAction, RetryPolicy, RouteAction, RouteConfiguration, RouteMatch,
        retry_policy::{RetryHostPredicate, retry_host_predicate},
        route::Action,
        route_action::{
            ClusterSpecifier, HashPolicy, MaxStreamDuration,
            hash_policy::{ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter},
        },
        route_match::PathSpecifier,
    },
    extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
};

use crate::{filters, wire};

const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const RETRY_ON_INBOUND: &str = "reset-before-request";
const RETRIES: u32 = 2;

/// A table of the client side.
pub fn table(table: &RouteTable) -> RouteConfiguration {
    let mut hosts: Vec<_> = table.hosts.iter().map(|h| virtual_host(h)).collect();
    match &table.rest {
        Some(Rest::Forward(cluster)) => hosts.push(rest("allow_any", forward(cluster))),
        Some(Rest::Refuse) => {
            let refuse = DirectResponseAction { status: 502, ..DirectResponseAction::default() };
            hosts.push(rest("block_all", Action::DirectResponse(refuse)));
        }
        None => {}
    }
    RouteConfiguration {
        name: table.name.to_string(),
        virtual_hosts: hosts,
        validate_clusters: wire::flag(false),
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    }
}

/// The routes of one inbound port: everything to its cluster.
pub fn inbound(cluster: &str, service_port: u16, operation: Option<String>, grpc: bool) -> RouteConfiguration {
    let mut action = action(cluster);
    if !grpc {
        action.retry_policy = Some(RetryPolicy {
            retry_on: RETRY_ON_INBOUND.to_owned(),
            num_retries: wire::number(RETRIES),
            ..RetryPolicy::default()
        });
    }
    let route = api::Route {
        name: "default".to_owned(),
        r#match: everything(),
        decorator: operation.map(|operation| Decorator { operation, propagate: None }),
        action: Some(Action::Route(action)),
        ..api::Route::default()
    };
    RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![api::VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..api::VirtualHost::default()
        }],
        validate_clusters: wire::flag(false),
        ..RouteConfiguration::default()
    }
}

fn virtual_host(host: &VirtualHost) -> api::VirtualHost {
    api::VirtualHost {
        name: host.name.to_string(),
        domains: host.domains.iter().map(ToString::to_string).collect(),
        routes: host.routes.iter().map(route).collect(),
        include_request_attempt_count: true,
        ..api::VirtualHost::default()
    }
}

fn route(route: &Route) -> api::Route {
    let mut action = action(&route.cluster);
    action.hash_policy = route.hash.iter().map(hash_policy).collect();
    action.retry_policy = Some(default_retries(route.hash.is_none()));
    api::Route {
        name: route.name.to_string(),
        r#match: everything(),
        decorator: Some(Decorator { operation: route.operation.to_string(), propagate: None }),
        typed_per_filter_config: filters::alpn_override(route.alpn),
        action: Some(Action::Route(action)),
        ..api::Route::default()
    }
}

fn rest(name: &str, action: Action) -> api::VirtualHost {
    api::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![api::Route {
            name: name.to_owned(),
            r#match: everything(),
            action: Some(action),
            ..api::Route::default()
        }],
        include_request_attempt_count: true,
        ..api::VirtualHost::default()
    }
}

fn forward(cluster: &str) -> Action {
    let timeout = wire::millis(0);
    Action::Route(RouteAction { timeout, cluster_specifier: specifier(cluster), ..RouteAction::default() })
}

fn action(cluster: &str) -> RouteAction {
    RouteAction {
        timeout: wire::millis(0),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: wire::millis(0),
            grpc_timeout_header_max: wire::millis(0),
            ..MaxStreamDuration::default()
        }),
        cluster_specifier: specifier(cluster),
        ..RouteAction::default()
    }
}

fn specifier(cluster: &str) -> Option<ClusterSpecifier> {
    Some(ClusterSpecifier::Cluster(cluster.to_owned()))
}

fn everything() -> Option<RouteMatch> {
    Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() })
}

/// The default of the mesh. With a consistent hash another endpoint would be the wrong one.
fn default_retries(elsewhere: bool) -> RetryPolicy {
    let predicate = || RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(wire::any(&PreviousHostsPredicate {}))),
    };
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: wire::number(RETRIES),
        retry_host_predicate: elsewhere.then(predicate).into_iter().collect(),
        host_selection_retry_max_attempts: if elsewhere { 5 } else { 0 },
        ..RetryPolicy::default()
    }
}

fn hash_policy(key: &HashKey) -> HashPolicy {
    let specifier = match key {
        HashKey::Header(name) => PolicySpecifier::Header(Header { header_name: name.to_string(), ..Header::default() }),
        HashKey::Cookie { name, path, ttl, attributes } => PolicySpecifier::Cookie(Cookie {
            name: name.to_string(),
            path: path.to_string(),
            ttl: ttl.and_then(wire::millis),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute { name: name.to_string(), value: value.to_string() })
                .collect(),
        }),
        HashKey::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashKey::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.to_string() }),
    };
    HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}
