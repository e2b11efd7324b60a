//! The server side (semantics §2): ports of the services a workload stands behind, with the mode each is in.
//!
//! Invariant: one entry per workload port; of several services the oldest gives protocol and name.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::protocol::Class;
use carrick_base::Labels;

use crate::{
    model::{Port, Resolution, Service, endpoint::carries_all, service::Target},
    names,
    parts::{Inbound, InboundCluster, InboundPort, PassthroughPort, PortClass, ServerTls, inbound::Families},
    peer_auth::PeerAuthIndex,
    proxy::ProxyNode,
    rules, security,
    snapshot::Snapshot,
};

pub(super) fn derive(snapshot: &Snapshot, proxy: &ProxyNode, labels: &Labels) -> Inbound {
    let settings = snapshot.settings();
    let effective = snapshot.peer_auth().effective(&proxy.namespace, labels);
    let families = Families::of(&proxy.ips);
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for service in services_of(snapshot, proxy, labels) {
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
                        cluster: cluster(snapshot, proxy, &service, port, target),
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
        settings: settings.listener.clone(),
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
        security: security::of_workload(snapshot, &proxy.namespace, labels),
    }
}

/// What a declared protocol means for chains.
pub(super) fn class_of(port: &Port) -> PortClass {
    match port.protocol.class() {
        Class::Auto => PortClass::Auto,
        Class::Http => PortClass::Http { h2: port.protocol.is_http2() },
        Class::Tcp | Class::Udp => PortClass::Tcp,
    }
}

/// Services the workload stands behind, oldest first: by their selectors, or by address where no pod is known.
fn services_of(snapshot: &Snapshot, proxy: &ProxyNode, labels: &Labels) -> Vec<Arc<Service>> {
    let known = !labels.is_empty();
    let stands_behind = |service: &&Arc<Service>| {
        if matches!(service.resolution, Resolution::ExternalName(_)) {
            return false;
        }
        if known && !service.selector.is_empty() {
            return carries_all(labels, &service.selector);
        }
        snapshot.endpoints().of_service(&service.origin.name).any(|(_, e)| proxy.ips.contains(&e.ip))
    };
    snapshot.services_in(&proxy.namespace).iter().filter(stands_behind).cloned().collect()
}

/// The workload's ports behind a service port: a number, the pod's port of that name, or what endpoints say.
fn targets(snapshot: &Snapshot, proxy: &ProxyNode, service: &Service, port: &Port) -> Vec<u16> {
    let name = match &port.target {
        Target::Number(number) if !service.selector.is_empty() => return vec![*number],
        Target::Number(_) => None,
        Target::Name(name) => Some(name),
    };
    if let Some(number) = name.and_then(|n| snapshot.workload_of(proxy)?.ports.get(n)) {
        return vec![*number];
    }
    let endpoints = snapshot.endpoints().of(&service.origin.name, &port.name).iter();
    let mut own: Vec<u16> = endpoints.filter(|e| proxy.ips.contains(&e.ip)).map(|e| e.port).collect();
    own.sort_unstable();
    own.dedup();
    own
}

fn cluster(snapshot: &Snapshot, proxy: &ProxyNode, service: &Service, port: &Port, target: u16) -> InboundCluster {
    let settings = snapshot.settings();
    // Rules with a workload selector are for clients only, so none is selected here.
    let client = rules::Client { namespace: proxy.namespace.clone(), selected: Vec::new() };
    let rule = snapshot.rules().lookup(&client, service.namespace(), &service.hostname);
    let pool = rule.and_then(|rule| rules::effective(rule, "", port.number).connection_pool);
    InboundCluster {
        name: names::inbound_cluster(target),
        port: target,
        localhost: settings.inbound_localhost,
        class: class_of(port),
        connect_timeout: pool.as_ref().and_then(|p| p.connect_timeout).unwrap_or(settings.connect_timeout),
        pool,
        v6: proxy.ips.first().is_some_and(|ip| ip.is_ipv6()),
        service: service.hostname.clone(),
        service_name: service.origin.name.clone(),
    }
}
