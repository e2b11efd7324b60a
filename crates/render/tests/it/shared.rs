//! From a world and a pod to decoded resources.

use carrick_mesh::{Snapshot, View, sidecar};
use carrick_render::{Cache, Rendered, Resources};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use prost::Message;
use serde_json::Value;

use crate::world::World;

pub fn world(value: Value) -> World {
    serde_json::from_value(value).expect("a world")
}

pub fn view(world: &World, pod: &str) -> View {
    let (snapshot, _) = Snapshot::build(&world.input());
    sidecar(&snapshot, &world.proxy(pod))
}

pub fn render(world: &World, pod: &str) -> Rendered {
    carrick_render::resources(&view(world, pod), &mut Cache::default())
}

pub fn decoded<T: Message + Default>(resources: &Resources) -> Vec<T> {
    resources.values().map(|r| T::decode(&*r.body.value).expect("own bytes")).collect()
}

pub fn listener(rendered: &Rendered, name: &str) -> Listener {
    let resource = rendered.listeners.get(name).unwrap_or_else(|| panic!("no listener {name}"));
    Listener::decode(&*resource.body.value).expect("own bytes")
}

/// One line for a chain: what it matches, what follows, where to.
pub fn chain(chain: &FilterChain) -> String {
    let matches = chain.filter_chain_match.clone().unwrap_or_default();
    let mut parts = Vec::new();
    if let Some(port) = &matches.destination_port {
        parts.push(format!("port {}", port.value));
    }
    for range in &matches.prefix_ranges {
        parts.push(format!("{}/{}", range.address_prefix, range.prefix_len.unwrap_or_default().value));
    }
    parts.push(matches.transport_protocol.clone());
    if !matches.application_protocols.is_empty() {
        parts.push(matches.application_protocols.join(","));
    }
    let filter = chain.filters.first().map_or("nothing", |f| f.name.as_str());
    let payload = filter.rsplit('.').next().unwrap_or_default();
    let socket = chain.transport_socket.as_ref().map_or("as it is", |_| "mesh TLS");
    format!("{} | {} | {payload} | {socket}", chain.name, parts.join(" "))
}
