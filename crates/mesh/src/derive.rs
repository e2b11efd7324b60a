//! From a snapshot and a proxy to its view.
//!
//! Invariant: a function of snapshot and proxy; what [`Views`] remembers is only what would come out again.

mod connections;
mod egress;
mod gateway;
mod host_names;
mod http;
mod inbound;
mod listeners;
mod loads;
mod outbound;
mod routes;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use carrick_base::{Labels, NamespacedName};

use inbound::BehindMemo;
use loads::{LoadKey, LoadMemo};
use outbound::ClusterMemo;

use crate::{
    locality::{self, Place},
    model::ServiceId,
    parts::{Cluster, HostName, ListenerSettings, Load, Outbound, SecretPart, Telemetry, View, inbound::Families},
    policies::PolicyChange,
    proxy::{FileCerts, Interception, ProxyKind, ProxyNode},
    rules::Client,
    snapshot::Snapshot,
    telemetry::Side,
};

/// The view of one sidecar or gateway.
pub fn sidecar(snapshot: &Snapshot, proxy: &ProxyNode) -> View {
    Views::new(snapshot.clone()).of(proxy)
}

/// What the client side of a sidecar depends on, besides the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    client: Client,
    interception: Interception,
    families: Families,
    client_certs: Option<FileCerts>,
    /// A gateway: no captured connections, so no listeners of services.
    router: bool,
    /// Labels that some VirtualService asks for.
    labels: Labels,
    /// Own addresses that a service without a virtual address lists, which the proxy does not listen for.
    own: Vec<IpAddr>,
    /// The Sidecar that is followed.
    sidecar: Option<NamespacedName>,
    /// Whether the pod resolves ServiceEntries' hosts by their automatic addresses.
    dns_capture: bool,
    /// Where the client is, as far as any policy asks.
    place: Arc<Place>,
    /// What is told of its traffic.
    telemetry: Arc<Telemetry>,
    /// Whether connections to hosts outside of the mesh are used once only.
    blind_reuse: bool,
    /// The network the client is in, where there is more than one.
    network: Option<Arc<str>>,
}

/// The client side of all proxies of one scope.
#[derive(Debug)]
struct Shared {
    outbound: Arc<Outbound>,
    keys: Arc<[Arc<LoadKey>]>,
    loads: Option<Arc<[Arc<Load>]>>,
    /// The last ones, which stay the same value where nothing in them changed.
    last_loads: Option<Arc<[Arc<Load>]>>,
    /// The services of which the last ones are out of date, if all others are right.
    stale: Option<BTreeSet<ServiceId>>,
    names: Option<Arc<BTreeMap<Arc<str>, HostName>>>,
    secrets: Option<OfNamespace>,
}

/// Secrets, and the namespace they are asked for from.
#[derive(Debug)]
struct OfNamespace {
    namespace: Arc<str>,
    secrets: Arc<[Arc<SecretPart>]>,
}

impl Shared {
    /// Secrets that the clusters name: found once for a scope, since all clusters are looked at.
    fn secrets(&mut self, snapshot: &Snapshot, namespace: &Arc<str>) -> Arc<[Arc<SecretPart>]> {
        if let Some(known) = self.secrets.as_ref().filter(|known| known.namespace == *namespace) {
            return known.secrets.clone();
        }
        let secrets = snapshot.secrets().of(namespace, None, &self.outbound.clusters);
        self.secrets = Some(OfNamespace { namespace: namespace.clone(), secrets: secrets.clone() });
        secrets
    }

    fn forget_endpoints(&mut self) {
        self.last_loads = self.loads.take().or(self.last_loads.take());
        self.stale = None;
        self.names = None;
    }

    /// The endpoints of these services are others, and nothing else is.
    fn forget_services(&mut self, changed: &BTreeSet<ServiceId>) {
        self.names = None;
        if let Some(loads) = self.loads.take() {
            self.last_loads = Some(loads);
            self.stale = Some(changed.clone());
        } else if let Some(stale) = &mut self.stale {
            stale.extend(changed.iter().cloned());
        }
    }

    fn loads(&mut self, snapshot: &Snapshot, memo: &mut LoadMemo) -> Arc<[Arc<Load>]> {
        if let Some(loads) = &self.loads {
            return loads.clone();
        }
        let new = match (&self.last_loads, self.stale.take()) {
            (Some(last), Some(stale)) => loads::renew(snapshot, &self.keys, last, &stale, memo),
            _ => loads::derive(snapshot, &self.keys, memo),
        };
        let loads = self.last_loads.take().filter(|last| *last == new).unwrap_or(new);
        self.loads.insert(loads).clone()
    }
}

/// Whose views may be others after an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Anybody's.
    All,
    /// Those of proxies in these namespaces.
    Of(BTreeSet<Arc<str>>),
}

impl Concerned {
    /// Whether a proxy's view may be another.
    pub fn is(&self, proxy: &ProxyNode) -> bool {
        match self {
            Self::All => true,
            Self::Of(namespaces) => namespaces.contains(&proxy.namespace),
        }
    }
}

