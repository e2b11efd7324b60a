//! A gateway: listeners by the servers of its Gateways, routes by the VirtualServices bound to them (semantics §9).
//!
//! Invariant: a server's hosts bound what VirtualServices may answer there; a chain whose destination nobody says is not there, and a host
//! without rules answers 404.

use std::{collections::BTreeMap, sync::Arc};

use carrick_base::{HostPattern, Labels, NamespacedName};

use super::{
    Scope,
    connections::{self, Taken},
    http::{self, Place, Reach},
    inbound::{BehindMemo, services_of, targets},
    listener_settings,
    loads::LoadKey,
};
use crate::{
    gateways::{self, Merged, Served},
    model::{
        gateway::{GatewayServer, ServerPayload, ServerSecurity},
        virtual_service::{GatewayRef, VirtualService},
    },
    names,
    parts::{
        ClientSocket, Cluster, Gateway, GatewayListener, Route, RouteTable, TcpForward, VirtualHost,
        cluster::PlainReason,
        gateway::{GatewayChain, GatewayPayload},
    },
    proxy::ProxyNode,
    security::Security,
    snapshot::Snapshot,
};

/// Ports below this one need a privilege.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// What a gateway is made of.
#[derive(Debug, Default)]
pub(super) struct Derived {
    pub gateway: Gateway,
    pub routes: Vec<Arc<RouteTable>>,
    /// Clusters that only AUTO_PASSTHROUGH leads to, with their endpoints.
    pub clusters: Vec<Arc<Cluster>>,
    pub keys: Vec<Arc<LoadKey>>,
}

/// Everything that is asked on the way.
struct Asked<'a> {
    snapshot: &'a Snapshot,
    scope: &'a Scope,
    proxy: &'a ProxyNode,
    reach: Reach,
    clusters: &'a [Arc<Cluster>],
    keys: &'a [Arc<LoadKey>],
    security: Arc<Security>,
}

pub(super) fn derive(
    snapshot: &Snapshot,
    scope: &Scope,
    proxy: &ProxyNode,
    labels: &Labels,
    clusters: &[Arc<Cluster>],
    keys: &[Arc<LoadKey>],
    behind: &mut BehindMemo,
) -> Derived {
    let gateways = snapshot.gateways().of(&proxy.namespace, labels);
    let services = services_of(snapshot, proxy, labels, behind);
    let ports = |server: &GatewayServer| {
        let mut all: Vec<u16> = services
            .iter()
            .flat_map(|s| s.ports.iter().filter(|p| p.number == server.port).map(move |p| (s, p)))
            .flat_map(|(service, port)| targets(snapshot, proxy, service, port))
            .collect();
        if all.is_empty() {
            all.push(server.port);
        }
        all.sort_unstable();
        all.dedup();
        all.retain(|port| !proxy.unprivileged || *port >= FIRST_UNPRIVILEGED);
        all
    };
    let (merged, _) = gateways::merge(&gateways, ports);
    let security = snapshot.security_of(&proxy.namespace, labels);
    let asked = Asked {
        snapshot,
        scope,
        proxy,
        reach: Reach::of(clusters, &snapshot.settings().default_retries),
        clusters,
        keys,
        security,
    };
    let (mut out, mut tables) = (Derived::default(), BTreeMap::new());
    for ((bind, port), merged) in &merged {
        let mut chains = Vec::new();
        match merged {
            Merged::Http(servers) => {
                let Some(first) = servers.first() else { continue };
                let routes = first.table(*port);
                tables.entry(routes.clone()).or_insert_with(|| asked.table(routes.clone(), servers));
                chains.push(chain(GatewayPayload::Http { routes }));
            }
            Merged::Tcp(served) => {
                chains.extend(asked.tcp(served).map(|to| chain(GatewayPayload::Tcp { to, judged: true })));
            }
            Merged::Tls(servers) => {
                let mut taken = Taken::default();
                for served in servers {
                    asked.tls(served, *port, servers, &mut taken, &mut chains, &mut tables, &mut out);
                }
            }
        }
        if !chains.is_empty() {
            out.gateway.listeners.push(Arc::new(asked.listener(bind, *port, chains)));
        }
    }
    out.gateway.listeners.sort_by(|a, b| a.name.cmp(&b.name));
    out.routes = tables.into_values().map(Arc::new).collect();
    out
}

fn chain(payload: GatewayPayload) -> GatewayChain {
    GatewayChain { server_names: Vec::new(), networks: Vec::new(), tls: None, payload }
}

