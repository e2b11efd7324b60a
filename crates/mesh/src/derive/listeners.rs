//! Which original destinations a sidecar listens for (semantics §7.2–§7.4, §8.3).
//!
//! Invariant: one listener for an address and port; the oldest service keeps what is contested in it. What a listener of a Sidecar's own
//! port holds, the others leave alone.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use carrick_api::Protocol;

use super::{
    Scope, connections,
    http::Reach,
    outbound::{VisiblePort, VisiblePorts},
    routes,
};
use crate::{
    model::{
        Registry, Resolution, Service,
        sidecar::{Egress, EgressBind},
    },
    parts::{Bind, ListenerSettings, OutboundListener, PortClass, TcpChain, TcpForward, cluster::NameLookup},
    proxy::{Interception, ProxyNode},
    snapshot::Snapshot,
};

/// A listener as it is filled.
#[derive(Debug, Default)]
struct Filling {
    bound: bool,
    http: Option<Arc<str>>,
    chains: Vec<TcpChain>,
    tcp: Option<TcpForward>,
    /// What is here speaks first, so that nothing may wait for the client's first bytes.
    server_first: bool,
    dynamic: Option<NameLookup>,
}

impl Filling {
    fn is_empty(&self) -> bool {
        self.http.is_none() && self.chains.is_empty() && self.tcp.is_none()
    }
}

#[derive(Debug, Default)]
struct Listeners(BTreeMap<(u16, Bind), Filling>);

impl Listeners {
    fn http(&mut self, at: (Bind, u16), bound: bool, routes: Arc<str>, dynamic: Option<NameLookup>) {
        let filling = self.at(at, bound);
        if !filling.server_first {
            filling.http.get_or_insert(routes);
            filling.dynamic = filling.dynamic.or(dynamic);
        }
    }

    /// Takes connections that nothing else in the listener takes.
    fn tcp(&mut self, at: (Bind, u16), bound: bool, forward: TcpForward, server_first: bool) {
        let filling = self.at(at, bound);
        if filling.tcp.is_some() || (server_first && !filling.is_empty()) || filling.server_first {
            return;
        }
        filling.server_first = server_first;
        filling.tcp = Some(forward);
    }

    fn chain(&mut self, at: (Bind, u16), bound: bool, chain: TcpChain) {
        let filling = self.at(at, bound);
        let taken = |c: &TcpChain| {
            c.prefixes == chain.prefixes
                && (c.server_names == chain.server_names
                    || c.server_names.iter().any(|name| chain.server_names.contains(name)))
        };
        if !filling.chains.iter().any(taken) {
            filling.chains.push(chain);
        }
    }

    /// A route of a VirtualService: a chain of its own, or where all the rest goes.
    fn route(&mut self, at: (Bind, u16), bound: bool, chain: TcpChain, server_first: bool) {
        if chain.server_names.is_empty() && chain.prefixes.is_empty() {
            self.tcp(at, bound, chain.forward, server_first);
        } else {
            self.chain(at, bound, chain);
        }
    }

    fn at(&mut self, (bind, port): (Bind, u16), bound: bool) -> &mut Filling {
        self.0.entry((port, bind)).or_insert_with(|| Filling { bound, ..Filling::default() })
    }
}

