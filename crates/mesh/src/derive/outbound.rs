//! The client side (semantics §3, §4, §7, §8): clusters of all visible services, and what leads to them.
//!
//! Invariant: services a proxy may not see leave no trace in its view.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Scope, egress,
    http::{Reach, Traits},
    inbound::class_of,
    listener_settings, listeners,
    loads::{self, LoadKey, Policies},
    routes,
};
use crate::{
    locality::{self, Place, Spread},
    model::{
        DestinationRule, Port, Resolution, Service, TrafficPolicy,
        policy::{ConnectionPool, HashKey, LocalityChoice},
    },
    names,
    parts::{
        ClientSocket, Cluster, ClusterKind, Limits, Outbound, PortClass, RouteAlpn, TcpForward, UpstreamHttp,
        cluster::NameLookup, inbound::Families, telemetry::Stats,
    },
    proxy::{FileCerts, Interception},
    rules,
    snapshot::Snapshot,
    tls::{self, Question},
    virtual_services::HostIndex,
};

/// One port of a visible service, with its default cluster's traits that routes need.
pub(super) struct VisiblePort<'a> {
    pub service: &'a Arc<Service>,
    pub port: &'a Port,
    pub class: PortClass,
    pub cluster: Arc<str>,
    pub forward: TcpForward,
    pub alpn: Option<RouteAlpn>,
    pub hash: Option<HashKey>,
}

/// Ports of one egress listener.
pub(super) struct VisiblePorts<'a> {
    /// The listener; `None` is the implicit one of everything.
    pub egress: Option<&'a crate::model::sidecar::Egress>,
    pub ports: Vec<VisiblePort<'a>>,
    /// VirtualServices that it follows.
    pub rules: HostIndex<'a>,
}

/// Clusters of one service as clients of one rule see them.
#[derive(Debug)]
struct Reached {
    clusters: Vec<Arc<Cluster>>,
    keys: Vec<Arc<LoadKey>>,
}

/// The client, as far as clusters depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reacher {
    files: Option<FileCerts>,
    families: Families,
    place: Arc<Place>,
    network: Option<Arc<str>>,
    gateway: bool,
    blind_reuse: bool,
    /// Its Envoy tells who calls.
    tells: bool,
}

/// What a service's clusters depend on within one snapshot: the service and the rule, by address, and the client.
type ReachedKey = (usize, Option<usize>, Reacher);

/// Clusters of one snapshot. Addresses are those of the snapshot's own `Arc`s, so a memory lasts no longer than its snapshot.
#[derive(Debug, Default)]
pub(super) struct ClusterMemo(HashMap<ReachedKey, Arc<Reached>>);