impl Asked<'_> {
    fn listener(&self, bind: &str, port: u16, chains: Vec<GatewayChain>) -> GatewayListener {
        let address: Arc<str> = match (bind.is_empty(), self.scope.families.v4) {
            (false, _) => bind.into(),
            (true, true) => "0.0.0.0".into(),
            (true, false) => "::".into(),
        };
        let name = if address.contains(':') { format!("[{address}]_{port}") } else { format!("{address}_{port}") };
        GatewayListener {
            name: name.into(),
            address,
            port,
            settings: listener_settings(self.snapshot, &self.scope.telemetry, self.clusters),
            topology: self.proxy.topology.clone().unwrap_or_else(|| self.snapshot.settings().topology.clone()),
            security: self.security.clone(),
            chains,
        }
    }

    fn place<'a>(&'a self, gateway: &'a GatewayRef, port: u16) -> Place<'a> {
        let namespace = &self.scope.client.namespace;
        Place { port, gateway, namespace, labels: &self.scope.labels, reach: &self.reach }
    }

    /// VirtualServices of a Gateway that this proxy may use, oldest first.
    fn rules(&self, gateway: &GatewayRef) -> impl Iterator<Item = &Arc<VirtualService>> {
        let namespace = self.scope.client.namespace.clone();
        self.snapshot.virtual_services().at(gateway).iter().filter(move |v| v.export_to.allows(&namespace))
    }

    fn tcp(&self, served: &Served) -> Option<TcpForward> {
        let server = served.server()?;
        let gateway = reference(&served.gateway.origin.name);
        let place = self.place(&gateway, server.port);
        let matching = self.rules(&gateway).filter(|v| !common(server, v).is_empty());
        matching.filter_map(|v| connections::first_tcp(v, &place)).next()
    }

    #[allow(clippy::too_many_arguments)]
    fn tls(
        &self,
        served: &Served,
        port: u16,
        all: &[Served],
        taken: &mut Taken,
        chains: &mut Vec<GatewayChain>,
        tables: &mut BTreeMap<Arc<str>, RouteTable>,
        out: &mut Derived,
    ) {
        let Some(server) = served.server() else { return };
        let gateway = reference(&served.gateway.origin.name);
        match &server.security {
            ServerSecurity::Plain { .. } => {}
            ServerSecurity::Terminate(tls) => {
                let payload = match server.payload {
                    ServerPayload::Http => {
                        let routes = served.table(port);
                        let servers = std::slice::from_ref(served);
                        tables.entry(routes.clone()).or_insert_with(|| {
                            let table = self.table(routes.clone(), servers);
                            misdirected(table, server, all.iter().filter(|other| !other.is(served)))
                        });
                        Some(GatewayPayload::Http { routes })
                    }
                    ServerPayload::Tcp => self.tcp(served).map(|to| GatewayPayload::Tcp { to, judged: true }),
                };
                let hosts: Vec<String> = server.hosts.iter().map(|(_, host)| host.to_string()).collect();
                let names = taken.take(names::server_names(hosts.iter().map(String::as_str)), &[]);
                if let (Some(payload), Some(server_names)) = (payload, names) {
                    chains.push(GatewayChain { server_names, tls: Some((**tls).clone()), ..chain(payload) });
                }
            }
            ServerSecurity::Passthrough => {
                let place = self.place(&gateway, server.port);
                for rule in self.rules(&gateway).filter(|v| !common(server, v).is_empty()) {
                    chains.extend(connections::tls(rule, &place, taken).into_iter().map(|route| GatewayChain {
                        server_names: route.server_names,
                        networks: route.prefixes,
                        ..chain(GatewayPayload::Tcp { to: route.forward, judged: true })
                    }));
                }
            }
            ServerSecurity::AutoPassthrough => self.auto(server, taken, chains, out),
        }
    }

    /// A chain for each service, port and subset that mesh TLS reaches (§9.5).
    fn auto(&self, server: &GatewayServer, taken: &mut Taken, chains: &mut Vec<GatewayChain>, out: &mut Derived) {
        for cluster in self.clusters {
            let meant = server.hosts.iter().any(|(only, host)| {
                only.as_ref().is_none_or(|n| *n == cluster.service.namespace) && host.matches(&cluster.hostname)
            });
            let external =
                matches!(cluster.socket, ClientSocket::Plain(PlainReason::External) | ClientSocket::Refused(_));
            let key = self.keys.iter().find(|k| k.cluster == cluster.name);
            let (true, false, Some(key)) = (meant, external, key) else { continue };
            let name = names::server_name(cluster.port, &cluster.subset, &cluster.hostname);
            let Some(server_names) = taken.take(vec![name.clone()], &[]) else { continue };
            let payload = GatewayPayload::Tcp { to: self.reach.forward(vec![(name.clone(), 1)]), judged: false };
            chains.push(GatewayChain { server_names, ..chain(payload) });
            if out.clusters.iter().any(|c| c.name == name) {
                continue;
            }
            out.keys.push(Arc::new(LoadKey { cluster: name.clone(), mtls_only: true, ..(**key).clone() }));
            let socket = ClientSocket::Plain(PlainReason::Passthrough);
            out.clusters.push(Arc::new(Cluster { name, socket, ..(**cluster).clone() }));
        }
    }

    /// The route table that servers share.
    fn table(&self, name: Arc<str>, servers: &[Served]) -> RouteTable {
        let mut hosts: BTreeMap<String, VirtualHost> = BTreeMap::new();
        let port = servers.first().and_then(Served::server).map_or(0, |s| s.port);
        let host = |domain: &str| VirtualHost {
            name: format!("{domain}:{port}").into(),
            domains: vec![domain.into()],
            routes: Vec::new(),
            require_tls: false,
        };
        for served in servers {
            let Some(server) = served.server() else { continue };
            let redirect = server.security == ServerSecurity::Plain { https_redirect: true };
            let gateway = reference(&served.gateway.origin.name);
            let place = self.place(&gateway, server.port);
            for rule in self.rules(&gateway) {
                let common = common(server, rule);
                if common.is_empty() {
                    continue;
                }
                let routes = http::routes(rule, &place);
                if routes.is_empty() {
                    continue;
                }
                for domain in common.iter().map(ToString::to_string) {
                    let entry = hosts.entry(domain).or_insert_with_key(|domain| host(domain));
                    // Two servers of one Gateway may have the same host in plaintext; its rules are there already.
                    if !entry.routes.iter().any(|r| r.source.as_ref() == Some(&rule.origin.name)) {
                        entry.routes.extend(routes.iter().cloned());
                    }
                    entry.require_tls |= redirect;
                }
            }
            for (_, own) in server.hosts.iter().filter(|_| redirect) {
                let entry = hosts.entry(own.to_string()).or_insert_with_key(|domain| host(domain));
                entry.require_tls = true;
            }
        }
        if hosts.is_empty() {
            hosts.insert("*".to_owned(), VirtualHost { name: format!("blackhole:{port}").into(), ..host("*") });
        }
        let hosts = hosts.into_values().map(|mut host| {
            // Rules for everything come last, whichever VirtualService they are of.
            host.routes.sort_by_key(|route: &Route| route.condition.is_any());
            Arc::new(host)
        });
        RouteTable { name, hosts: hosts.collect(), rest: None }
    }
}

