//! LISTENER and LISTENER_FILTER; chains and their filters are next door.

use std::sync::Arc;

use carrick_api::{
    EnvoyFilter,
    istio::envoy_filter::{ApplyTo, ConfigPatch, PatchContext, PatchOperation},
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::{TrafficDirection, address::Address, socket_address::PortSpecifier},
        listener::v3::{Listener, ListenerFilter},
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::{
    Change, Target, chains, list,
    select::{self, Side},
    value,
};

fn concerns_listeners(patch: &ConfigPatch) -> bool {
    matches!(
        patch.apply_to,
        ApplyTo::Listener
            | ApplyTo::ListenerFilter
            | ApplyTo::FilterChain
            | ApplyTo::NetworkFilter
            | ApplyTo::HttpFilter
            | ApplyTo::RouteConfiguration
            | ApplyTo::VirtualHost
            | ApplyTo::HttpRoute
    )
}

pub(crate) fn patch(body: &Any, filter: &EnvoyFilter, target: &Target) -> Result<Change, String> {
    if !filter.spec.config_patches.iter().any(concerns_listeners) {
        return Ok(Change::Nothing);
    }
    let mut listener = Listener::decode(&*body.value).map_err(|e| e.to_string())?;
    let inbound = listener.traffic_direction == i32::from(TrafficDirection::Inbound) && !target.gateway;
    let side = if inbound { Side::Inbound } else { Side::Outbound };
    let mut touched = false;
    for patch in filter.spec.config_patches.iter().filter(|p| concerns_listeners(p) && select::context(p, target, side))
    {
        let wanted = patch.matches.listener.as_ref();
        if wanted.is_some_and(|w| !w.name.is_empty() && w.name != listener.name) {
            continue;
        }
        // The inbound listener serves all ports: there, a port is a condition on its chains.
        let wanted_port = wanted.map_or(0, |w| w.port_number);
        let chain_port = if inbound { wanted_port } else { 0 };
        if wanted_port != 0 && !inbound && port(&listener) != Some(wanted_port) {
            continue;
        }
        touched |= match patch.apply_to {
            ApplyTo::Listener => match patch.patch.operation {
                PatchOperation::Remove => return Ok(Change::Gone),
                operation if value::merges(operation) => {
                    listener = value::merged(&listener, &patch.patch)?;
                    true
                }
                _ => false,
            },
            ApplyTo::ListenerFilter => {
                let named = wanted.map(|w| w.listener_filter.as_str()).filter(|n| !n.is_empty());
                let matched = |f: &ListenerFilter| named.is_some_and(|n| select::same_filter(n, &f.name));
                list::edit(&mut listener.listener_filters, &patch.patch, named.map(|_| &matched as _), &|_| false)?
            }
            _ => chains::patch(&mut listener, patch, chain_port)?,
        };
    }
    let value = listener.encode_to_vec();
    Ok(if touched { Change::To(Any { type_url: Listener::type_url(), value }) } else { Change::Nothing })
}

fn port(listener: &Listener) -> Option<u32> {
    let Some(Address::SocketAddress(socket)) = &listener.address.as_ref()?.address else { return None };
    match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => Some(port),
        _ => None,
    }
}

/// Listeners of its own that a filter brings: on the client's side of sidecars, and on gateways.
pub(crate) fn added(filter: &EnvoyFilter, target: &Target) -> Result<Vec<(Arc<str>, Any)>, String> {
    let adds = filter.spec.config_patches.iter().filter(|p| {
        p.apply_to == ApplyTo::Listener
            && p.patch.operation == PatchOperation::Add
            && (p.matches.context == PatchContext::SidecarInbound && select::context(p, target, Side::Inbound)
                || select::context(p, target, Side::Outbound))
    });
    adds.map(|p| {
        let listener: Listener = value::message(&p.patch)?;
        if listener.name.is_empty() {
            return Err("patch.value.name: missing".to_owned());
        }
        Ok((listener.name.as_str().into(), Any { type_url: Listener::type_url(), value: listener.encode_to_vec() }))
    })
    .collect()
}
