//! The part of a snapshot that changes most often: which addresses stand behind which service, and who owns them.
//!
//! Invariant: a function of slices, pods and entries, in any order; a part that follows another is what would be built from nothing
//! (`tests/it/endpoints.rs`), and joins again only the services that a change concerns. `facts` is what clusters and listeners depend on; it
//! stays the same value (and the same `Arc`) when only addresses change, so that most changes touch nothing but endpoint assignments.
//! What still looks at every object is the comparison of two lists, pointer by pointer.

mod members;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Weak},
};

use carrick_api::WorkloadEntry;
use carrick_base::NamespacedName;

use members::{Cluster, Lists, Members};

use crate::{
    EndpointInput, Settings,
    difference::difference,
    model::{
        Address, Endpoint, Registry, Resolution, Service, ServiceId, TlsMode, Workload, endpoint::carries_all,
        service::Target,
    },
    networks::Networks,
    read::{self, workload_entry::Entry},
    shards::Shards,
};

/// Endpoints of one service by slot (see [`crate::model::Port`]), each list sorted by address.
pub type ServiceEndpoints = BTreeMap<Arc<str>, Vec<Endpoint>>;

/// Addresses and workloads.
#[derive(Debug, Default)]
pub struct EndpointPart {
    /// What it was made of.
    input: EndpointInput,
    /// The own one first.
    clusters: Vec<Members>,
    /// WorkloadEntries by namespace.
    entries: Arc<BTreeMap<Arc<str>, Vec<Entry>>>,
    /// Addresses of entries.
    entered: Arc<HashMap<IpAddr, Arc<Workload>>>,
    services: Shards<ServiceId, Arc<ServiceEndpoints>>,
    change: Option<Change>,
}

/// From one part to the next.
#[derive(Debug)]
struct Change {
    before: Weak<EndpointPart>,
    services: BTreeSet<ServiceId>,
}

/// What does not change with endpoints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around<'a> {
    pub settings: &'a Settings,
    pub networks: &'a Networks,
    pub services: &'a [Arc<Service>],
    pub by_id: &'a HashMap<ServiceId, Arc<Service>>,
    pub by_namespace: &'a HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Services of ServiceEntries that select workloads, by namespace.
    pub selecting: &'a HashMap<Arc<str>, Vec<Arc<Service>>>,
}

/// What clusters and listeners depend on, of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Identities of all endpoints, as SPIFFE URIs.
    pub identities: BTreeSet<Arc<str>>,
    /// By slot.
    pub ports: BTreeMap<Arc<str>, PortFacts>,
}

/// What clusters and listeners depend on, of one service port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortFacts {
    /// There is an endpoint, and all have a sidecar.
    pub all_in_mesh: bool,
    /// Addresses and workload ports; only of services without a virtual address, which are listened for one by one.
    pub addresses: Vec<(IpAddr, u16)>,
    /// All endpoints; only of services whose clusters hold them, because they are names.
    pub inline: Vec<Endpoint>,
}

/// Facts of all services.
pub type Facts = HashMap<ServiceId, ServiceFacts>;

impl EndpointPart {
    /// Joins slices with pods, cluster by cluster, and services with the workloads they select.
    pub(crate) fn build(input: &EndpointInput, around: Around<'_>) -> Self {
        let own = Members::new(around.networks.own_cluster(), true, &input.nodes);
        let others = input.remotes.iter().map(|remote| Members::new(&remote.cluster, false, &remote.nodes));
        let mut part = Self { clusters: [own].into_iter().chain(others).collect(), ..Self::default() };
        part.take(input, around);
        let listed = part.clusters.iter().flat_map(Members::listed);
        let all: BTreeSet<_> = listed.chain(around.services.iter().map(|s| &s.id)).cloned().collect();
        part.join_all(all, around);
        part
    }

    /// The part after this one: what does not concern a service leaves its endpoints the same value.
    pub(crate) fn follow(self: &Arc<Self>, input: &EndpointInput, around: Around<'_>) -> Self {
        let clusters: Vec<&Arc<str>> = self.clusters.iter().skip(1).map(|members| &members.id).collect();
        let same_clusters = clusters.into_iter().eq(input.remotes.iter().map(|remote| &remote.cluster));
        let same_nodes = (0..self.clusters.len()).all(|at| {
            let nodes = |input| Lists::of(input, at).map_or(&[][..], |lists| lists.nodes);
            let (was, is) = (nodes(&self.input), nodes(input));
            was.len() == is.len() && was.iter().zip(is).all(|(a, b)| Arc::ptr_eq(a, b))
        });
        // Where nodes stand is part of every workload.
        if !same_clusters || !same_nodes {
            return Self::build(input, around);
        }
        let mut part = Self {
            input: self.input.clone(),
            clusters: self.clusters.clone(),
            entries: self.entries.clone(),
            entered: self.entered.clone(),
            services: self.services.clone(),
            change: None,
        };
        let dirty = part.take(input, around);
        let services = part.join_all(dirty, around);
        part.change = Some(Change { before: Arc::downgrade(self), services });
        part
    }

