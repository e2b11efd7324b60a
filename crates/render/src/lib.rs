//! From a view to Envoy's v3 resources: listeners, route configurations, clusters, endpoints.
//!
//! Invariant: a generator takes a small value that is `Eq + Hash` and is its cache key; it cannot see the snapshot. Output is
//! byte-stable: equal inputs give equal bytes, and a resource's version is the hash of its bytes.
//! This crate knows nothing of xDS sessions, and decides nothing: what a proxy may do is in the view.

pub mod access_log;
pub mod cache;
pub mod cluster;
pub mod dns;
pub mod endpoint;
pub mod filters;
pub mod gateway;
pub mod grpc;
pub mod inbound;
pub mod outbound;
pub mod route;
pub mod secret;
pub mod security;
pub mod stats;
pub mod tls;
pub mod tracing;
pub mod wire;

use std::{collections::BTreeMap, sync::Arc};

use carrick_mesh::{
    View,
    view::{GatewayListener, Inbound, Load, Outbound, SecretPart},
};
use envoy_types::pb::google::protobuf::Any;

pub use cache::Cache;
use cache::OutboundSet;
use outbound::CatchAll;

/// One rendered resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name, as xDS subscribes to it.
    pub name: Arc<str>,
    /// Hash of its bytes, hex.
    pub version: Arc<str>,
    /// The message.
    pub body: Any,
}

impl Resource {
    /// A resource with the version that follows from its bytes.
    pub fn of(name: Arc<str>, body: Any) -> Self {
        Self { name, version: cache::version(&body), body }
    }
}

/// Resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Resource>>;

/// All resources of one proxy. Equal parts are the same `Arc` across proxies and pushes.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    /// CDS.
    pub clusters: Arc<Resources>,
    /// EDS.
    pub endpoints: Arc<Resources>,
    /// LDS.
    pub listeners: Arc<Resources>,
    /// RDS.
    pub routes: Arc<Resources>,
    /// SDS, of the cluster's secrets alone.
    pub secrets: Arc<Resources>,
}

/// A cluster that every proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BuiltIn {
    kind: BuiltInKind,
    connect_timeout: u64,
    v6: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum BuiltInKind {
    Passthrough,
    InboundPassthrough,
    BlackHole,
}

/// All resources of one view.
pub fn resources(view: &View, cache: &mut Cache) -> Rendered {
    let now = cache.generation;
    let shared = outbound_set(&view.outbound, cache);
    let clusters = if view.gateway.is_none() { inbound_clusters(&view.inbound, cache) } else { Vec::new() };
    let mut listeners: Vec<_> = inbound_listener(&view.inbound, cache).into_iter().collect();
    listeners.extend(bound_listeners(&view.inbound, cache));
    for input in view.gateway.iter().flat_map(|g| &g.listeners) {
        let render = |l: &GatewayListener| (l.name.clone(), wire::any(&gateway::listener(l)));
        listeners.push(cache.gateways.get(now, input, || input.clone(), render));
    }
    let render = |s: &SecretPart| (s.name.clone(), wire::any(&secret::secret(s)));
    let secrets = view.secrets.iter().map(|input| cache.secrets.get(now, input, || input.clone(), render)).collect();
    let none = cache.none.clone();
    Rendered {
        clusters: cache.joined.get(now, &shared.clusters, clusters),
        endpoints: load_set(&view.loads, cache),
        listeners: cache.joined.get(now, &shared.listeners, listeners),
        routes: shared.routes,
        secrets: cache.joined.get(now, &none, secrets),
    }
}

