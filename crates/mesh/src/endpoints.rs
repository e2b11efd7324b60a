//! The part of a snapshot that changes most often: which addresses stand behind which service, and who owns them.
//!
//! Invariant: built from slices, pods and entries, in any order. `facts` is what clusters and listeners depend on; it stays the same value
//! (and the same `Arc`) when only addresses change, so that most changes touch nothing but endpoint assignments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use carrick_api::{EndpointSlice, Node, Pod};
use carrick_base::{Hostname, NamespacedName};

use crate::{
    EndpointInput, Settings,
    model::{
        Address, Endpoint, Registry, Resolution, Service, ServiceId, TlsMode, Workload, endpoint::carries_all,
        service::Target,
    },
    networks::Networks,
    read::{self, workload_entry::Entry},
};

/// Endpoints of one service by slot (see [`crate::model::Port`]), each list sorted by address.
pub type ServiceEndpoints = BTreeMap<Arc<str>, Vec<Endpoint>>;

/// Addresses and workloads.
#[derive(Debug, Default)]
pub struct EndpointPart {
    services: HashMap<ServiceId, ServiceEndpoints>,
    /// Of the own cluster.
    owners: Owners,
}

/// Whose an address of one cluster is. In another cluster the same address may be anybody's.
#[derive(Debug, Default)]
struct Owners {
    by_name: HashMap<NamespacedName, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// Pods that own no address of the mesh: those on the host's network.
    hosted: HashSet<NamespacedName>,
}

impl Owners {
    fn read(pods: &[Arc<Pod>], nodes: &[Arc<Node>], settings: &Settings, place: &Cluster<'_>) -> Self {
        let mut owners = Self::default();
        let nodes = nodes.iter().map(|n| (n.metadata.name.as_str().into(), read::pod::node(n))).collect();
        for pod in pods {
            if pod.spec.host_network && !pod.is_terminal() {
                owners.hosted.insert(NamespacedName::new(&pod.metadata.namespace, &pod.metadata.name));
            }
            if let Some(mut workload) = read::pod::read(pod, settings, &nodes) {
                workload.network = place.network(&workload.network, workload.ips.first().copied());
                let workload = Arc::new(workload);
                for ip in &workload.ips {
                    // Two pods of one address: the younger name wins whichever comes first, so that order does not matter.
                    let slot = owners.by_ip.entry(*ip).or_insert_with(|| workload.clone());
                    if slot.name < workload.name {
                        *slot = workload.clone();
                    }
                }
                owners.by_name.insert(workload.name.clone(), workload);
            }
        }
        owners
    }
}

/// One cluster, and the networks it is among.
#[derive(Debug, Clone, Copy)]
struct Cluster<'a> {
    id: &'a Arc<str>,
    networks: &'a Networks,
}

