//! Which host names lead to which cluster (semantics §7.6–§7.8).
//!
//! Invariant: a domain occurs once in a table; the oldest service keeps a contested one, and a host left without domains is left out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use carrick_base::{HostPattern, Hostname};

use super::{
    Scope,
    http::{self, Place, Reach},
    listeners,
    outbound::{VisiblePort, VisiblePorts},
};
use crate::{
    model::{
        Resolution, Service,
        sidecar::{Egress, EgressBind},
        virtual_service::{GatewayRef, RetryRule, VirtualService},
    },
    names,
    parts::{
        PortClass, Rest, Route, RouteTable, VirtualHost,
        route::{Action, Condition, Forward, HeaderChanges},
    },
    snapshot::Snapshot,
    virtual_services::HostIndex,
};

/// The port in whose table hosts that no registry knows have their rules (§10.10).
const UNKNOWN_HOSTS_PORT: u16 = 80;

/// The VirtualServices of a client in the mesh, and what they lead to.
pub(super) struct Rules<'a> {
    pub reach: &'a Reach,
    pub hosts: &'a HostIndex<'a>,
}

impl Rules<'_> {
    /// A listener of the mesh.
    pub fn mesh<'a>(&'a self, scope: &'a Scope, port: u16) -> Place<'a> {
        Place {
            port,
            gateway: &GatewayRef::Mesh,
            namespace: &scope.client.namespace,
            labels: &scope.labels,
            reach: self.reach,
        }
    }

    /// Those of a host on a port, if it has any.
    fn of(&self, host: &Hostname, scope: &Scope, port: u16) -> Option<Vec<Route>> {
        self.routes(self.hosts.of(host)?, scope, port)
    }

    fn routes(&self, service: &VirtualService, scope: &Scope, port: u16) -> Option<Vec<Route>> {
        Some(http::routes(service, &self.mesh(scope, port))).filter(|routes| !routes.is_empty())
    }
}

/// How long a chain of external names may be.
const MAX_ALIAS_DEPTH: usize = 10;

/// The table of all HTTP on a port.
pub(super) fn port_table(port: u16) -> Arc<str> {
    port.to_string().into()
}

/// The table of HTTP found on a service's undeclared port.
pub(super) fn sniffed_table(host: &Hostname, port: u16) -> Arc<str> {
    format!("{host}:{port}").into()
}

/// The table of a Sidecar's own port.
pub(super) fn egress_table(egress: &Egress) -> Arc<str> {
    match (&egress.bind, &egress.port) {
        (Some(EgressBind::Unix(path)), _) => path.clone(),
        (_, Some(port)) => port_table(port.number),
        (_, None) => port_table(0),
    }
}

/// ExternalName services a namespace sees, by the service they stand for, oldest first.
pub(super) fn aliases(snapshot: &Snapshot, namespace: &str) -> HashMap<Hostname, Vec<Arc<Service>>> {
    let mut out: HashMap<Hostname, Vec<Arc<Service>>> = HashMap::new();
    for alias in snapshot.services().iter().filter(|s| s.export_to.allows(namespace)) {
        let mut at = alias;
        for _ in 0..MAX_ALIAS_DEPTH {
            let Resolution::ExternalName(target) = &at.resolution else { break };
            let Some(next) = snapshot.service(target) else { break };
            at = next;
        }
        let is_alias = matches!(alias.resolution, Resolution::ExternalName(_));
        if is_alias && !matches!(at.resolution, Resolution::ExternalName(_)) {
            out.entry(at.hostname.clone()).or_default().push(alias.clone());
        }
    }
    out
}

/// A port's table as it is filled.
#[derive(Debug, Default)]
struct Filling {
    /// Domains that a virtual host has.
    taken: HashSet<Arc<str>>,
    hosts: Vec<Arc<VirtualHost>>,
}