fn outbound_set(view: &Arc<Outbound>, cache: &mut Cache) -> OutboundSet {
    let now = cache.generation;
    // At the first use after a sweep the members are touched too, so that they are still known to the next set, which has most of them.
    let known = cache.outbound_sets.get(now, view);
    if let Some((set, true)) = known {
        return set;
    }
    let mut clusters = Resources::new();
    for input in &view.clusters {
        let render = |c: &carrick_mesh::view::Cluster| (c.name.clone(), cluster::outbound(c));
        add(&mut clusters, cache.clusters.get(now, input, || input.clone(), render));
    }
    for kind in [BuiltInKind::Passthrough, BuiltInKind::BlackHole] {
        let input = BuiltIn { kind, connect_timeout: view.connect_timeout, v6: false };
        add(&mut clusters, built_in(input, cache));
    }
    let mut listeners = Resources::new();
    for input in &view.listeners {
        let render = |l: &carrick_mesh::view::OutboundListener| (l.name.clone(), wire::any(&outbound::listener(l)));
        add(&mut listeners, cache.listeners.get(now, input, || input.clone(), render));
    }
    if let Some(port) = view.listen_port {
        let input =
            CatchAll { port, families: view.families, rest: view.rest.clone(), settings: view.settings.clone() };
        let render = |c: &CatchAll| (outbound::LISTENER.into(), wire::any(&outbound::catch_all(c)));
        add(&mut listeners, cache.catch_all.get(now, &input, || Arc::new(input.clone()), render));
    }
    let mut routes = Resources::new();
    for input in &view.routes {
        let render = |t: &carrick_mesh::view::RouteTable| (t.name.clone(), route::table(t));
        add(&mut routes, cache.routes.get(now, input, || input.clone(), render));
    }
    if let Some((set, _)) = known {
        return set;
    }
    let set = OutboundSet { clusters: Arc::new(clusters), listeners: Arc::new(listeners), routes: Arc::new(routes) };
    cache.outbound_sets.insert(now, view, set.clone());
    set
}

fn load_set(loads: &Arc<[Arc<Load>]>, cache: &mut Cache) -> Arc<Resources> {
    let now = cache.generation;
    let known = cache.load_sets.get(now, loads);
    if let Some((set, true)) = known {
        return set;
    }
    let mut all = Resources::new();
    for input in loads.iter() {
        let render = |l: &Load| (l.cluster.clone(), endpoint::assignment(l));
        add(&mut all, cache.loads.get(now, input, || input.clone(), render));
    }
    if let Some((set, _)) = known {
        return set;
    }
    let all = Arc::new(all);
    cache.load_sets.insert(now, loads, all.clone());
    all
}

fn inbound_clusters(view: &Inbound, cache: &mut Cache) -> Vec<Arc<Resource>> {
    let now = cache.generation;
    let render = |c: &carrick_mesh::view::InboundCluster| (c.name.clone(), cluster::inbound(c));
    let mut all: Vec<_> = view
        .ports
        .iter()
        .map(|p| cache.inbound_clusters.get(now, &p.cluster, || Arc::new(p.cluster.clone()), render))
        .collect();
    let passthrough =
        BuiltIn { kind: BuiltInKind::InboundPassthrough, connect_timeout: view.connect_timeout, v6: !view.families.v4 };
    all.push(built_in(passthrough, cache));
    all
}

fn inbound_listener(view: &Arc<Inbound>, cache: &mut Cache) -> Option<Arc<Resource>> {
    if view.interception == carrick_mesh::Interception::None {
        return None;
    }
    let render = |v: &Inbound| {
        let listener = inbound::listener(v).unwrap_or_default();
        (Arc::from(inbound::LISTENER), wire::any(&listener))
    };
    Some(cache.inbound.get(cache.generation, view, || view.clone(), render))
}

/// A port of an inbound side that is listened on for real.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct BoundPort {
    view: Arc<Inbound>,
    port: u16,
}

fn bound_listeners(view: &Arc<Inbound>, cache: &mut Cache) -> Vec<Arc<Resource>> {
    let ports = view.ports.iter().filter_map(|p| Some((p.bind?, p.target)));
    let of = |(ip, port): (std::net::IpAddr, u16)| {
        let input = BoundPort { view: view.clone(), port };
        let render = |b: &BoundPort| {
            let listener = inbound::bound(&b.view, b.port).unwrap_or_default();
            (Arc::from(inbound::bound_name(ip, port)), wire::any(&listener))
        };
        let key = || Arc::new(BoundPort { view: view.clone(), port });
        cache.bound.get(cache.generation, &input, key, render)
    };
    ports.map(of).collect()
}

fn built_in(input: BuiltIn, cache: &mut Cache) -> Arc<Resource> {
    let render = |b: &BuiltIn| {
        let cluster = match b.kind {
            BuiltInKind::Passthrough => cluster::passthrough(b.connect_timeout),
            BuiltInKind::InboundPassthrough => cluster::inbound_passthrough(b.connect_timeout, b.v6),
            BuiltInKind::BlackHole => cluster::black_hole(b.connect_timeout),
        };
        (cluster.name.as_str().into(), wire::any(&cluster))
    };
    cache.built_in.get(cache.generation, &input, || Arc::new(input), render)
}

fn add(all: &mut Resources, resource: Arc<Resource>) {
    all.insert(resource.name.clone(), resource);
}