impl Cluster<'_> {
    fn network(&self, labelled: &Arc<str>, ip: Option<IpAddr>) -> Arc<str> {
        self.networks.of(self.id, labelled, ip)
    }

    fn endpoint(&self, address: Address, ready: bool, workload: Option<Arc<Workload>>) -> Endpoint {
        let labelled = workload.as_ref().map(|w| w.network.clone()).unwrap_or_default();
        let network = self.network(&labelled, address.ip());
        Endpoint { address, ready, workload, cluster: self.id.clone(), network }
    }
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
    pub fn build(input: &EndpointInput, settings: &Settings, networks: &Networks, services: &[Arc<Service>]) -> Self {
        let own = Cluster { id: networks.own_cluster(), networks };
        let owners = Owners::read(&input.pods, &input.nodes, settings, &own);
        let mut part = Self::default();
        for slice in &input.endpoint_slices {
            part.take_slice(slice, &owners, &own);
        }
        for remote in &input.remotes {
            let cluster = Cluster { id: &remote.cluster, networks };
            let owners = Owners::read(&remote.pods, &remote.nodes, settings, &cluster);
            for slice in &remote.endpoint_slices {
                let name = slice.service_name().unwrap_or_default();
                let host = Hostname::service(name, &slice.metadata.namespace, &settings.domain_suffix);
                if !networks.is_cluster_local(&host) {
                    part.take_slice(slice, &owners, &cluster);
                }
            }
        }
        part.owners = owners;
        let mut entries: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
        for entry in input.workload_entries.iter().filter_map(|e| read::workload_entry::read(e, settings)) {
            entries.entry(entry.workload.name.namespace.clone()).or_default().push(entry);
        }
        for service in services {
            part.take_selected(service, entries.get(service.namespace()).map_or(&[], Vec::as_slice), &own);
        }
        for entry in entries.into_values().flatten() {
            // An address that a pod has is the pod's.
            for ip in &entry.workload.ips {
                part.owners.by_ip.entry(*ip).or_insert_with(|| entry.workload.clone());
            }
        }
        for list in part.services.values_mut().flat_map(BTreeMap::values_mut) {
            // Ready first, so that of two entries for one address the ready one stays.
            list.sort_by_cached_key(|e| {
                let name = e.workload.as_ref().map(|w| w.name.clone());
                (e.address.clone(), e.network.clone(), !e.ready, e.cluster.clone(), name)
            });
            list.dedup_by(|a, b| a.address == b.address && a.network == b.network);
        }
        part
    }

    fn take_slice(&mut self, slice: &EndpointSlice, owners: &Owners, cluster: &Cluster<'_>) {
        let namespace = &slice.metadata.namespace;
        let Some(service) = slice.service_name().filter(|_| slice.address_type != "FQDN") else { return };
        let mut found: Vec<(Arc<str>, Endpoint)> = Vec::new();
        for port in slice.ports.iter().filter(|p| p.protocol.is_empty() || p.protocol == "TCP") {
            let Some(number) = port.port.filter(|n| *n > 0) else { continue };
            for endpoint in &slice.endpoints {
                let pod = endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod");
                for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                    let workload = match pod {
                        None => owners.by_ip.get(&ip).cloned(),
                        Some(pod) => {
                            let name = NamespacedName::new(namespace, &pod.name);
                            let owner = owners.by_name.get(&name).filter(|w| w.ips.contains(&ip));
                            // A slice that names a pod which has not (or no more) this address is out of date: the address may
                            // be anybody's by now, whose identity is not the service's.
                            if owner.is_none() && !owners.hosted.contains(&name) {
                                continue;
                            }
                            owner.cloned()
                        }
                    };
                    let address = Address::Ip(ip, number);
                    found.push((port.name.as_str().into(), cluster.endpoint(address, endpoint.is_ready(), workload)));
                }
            }
        }
        let service = self.services.entry(ServiceId::kubernetes(namespace, service)).or_default();
        for (slot, endpoint) in found {
            service.entry(slot).or_default().push(endpoint);
        }
    }

    /// Endpoints that a ServiceEntry holds, and workloads that a service selects and no slice tells of (§11.4).
    fn take_selected(&mut self, service: &Service, entries: &[Entry], own: &Cluster<'_>) {
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
            let pods = self.owners.by_name.values();
            let pods = pods.filter(|w| w.name.namespace == *service.namespace() && selects(w));
            for (workload, ip) in pods.filter_map(|w| Some((w, w.ips.first()?))) {
                for port in &service.ports {
                    let Target::Number(target) = port.target else { continue };
                    let (ready, workload) = (workload.ready, Some(workload.clone()));
                    add.push((port.slot.clone(), own.endpoint(Address::Ip(*ip, target), ready, workload)));
                }
            }
        }
        if add.is_empty() {
            return;
        }
        let ports = self.services.entry(service.id.clone()).or_default();
        for (slot, endpoint) in add {
            ports.entry(slot).or_default().push(endpoint);
        }
    }

    /// What clusters and listeners depend on.
    pub fn facts(&self, services: &[Arc<Service>], networks: &Networks) -> Facts {
        let of_service = |service: &Arc<Service>| {
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
            Some((service.id.clone(), ServiceFacts { identities, ports: ports.iter().map(of_port).collect() }))
        };
        services.iter().filter_map(of_service).collect()
    }

    /// Endpoints of a service port.
    pub fn of(&self, service: &ServiceId, slot: &str) -> &[Endpoint] {
        self.services.get(service).and_then(|ports| ports.get(slot)).map_or(&[], Vec::as_slice)
    }

    /// All endpoints of a service.
    pub fn of_service(&self, service: &ServiceId) -> impl Iterator<Item = (&Arc<str>, &Endpoint)> {
        self.services.get(service).into_iter().flatten().flat_map(|(name, list)| list.iter().map(move |e| (name, e)))
    }

    /// A workload by its place.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.owners.by_name.get(name)
    }

    /// The workload that owns an address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.owners.by_ip.get(&ip)
    }
}
