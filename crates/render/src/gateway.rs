//! A gateway's listeners (semantics §9): chains by server name, TLS of their own, HTTP by route tables or bytes to clusters.
//!
//! Invariant: a listener looks for a ClientHello exactly if one of its chains needs one.

use carrick_mesh::view::gateway::{GatewayChain, GatewayListener, GatewayPayload};
use envoy_types::pb::envoy::{
    config::{
        core::v3::TrafficDirection,
        listener::v3::{FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter},
    },
    extensions::filters::listener::proxy_protocol::v3::ProxyProtocol,
};

use crate::{access_log, filters, outbound, security, stats::Side, tls, wire};

/// Milliseconds a client has for its handshake.
const HANDSHAKE: u64 = 15_000;

/// One listener.
pub fn listener(from: &GatewayListener) -> Listener {
    let inspected = from.chains.iter().any(|c| c.tls.is_some() || !c.server_names.is_empty());
    let mut listener_filters = Vec::new();
    if from.topology.proxy_protocol {
        listener_filters.push(ListenerFilter {
            name: "envoy.filters.listener.proxy_protocol".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(wire::any(&ProxyProtocol::default()))),
            ..ListenerFilter::default()
        });
    }
    listener_filters.extend(inspected.then(outbound::tls_inspector));
    Listener {
        name: from.name.to_string(),
        address: wire::address(&from.address, from.port),
        filter_chains: from.chains.iter().map(|c| chain(from, c)).collect(),
        listener_filters,
        access_log: if inspected { access_log::refused(&from.settings.telemetry) } else { Vec::new() },
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

fn chain(listener: &GatewayListener, from: &GatewayChain) -> FilterChain {
    let any = from.server_names.is_empty() && from.networks.is_empty();
    let filters = match &from.payload {
        GatewayPayload::Http { routes } => {
            let stat = format!("outbound_{};", listener.name);
            vec![filters::gateway_http(&listener.settings, &listener.topology, &listener.security, &stat, routes)]
        }
        GatewayPayload::Tcp { to, judged } => {
            let mut all = if *judged { security::network_filters(&listener.security) } else { Vec::new() };
            all.extend(filters::tcp_forward(&listener.settings, Side::Gateway, to));
            all
        }
    };
    FilterChain {
        filter_chain_match: (!any).then(|| FilterChainMatch {
            server_names: from.server_names.iter().map(ToString::to_string).collect(),
            prefix_ranges: from.networks.iter().map(outbound::range).collect(),
            ..FilterChainMatch::default()
        }),
        filters,
        transport_socket: from.tls.as_ref().and_then(tls::gateway),
        transport_socket_connect_timeout: from.tls.as_ref().and_then(|_| wire::millis(HANDSHAKE)),
        ..FilterChain::default()
    }
}