impl ClusterMemo {
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

pub(super) fn derive(snapshot: &Snapshot, scope: &Scope, memo: &mut ClusterMemo) -> (Outbound, Vec<Arc<LoadKey>>) {
    let settings = snapshot.settings();
    let reacher = Reacher {
        files: scope.client_certs.clone(),
        families: scope.families,
        place: scope.place.clone(),
        network: scope.network.clone(),
        gateway: scope.router,
        blind_reuse: scope.blind_reuse,
        tells: matches!(scope.telemetry.stats, Stats::Agent(_)),
    };
    let segments = egress::segments(snapshot, scope);
    let mut seen = egress::union(&segments);
    let mut followed: Vec<_> = Vec::new();
    if !scope.router {
        followed.extend(segments.iter().map(|segment| egress::rules(snapshot, scope, segment.egress)));
    }
    if scope.sidecar.is_some() {
        for rules in &followed {
            let more = egress::destinations(snapshot, scope, rules, &seen);
            seen.extend(more);
        }
    }
    let (mut clusters, mut keys) = (Vec::new(), Vec::new());
    let mut defaults: HashMap<_, HashMap<u16, Arc<Cluster>>> = HashMap::new();
    for (service, ports) in seen {
        if matches!(service.resolution, Resolution::ExternalName(_)) {
            continue;
        }
        let rule = snapshot.rules().lookup(&scope.client, service.namespace(), &service.hostname);
        let key = (Arc::as_ptr(service) as usize, rule.map(|r| Arc::as_ptr(r) as usize), reacher.clone());
        let reached =
            memo.0.entry(key).or_insert_with(|| Arc::new(reach(snapshot, &reacher, service, rule.map(|r| &**r))));
        let clusters_seen = reached.clusters.iter().filter(|c| ports.contains(&c.port));
        for cluster in clusters_seen.clone().filter(|c| c.subset.is_empty()) {
            defaults.entry(&service.id).or_default().insert(cluster.port, cluster.clone());
        }
        let names: HashSet<_> = clusters_seen.clone().map(|c| &c.name).collect();
        keys.extend(reached.keys.iter().filter(|k| names.contains(&k.cluster)).cloned());
        clusters.extend(clusters_seen.cloned());
    }
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters.dedup_by(|a, b| a.name == b.name);
    keys.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    keys.dedup_by(|a, b| a.cluster == b.cluster);
    let listener = listener_settings(snapshot, &scope.telemetry, &clusters);
    if scope.router {
        let outbound = Outbound {
            listen_port: None,
            families: scope.families,
            settings: listener.clone(),
            connect_timeout: settings.connect_timeout,
            listeners: Vec::new(),
            routes: Vec::new(),
            rest: names::BLACK_HOLE.into(),
            clusters,
        };
        return (outbound, keys);
    }
    let mut parts = Vec::new();
    for (segment, rules) in segments.iter().zip(followed) {
        let mut ports = Vec::new();
        for service in &segment.services {
            let Some(defaults) = defaults.get(&service.id) else { continue };
            let seen = service.ports.iter().filter(|p| segment.has(p.number));
            ports.extend(seen.filter_map(|port| Some(visible_port(service, port, defaults.get(&port.number)?))));
        }
        parts.push(VisiblePorts { egress: segment.egress, ports, rules });
    }
    let aliases = routes::aliases(snapshot, &scope.client.namespace);
    let rest = egress::rest(snapshot, scope, |name| clusters.binary_search_by(|c| (*c.name).cmp(name)).is_ok());
    let reach = Reach::of(&clusters, &settings.default_retries);
    let outbound = Outbound {
        listen_port: (scope.interception != Interception::None).then_some(settings.outbound_port),
        families: scope.families,
        settings: listener.clone(),
        connect_timeout: settings.connect_timeout,
        listeners: listeners::derive(snapshot, scope, &parts, &rest, &reach, &listener),
        routes: routes::derive(snapshot, scope, &parts, &aliases, &rest, &reach),
        rest,
        clusters,
    };
    (outbound, keys)
}

/// All clusters of a service, those of a port together, its default one first.
fn reach(snapshot: &Snapshot, reacher: &Reacher, service: &Service, rule: Option<&DestinationRule>) -> Reached {
    let mut reached = Reached { clusters: Vec::new(), keys: Vec::new() };
    for port in &service.ports {
        let subsets = rule.iter().flat_map(|r| r.subsets.iter().map(|s| (&*s.name, Some(&s.labels))));
        for (subset, labels) in std::iter::once(("", None)).chain(subsets.filter(|(name, _)| !name.is_empty())) {
            let policy = rule.map(|r| rules::effective(r, subset, port.number)).unwrap_or_default();
            let mut cluster = cluster(snapshot, reacher, service, port, subset, rule, &policy);
            let key = LoadKey {
                cluster: cluster.name.clone(),
                service: service.id.clone(),
                slot: port.slot.clone(),
                labels: labels.cloned().unwrap_or_default(),
                by_rule: tls::endpoints_by_rule(policy.tls.as_ref()),
                mtls_only: false,
                network: reacher.network.clone(),
                spread: spread(snapshot, service, &policy, cluster.outlier_detection.is_some(), &reacher.place),
            };
            cluster.shares = key.spread.as_ref().is_some_and(|s| !s.policy.distribute.is_empty());
            if !matches!(cluster.socket, ClientSocket::Refused(_)) {
                match cluster.kind {
                    ClusterKind::Eds => reached.keys.push(Arc::new(key)),
                    ClusterKind::StrictDns | ClusterKind::LogicalDns => {
                        let facts = snapshot.facts_of(service).and_then(|f| f.ports.get(&port.slot));
                        let all = facts.map_or(&[][..], |f| &f.inline).iter();
                        let load = loads::load(snapshot, &key, all, &mut Policies::new());
                        cluster.endpoints = Some(Arc::new(load));
                    }
                    ClusterKind::OriginalDst | ClusterKind::DynamicForward => {}
                }
            }
            reached.clusters.push(Arc::new(cluster));
        }
    }
    reached
}

/// Which endpoints come first (§27.1): the rule's word, else the service's, else the mesh's. Without outlier detection nothing would ever
/// be known to fail, so that only shares, and what a service asks for itself, hold without it (§27.2).
fn spread(
    snapshot: &Snapshot,
    service: &Service,
    policy: &TrafficPolicy,
    outlier_detection: bool,
    place: &Arc<Place>,
) -> Option<Spread> {
    let (policy, always) = match policy.load_balancer.as_ref().and_then(|b| b.locality.as_ref()) {
        Some(LocalityChoice::Off) => return None,
        Some(LocalityChoice::Policy(policy)) => (policy.clone(), false),
        None => match service.distribution {
            Some(distribution) => (Arc::new(locality::of_distribution(distribution)), true),
            None => (snapshot.settings().locality.clone()?, false),
        },
    };
    let in_force = always || outlier_detection || !policy.distribute.is_empty();
    let known = *place != Arc::default() || !policy.priority.is_empty();
    (in_force && known).then(|| Spread { policy, place: place.clone() })
}

fn visible_port<'a>(service: &'a Arc<Service>, port: &'a Port, cluster: &Cluster) -> VisiblePort<'a> {
    let Traits { alpn, hash, .. } = Traits::of(cluster);
    let forward = TcpForward::to(cluster);
    VisiblePort { service, port, class: class_of(port), cluster: cluster.name.clone(), forward, alpn, hash }
}

fn cluster(
    snapshot: &Snapshot,
    reacher: &Reacher,
    service: &Service,
    port: &Port,
    subset: &str,
    rule: Option<&DestinationRule>,
    policy: &TrafficPolicy,
) -> Cluster {
    let settings = snapshot.settings();
    let mut pool = policy.connection_pool.clone().or_else(|| settings.default_pool.clone()).unwrap_or_default();
    if pool.tcp_keepalive.is_none() {
        pool.tcp_keepalive.clone_from(&settings.tcp_keepalive);
    }
    let http = upstream_http(port, pool.h2_upgrade, pool.use_client_protocol, settings.h2_upgrade);
    let tells_its_end = http == UpstreamHttp::Http2 || class_of(port) == PortClass::Tcp;
    if reacher.blind_reuse && service.external && !tells_its_end {
        single_use(&mut pool);
    }
    let balancing = policy.load_balancer.clone().unwrap_or_default();
    let kind = tls::kind(service, &balancing.algorithm, subset, reacher.gateway);
    let question = Question {
        service,
        port,
        subset,
        kind,
        http,
        tls: policy.tls.as_ref(),
        secrets: reacher.gateway || rule.is_some_and(|r| r.workload_selector.is_some()),
        files: reacher.files.as_ref(),
    };
    let socket = tls::socket(snapshot, &question);
    let tells = reacher.tells && matches!(socket, ClientSocket::Auto(_) | ClientSocket::Mesh(_));
    let resolves = matches!(kind, ClusterKind::StrictDns | ClusterKind::LogicalDns | ClusterKind::DynamicForward);
    Cluster {
        name: names::outbound_cluster(port.number, subset, &service.hostname),
        hostname: service.hostname.clone(),
        service: service.origin.name.clone(),
        port: port.number,
        subset: subset.into(),
        kind,
        socket,
        http,
        limits: Limits { connect_timeout: pool.connect_timeout.unwrap_or(settings.connect_timeout), pool },
        load_balancer: balancing.algorithm,
        warmup: balancing.warmup,
        shares: false,
        endpoints: None,
        names: resolves.then_some(NameLookup { refresh: settings.dns_refresh, families: reacher.families }),
        proxy_header: policy.proxy_header,
        tunnel: policy.tunnel.clone(),
        retry_budget: policy.retry_budget.clone(),
        outlier_detection: policy.outlier_detection.clone().or_else(|| settings.default_outlier.clone()),
        rule: rule.map(|r| r.origin.name.clone()),
        tells,
    }
}

/// One request for each connection, unless a rule says how long connections are kept. A host outside of the mesh closes idle connections
/// at its own pace; a request that meets the end of its connection is a 503, whatever its method, and only a connection never used before
/// has no such end.
fn single_use(pool: &mut ConnectionPool) {
    if pool.max_requests_per_connection.is_none() && pool.http_idle_timeout.is_none() {
        pool.max_requests_per_connection = Some(1);
    }
}

/// What HTTP is spoken upstream (semantics §4.5): the rule's word on any port, the mesh's only on ports declared HTTP.
fn upstream_http(port: &Port, rule: Option<bool>, client_protocol: bool, mesh: bool) -> UpstreamHttp {
    let class = class_of(port);
    match class {
        PortClass::Http { h2: true } => UpstreamHttp::Http2,
        PortClass::Http { .. } | PortClass::Auto if client_protocol => UpstreamHttp::Downstream,
        PortClass::Http { .. } | PortClass::Auto if rule == Some(true) => UpstreamHttp::Http2,
        PortClass::Http { .. } if mesh && rule.is_none() => UpstreamHttp::Http2,
        PortClass::Auto => UpstreamHttp::Downstream,
        PortClass::Http { .. } | PortClass::Tcp => UpstreamHttp::Http1,
    }
}
