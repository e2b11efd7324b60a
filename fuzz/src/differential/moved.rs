//! Rendered resources moved to loopback, where nothing captures connections.
//!
//! Invariant: matches, filters and routes stay as they were rendered. Exchanged are: the address that is listened on, names of resources (one
//! process holds many cases), where secrets, routes and endpoints come from (inline instead of xDS), where an address nobody redirects leads
//! (the original destination), and access logs, which nobody reads.

use std::sync::Arc;

use anyhow::{Context, Result};
use carrick_render::{Rendered, Resources};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use envoy_types::pb::envoy::config::core::v3::{
    Address, BindConfig, SocketAddress, TransportSocket, address::Address as At, socket_address::PortSpecifier,
    transport_socket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::config::listener::v3::{AdditionalAddress, Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{
    RouteConfiguration, route::Action, route_action::ClusterSpecifier as RouteCluster,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::world::{self, Part};

/// Resources of all parts of a case, at home's addresses.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    pub clusters: Vec<(String, Any)>,
    pub listeners: Vec<(String, Any)>,
    pub secrets: Vec<Secret>,
}

/// Moves what was rendered for one part. `slot` is the case's number in its process.
///
/// # Errors
/// When a resource is not the message it should be.
pub fn moved(part: Part, slot: usize, rendered: &Rendered, into: &mut Moved) -> Result<()> {
    let (_, _, last, letter) = part.pod();
    let mover = Mover { part, last, prefix: format!("{slot:03}{letter}|"), routes: &rendered.routes };
    for (name, resource) in rendered.clusters.iter() {
        let mut cluster = Cluster::decode(&*resource.body.value)?;
        mover.cluster(&mut cluster, rendered.endpoints.get(name).map(|r| &r.body))?;
        into.clusters.push((cluster.name.clone(), any(&cluster)));
    }
    let mut taken = Vec::new();
    // What 15001 hands to nobody else it serves itself, so it comes last.
    let is_last = |name: &Arc<str>| &**name == "virtualOutbound";
    let (last, first): (Vec<_>, Vec<_>) = rendered.listeners.iter().partition(|(name, _)| is_last(name));
    for (_, resource) in first.into_iter().chain(last) {
        let mut listener = Listener::decode(&*resource.body.value)?;
        if mover.listener(&mut listener, &mut taken)? {
            into.listeners.push((listener.name.clone(), any(&listener)));
        }
    }
    for resource in rendered.secrets.values() {
        let mut secret = Secret::decode(&*resource.body.value)?;
        secret.name = format!("{}{}", mover.prefix, secret.name);
        into.secrets.push(secret);
    }
    Ok(())
}

/// The same resource in another network, whose text is as long as home's.
pub fn elsewhere(body: &Any, network: &str) -> Any {
    let (from, to) = (world::HOME.as_bytes(), network.as_bytes());
    let mut value = body.value.clone();
    let mut at = 0;
    while let Some(found) = value.get(at..).and_then(|rest| rest.windows(from.len()).position(|w| w == from)) {
        at += found;
        if let Some(place) = value.get_mut(at..at + from.len()) {
            place.copy_from_slice(to);
        }
        at += from.len();
    }
    Any { type_url: body.type_url.clone(), value }
}

/// Where the client goes.
const DESTINATIONS: [(u8, u16); 8] = [
    (world::SERVER_VIP, 8080),
    (world::SERVER_VIP, 8081),
    (world::PLAIN_VIP, 8080),
    (world::PLAIN_VIP, 8443),
    (world::SECOND_VIP, 8080),
    (world::ABROAD_VIP, 80),
    (world::ABROAD_VIP, 8081),
    (world::NOBODY, 8080),
];

struct Mover<'a> {
    part: Part,
    last: u8,
    prefix: String,
    routes: &'a Resources,
}

impl Mover<'_> {
    fn name(&self, name: &mut String) {
        if !name.is_empty() {
            name.insert_str(0, &self.prefix);
        }
    }

    fn cluster(&self, cluster: &mut Cluster, endpoints: Option<&Any>) -> Result<()> {
        let original = cluster.name.clone();
        self.name(&mut cluster.name);
        match &cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::Eds as i32 => {
                let mut load =
                    endpoints.map(|e| ClusterLoadAssignment::decode(&*e.value)).transpose()?.unwrap_or_default();
                load.cluster_name = original;
                cluster.load_assignment = Some(load);
                cluster.eds_cluster_config = None;
                cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
            }
            Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::OriginalDst as i32 => {
                let (last, port) = match original.split('|').collect::<Vec<_>>().as_slice() {
                    ["inbound", "8081", ..] => (self.last, world::ECHO_TCP),
                    ["inbound", ..] => (self.last, world::ECHO_HTTP),
                    _ if original == carrick_mesh::names::INBOUND_PASSTHROUGH => (self.last, world::ECHO_HTTP),
                    _ => (world::BEYOND, world::ECHO_HTTP),
                };
                cluster.load_assignment = Some(one(&original, last, port));
                cluster.cleanup_interval = None;
                cluster.lb_policy = LbPolicy::RoundRobin.into();
                cluster.lb_config = None;
                cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
            }
            _ => {}
        }
        cluster.upstream_bind_config.get_or_insert_with(|| BindConfig {
            source_address: Some(socket(&world::at(self.last), 0)),
            ..BindConfig::default()
        });
        for each in &mut cluster.transport_socket_matches {
            self.upstream_tls(each.transport_socket.as_mut())?;
        }
        self.upstream_tls(cluster.transport_socket.as_mut())
    }

    /// Whether it is of use here. Listeners of one address come before those of all.
    fn listener(&self, listener: &mut Listener, taken: &mut Vec<(u8, u16)>) -> Result<bool> {
        let Some(At::SocketAddress(address)) = listener.address.take().and_then(|a| a.address) else {
            return Ok(false);
        };
        let Some(PortSpecifier::PortValue(port)) = address.port_specifier else { return Ok(false) };
        let places: Vec<(u8, u16)> = match (self.part, &*listener.name, port) {
            (Part::Client, "virtualOutbound", _) => {
                DESTINATIONS.iter().copied().filter(|p| !taken.contains(p)).collect()
            }
            (_, "virtualOutbound", _) => return Ok(false),
            (Part::Server, "virtualInbound", _) => [8080, 8081, 8090].map(|p| (self.last, p)).into(),
            (_, "virtualInbound", _) | (Part::Server, ..) => return Ok(false),
            (Part::Gateway, _, port) => vec![(self.last, u16::try_from(port)?)],
            (Part::Client, _, port) if address.address == "0.0.0.0" => {
                let port = u16::try_from(port)?;
                DESTINATIONS.iter().copied().filter(|place| place.1 == port && !taken.contains(place)).collect()
            }
            (Part::Client, _, port) => {
                let last = address.address.strip_prefix(world::HOME).and_then(|l| l.parse().ok());
                last.map(|l| Ok::<_, std::num::TryFromIntError>((l, u16::try_from(port)?)))
                    .transpose()?
                    .into_iter()
                    .collect()
            }
        };
        taken.extend_from_slice(&places);
        let mut places = places
            .into_iter()
            .map(|(last, port)| Address { address: Some(At::SocketAddress(socket(&world::at(last), port))) });
        listener.address = places.next();
        listener.additional_addresses =
            places.map(|address| AdditionalAddress { address: Some(address), ..Default::default() }).collect();
        if listener.address.is_none() {
            return Ok(false);
        }
        self.name(&mut listener.name);
        listener.access_log.clear();
        listener.bind_to_port = None;
        listener.use_original_dst = None;
        listener.listener_filters.retain(|f| f.name != "envoy.filters.listener.original_dst");
        for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
            self.chain(chain)?;
        }
        Ok(true)
    }

    fn chain(&self, chain: &mut FilterChain) -> Result<()> {
        for filter in &mut chain.filters {
            self.filter(filter)?;
        }
        let Some(socket) = chain.transport_socket.as_mut() else { return Ok(()) };
        let Some(transport_socket::ConfigType::TypedConfig(config)) = &mut socket.config_type else { return Ok(()) };
        if let Some(mut context) = unpack::<DownstreamTlsContext>(config)? {
            context.common_tls_context.iter_mut().for_each(|common| self.secrets(common));
            *config = any(&context);
        }
        Ok(())
    }

    fn filter(&self, filter: &mut Filter) -> Result<()> {
        let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { return Ok(()) };
        if let Some(mut manager) = unpack::<HttpConnectionManager>(config)? {
            manager.access_log.clear();
            let mut routes = match manager.route_specifier.take() {
                Some(RouteSpecifier::RouteConfig(routes)) => routes,
                Some(RouteSpecifier::Rds(rds)) => match self.routes.get(&*rds.route_config_name) {
                    Some(table) => RouteConfiguration::decode(&*table.body.value)?,
                    None => RouteConfiguration { name: rds.route_config_name, ..RouteConfiguration::default() },
                },
                _ => anyhow::bail!("routes from elsewhere"),
            };
            self.routes(&mut routes);
            manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
            *config = any(&manager);
        } else if let Some(mut proxy) = unpack::<TcpProxy>(config)? {
            proxy.access_log.clear();
            match &mut proxy.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => self.name(name),
                Some(ClusterSpecifier::WeightedClusters(all)) => {
                    all.clusters.iter_mut().for_each(|c| self.name(&mut c.name));
                }
                None => {}
            }
            *config = any(&proxy);
        }
        Ok(())
    }

    fn routes(&self, table: &mut RouteConfiguration) {
        for route in table.virtual_hosts.iter_mut().flat_map(|h| &mut h.routes) {
            let Some(Action::Route(action)) = &mut route.action else { continue };
            match &mut action.cluster_specifier {
                Some(RouteCluster::Cluster(name)) => self.name(name),
                Some(RouteCluster::WeightedClusters(all)) => {
                    all.clusters.iter_mut().for_each(|c| self.name(&mut c.name))
                }
                _ => {}
            }
            action.request_mirror_policies.iter_mut().for_each(|m| self.name(&mut m.cluster));
        }
    }

    fn upstream_tls(&self, socket: Option<&mut TransportSocket>) -> Result<()> {
        let Some(transport_socket::ConfigType::TypedConfig(config)) = socket.and_then(|s| s.config_type.as_mut())
        else {
            return Ok(());
        };
        if let Some(mut context) = unpack::<UpstreamTlsContext>(config)? {
            context.common_tls_context.iter_mut().for_each(|common| self.secrets(common));
            *config = any(&context);
        }
        Ok(())
    }

    fn secrets(&self, common: &mut CommonTlsContext) {
        common.tls_certificate_sds_secret_configs.iter_mut().for_each(|s| self.secret(s));
        match &mut common.validation_context_type {
            Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => self.secret(secret),
            Some(ValidationContextType::CombinedValidationContext(both)) => {
                both.validation_context_sds_secret_config.iter_mut().for_each(|s| self.secret(s));
            }
            _ => {}
        }
    }

    /// Secrets of the process: identities by their names, and one set of roots. A cluster's own keep theirs, behind the prefix.
    fn secret(&self, secret: &mut SdsSecretConfig) {
        secret.sds_config = None;
        secret.name = match &*secret.name {
            "default" => match self.part {
                Part::Client => "web/client".to_owned(),
                Part::Server => "app/server".to_owned(),
                Part::Gateway => "istio-system/gateway".to_owned(),
            },
            "ROOTCA" => "ROOTCA".to_owned(),
            name if name.starts_with("file-root:") => "shop".to_owned(),
            name if name.starts_with("file-cert:") => "dns".to_owned(),
            name => format!("{}{name}", self.prefix),
        };
    }
}

fn any<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// The message, if it is of this type.
fn unpack<M: Name + Default>(from: &Any) -> Result<Option<M>> {
    if from.type_url != M::type_url() {
        return Ok(None);
    }
    M::decode(&*from.value).map(Some).with_context(|| from.type_url.clone())
}

fn socket(host: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
        ..SocketAddress::default()
    }
}

fn one(name: &str, last: u8, port: u16) -> ClusterLoadAssignment {
    let address = Address { address: Some(At::SocketAddress(socket(&world::at(last), port))) };
    let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() }],
        ..ClusterLoadAssignment::default()
    }
}
