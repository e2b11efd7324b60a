//! Route configurations: tables of the client side and of gateways, and the single routes of the server side (semantics §2.10,
//! §7.6–§7.9, §9.10, §10).
//!
//! Invariant: byte-stable: what has several entries in a map is written with [`stable`] types. A route without a timeout of its own has
//! none; retries never repeat what may have been acted upon unless the server refused it or a rule says so.

mod action;
mod condition;

use carrick_mesh::view::{
    Rest, Route, RouteTable, VirtualHost,
    route::{Action as Part, HeaderChange},
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        route::v3::{
            self as api, Decorator, DirectResponseAction, RetryPolicy, RouteAction, RouteConfiguration, RouteMatch,
            route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
            virtual_host::TlsRequirementType,
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::{
    filters,
    wire::{self, stable},
};

const RETRY_ON_INBOUND: &str = "reset-before-request";
const RETRIES_INBOUND: u32 = 2;
/// The longest body of an answer that Envoy takes without being told to expect more.
const SHORT_BODY: usize = 4096;
/// The longest body of an answer at all.
const MAX_BODY: u32 = 1 << 20;

/// A table of the client side or of a gateway.
pub fn table(table: &RouteTable) -> Any {
    let mut hosts: Vec<_> = table.hosts.iter().map(|h| virtual_host(h)).collect();
    match &table.rest {
        Some(Rest::Forward(cluster)) => hosts.push(rest("allow_any", forward(cluster)).encode_to_vec()),
        Some(Rest::Refuse) => {
            let refuse = DirectResponseAction { status: 502, ..DirectResponseAction::default() };
            hosts.push(rest("block_all", Action::DirectResponse(refuse)).encode_to_vec());
        }
        None => {}
    }
    let long = |route: &Route| matches!(&route.action, Part::Direct { body, .. } if body.len() > SHORT_BODY);
    let long = table.hosts.iter().flat_map(|h| &h.routes).any(long);
    let config = RouteConfiguration {
        name: table.name.to_string(),
        validate_clusters: wire::flag(false),
        ignore_port_in_host_matching: true,
        max_direct_response_body_size_bytes: long.then(|| wire::number(MAX_BODY)).flatten(),
        ..RouteConfiguration::default()
    };
    let mut value = config.encode_to_vec();
    value.extend(stable::TableHosts { virtual_hosts: hosts }.encode_to_vec());
    Any { type_url: RouteConfiguration::type_url(), value }
}

/// The routes of one inbound port: everything to its cluster.
pub fn inbound(cluster: &str, service_port: u16, operation: Option<String>, grpc: bool) -> RouteConfiguration {
    let mut action = action(0);
    action.cluster_specifier = specifier(cluster);
    if !grpc {
        action.retry_policy = Some(RetryPolicy {
            retry_on: RETRY_ON_INBOUND.to_owned(),
            num_retries: wire::number(RETRIES_INBOUND),
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

/// A virtual host's bytes. Messages may be concatenated, so the routes are appended.
fn virtual_host(host: &VirtualHost) -> Vec<u8> {
    let head = api::VirtualHost {
        name: host.name.to_string(),
        domains: host.domains.iter().map(ToString::to_string).collect(),
        require_tls: if host.require_tls { TlsRequirementType::All } else { TlsRequirementType::None }.into(),
        include_request_attempt_count: true,
        ..api::VirtualHost::default()
    };
    let mut value = head.encode_to_vec();
    value.extend(stable::HostRoutes { routes: host.routes.iter().map(route).collect() }.encode_to_vec());
    value
}

/// A route's bytes, with its filters' settings appended.
fn route(route: &Route) -> Vec<u8> {
    let mut filters = stable::PerFilter::default();
    let only = match &route.action {
        Part::Forward(forward) => forward.destinations.first().filter(|_| forward.destinations.len() == 1),
        Part::Redirect(_) | Part::Direct { .. } => None,
    };
    filters.typed_per_filter_config.extend(filters::alpn_override(only.and_then(|only| only.alpn)));
    filters.typed_per_filter_config.extend(route.fault.as_ref().map(action::fault));
    filters.typed_per_filter_config.extend(route.cors.as_ref().map(action::cors));
    let mut head = api::Route {
        name: route.name.to_string(),
        r#match: Some(condition::route_match(&route.condition)),
        decorator: Some(Decorator { operation: route.operation.to_string(), propagate: None }),
        stat_prefix: route.stat_prefix.to_string(),
        metadata: route.source.as_ref().map(action::source),
        action: Some(action::action(&route.action)),
        ..api::Route::default()
    };
    let (request, response) = (&route.headers.request, &route.headers.response);
    (head.request_headers_to_add, head.request_headers_to_remove) = headers(request);
    (head.response_headers_to_add, head.response_headers_to_remove) = headers(response);
    if let Some(only) = only {
        // One destination is not weighted, so its own changes follow the route's.
        let (add, remove) = headers(&only.headers.request);
        head.request_headers_to_add.extend(add);
        head.request_headers_to_remove.extend(remove);
        let (add, remove) = headers(&only.headers.response);
        head.response_headers_to_add.extend(add);
        head.response_headers_to_remove.extend(remove);
    }
    let mut value = head.encode_to_vec();
    value.extend(filters.encode_to_vec());
    value
}

/// Headers to add or replace, and to remove.
fn headers(from: &HeaderChange) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option =
        |(key, value): &(std::sync::Arc<str>, std::sync::Arc<str>), action: HeaderAppendAction| HeaderValueOption {
            header: Some(HeaderValue { key: key.to_string(), value: value.to_string(), ..HeaderValue::default() }),
            append_action: action.into(),
            keep_empty_value: value.is_empty(),
            ..HeaderValueOption::default()
        };
    let set = from.set.iter().map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = from.add.iter().map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), from.remove.iter().map(ToString::to_string).collect())
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

/// Forwarding with this limit, 0 for none; a gRPC client's own limit counts if it is shorter.
/// A stock Envoy ignores `timeout` as soon as a stream's duration is limited, so the older field limits gRPC's deadlines.
#[allow(deprecated)]
fn action(timeout: u64) -> RouteAction {
    RouteAction { timeout: wire::millis(timeout), max_grpc_timeout: wire::millis(timeout), ..RouteAction::default() }
}

fn specifier(cluster: &str) -> Option<ClusterSpecifier> {
    Some(ClusterSpecifier::Cluster(cluster.to_owned()))
}

fn everything() -> Option<RouteMatch> {
    Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() })
}
