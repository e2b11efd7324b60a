//! The server side (semantics §2): ports of the services a workload stands behind, or those its Sidecar names, with the mode each is in.
//!
//! Invariant: one entry per workload port; of several services the oldest gives protocol and name.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use carrick_api::{Protocol, protocol::Class};
use carrick_base::{Hostname, Labels, NamespacedName};

use super::listener_settings;
use crate::{
    model::{
        Endpoint, MtlsMode, Port, Resolution, Service, SidecarConfig,
        endpoint::carries_all,
        service::Target,
        sidecar::{Ingress, IngressTarget},
    },
    names,
    parts::{
        Cluster, Inbound, InboundCluster, InboundPort, InboundTarget, PassthroughPort, PortClass, ServerTls,
        inbound::Families,
    },
    peer_auth::{Effective, PeerAuthIndex},
    proxy::{Interception, ProxyNode},
    rules,
    snapshot::Snapshot,
    telemetry::Side,
};

pub(super) fn derive(
    snapshot: &Snapshot,
    proxy: &ProxyNode,
    labels: &Labels,
    clusters: &[Arc<Cluster>],
    behind: &mut BehindMemo,
) -> Inbound {
    let telemetry = snapshot.telemetry().of(&proxy.namespace, labels, Side::Server, proxy.counting);
    let settings = snapshot.settings();
    let effective = snapshot.peer_auth().effective(&proxy.namespace, labels);
    let families = Families::of(&proxy.ips);
    let sidecar = snapshot.sidecars().select(&proxy.namespace, labels);
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for (sidecar, ingress) in sidecar.iter().flat_map(|s| s.ingress.iter().map(move |i| (s, i))) {
        ports.insert(ingress.port, of_ingress(snapshot, proxy, sidecar, ingress, &effective));
    }
    // A Sidecar that names ports names all of them (§2.15).
    let services = if ports.is_empty() { services_of(snapshot, proxy, labels, behind) } else { Vec::new() };
    for service in services {
        for port in &service.ports {
            for target in targets(snapshot, proxy, &service, port) {
                ports.entry(target).or_insert_with(|| {
                    let decided =
                        PeerAuthIndex::of_service_port(effective.port(target), snapshot.legacy(), &service, port);
                    InboundPort {
                        target,
                        class: class_of(port),
                        mode: decided.mode,
                        mode_from: decided.from,
                        service: service.hostname.clone(),
                        service_name: service.origin.name.clone(),
                        service_port: port.number,
                        cluster: cluster(snapshot, proxy, &service, port, target, sidecar),
                        tls: None,
                        bind: None,
                    }
                });
            }
        }
    }
    let unnamed = effective.ports.iter().filter(|(port, _)| !ports.contains_key(port));
    let passthrough_ports = unnamed
        .map(|(port, decided)| PassthroughPort { port: *port, mode: decided.mode, mode_from: decided.from.clone() })
        .collect();
    Inbound {
        listen_port: settings.inbound_port,
        interception: proxy.interception,
        families,
        settings: listener_settings(snapshot, &telemetry, clusters),
        tls: ServerTls {
            trust_domains: settings.accepted_trust_domains.clone(),
            min_tls13: settings.min_tls13,
            cipher_suites: settings.cipher_suites.clone(),
            files: proxy.server_certs.clone(),
        },
        mode: effective.workload.mode,
        mode_from: effective.workload.from,
        ports: ports.into_values().collect(),
        passthrough_ports,
        connect_timeout: settings.connect_timeout,
        security: snapshot.security_of(&proxy.namespace, labels),
    }
}

/// What a declared protocol means for chains.
pub(super) fn class_of(port: &Port) -> PortClass {
    class_of_protocol(port.protocol)
}

fn class_of_protocol(protocol: Protocol) -> PortClass {
    match protocol.class() {
        Class::Auto => PortClass::Auto,
        Class::Http => PortClass::Http { h2: protocol.is_http2() },
        Class::Tcp | Class::Udp => PortClass::Tcp,
    }
}

/// A port that a Sidecar names (§2.8, §2.9). Its own TLS counts only where mesh TLS is switched off.
fn of_ingress(
    snapshot: &Snapshot,
    proxy: &ProxyNode,
    sidecar: &SidecarConfig,
    ingress: &Ingress,
    effective: &Effective,
) -> InboundPort {
    let settings = snapshot.settings();
    let decided = effective.port(ingress.port).clone();
    let tls = ingress.tls.clone().filter(|_| decided.mode == MtlsMode::Disable);
    let class = match (&tls, ingress.protocol) {
        (Some(_), Protocol::Https) => PortClass::Http { h2: false },
        (_, protocol) => class_of_protocol(protocol),
    };
    let pool = ingress.pool.as_ref().or(sidecar.inbound_pool.as_ref()).cloned();
    let (name, namespace) = (&sidecar.origin.name.name, &sidecar.origin.name.namespace);
    let hostname = Hostname::new(&format!("{name}.{namespace}"));
    let own = proxy.ips.first().copied();
    let to = match &ingress.to {
        IngressTarget::AsSent if settings.inbound_localhost => InboundTarget::Loopback(ingress.port),
        IngressTarget::AsSent if proxy.interception == Interception::None => InboundTarget::Loopback(ingress.port),
        IngressTarget::AsSent => InboundTarget::AsSent,
        IngressTarget::Loopback(port) => InboundTarget::Loopback(*port),
        IngressTarget::Pod(port) => own.map_or(InboundTarget::Nowhere, |ip| InboundTarget::Pod(ip, *port)),
        IngressTarget::Unix(path) => InboundTarget::Unix(path.clone()),
        IngressTarget::Nowhere => InboundTarget::Nowhere,
    };
    let bound = !ingress.captured || proxy.interception == Interception::None;
    InboundPort {
        target: ingress.port,
        class,
        mode: decided.mode,
        mode_from: decided.from,
        service: hostname.clone(),
        service_name: sidecar.origin.name.clone(),
        service_port: ingress.port,
        cluster: InboundCluster {
            name: names::inbound_cluster(ingress.port),
            port: ingress.port,
            to,
            class,
            connect_timeout: pool.as_ref().and_then(|p| p.connect_timeout).unwrap_or(settings.connect_timeout),
            pool,
            v6: own.is_some_and(|ip| ip.is_ipv6()),
            service: hostname,
            service_name: sidecar.origin.name.clone(),
        },
        tls,
        bind: ingress.bind.or(own).filter(|_| bound),
    }
}

