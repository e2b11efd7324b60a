//! Which host names lead to which cluster (semantics §7.6–§7.8).
//!
//! Invariant: a domain occurs once in a table; the oldest service keeps a contested one, and a host left without domains is left out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use carrick_base::Hostname;

use super::{Scope, outbound::VisiblePort};
use crate::{
    model::{Resolution, Service},
    parts::{PortClass, Route, RouteTable, VirtualHost},
    snapshot::Snapshot,
};

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
    ports: &[VisiblePort<'_>],
    aliases: &HashMap<Hostname, Vec<Arc<Service>>>,
) -> Vec<Arc<RouteTable>> {
    let allow_any = snapshot.settings().allow_any;
    let domain = &snapshot.settings().domain_suffix;
    // A port has a table if something declared HTTP listens on it; undeclared ports are in it too, for requests by name.
    let http = |p: &&VisiblePort<'_>| matches!(p.class, PortClass::Http { .. });
    let mut tables: BTreeMap<u16, Filling> =
        ports.iter().filter(http).map(|p| (p.port.number, Filling::default())).collect();
    let mut out = Vec::new();
    for visible in ports.iter().filter(|p| p.class != PortClass::Tcp) {
        let number = visible.port.number;
        if visible.class == PortClass::Auto {
            let host = virtual_host(visible, vec!["*".into()]);
            let name = sniffed_table(&visible.service.hostname, number);
            out.push(Arc::new(RouteTable { name, hosts: vec![Arc::new(host)], rest: None }));
        }
        let Some(table) = tables.get_mut(&number) else { continue };
        let mut domains = domains(visible.service, &scope.client.namespace, domain);
        for alias in aliases.get(&visible.service.hostname).into_iter().flatten() {
            domains.extend(names(alias, &scope.client.namespace, domain));
        }
        domains.retain(|d| table.taken.insert(d.clone()));
        if !domains.is_empty() {
            table.hosts.push(Arc::new(virtual_host(visible, domains)));
        }
    }
    out.extend(tables.into_iter().map(|(number, Filling { mut hosts, .. })| {
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        Arc::new(RouteTable { name: port_table(number), hosts, rest: Some(allow_any) })
    }));
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

fn virtual_host(visible: &VisiblePort<'_>, domains: Vec<Arc<str>>) -> VirtualHost {
    let name: Arc<str> = format!("{}:{}", visible.service.hostname, visible.port.number).into();
    let route = Route {
        name: "default".into(),
        cluster: visible.cluster.clone(),
        operation: format!("{name}/*").into(),
        alpn: visible.alpn,
        hash: visible.hash.clone(),
    };
    VirtualHost { name, domains, routes: vec![route] }
}

/// All domains of a service: its names, then its addresses.
fn domains(service: &Service, namespace: &str, domain: &str) -> Vec<Arc<str>> {
    let mut out = names(service, namespace, domain);
    if service.resolution == Resolution::Headless {
        out.push(format!("*.{}", service.hostname).into());
    }
    let address = |ip: &std::net::IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    out.extend(service.vips.iter().map(|ip| Arc::from(address(ip))));
    out
}

/// The full name, and the short forms that a pod of this namespace resolves.
fn names(service: &Service, namespace: &str, domain: &str) -> Vec<Arc<str>> {
    let (name, own) = (service.short_name(), service.namespace());
    let mut out: Vec<Arc<str>> = vec![service.hostname.as_str().into()];
    if service.hostname != Hostname::service(name, own, domain) {
        return out;
    }
    if **own == *namespace {
        out.push(name.clone());
    }
    out.push(format!("{name}.{own}").into());
    out.push(format!("{name}.{own}.svc").into());
    out
}
