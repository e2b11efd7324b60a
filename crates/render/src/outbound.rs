//! The listener on 15001, and those it hands connections to by their original destination (semantics §7).
//!
//! Invariant: only 15001 is bound, and what a Sidecar wants to be; a listener never inspects a connection whose protocol was declared as something other than HTTP.

use std::sync::Arc;

use carrick_mesh::{
    model::service::Prefix,
    names,
    view::{Bind, ListenerSettings, OutboundListener, inbound::Families},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{CidrRange, TrafficDirection},
        listener::v3::{AdditionalAddress, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter},
    },
    extensions::filters::listener::{http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector},
};

use crate::{filters, inbound, stats::Side, wire};

/// The name of the listener on 15001.
pub const LISTENER: &str = "virtualOutbound";

/// What the listener on 15001 depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CatchAll {
    /// Its port.
    pub port: u16,
    /// Families it listens on.
    pub families: Families,
    /// The cluster of traffic to what nobody declared.
    pub rest: Arc<str>,
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
        filters: vec![filters::tcp(&from.settings, Side::Client, names::BLACK_HOLE, None)],
        ..FilterChain::default()
    };
    let rest = FilterChain {
        name: "virtualOutbound-catchall-tcp".to_owned(),
        filters: filters::tcp_counted(&from.settings, Side::Client, &from.rest, None),
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

/// One listener that is handed connections, or listens for real.
pub fn listener(from: &OutboundListener) -> Listener {
    let wildcard = |v6| wire::address(wire::wildcard(v6), from.port);
    let address = match &from.bind {
        Bind::Any { v6 } => wildcard(*v6),
        Bind::Ip(ip) => wire::address(&wire::host(*ip), from.port),
        Bind::Unix(path) => wire::pipe(path),
    };
    let by_name = from.chains.iter().any(|c| !c.server_names.is_empty());
    let mut filter_chains: Vec<_> = from.http.iter().map(|routes| http_chain(from, routes)).collect();
    for chain in &from.chains {
        filter_chains.push(FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                server_names: chain.server_names.iter().map(ToString::to_string).collect(),
                prefix_ranges: chain.prefixes.iter().map(range).collect(),
                ..FilterChainMatch::default()
            }),
            filters: filters::tcp_forward(&from.settings, Side::Client, &chain.forward),
            ..FilterChain::default()
        });
    }
    let only_tcp = filter_chains.is_empty();
    let otherwise = match &from.tcp {
        Some(forward) => FilterChain {
            filters: filters::tcp_forward(&from.settings, Side::Client, forward),
            ..FilterChain::default()
        },
        None => FilterChain {
            name: "PassthroughFilterChain".to_owned(),
            filters: filters::tcp_counted(&from.settings, Side::Client, &from.rest, None),
            ..FilterChain::default()
        },
    };
    let default_filter_chain = if only_tcp {
        filter_chains.push(otherwise);
        None
    } else {
        Some(otherwise)
    };
    let mut listener_filters = Vec::new();
    listener_filters.extend(by_name.then(tls_inspector));
    listener_filters.extend(from.http.is_some().then(http_inspector));
    let inspected = !listener_filters.is_empty();
    Listener {
        name: from.name.to_string(),
        address,
        filter_chains,
        default_filter_chain,
        listener_filters,
        listener_filters_timeout: inspected.then(|| wire::millis(from.settings.detection_timeout)).flatten(),
        continue_on_listener_filters_timeout: inspected,
        bind_to_port: if from.bound { None } else { wire::flag(false) },
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

fn http_chain(from: &OutboundListener, routes: &str) -> FilterChain {
    let stat = format!("outbound_{};", from.name);
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: inbound::plain_http(),
            ..FilterChainMatch::default()
        }),
        filters: vec![filters::outbound_http(&from.settings, &stat, routes, from.dynamic.as_ref())],
        ..FilterChain::default()
    }
}

/// A range of addresses.
pub fn range(prefix: &Prefix) -> CidrRange {
    CidrRange { address_prefix: wire::host(prefix.ip), prefix_len: wire::number(u32::from(prefix.length)) }
}

/// Reads a ClientHello without terminating TLS.
pub fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(wire::any(&TlsInspector::default()))),
        ..ListenerFilter::default()
    }
}

fn http_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(wire::any(&HttpInspector::default()))),
        ..ListenerFilter::default()
    }
}