    /// The services whose endpoints are others than in the part that this one follows; `None` when it does not follow that one.
    pub fn changed_since(&self, before: &Self) -> Option<&BTreeSet<ServiceId>> {
        let change = self.change.as_ref()?;
        std::ptr::eq(change.before.as_ptr(), before).then_some(&change.services)
    }

    /// Takes all objects over; gives the services that may have other endpoints now.
    fn take(&mut self, input: &EndpointInput, around: Around<'_>) -> BTreeSet<ServiceId> {
        let mut dirty = BTreeSet::new();
        for (at, members) in self.clusters.iter_mut().enumerate() {
            let Some(now) = Lists::of(input, at) else { continue };
            let before = Lists::of(&self.input, at).unwrap_or(Lists { slices: &[], pods: &[], nodes: &[] });
            members.take_slices(before, now, &mut dirty);
            let touched = members.take_pods(before, now, around, &mut dirty);
            for workload in touched.iter().filter(|_| members.own).flat_map(|t| t.before.iter().chain(&t.now)) {
                let selecting = around.selecting.get(&workload.name.namespace).into_iter().flatten();
                dirty.extend(selecting.filter(|s| carries_all(&workload.labels, &s.selector)).map(|s| s.id.clone()));
            }
        }
        let changed = difference(&self.input.workload_entries, &input.workload_entries, |entry| &entry.metadata);
        if !changed.gone.is_empty() || !changed.come.is_empty() {
            let namespaces: BTreeSet<&str> =
                changed.gone.iter().chain(&changed.come).map(|entry| entry.metadata.namespace.as_str()).collect();
            let services = namespaces.into_iter().filter_map(|namespace| around.by_namespace.get(namespace)).flatten();
            dirty.extend(services.filter(|s| !s.selector.is_empty()).map(|s| s.id.clone()));
            self.take_entries(&input.workload_entries, around.settings);
        }
        self.input = input.clone();
        dirty
    }

    fn take_entries(&mut self, all: &[Arc<WorkloadEntry>], settings: &Settings) {
        let (mut entries, mut entered) =
            (BTreeMap::<Arc<str>, Vec<Entry>>::new(), HashMap::<IpAddr, Arc<Workload>>::new());
        for entry in all.iter().filter_map(|e| read::workload_entry::read(e, settings)) {
            for ip in &entry.workload.ips {
                let slot = entered.entry(*ip).or_insert_with(|| entry.workload.clone());
                if slot.name < entry.workload.name {
                    *slot = entry.workload.clone();
                }
            }
            entries.entry(entry.workload.name.namespace.clone()).or_default().push(entry);
        }
        (self.entries, self.entered) = (Arc::new(entries), Arc::new(entered));
    }

    /// Joins these services again; gives those whose endpoints are others now.
    fn join_all(&mut self, mut services: BTreeSet<ServiceId>, around: Around<'_>) -> BTreeSet<ServiceId> {
        services.retain(|id| {
            let now = self.joined(id, around);
            if self.services.get(id).map(|ports| &**ports) == now.as_ref() {
                return false;
            }
            match now {
                Some(now) => self.services.insert(id.clone(), Arc::new(now)),
                None => drop(self.services.remove(id)),
            }
            true
        });
        services
    }

    /// All endpoints of one service; `None` if nobody tells of any.
    fn joined(&self, id: &ServiceId, around: Around<'_>) -> Option<ServiceEndpoints> {
        let mut ports = ServiceEndpoints::new();
        let mut there = false;
        for members in &self.clusters {
            there |= members.join(id, around, &mut ports);
        }
        if let Some(service) = around.by_id.get(id) {
            let entries = self.entries.get(service.namespace()).map_or(&[][..], Vec::as_slice);
            let own = Cluster { id: around.networks.own_cluster(), networks: around.networks };
            there |= self.take_selected(service, entries, &own, &mut ports);
        }
        for list in ports.values_mut() {
            // Ready first, so that of two entries for one address the ready one stays.
            list.sort_by_cached_key(|e| {
                let name = e.workload.as_ref().map(|w| w.name.clone());
                (e.address.clone(), e.network.clone(), !e.ready, e.cluster.clone(), name)
            });
            list.dedup_by(|a, b| a.address == b.address && a.network == b.network);
        }
        there.then_some(ports)
    }