pub(super) fn derive(
    snapshot: &Snapshot,
    scope: &Scope,
    parts: &[VisiblePorts<'_>],
    aliases: &HashMap<Hostname, Vec<Arc<Service>>>,
    rest: &Arc<str>,
    reach: &Reach,
) -> Vec<Arc<RouteTable>> {
    let rest = if **rest == *names::BLACK_HOLE { Rest::Refuse } else { Rest::Forward(rest.clone()) };
    let own_ports: HashSet<u16> =
        parts.iter().filter_map(|p| p.egress?.port.as_ref()).map(|p| p.number).filter(|n| *n > 0).collect();
    let mut out = Vec::new();
    for part in parts {
        let rules = &Rules { reach, hosts: &part.rules };
        let Some(egress) = part.egress.filter(|e| e.port.is_some()) else {
            let ports: Vec<_> = part.ports.iter().filter(|v| !own_ports.contains(&v.port.number)).collect();
            out.extend(of_ports(snapshot, scope, &ports, aliases, &rest, None, rules));
            continue;
        };
        let ports: Vec<_> = part.ports.iter().collect();
        let table = egress.port.as_ref().is_some_and(|p| p.protocol.is_http()).then(|| egress_table(egress));
        out.extend(of_ports(snapshot, scope, &ports, aliases, &rest, table, rules));
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out.dedup_by(|a, b| a.name == b.name);
    out
}

/// The tables of some ports; of one listener if `only` is its table's name.
fn of_ports(
    snapshot: &Snapshot,
    scope: &Scope,
    ports: &[&VisiblePort<'_>],
    aliases: &HashMap<Hostname, Vec<Arc<Service>>>,
    rest: &Rest,
    only: Option<Arc<str>>,
    rules: &Rules<'_>,
) -> Vec<Arc<RouteTable>> {
    let domain = &snapshot.settings().domain_suffix;
    // A port has a table if something declared HTTP listens on it; undeclared ports are in it too, for requests by name.
    let http = |p: &&&VisiblePort<'_>| matches!(p.class, PortClass::Http { .. });
    let table_of = |number: u16| only.clone().unwrap_or_else(|| port_table(number));
    let mut tables: BTreeMap<Arc<str>, Filling> =
        ports.iter().filter(http).map(|p| (table_of(p.port.number), Filling::default())).collect();
    if let Some(own) = &only {
        tables.entry(own.clone()).or_default();
    }
    let mut out = Vec::new();
    for visible in ports.iter().filter(|p| p.class != PortClass::Tcp) {
        let number = visible.port.number;
        if visible.class == PortClass::Auto && only.is_none() {
            let own = rules.of(&visible.service.hostname, scope, number);
            let host = virtual_host(visible, vec!["*".into()], own, rules.reach);
            let name = sniffed_table(&visible.service.hostname, number);
            out.push(Arc::new(RouteTable { name, hosts: vec![Arc::new(host)], rest: None }));
        }
        let Some(table) = tables.get_mut(&table_of(number)) else { continue };
        let mut domains = domains(visible.service, scope, domain);
        for alias in aliases.get(&visible.service.hostname).into_iter().flatten() {
            domains.extend(names(alias, &scope.client.namespace, domain));
        }
        domains.retain(|d| table.taken.insert(d.clone()));
        if !domains.is_empty() {
            let own = rules.of(&visible.service.hostname, scope, number);
            table.hosts.push(Arc::new(virtual_host(visible, domains, own, rules.reach)));
        }
    }
    if let Some(table) = tables.get_mut(&port_table(UNKNOWN_HOSTS_PORT)) {
        unknown_hosts(table, scope, rules);
    }
    out.extend(tables.into_iter().map(|(name, Filling { mut hosts, .. })| {
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        Arc::new(RouteTable { name, hosts, rest: Some(rest.clone()) })
    }));
    out
}

/// Virtual hosts of what VirtualServices name and no service is called.
fn unknown_hosts(table: &mut Filling, scope: &Scope, rules: &Rules<'_>) {
    for service in &rules.hosts.all {
        for host in &service.hosts {
            let domain: Arc<str> = host.to_string().into();
            // A wildcard's services have virtual hosts of their own.
            if *host == HostPattern::Any || rules.reach.knows(host) || table.taken.contains(&domain) {
                continue;
            }
            let Some(routes) = rules.routes(service, scope, UNKNOWN_HOSTS_PORT) else { continue };
            table.taken.insert(domain.clone());
            let name = format!("{domain}:{UNKNOWN_HOSTS_PORT}").into();
            table.hosts.push(Arc::new(VirtualHost { name, domains: vec![domain], routes, require_tls: false }));
        }
    }
}

fn virtual_host(
    visible: &VisiblePort<'_>,
    domains: Vec<Arc<str>>,
    own: Option<Vec<Route>>,
    reach: &Reach,
) -> VirtualHost {
    let name: Arc<str> = format!("{}:{}", visible.service.hostname, visible.port.number).into();
    let default = || Route {
        name: "default".into(),
        condition: Condition::default(),
        action: Action::Forward(Forward {
            retries: reach.retries(&RetryRule::Default, visible.hash.is_some()),
            ..Forward::to(visible.cluster.clone(), visible.alpn, visible.hash.clone())
        }),
        operation: format!("{name}/*").into(),
        headers: HeaderChanges::default(),
        fault: None,
        cors: None,
        stat_prefix: "".into(),
        source: None,
    };
    VirtualHost { routes: own.unwrap_or_else(|| vec![default()]), name, domains, require_tls: false }
}

/// All domains of a service: its names, then its addresses.
fn domains(service: &Service, scope: &Scope, domain: &str) -> Vec<Arc<str>> {
    let mut out = names(service, &scope.client.namespace, domain);
    if service.resolution == Resolution::Headless {
        out.push(format!("*.{}", service.hostname).into());
    }
    let address = |ip: &std::net::IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    out.extend(listeners::addresses(service, scope.dns_capture).iter().map(|ip| Arc::from(address(ip))));
    out
}

/// The full name, and the short forms that a pod of this namespace resolves.
fn names(service: &Service, namespace: &str, domain: &str) -> Vec<Arc<str>> {
    let host = service.hostname.as_str();
    let mut out: Vec<Arc<str>> = vec![host.into()];
    // A ServiceEntry may well be named like a service of the cluster.
    let inside = host.strip_suffix(domain).and_then(|h| h.strip_suffix(".svc.")).and_then(|h| h.split_once('.'));
    let Some((name, own)) = inside.filter(|(name, own)| !own.contains('.') && *name != "*") else { return out };
    if *own == *namespace {
        out.push(name.into());
    }
    out.push(format!("{name}.{own}").into());
    out.push(format!("{name}.{own}.svc").into());
    out
}