/// The services whose clients are told of the modes of workloads in these namespaces; `None` when clusters hold what they are told.
fn clients_of(snapshot: &Snapshot, namespaces: &BTreeSet<Arc<str>>) -> Option<BTreeSet<ServiceId>> {
    let mut all = BTreeSet::new();
    for namespace in namespaces {
        let own = snapshot.services_in(namespace).iter().map(|service| service.id.clone());
        all.extend(own.chain(snapshot.endpoints.reaching(namespace)));
    }
    let inline = |id: &ServiceId| snapshot.service_of(id).is_some_and(|service| service.resolution.is_inline());
    (!all.iter().any(inline)).then_some(all)
}

/// Views over one snapshot, sharing what several proxies see alike.
#[derive(Debug)]
pub struct Views {
    snapshot: Snapshot,
    scopes: HashMap<Scope, Shared>,
    /// Of the configuration before: where a scope sees what it saw, it is the same value, so that proxies compare one pointer.
    before: HashMap<Scope, Shared>,
    clusters: ClusterMemo,
    loads: LoadMemo,
    behind: BehindMemo,
}

impl Views {
    /// Starts with an empty memory.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            scopes: HashMap::new(),
            before: HashMap::new(),
            clusters: ClusterMemo::default(),
            loads: LoadMemo::default(),
            behind: BehindMemo::default(),
        }
    }

    /// Goes on with a newer snapshot, keeping what cannot have changed. Gives whose views may be others now.
    pub fn update(&mut self, snapshot: Snapshot) -> Concerned {
        let was = &self.snapshot;
        let same_config = Arc::ptr_eq(&was.config, &snapshot.config);
        let same_endpoints =
            Arc::ptr_eq(&was.facts, &snapshot.facts) && Arc::ptr_eq(&was.endpoints, &snapshot.endpoints);
        let nothing = PolicyChange::default();
        let policies = match Arc::ptr_eq(&was.policies, &snapshot.policies) {
            true => Some(&nothing),
            false => snapshot.policies.changed_since(&was.policies),
        };
        // Clients are told which endpoints, and which hosts, take mutual TLS.
        let stale = policies.filter(|change| !change.hints).and_then(|change| clients_of(&snapshot, &change.peers));
        let concerned = match (policies, &stale) {
            (Some(change), Some(stale)) if same_config && same_endpoints && stale.is_empty() => {
                let root = &snapshot.settings().root_namespace;
                if change.namespaces.contains(root) { Concerned::All } else { Concerned::Of(change.namespaces.clone()) }
            }
            _ => Concerned::All,
        };
        if !same_config || stale.is_none() || !Arc::ptr_eq(&self.snapshot.facts, &snapshot.facts) {
            self.before = std::mem::take(&mut self.scopes);
            self.before.values_mut().for_each(Shared::forget_endpoints);
            self.clusters.clear();
            self.loads.clear();
        } else if !Arc::ptr_eq(&self.snapshot.endpoints, &snapshot.endpoints) {
            match snapshot.endpoints.changed_since(&self.snapshot.endpoints) {
                Some(changed) => {
                    self.scopes.values_mut().for_each(|shared| shared.forget_services(changed));
                    self.loads.forget(changed);
                }
                None => {
                    self.scopes.values_mut().for_each(Shared::forget_endpoints);
                    self.loads.clear();
                }
            }
        }
        if let Some(stale) = stale.filter(|stale| !stale.is_empty()) {
            self.scopes.values_mut().for_each(|shared| shared.forget_services(&stale));
            self.loads.forget(&stale);
        }
        if !same_config {
            self.behind.clear();
        }
        self.snapshot = snapshot;
        concerned
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The view of one proxy, by what it is.
    pub fn of(&mut self, proxy: &ProxyNode) -> View {
        match proxy.kind {
            ProxyKind::Sidecar => self.sidecar(proxy),
            ProxyKind::Router => self.gateway(proxy),
        }
    }

    /// The view of one sidecar.
    pub fn sidecar(&mut self, proxy: &ProxyNode) -> View {
        let snapshot = &self.snapshot;
        let labels = labels_of(snapshot, proxy);
        let scope = scope(snapshot, proxy, &labels);
        let resolving = proxy.resolves.then(|| scope.clone());
        let shared = shared(&mut self.scopes, &mut self.before, snapshot, scope, &mut self.clusters);
        let names = resolving
            .map(|scope| shared.names.get_or_insert_with(|| Arc::new(host_names::derive(snapshot, &scope))).clone());
        let inbound = Arc::new(inbound::derive(snapshot, proxy, &labels, &shared.outbound.clusters, &mut self.behind));
        let loads = shared.loads(snapshot, &mut self.loads);
        let secrets = shared.secrets(snapshot, &proxy.namespace);
        View { inbound, outbound: shared.outbound.clone(), loads, gateway: None, secrets, names }
    }

    /// The view of one gateway.
    pub fn gateway(&mut self, proxy: &ProxyNode) -> View {
        let snapshot = &self.snapshot;
        let proxy = &ProxyNode { interception: Interception::None, ..proxy.clone() };
        let labels = labels_of(snapshot, proxy);
        let scope = scope(snapshot, proxy, &labels);
        let shared = shared(&mut self.scopes, &mut self.before, snapshot, scope.clone(), &mut self.clusters);
        let (clusters, behind) = (&shared.outbound.clusters, &mut self.behind);
        let derived = gateway::derive(snapshot, &scope, proxy, &labels, clusters, &shared.keys, behind);
        let mut outbound = Outbound { routes: derived.routes, ..(*shared.outbound).clone() };
        let mut keys: Vec<_> = shared.keys.to_vec();
        outbound.clusters.extend(derived.clusters);
        outbound.clusters.sort_by(|a, b| a.name.cmp(&b.name));
        keys.extend(derived.keys);
        keys.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        let loads = loads::derive(snapshot, &keys, &mut self.loads);
        let secrets = snapshot.secrets().of(&proxy.namespace, Some(&derived.gateway), &outbound.clusters);
        let mut inbound = inbound::derive(snapshot, proxy, &labels, &outbound.clusters, &mut self.behind);
        // Its ports are its servers', which are no ports of a workload.
        inbound.ports.clear();
        inbound.passthrough_ports.clear();
        View {
            inbound: Arc::new(inbound),
            outbound: Arc::new(outbound),
            loads,
            gateway: Some(Arc::new(derived.gateway)),
            secrets,
            names: None,
        }
    }
}