/// Services that workloads of equal labels may stand behind: a function of the configuration without endpoints, found once for all of them.
#[derive(Debug, Default)]
pub(super) struct BehindMemo(HashMap<Arc<str>, HashMap<Labels, Arc<[Behind]>>>);

#[derive(Debug)]
struct Behind {
    service: Arc<Service>,
    /// No selector says so: its endpoints do.
    by_address: bool,
}

impl BehindMemo {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn of(&mut self, snapshot: &Snapshot, namespace: &Arc<str>, labels: &Labels) -> Arc<[Behind]> {
        if let Some(known) = self.0.get(namespace).and_then(|known| known.get(labels)) {
            return known.clone();
        }
        let behind = |service: &Arc<Service>| {
            let by_address = labels.is_empty() || service.selector.is_empty();
            let may = !matches!(service.resolution, Resolution::ExternalName(_))
                && (by_address || carries_all(labels, &service.selector));
            may.then(|| Behind { service: service.clone(), by_address })
        };
        let all: Arc<[Behind]> = snapshot.services_in(namespace).iter().filter_map(behind).collect();
        self.0.entry(namespace.clone()).or_default().insert(labels.clone(), all.clone());
        all
    }
}

/// Services the workload stands behind, oldest first: by their selectors, or by address where no pod is known.
pub(super) fn services_of(
    snapshot: &Snapshot,
    proxy: &ProxyNode,
    labels: &Labels,
    memo: &mut BehindMemo,
) -> Vec<Arc<Service>> {
    let listed = |service: &Service| snapshot.endpoints().of_service(&service.id).any(|(_, e)| is_own(proxy, e));
    let all = memo.of(snapshot, &proxy.namespace, labels);
    all.iter().filter(|b| !b.by_address || listed(&b.service)).map(|b| b.service.clone()).collect()
}

/// The workload's ports behind a service port: a number, the pod's port of that name, or what endpoints say.
pub(super) fn targets(snapshot: &Snapshot, proxy: &ProxyNode, service: &Service, port: &Port) -> Vec<u16> {
    let entry = snapshot
        .endpoints()
        .workload(&NamespacedName { namespace: proxy.namespace.clone(), name: proxy.name.clone() })
        .is_none();
    let name = match &port.target {
        // A WorkloadEntry may say that the port is another one there.
        Target::Number(number) if !service.selector.is_empty() => {
            let own = if entry { own_ports(snapshot, proxy, service, port) } else { Vec::new() };
            return if own.is_empty() { vec![*number] } else { own };
        }
        Target::Number(_) => None,
        Target::Name(name) => Some(name),
    };
    if let Some(number) = name.and_then(|n| snapshot.workload_of(proxy)?.ports.get(n)) {
        return vec![*number];
    }
    own_ports(snapshot, proxy, service, port)
}

/// The workload's ports behind a service port, as its endpoints have them.
fn own_ports(snapshot: &Snapshot, proxy: &ProxyNode, service: &Service, port: &Port) -> Vec<u16> {
    let endpoints = snapshot.endpoints().of(&service.id, &port.slot).iter();
    let mut own: Vec<u16> = endpoints.filter(|e| is_own(proxy, e)).map(|e| e.address.port()).collect();
    own.sort_unstable();
    own.dedup();
    own
}

fn is_own(proxy: &ProxyNode, endpoint: &Endpoint) -> bool {
    endpoint.address.ip().is_some_and(|ip| proxy.ips.contains(&ip))
}

fn cluster(
    snapshot: &Snapshot,
    proxy: &ProxyNode,
    service: &Service,
    port: &Port,
    target: u16,
    sidecar: Option<&Arc<SidecarConfig>>,
) -> InboundCluster {
    let settings = snapshot.settings();
    // Rules with a workload selector are for clients only, so none is selected here.
    let client = rules::Client { namespace: proxy.namespace.clone(), selected: Vec::new() };
    let rule = snapshot.rules().lookup(&client, service.namespace(), &service.hostname);
    let by_rule = || rule.and_then(|rule| rules::effective(rule, "", port.number).connection_pool);
    let pool = sidecar.and_then(|s| s.inbound_pool.clone()).or_else(by_rule);
    InboundCluster {
        name: names::inbound_cluster(target),
        port: target,
        to: if settings.inbound_localhost { InboundTarget::Loopback(target) } else { InboundTarget::AsSent },
        class: class_of(port),
        connect_timeout: pool.as_ref().and_then(|p| p.connect_timeout).unwrap_or(settings.connect_timeout),
        pool,
        v6: proxy.ips.first().is_some_and(|ip| ip.is_ipv6()),
        service: service.hostname.clone(),
        service_name: service.origin.name.clone(),
    }
}
