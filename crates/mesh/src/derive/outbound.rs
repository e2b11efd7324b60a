//! The client side (semantics §3, §4, §7): clusters of all visible services, and what leads to them.
//!
//! Invariant: services a proxy may not see leave no trace in its view.

use std::{collections::HashMap, sync::Arc};

use super::{Scope, inbound::class_of, listeners, loads::LoadKey, routes};
use crate::{
    model::{DestinationRule, Port, Resolution, Service, TrafficPolicy, policy::HashKey, policy::LoadBalancer},
    names,
    parts::{
        ClientSocket, Cluster, ClusterKind, Limits, Outbound, PortClass, RouteAlpn, UpstreamHttp, cluster::MeshAlpn,
    },
    proxy::{FileCerts, Interception},
    rules,
    snapshot::Snapshot,
    tls::{self, Question},
};

/// One port of a visible service, with its default cluster's traits that routes need.
pub(super) struct VisiblePort<'a> {
    pub service: &'a Arc<Service>,
    pub port: &'a Port,
    pub class: PortClass,
    pub cluster: Arc<str>,
    pub alpn: Option<RouteAlpn>,
    pub hash: Option<HashKey>,
}

/// Clusters of one service as clients of one rule see them.
#[derive(Debug)]
struct Reached {
    clusters: Vec<Arc<Cluster>>,
    keys: Vec<Arc<LoadKey>>,
}

/// What a service's clusters depend on within one snapshot: the service and the rule, by address, and the client's files.
type ReachedKey = (usize, Option<usize>, Option<FileCerts>);

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
    let visible = |s: &&Arc<Service>| s.export_to.allows(&scope.client.namespace);
    let (mut clusters, mut keys, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for service in snapshot.services().iter().filter(visible) {
        if matches!(service.resolution, Resolution::ExternalName(_)) {
            continue;
        }
        let rule = snapshot.rules().lookup(&scope.client, service.namespace(), &service.hostname);
        let key = (Arc::as_ptr(service) as usize, rule.map(|r| Arc::as_ptr(r) as usize), scope.client_certs.clone());
        let reached = memo
            .0
            .entry(key)
            .or_insert_with(|| Arc::new(reach(snapshot, scope.client_certs.as_ref(), service, rule.map(|r| &**r))));
        let defaults = reached.clusters.iter().filter(|c| c.subset.is_empty());
        ports.extend(service.ports.iter().zip(defaults).map(|(port, cluster)| visible_port(service, port, cluster)));
        clusters.extend(reached.clusters.iter().cloned());
        keys.extend(reached.keys.iter().cloned());
    }
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    keys.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let aliases = routes::aliases(snapshot, &scope.client.namespace);
    let outbound = Outbound {
        listen_port: (scope.interception != Interception::None).then_some(settings.outbound_port),
        families: scope.families,
        settings: settings.listener.clone(),
        allow_any: settings.allow_any,
        connect_timeout: settings.connect_timeout,
        listeners: listeners::derive(snapshot, scope, &ports),
        routes: routes::derive(snapshot, scope, &ports, &aliases),
        clusters,
    };
    (outbound, keys)
}

/// All clusters of a service, those of a port together, its default one first.
fn reach(snapshot: &Snapshot, files: Option<&FileCerts>, service: &Service, rule: Option<&DestinationRule>) -> Reached {
    let mut reached = Reached { clusters: Vec::new(), keys: Vec::new() };
    for port in &service.ports {
        let subsets = rule.iter().flat_map(|r| r.subsets.iter().map(|s| (&*s.name, Some(&s.labels))));
        for (subset, labels) in std::iter::once(("", None)).chain(subsets.filter(|(name, _)| !name.is_empty())) {
            let policy = rule.map(|r| rules::effective(r, subset, port.number)).unwrap_or_default();
            let cluster = cluster(snapshot, files, service, port, subset, rule, &policy);
            if cluster.kind == ClusterKind::Eds && !matches!(cluster.socket, ClientSocket::Refused(_)) {
                reached.keys.push(Arc::new(LoadKey {
                    cluster: cluster.name.clone(),
                    service: service.origin.name.clone(),
                    port_name: port.name.clone(),
                    labels: labels.cloned().unwrap_or_default(),
                    by_rule: tls::endpoints_by_rule(policy.tls.as_ref()),
                }));
            }
            reached.clusters.push(Arc::new(cluster));
        }
    }
    reached
}

fn visible_port<'a>(service: &'a Arc<Service>, port: &'a Port, cluster: &Cluster) -> VisiblePort<'a> {
    let mesh_tls = match &cluster.socket {
        ClientSocket::Auto(tls) | ClientSocket::Mesh(tls) => Some(tls),
        _ => None,
    };
    let alpn = mesh_tls.filter(|tls| tls.alpn == MeshAlpn::ByRequest).map(|_| match cluster.http {
        UpstreamHttp::Http2 => RouteAlpn::Http2,
        UpstreamHttp::Http1 | UpstreamHttp::Downstream => RouteAlpn::ByRequest,
    });
    let hash = match &cluster.load_balancer {
        LoadBalancer::ConsistentHash(hash) => Some(hash.key.clone()),
        _ => None,
    };
    VisiblePort { service, port, class: class_of(port), cluster: cluster.name.clone(), alpn, hash }
}

fn cluster(
    snapshot: &Snapshot,
    files: Option<&FileCerts>,
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
    let kind = tls::kind(service, policy.load_balancer.as_ref());
    let question = Question {
        service,
        port,
        subset,
        kind,
        http,
        tls: policy.tls.as_ref(),
        selective: rule.is_some_and(|r| r.workload_selector.is_some()),
        files,
    };
    let socket = tls::socket(snapshot, &question);
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
        load_balancer: policy.load_balancer.clone().unwrap_or_default(),
        outlier_detection: policy.outlier_detection.clone().or_else(|| settings.default_outlier.clone()),
        rule: rule.map(|r| r.origin.name.clone()),
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