pub(super) fn derive(
    snapshot: &Snapshot,
    scope: &Scope,
    parts: &[VisiblePorts<'_>],
    rest: &Arc<str>,
    reach: &Reach,
    settings: &ListenerSettings,
) -> Vec<Arc<OutboundListener>> {
    let mut listeners = Listeners::default();
    let own_ports: HashSet<u16> =
        parts.iter().filter_map(|p| p.egress?.port.as_ref()).map(|p| p.number).filter(|n| *n > 0).collect();
    for part in parts {
        let rules = &routes::Rules { reach, hosts: &part.rules };
        match part.egress.filter(|e| e.port.is_some()) {
            Some(egress) => of_one_port(&mut listeners, snapshot, scope, egress, &part.ports, rules),
            None => {
                let bound = scope.interception == Interception::None || part.egress.is_some_and(|e| !e.captured);
                let bind = part.egress.and_then(|e| e.bind.as_ref());
                for visible in part.ports.iter().filter(|v| !own_ports.contains(&v.port.number)) {
                    let number = visible.port.number;
                    of_service(&mut listeners, snapshot, scope, visible, number, (bind, bound), rules);
                }
            }
        }
    }
    let finish = |((port, bind), filling): ((u16, Bind), Filling)| {
        Arc::new(OutboundListener {
            name: bind.name(port),
            bind,
            port,
            bound: filling.bound,
            http: filling.http,
            chains: filling.chains,
            tcp: filling.tcp,
            rest: rest.clone(),
            settings: settings.clone(),
            dynamic: filling.dynamic,
        })
    };
    let mut out: Vec<_> = listeners.0.into_iter().map(finish).collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

fn dynamic(visible: &VisiblePort<'_>) -> Option<NameLookup> {
    visible.forward.dynamic.map(|(names, _)| names)
}

/// The listener of a Sidecar's own port.
fn of_one_port(
    listeners: &mut Listeners,
    snapshot: &Snapshot,
    scope: &Scope,
    egress: &Egress,
    ports: &[VisiblePort<'_>],
    rules: &routes::Rules<'_>,
) {
    let Some(own) = &egress.port else { return };
    let bound = scope.interception == Interception::None || !egress.captured;
    let routes = routes::egress_table(egress);
    if own.protocol.is_http() {
        for bind in binds(scope, egress.bind.as_ref(), bound) {
            listeners.http((bind, own.number), bound, routes.clone(), ports.iter().find_map(dynamic));
        }
        return;
    }
    for visible in ports {
        of_service(listeners, snapshot, scope, visible, own.number, (egress.bind.as_ref(), bound), rules);
    }
}

/// The listeners of one service port.
fn of_service(
    listeners: &mut Listeners,
    snapshot: &Snapshot,
    scope: &Scope,
    visible: &VisiblePort<'_>,
    number: u16,
    (bind, bound): (Option<&EgressBind>, bool),
    rules: &routes::Rules<'_>,
) {
    let service = visible.service;
    if let PortClass::Http { .. } = visible.class {
        for bind in binds(scope, bind, bound) {
            listeners.http((bind, number), bound, routes::port_table(number), dynamic(visible));
        }
        return;
    }
    let sniffed =
        (visible.class == PortClass::Auto).then(|| routes::sniffed_table(&service.hostname, visible.port.number));
    let server_first = matches!(visible.port.protocol, Protocol::Mongo | Protocol::MySql);
    // What a VirtualService says of connections comes first; it says nothing of ports whose first bytes decide.
    let rule = rules.hosts.of(&service.hostname).filter(|_| visible.class == PortClass::Tcp);
    let (own, complete) = rule.map_or_else(Default::default, |v| {
        connections::chains(v, visible.port.protocol.is_tls(), &rules.mesh(scope, visible.port.number))
    });
    let listen = |listeners: &mut Listeners, bind: Bind, port: u16| {
        let at = (bind, port);
        if listeners.at(at.clone(), bound).is_empty() {
            for chain in &own {
                listeners.route(at.clone(), bound, chain.clone(), server_first);
            }
            if complete {
                return;
            }
        }
        if listeners.at(at.clone(), bound).tcp.is_some() {
            return;
        }
        if let Some(routes) = &sniffed {
            listeners.http(at.clone(), bound, routes.clone(), dynamic(visible));
        }
        listeners.tcp(at, bound, visible.forward.clone(), server_first);
    };
    if bind.is_some() || bound {
        binds(scope, bind, bound).into_iter().for_each(|bind| listen(listeners, bind, number));
        return;
    }
    if service.resolution == Resolution::Headless {
        let facts = snapshot.facts_of(service).and_then(|f| f.ports.get(&visible.port.slot));
        for (ip, port) in facts.into_iter().flat_map(|f| &f.addresses).filter(|(ip, _)| !scope.own.contains(ip)) {
            listen(listeners, Bind::Ip(*ip), number);
            // Without a virtual address nothing translates ports, so clients that mean it use the pod's.
            listen(listeners, Bind::Ip(*ip), *port);
        }
        return;
    }
    let vips = addresses(service, scope.dns_capture);
    for ip in vips.iter().filter(|ip| has_family(scope, ip)) {
        listen(listeners, Bind::Ip(*ip), number);
    }
    let anywhere = service.registry == Registry::Entry && vips.is_empty();
    if !anywhere && service.prefixes.is_empty() {
        return;
    }
    // TLS tells by its server name which of several services is meant.
    let server_names = match visible.port.protocol {
        Protocol::Tls | Protocol::Https => vec![Arc::from(service.hostname.as_str())],
        _ => Vec::new(),
    };
    for v6 in families(scope) {
        let prefixes: Vec<_> = service.prefixes.iter().filter(|p| p.ip.is_ipv6() == v6).copied().collect();
        let bind = Bind::Any { v6 };
        if prefixes.is_empty() && !service.prefixes.is_empty() {
            continue;
        }
        if prefixes.is_empty() && server_names.is_empty() {
            listen(listeners, bind, number);
        } else {
            let chain = TcpChain { server_names: server_names.clone(), prefixes, forward: visible.forward.clone() };
            listeners.chain((bind, number), bound, chain);
        }
    }
}

/// Where something is listened for that has no address: where it says, else on the loopback address if for real, else everywhere.
fn binds(scope: &Scope, bind: Option<&EgressBind>, bound: bool) -> Vec<Bind> {
    match bind {
        Some(EgressBind::Ip(ip)) if ip.is_unspecified() => vec![Bind::Any { v6: ip.is_ipv6() }],
        Some(EgressBind::Ip(ip)) => vec![Bind::Ip(*ip)],
        Some(EgressBind::Unix(path)) => vec![Bind::Unix(path.clone())],
        None if bound && scope.families.v4 => vec![Bind::Ip(Ipv4Addr::LOCALHOST.into())],
        None if bound => vec![Bind::Ip(Ipv6Addr::LOCALHOST.into())],
        None => families(scope).map(|v6| Bind::Any { v6 }).collect(),
    }
}

/// A service's addresses: its own, else automatic ones where the proxy's pod resolves names by them.
pub(super) fn addresses(service: &Service, dns_capture: bool) -> &[IpAddr] {
    if service.vips.is_empty() && service.prefixes.is_empty() && dns_capture {
        &service.automatic
    } else {
        &service.vips
    }
}

fn families(scope: &Scope) -> impl Iterator<Item = bool> + use<> {
    let families = scope.families;
    [families.v4.then_some(false), families.v6.then_some(true)].into_iter().flatten()
}

fn has_family(scope: &Scope, ip: &IpAddr) -> bool {
    if ip.is_ipv6() { scope.families.v6 } else { scope.families.v4 }
}

/// Own addresses that a service without a virtual address lists. Only these make proxies of one namespace differ.
pub(super) fn own_headless(snapshot: &Snapshot, proxy: &ProxyNode) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = proxy.ips.clone();
    own.retain(|ip| snapshot.headless.contains(ip));
    own.sort();
    own
}