    /// Endpoints that a ServiceEntry holds, and workloads that a service selects and no slice tells of (§11.4).
    fn take_selected(
        &self,
        service: &Service,
        entries: &[Entry],
        own: &Cluster<'_>,
        into: &mut ServiceEndpoints,
    ) -> bool {
        let mut add: Vec<(Arc<str>, Endpoint)> = Vec::new();
        for (slot, list) in &service.written {
            let placed = |e: &Endpoint| {
                let mut placed = own.endpoint(e.address.clone(), e.ready, e.workload.clone());
                if service.external {
                    // What is outside of the mesh is in none of its networks unless it says so.
                    placed.network = placed.workload.as_ref().map(|w| w.network.clone()).unwrap_or_default();
                }
                placed
            };
            add.extend(list.iter().map(|e| (slot.clone(), placed(e))));
        }
        let selects = |w: &Workload| !service.selector.is_empty() && carries_all(&w.labels, &service.selector);
        let none = matches!(
            service.resolution,
            Resolution::Passthrough | Resolution::DynamicDns | Resolution::ExternalName(_)
        );
        for entry in entries.iter().filter(|e| !none && selects(&e.workload)) {
            for port in &service.ports {
                let (address, workload) = (entry.address(port), entry.workload.clone());
                add.push((port.slot.clone(), own.endpoint(address, workload.ready, Some(workload))));
            }
        }
        if service.registry == Registry::Entry && !none && !service.selector.is_empty() {
            let pods = self.clusters.first().into_iter().flat_map(Members::workloads);
            let pods = pods.filter(|w| w.name.namespace == *service.namespace() && selects(w));
            for (workload, ip) in pods.filter_map(|w| Some((w, w.ips.first()?))) {
                for port in &service.ports {
                    let Target::Number(target) = port.target else { continue };
                    let (ready, workload) = (workload.ready, Some(workload.clone()));
                    add.push((port.slot.clone(), own.endpoint(Address::Ip(*ip, target), ready, workload)));
                }
            }
        }
        let there = !add.is_empty();
        for (slot, endpoint) in add {
            into.entry(slot).or_default().push(endpoint);
        }
        there
    }

    /// What clusters and listeners depend on.
    pub(crate) fn facts(&self, around: Around<'_>) -> Facts {
        around.services.iter().filter_map(|s| Some((s.id.clone(), self.facts_of(s, around.networks)?))).collect()
    }

    /// What they depend on, of one service; `None` if nobody tells of endpoints.
    pub(crate) fn facts_of(&self, service: &Service, networks: &Networks) -> Option<ServiceFacts> {
        let ports = self.services.get(&service.id)?;
        let (headless, inline) = (service.resolution == Resolution::Headless, service.resolution.is_inline());
        let workloads = ports.values().flatten().filter_map(|e| e.workload.as_ref());
        let identities = workloads.filter_map(|w| Some(w.identity.as_ref()?.as_str().into())).collect();
        let of_port = |(port, list): (&Arc<str>, &Vec<Endpoint>)| {
            // A client that chose an address itself chose one of its own cluster.
            let chosen = || list.iter().filter(|e| e.cluster == *networks.own_cluster());
            let usable = chosen().filter(|e| headless && e.ready);
            let addresses = usable.filter_map(|e| Some((e.address.ip()?, e.address.port()))).collect();
            let all_in_mesh = chosen().next().is_some() && chosen().all(|e| e.tls_mode() == TlsMode::Istio);
            let inline = if inline { list.clone() } else { Vec::new() };
            (port.clone(), PortFacts { all_in_mesh, addresses, inline })
        };
        Some(ServiceFacts { identities, ports: ports.iter().map(of_port).collect() })
    }

    /// Endpoints of a service port.
    pub fn of(&self, service: &ServiceId, slot: &str) -> &[Endpoint] {
        self.services.get(service).and_then(|ports| ports.get(slot)).map_or(&[], Vec::as_slice)
    }

    /// All endpoints of a service.
    pub fn of_service(&self, service: &ServiceId) -> impl Iterator<Item = (&Arc<str>, &Endpoint)> {
        let ports = self.services.get(service).into_iter().flat_map(|ports| ports.iter());
        ports.flat_map(|(name, list)| list.iter().map(move |e| (name, e)))
    }

    /// Services some of whose slices name bare addresses that a workload of this namespace has: they may lie in another one.
    pub(crate) fn reaching(&self, namespace: &str) -> BTreeSet<ServiceId> {
        self.clusters.iter().flat_map(|members| members.reaching(namespace)).cloned().collect()
    }

    /// A workload by its place.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.clusters.first()?.workload(name)
    }

    /// The workload that owns an address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.clusters.first()?.at(ip).or_else(|| self.entered.get(&ip))
    }
}

impl<'a> Lists<'a> {
    /// Those of the own cluster, or of another.
    fn of(input: &'a EndpointInput, at: usize) -> Option<Self> {
        match at.checked_sub(1) {
            None => Some(Self { slices: &input.endpoint_slices, pods: &input.pods, nodes: &input.nodes }),
            Some(other) => {
                let remote = input.remotes.get(other)?;
                Some(Self { slices: &remote.endpoint_slices, pods: &remote.pods, nodes: &remote.nodes })
            }
        }
    }
}