fn scope(snapshot: &Snapshot, proxy: &ProxyNode, labels: &Labels) -> Scope {
    let router = proxy.kind == ProxyKind::Router;
    let sidecar = snapshot.sidecars().select(&proxy.namespace, labels);
    Scope {
        client: snapshot.rules().client(&proxy.namespace, labels),
        interception: proxy.interception,
        families: Families::of(&proxy.ips),
        client_certs: proxy.client_certs.clone(),
        router,
        labels: snapshot.virtual_services().relevant(labels),
        own: listeners::own_headless(snapshot, proxy),
        // Gateways follow no Sidecar (§8.1).
        sidecar: if router { None } else { sidecar.map(|s| s.origin.name.clone()) },
        dns_capture: proxy.dns_capture,
        place: Arc::new(place_of(snapshot, proxy, labels)),
        telemetry: snapshot.telemetry().of(&proxy.namespace, labels, Side::Client, proxy.counting),
        blind_reuse: proxy.blind_reuse,
        network: snapshot.network_of(proxy, labels),
    }
}

fn shared<'a>(
    scopes: &'a mut HashMap<Scope, Shared>,
    before: &mut HashMap<Scope, Shared>,
    snapshot: &Snapshot,
    scope: Scope,
    clusters: &mut ClusterMemo,
) -> &'a mut Shared {
    scopes.entry(scope).or_insert_with_key(|scope| {
        let (outbound, keys) = outbound::derive(snapshot, scope, clusters);
        let before = before.remove(scope);
        let last_loads = before.as_ref().and_then(|before| before.last_loads.clone());
        let same = before.map(|before| before.outbound).filter(|before| **before == outbound);
        let outbound = same.unwrap_or_else(|| Arc::new(outbound));
        Shared { outbound, keys: keys.into(), loads: None, last_loads, names: None, secrets: None, stale: None }
    })
}

/// What listeners carry. Clusters are sorted by name.
fn listener_settings(snapshot: &Snapshot, telemetry: &Arc<Telemetry>, clusters: &[Arc<Cluster>]) -> ListenerSettings {
    let reached = |name: &str| clusters.binary_search_by(|c| (*c.name).cmp(name)).is_ok();
    ListenerSettings { telemetry: telemetry.reaching(reached), ..snapshot.settings().listener.clone() }
}

/// Where a proxy is, as far as any policy asks.
fn place_of(snapshot: &Snapshot, proxy: &ProxyNode, labels: &Labels) -> Place {
    let workload = snapshot.workload_of(proxy);
    let locality = workload.map(|w| w.locality.clone()).unwrap_or_default();
    let mut labels = labels.clone();
    locality::place_labels(
        &mut labels,
        &locality,
        workload.map_or("", |w| &w.node),
        workload.map_or("", |w| &w.network),
    );
    labels.retain(|key, _| snapshot.config.compared.contains(key.as_str()));
    Place { locality, labels }
}

/// Labels of the node's metadata, else those of its pod (semantics §0.6).
fn labels_of(snapshot: &Snapshot, proxy: &ProxyNode) -> Labels {
    if proxy.labels.is_empty() {
        snapshot.workload_of(proxy).map(|w| w.labels.clone()).unwrap_or_default()
    } else {
        proxy.labels.clone()
    }
}
