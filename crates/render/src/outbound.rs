//! The listener on 15001, and those it hands connections to by their original destination (semantics §7).
//!
//! Invariant: only 15001 is bound; a listener never inspects a connection whose protocol was declared as something other than HTTP.

use carrick_mesh::{
    names,
    view::{ListenerSettings, OutboundListener, OutboundTarget, inbound::Families},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{AdditionalAddress, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter},
    },
    extensions::filters::listener::http_inspector::v3::HttpInspector,
};

use crate::{filters, inbound, wire};

/// The name of the listener on 15001.
pub const LISTENER: &str = "virtualOutbound";

/// What the listener on 15001 depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CatchAll {
    /// Its port.
    pub port: u16,
    /// Families it listens on.
    pub families: Families,
    /// Whether traffic to what nobody declared may leave.
    pub allow_any: bool,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
}

/// The listener on 15001.
pub fn catch_all(from: &CatchAll) -> Listener {
    let black_hole = FilterChain {
        name: "virtualOutbound-blackhole".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: wire::number(u32::from(from.port)),
            ..FilterChainMatch::default()
        }),
        filters: vec![filters::tcp(&from.settings, names::BLACK_HOLE, None)],
        ..FilterChain::default()
    };
    let rest = FilterChain {
        name: "virtualOutbound-catchall-tcp".to_owned(),
        filters: vec![filters::tcp(&from.settings, undeclared(from.allow_any), None)],
        ..FilterChain::default()
    };
    let both = from.families.v4 && from.families.v6;
    Listener {
        name: LISTENER.to_owned(),
        address: wire::address(wire::wildcard(!from.families.v4), from.port),
        additional_addresses: both
            .then(|| AdditionalAddress {
                address: wire::address(wire::wildcard(true), from.port),
                ..Default::default()
            })
            .into_iter()
            .collect(),
        filter_chains: vec![black_hole, rest],
        use_original_dst: wire::flag(true),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

/// One listener that is handed connections.
pub fn listener(from: &OutboundListener) -> Listener {
    let host = from.address.map_or_else(|| wire::wildcard(from.v6).to_owned(), wire::host);
    let stat = format!("outbound_{};", from.name);
    let http = |routes: &str| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: inbound::plain_http(),
            ..FilterChainMatch::default()
        }),
        filters: vec![filters::outbound_http(&from.settings, &stat, routes)],
        ..FilterChain::default()
    };
    let tcp = |name: &str, cluster: &str| FilterChain {
        name: name.to_owned(),
        filters: vec![filters::tcp(&from.settings, cluster, None)],
        ..FilterChain::default()
    };
    let (filter_chains, default_filter_chain) = match &from.target {
        OutboundTarget::Http { routes } => {
            (vec![http(routes)], Some(tcp("PassthroughFilterChain", undeclared(from.allow_any))))
        }
        OutboundTarget::Auto { routes, cluster } => (vec![http(routes)], Some(tcp("", cluster))),
        OutboundTarget::Tcp { cluster } => (vec![tcp("", cluster)], None),
    };
    let inspected = default_filter_chain.is_some();
    Listener {
        name: from.name.to_string(),
        address: wire::address(&host, from.port),
        filter_chains,
        default_filter_chain,
        listener_filters: inspected.then(http_inspector).into_iter().collect(),
        listener_filters_timeout: inspected.then(|| wire::millis(from.settings.detection_timeout)).flatten(),
        continue_on_listener_filters_timeout: inspected,
        bind_to_port: wire::flag(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

fn undeclared(allow_any: bool) -> &'static str {
    if allow_any { names::PASSTHROUGH } else { names::BLACK_HOLE }
}

fn http_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(wire::any(&HttpInspector::default()))),
        ..ListenerFilter::default()
    }
}
