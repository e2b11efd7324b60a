//! The listener on 15006 (semantics §2): from modes and protocols to filter chains.
//!
//! Invariant: a port is inspected for TLS exactly if one of its chains asks for `tls`, for HTTP exactly if one asks for plaintext HTTP; a
//! chain that terminates mesh TLS always demands a client certificate.

mod chains;
mod inspect;

use carrick_mesh::{Interception, names, view::Inbound};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TrafficDirection,
            listener::v3::{
                AdditionalAddress, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
            },
        },
        extensions::filters::listener::{original_dst::v3::OriginalDst, original_src::v3::OriginalSrc},
    },
    google::protobuf::Any,
};

use crate::{filters, stats::Side, wire};

/// The name of the listener.
pub const LISTENER: &str = "virtualInbound";
/// The mark of connections whose source address is kept (TPROXY).
const TPROXY_MARK: u32 = 1337;

/// The inbound listener; `None` where packets are not intercepted.
pub fn listener(view: &Inbound) -> Option<Listener> {
    if view.interception == Interception::None {
        return None;
    }
    let sets = chains::sets(view);
    let mut listener_filters = vec![listener_filter("envoy.filters.listener.original_dst", wire::any(&OriginalDst {}))];
    if view.interception == Interception::Tproxy {
        let keep = OriginalSrc { mark: TPROXY_MARK, ..OriginalSrc::default() };
        listener_filters.push(listener_filter("envoy.filters.listener.original_src", wire::any(&keep)));
    }
    listener_filters.extend(inspect::inspectors(&sets));
    let mut filter_chains = vec![black_hole(view)];
    filter_chains.extend(sets.iter().flat_map(|set| set.render(view)));
    let both = view.families.v4 && view.families.v6;
    Some(Listener {
        name: LISTENER.to_owned(),
        address: wire::address(wire::wildcard(!view.families.v4), view.listen_port),
        additional_addresses: both
            .then(|| AdditionalAddress {
                address: wire::address(wire::wildcard(true), view.listen_port),
                ..Default::default()
            })
            .into_iter()
            .collect(),
        filter_chains,
        listener_filters,
        listener_filters_timeout: wire::millis(view.settings.detection_timeout),
        continue_on_listener_filters_timeout: true,
        transparent: (view.interception == Interception::Tproxy).then_some(()).and_then(|()| wire::flag(true)),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

/// The listener of a port that is listened on for real (§2.14); `None` for any other.
pub fn bound(view: &Inbound, port: u16) -> Option<Listener> {
    let port = view.ports.iter().find(|p| p.target == port)?;
    let ip = port.bind?;
    let set = chains::set(port);
    let filter_chains = set.render(view);
    Some(Listener {
        name: bound_name(ip, port.target),
        address: wire::address(&wire::host(ip), port.target),
        filter_chains,
        listener_filters: inspect::inspectors(&[set]),
        listener_filters_timeout: wire::millis(view.settings.detection_timeout),
        continue_on_listener_filters_timeout: true,
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    })
}

/// The name of such a listener.
pub fn bound_name(ip: std::net::IpAddr, port: u16) -> String {
    format!("{ip}_{port}")
}

/// Connections to 15006 itself would be forwarded to itself for ever.
fn black_hole(view: &Inbound) -> FilterChain {
    FilterChain {
        name: "virtualInbound-blackhole".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: wire::number(u32::from(view.listen_port)),
            ..FilterChainMatch::default()
        }),
        filters: vec![filters::tcp(&view.settings, Side::Server, names::BLACK_HOLE, None)],
        ..FilterChain::default()
    }
}

fn listener_filter(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}

/// What the HTTP inspector says of plaintext HTTP, as a chain's match.
pub fn plain_http() -> Vec<String> {
    chains::PLAIN_HTTP.iter().map(|a| (*a).to_owned()).collect()
}