/// Sends requests away that came on a connection for another server's name (HTTP/2 connections are shared by all names of a certificate):
/// what another TLS server of the port says of its hosts, above all about client certificates, would not hold here (RFC 9110 §15.5.20).
fn misdirected<'a>(
    mut table: RouteTable,
    server: &GatewayServer,
    others: impl Iterator<Item = &'a Served>,
) -> RouteTable {
    let own: Vec<&HostPattern> = server.hosts.iter().map(|(_, host)| host).collect();
    let foreign: Vec<&HostPattern> = others
        .filter_map(Served::server)
        .filter(|other| !matches!(other.security, ServerSecurity::AutoPassthrough))
        .flat_map(|other| other.hosts.iter().map(|(_, host)| host))
        .filter(|host| !own.contains(host))
        .collect();
    let sent_away = |domain: &str| VirtualHost {
        name: format!("misdirected:{domain}").into(),
        domains: vec![domain.into()],
        routes: vec![Route::direct(421)],
        require_tls: false,
    };
    // The more specific server has a name: what is bound to its hosts here is asked for there.
    let theirs = |domain: &str| {
        let domain = HostPattern::new(domain);
        foreign.iter().any(|host| host.covers(&domain) && own.iter().all(|own| !host.covers(own)))
    };
    let mut seen: Vec<Arc<str>> = Vec::new();
    for host in &mut table.hosts {
        let Some(domain) = host.domains.first().cloned() else { continue };
        if theirs(&domain) {
            *host = Arc::new(sent_away(&domain));
        }
        seen.push(domain);
    }
    for host in foreign {
        let domain: Arc<str> = host.to_string().into();
        if !seen.contains(&domain) {
            table.hosts.push(Arc::new(sent_away(&domain)));
            seen.push(domain);
        }
    }
    table
}

fn reference(name: &NamespacedName) -> GatewayRef {
    GatewayRef::Named(name.clone())
}

/// Hosts that a server and a VirtualService have in common, the more specific of each two (§9.10).
fn common(server: &GatewayServer, rule: &VirtualService) -> Vec<HostPattern> {
    let mut out: Vec<HostPattern> = Vec::new();
    for own in server.hosts_for(rule.origin.namespace()) {
        for theirs in &rule.hosts {
            let both = if own.covers(theirs) {
                theirs
            } else if theirs.covers(own) {
                own
            } else {
                continue;
            };
            if !out.contains(both) {
                out.push(both.clone());
            }
        }
    }
    out
}
