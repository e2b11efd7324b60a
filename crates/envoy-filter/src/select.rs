//! Which proxies and which resources a patch is about.
//!
//! Invariant: an empty condition matches everything; a regular expression that cannot be read matches nothing.

use carrick_api::istio::envoy_filter::{
    ClusterMatch, ConfigPatch, FilterChainMatch, PatchContext, RouteAction, RouteConfigurationMatch,
};
use envoy_types::pb::envoy::config::{listener::v3::FilterChain, route::v3 as route};

use crate::Target;

/// The side of a proxy a resource belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Inbound,
    Outbound,
}

/// Whether a patch is for this proxy and side.
pub(crate) fn context(patch: &ConfigPatch, target: &Target, side: Side) -> bool {
    let side = match patch.matches.context {
        PatchContext::Any => true,
        PatchContext::SidecarInbound => !target.gateway && side == Side::Inbound,
        PatchContext::SidecarOutbound => !target.gateway && side == Side::Outbound,
        PatchContext::Gateway => target.gateway,
        PatchContext::Waypoint => false,
    };
    side && patch.matches.proxy.as_ref().is_none_or(|proxy| {
        let version = proxy.proxy_version.is_empty()
            || regex::Regex::new(&proxy.proxy_version).is_ok_and(|r| r.is_match(&target.version));
        version && proxy.metadata.iter().all(|(k, v)| target.metadata.get(k.as_str()).is_some_and(|have| **have == **v))
    })
}

/// Filters have had other names; objects written then still mean the same filter.
pub(crate) fn same_filter(wanted: &str, name: &str) -> bool {
    const OLD: [(&str, &str); 9] = [
        ("envoy.http_connection_manager", "envoy.filters.network.http_connection_manager"),
        ("envoy.tcp_proxy", "envoy.filters.network.tcp_proxy"),
        ("envoy.router", "envoy.filters.http.router"),
        ("envoy.cors", "envoy.filters.http.cors"),
        ("envoy.fault", "envoy.filters.http.fault"),
        ("envoy.lua", "envoy.filters.http.lua"),
        ("envoy.listener.tls_inspector", "envoy.filters.listener.tls_inspector"),
        ("envoy.listener.http_inspector", "envoy.filters.listener.http_inspector"),
        ("envoy.listener.original_dst", "envoy.filters.listener.original_dst"),
    ];
    wanted == name || OLD.iter().any(|(old, new)| wanted == *old && name == *new)
}

/// Whether a chain meets the condition, apart from its filters. `port` is the destination port a listener condition names, for listeners
/// that serve many.
pub(crate) fn chain(chain: &FilterChain, wanted: Option<&FilterChainMatch>, port: u32) -> bool {
    let of = chain.filter_chain_match.clone().unwrap_or_default();
    let on = |port: u32| port == 0 || of.destination_port.as_ref().is_some_and(|p| p.value == port);
    on(port)
        && wanted.is_none_or(|w| {
            (w.name.is_empty() || chain.name == w.name)
                && (w.sni.is_empty() || of.server_names.contains(&w.sni))
                && (w.transport_protocol.is_empty() || of.transport_protocol == w.transport_protocol)
                && w.application_protocols
                    .split(',')
                    .filter(|p| !p.is_empty())
                    .all(|p| of.application_protocols.iter().any(|have| have == p.trim()))
                && on(w.destination_port)
        })
}

/// Whether a cluster meets the condition, by its name: `direction|port|subset|host`.
pub(crate) fn cluster(name: &str, wanted: Option<&ClusterMatch>) -> bool {
    let Some(wanted) = wanted else { return true };
    if !wanted.name.is_empty() {
        return wanted.name == name;
    }
    let mut parts = name.split('|').skip(1);
    let (port, subset, host) = (parts.next(), parts.next(), parts.next());
    (wanted.port_number == 0 || port.and_then(|p| p.parse().ok()) == Some(wanted.port_number))
        && (wanted.subset.is_empty() || subset == Some(wanted.subset.as_str()))
        && (wanted.service.is_empty() || host == Some(wanted.service.as_str()))
}

/// Whether a route table meets the condition, apart from its hosts. Names are `80`, `host:80`, `http.80`, `https.443.port.gateway.namespace`,
/// `inbound|8080||`.
pub(crate) fn table(name: &str, wanted: Option<&RouteConfigurationMatch>) -> bool {
    let Some(wanted) = wanted else { return true };
    let parts: Vec<&str> = name.split('.').collect();
    let port = if let Some(rest) = name.strip_prefix("inbound|") {
        rest.split('|').next()
    } else if matches!(parts.first(), Some(&("http" | "https"))) {
        parts.get(1).copied()
    } else {
        name.rsplit(':').next()
    };
    let port_name = (parts.first() == Some(&"https")).then(|| parts.get(2).copied()).flatten();
    let gateway = match (parts.first(), parts.get(3), parts.get(4)) {
        (Some(&"https"), Some(gateway), Some(namespace)) => Some(format!("{namespace}/{gateway}")),
        _ => None,
    };
    (wanted.name.is_empty() || wanted.name == name)
        && (wanted.port_number == 0 || port.and_then(|p| p.parse().ok()) == Some(wanted.port_number))
        && (wanted.port_name.is_empty() || port_name == Some(wanted.port_name.as_str()))
        && (wanted.gateway.is_empty() || gateway.as_deref() == Some(wanted.gateway.as_str()))
}

/// Whether a virtual host meets the condition.
pub(crate) fn virtual_host(host: &route::VirtualHost, wanted: Option<&RouteConfigurationMatch>) -> bool {
    wanted.and_then(|w| w.vhost.as_ref()).is_none_or(|w| {
        (w.name.is_empty() || w.name == host.name)
            && (w.domain_name.is_empty() || host.domains.contains(&w.domain_name))
    })
}

/// Whether a route meets the condition.
pub(crate) fn route(route: &route::Route, wanted: Option<&RouteConfigurationMatch>) -> bool {
    use route::route::Action;
    wanted.and_then(|w| w.vhost.as_ref()).and_then(|w| w.route.as_ref()).is_none_or(|w| {
        let action = match w.action {
            RouteAction::Any => true,
            RouteAction::Route => matches!(route.action, Some(Action::Route(_))),
            RouteAction::Redirect => matches!(route.action, Some(Action::Redirect(_))),
            RouteAction::DirectResponse => matches!(route.action, Some(Action::DirectResponse(_))),
        };
        action && (w.name.is_empty() || w.name == route.name)
    })
}

/// Whether a patch's route condition names a route.
pub(crate) fn names_route(wanted: Option<&RouteConfigurationMatch>) -> bool {
    wanted
        .and_then(|w| w.vhost.as_ref())
        .and_then(|w| w.route.as_ref())
        .is_some_and(|r| !r.name.is_empty() || r.action != RouteAction::Any)
}
