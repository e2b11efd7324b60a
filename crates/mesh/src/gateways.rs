//! All Gateways: which a proxy carries, and which of their servers get along on one port (semantics §9.1, §9.4).
//!
//! Invariant: oldest first, and the older server keeps what two contest; plaintext HTTP shares a port with plaintext HTTP alone, TLS with
//! TLS of other server names.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use carrick_base::{Diagnostic, Labels, Severity};

use crate::{
    codes,
    model::{
        endpoint::carries_all,
        gateway::{GatewayRule, GatewayServer, ServerPayload, ServerSecurity},
    },
    read::finding,
};

/// All Gateways, oldest first.
#[derive(Debug, Default)]
pub struct GatewayIndex {
    all: Vec<Arc<GatewayRule>>,
}

/// A server and the Gateway it is of.
#[derive(Debug, Clone)]
pub struct Served {
    /// The Gateway.
    pub gateway: Arc<GatewayRule>,
    /// Its server's place.
    pub at: usize,
}

impl Served {
    /// The server.
    pub fn server(&self) -> Option<&GatewayServer> {
        self.gateway.servers.get(self.at)
    }

    /// Whether this is that server.
    pub fn is(&self, other: &Served) -> bool {
        self.at == other.at && self.gateway.origin.name == other.gateway.origin.name
    }

    /// The route table of an HTTP server that listens on `port` (§9.9).
    pub fn table(&self, port: u16) -> Arc<str> {
        let Some(server) = self.server() else { return "".into() };
        let bind = if server.bind.is_empty() { String::new() } else { format!(".{}", server.bind) };
        if !server.is_tls() {
            return format!("http.{port}{bind}").into();
        }
        let name = &self.gateway.origin.name;
        format!("https.{}.{}.{}.{}{bind}", server.port, server.port_name, name.name, name.namespace).into()
    }
}

/// What shares one port.
#[derive(Debug)]
pub enum Merged {
    /// HTTP in plaintext: one route table.
    Http(Vec<Served>),
    /// Anything else in plaintext: one server.
    Tcp(Served),
    /// TLS, told apart by server name.
    Tls(Vec<Served>),
}

/// A server that has to give way, and why.
#[derive(Debug)]
pub struct Conflict {
    /// The server.
    pub served: Served,
    /// Why.
    pub reason: String,
}

impl GatewayIndex {
    /// Sorts them, and tells which servers give way to others.
    pub fn build(mut all: Vec<GatewayRule>, found: &mut Vec<Diagnostic>) -> Self {
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        let index = Self { all: all.into_iter().map(Arc::new).collect() };
        // Proxies may map ports in other ways; servers of equal selectors and ports conflict on every one of them.
        let mut groups: HashMap<_, Vec<Arc<GatewayRule>>> = HashMap::new();
        for gateway in &index.all {
            groups.entry((&gateway.selector, &gateway.only)).or_default().push(gateway.clone());
        }
        for group in groups.values() {
            let (_, conflicts) = merge(group, |server| vec![server.port]);
            for Conflict { served, reason } in conflicts {
                let place = served.server().map_or(0, |s| s.index);
                let field = format!("spec.servers[{place}]");
                found.push(finding(&served.gateway.origin, codes::SERVER_CONFLICT, Severity::Warning, &field, reason));
            }
        }
        index
    }

    /// Those that select a proxy of this namespace and these labels, oldest first.
    pub fn of(&self, namespace: &str, labels: &Labels) -> Vec<Arc<GatewayRule>> {
        let there = |g: &GatewayRule| g.only.as_ref().is_none_or(|only| **only == *namespace);
        self.all.iter().filter(|g| there(g) && carries_all(labels, &g.selector)).cloned().collect()
    }
}

/// Address and port.
pub type Place = (Arc<str>, u16);

/// Servers by address and port; `ports` says where a server listens.
pub fn merge(
    gateways: &[Arc<GatewayRule>],
    ports: impl Fn(&GatewayServer) -> Vec<u16>,
) -> (BTreeMap<Place, Merged>, Vec<Conflict>) {
    let mut merged: BTreeMap<Place, Merged> = BTreeMap::new();
    let mut names: HashSet<(Place, String)> = HashSet::new();
    let mut conflicts = Vec::new();
    for gateway in gateways {
        for (at, server) in gateway.servers.iter().enumerate() {
            let served = Served { gateway: gateway.clone(), at };
            for port in ports(server) {
                let place = (server.bind.clone(), port);
                if let Err(reason) = add(&mut merged, &mut names, &place, &served, server) {
                    conflicts.push(Conflict { served: served.clone(), reason });
                }
            }
        }
    }
    (merged, conflicts)
}

fn add(
    merged: &mut BTreeMap<(Arc<str>, u16), Merged>,
    names: &mut HashSet<(Place, String)>,
    place: &(Arc<str>, u16),
    served: &Served,
    server: &GatewayServer,
) -> Result<(), String> {
    let port = place.1;
    if !server.is_tls() {
        return match (server.payload, merged.get_mut(place)) {
            (ServerPayload::Http, None) => {
                merged.insert(place.clone(), Merged::Http(vec![served.clone()]));
                Ok(())
            }
            (ServerPayload::Http, Some(Merged::Http(all))) => {
                all.push(served.clone());
                Ok(())
            }
            (ServerPayload::Tcp, None) => {
                merged.insert(place.clone(), Merged::Tcp(served.clone()));
                Ok(())
            }
            _ => Err(format!("an older server has port {port} for something else")),
        };
    }
    if matches!(merged.get(place), Some(Merged::Http(_) | Merged::Tcp(_))) {
        return Err(format!("an older server has port {port} in plaintext"));
    }
    let own: Vec<_> = server.hosts.iter().map(|(_, host)| (place.clone(), host.to_string())).collect();
    if let Some((_, host)) = own.iter().find(|key| names.contains(*key)) {
        return Err(format!("an older server has host {host} on port {port}"));
    }
    let table = served.table(port);
    let http = server.payload == ServerPayload::Http && matches!(server.security, ServerSecurity::Terminate(_));
    // One server may listen on several ports with one table; two servers may not share it.
    if http && merged.values().any(|m| holds(m, &table, served, port)) {
        return Err("another server of this Gateway has the same port and port name".to_owned());
    }
    names.extend(own);
    match merged.entry(place.clone()).or_insert_with(|| Merged::Tls(Vec::new())) {
        Merged::Tls(all) => all.push(served.clone()),
        Merged::Http(_) | Merged::Tcp(_) => {}
    }
    Ok(())
}

fn holds(merged: &Merged, table: &str, served: &Served, port: u16) -> bool {
    let Merged::Tls(all) = merged else { return false };
    all.iter().any(|other| {
        let same = Arc::ptr_eq(&other.gateway, &served.gateway) && other.at == served.at;
        !same && *other.table(port) == *table && other.server().is_some_and(|s| s.payload == ServerPayload::Http)
    })
}
