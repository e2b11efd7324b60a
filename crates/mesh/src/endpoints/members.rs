//! One cluster's pods and slices, indexed so that a change of one leads to the services it concerns.
//!
//! Invariant: what is here is a function of the objects, whatever came in which order; in another cluster the same address may be anybody's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use carrick_api::{EndpointSlice, Node, Pod};
use carrick_base::{Hostname, NamespacedName};

use super::{Around, ServiceEndpoints};
use crate::{
    difference::difference,
    model::{Address, Endpoint, Locality, ServiceId, Workload},
    networks::Networks,
    read,
    shards::Shards,
};

/// One cluster, and the networks it is among.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cluster<'a> {
    pub id: &'a Arc<str>,
    pub networks: &'a Networks,
}

impl Cluster<'_> {
    pub fn network(&self, labelled: &Arc<str>, ip: Option<IpAddr>) -> Arc<str> {
        self.networks.of(self.id, labelled, ip)
    }

    pub fn endpoint(&self, address: Address, ready: bool, workload: Option<Arc<Workload>>) -> Endpoint {
        let labelled = workload.as_ref().map(|w| w.network.clone()).unwrap_or_default();
        let network = self.network(&labelled, address.ip());
        Endpoint { address, ready, workload, cluster: self.id.clone(), network }
    }
}

/// The objects of one cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lists<'a> {
    pub slices: &'a [Arc<EndpointSlice>],
    pub pods: &'a [Arc<Pod>],
    pub nodes: &'a [Arc<Node>],
}

/// What a slice's endpoint is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mention {
    Pod(NamespacedName),
    Ip(IpAddr),
}

/// A workload that is another one now.
#[derive(Debug)]
pub(super) struct Touched {
    pub before: Option<Arc<Workload>>,
    pub now: Option<Arc<Workload>>,
}

/// One cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    pub id: Arc<str>,
    /// It is the mesh's own, not one that a Secret names.
    pub own: bool,
    nodes: Arc<HashMap<Arc<str>, Locality>>,
    by_name: Shards<NamespacedName, Arc<Workload>>,
    /// All that say an address is theirs, by name.
    by_ip: Shards<IpAddr, Vec<Arc<Workload>>>,
    /// Pods that own no address of the mesh: those on the host's network.
    hosted: Shards<NamespacedName, ()>,
    slices: Shards<ServiceId, Vec<Arc<EndpointSlice>>>,
    mentioned: Shards<Mention, BTreeSet<ServiceId>>,
}

impl Members {
    pub fn new(id: &Arc<str>, own: bool, nodes: &[Arc<Node>]) -> Self {
        let nodes = nodes.iter().map(|n| (n.metadata.name.as_str().into(), read::pod::node(n))).collect();
        Self { id: id.clone(), own, nodes: Arc::new(nodes), ..Self::default() }
    }

    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_name.iter().map(|(_, workload)| workload)
    }

    /// Of two pods of one address the younger name's.
    pub fn at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip).and_then(|all| all.last())
    }

    /// Services that have slices.
    pub fn listed(&self) -> impl Iterator<Item = &ServiceId> {
        self.slices.iter().map(|(id, _)| id)
    }

    /// Goes from one list of slices to another; adds the services that they are of.
    pub fn take_slices(&mut self, before: Lists<'_>, now: Lists<'_>, dirty: &mut BTreeSet<ServiceId>) {
        let changed = difference(before.slices, now.slices, |slice| &slice.metadata);
        let mut services: BTreeMap<ServiceId, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in changed.gone.iter().chain(&changed.come) {
            if let Some(id) = service_of(slice) {
                services.entry(id).or_default();
            }
        }
        for slice in &changed.come {
            if let Some(come) = service_of(slice).and_then(|id| services.get_mut(&id)) {
                come.push(Arc::clone(slice));
            }
        }
        let gone: BTreeSet<usize> = changed.gone.iter().map(|slice| Arc::as_ptr(slice).addr()).collect();
        for (id, come) in services {
            let mut slices = self.slices.remove(&id).unwrap_or_default();
            let was = mentions(&slices);
            slices.retain(|slice| !gone.contains(&Arc::as_ptr(slice).addr()));
            slices.extend(come);
            let is = mentions(&slices);
            for mention in was.difference(&is) {
                self.mentioned.change(mention.clone(), |services| {
                    services.remove(&id);
                    !services.is_empty()
                });
            }
            for mention in is.difference(&was) {
                self.mentioned.change(mention.clone(), |services| {
                    services.insert(id.clone());
                    true
                });
            }
            if !slices.is_empty() {
                self.slices.insert(id.clone(), slices);
            }
            dirty.insert(id);
        }
    }

    /// Goes from one list of pods to another; adds the services whose slices mention those that changed, and gives these.
    pub fn take_pods(
        &mut self,
        before: Lists<'_>,
        now: Lists<'_>,
        around: Around<'_>,
        dirty: &mut BTreeSet<ServiceId>,
    ) -> Vec<Touched> {
        let changed = difference(before.pods, now.pods, |pod| &pod.metadata);
        let name = |pod: &Pod| NamespacedName::new(&pod.metadata.namespace, &pod.metadata.name);
        let mut were: BTreeMap<NamespacedName, (Option<Arc<Workload>>, bool)> = BTreeMap::new();
        for pod in changed.gone.iter().chain(&changed.come) {
            let name = name(pod);
            let workload = self.forget(&name);
            let hosted = self.hosted.remove(&name).is_some();
            were.entry(name).or_insert((workload, hosted));
        }
        for pod in changed.come {
            let name = name(pod);
            if pod.spec.host_network && !pod.is_terminal() {
                self.hosted.insert(name.clone(), ());
            }
            if let Some(mut workload) = read::pod::read(pod, around.settings, &self.nodes) {
                let cluster = Cluster { id: &self.id, networks: around.networks };
                workload.network = cluster.network(&workload.network, workload.ips.first().copied());
                let same = were.get(&name).and_then(|(was, _)| was.clone()).filter(|was| **was == workload);
                self.remember(same.unwrap_or_else(|| Arc::new(workload)));
            }
        }
        let mut touched = Vec::new();
        for (name, (before, hosted)) in were {
            let now = self.by_name.get(&name).cloned();
            if before == now && hosted == self.hosted.get(&name).is_some() {
                continue;
            }
            let ips = before.iter().chain(&now).flat_map(|w| w.ips.iter().map(|ip| Mention::Ip(*ip)));
            for mention in ips.chain([Mention::Pod(name)]) {
                dirty.extend(self.mentioned.get(&mention).into_iter().flatten().cloned());
            }
            touched.push(Touched { before, now });
        }
        touched
    }

    /// Services whose slices name bare addresses that workloads of a namespace have.
    pub fn reaching<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ServiceId> {
        let bare = self.mentioned.iter().filter(move |(mention, _)| {
            matches!(mention, Mention::Ip(ip) if self.at(*ip).is_some_and(|w| *w.name.namespace == *namespace))
        });
        bare.flat_map(|(_, services)| services)
    }

    fn remember(&mut self, workload: Arc<Workload>) {
        for ip in &workload.ips {
            self.by_ip.change(*ip, |all| {
                all.push(workload.clone());
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.dedup_by(|a, b| a.name == b.name);
                true
            });
        }
        self.by_name.insert(workload.name.clone(), workload);
    }

    fn forget(&mut self, name: &NamespacedName) -> Option<Arc<Workload>> {
        let workload = self.by_name.remove(name)?;
        for ip in &workload.ips {
            self.by_ip.change(*ip, |all| {
                all.retain(|w| w.name != *name);
                !all.is_empty()
            });
        }
        Some(workload)
    }

    /// Adds a service's endpoints, as its slices have them; whether there is a slice.
    pub fn join(&self, service: &ServiceId, around: Around<'_>, into: &mut ServiceEndpoints) -> bool {
        let mut there = false;
        for slice in self.slices.get(service).into_iter().flatten() {
            let name = slice.service_name().unwrap_or_default();
            let host = || Hostname::service(name, &slice.metadata.namespace, &around.settings.domain_suffix);
            if self.own || !around.networks.is_cluster_local(&host()) {
                there = true;
                self.join_slice(slice, around.networks, into);
            }
        }
        there
    }

    fn join_slice(&self, slice: &EndpointSlice, networks: &Networks, into: &mut ServiceEndpoints) {
        let namespace = &slice.metadata.namespace;
        let cluster = Cluster { id: &self.id, networks };
        for port in slice.ports.iter().filter(|p| p.protocol.is_empty() || p.protocol == "TCP") {
            let Some(number) = port.port.filter(|n| *n > 0) else { continue };
            let slot: Arc<str> = port.name.as_str().into();
            for endpoint in &slice.endpoints {
                let pod = endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod");
                for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                    let workload = match pod {
                        None => self.at(ip).cloned(),
                        Some(pod) => {
                            let name = NamespacedName::new(namespace, &pod.name);
                            let owner = self.by_name.get(&name).filter(|w| w.ips.contains(&ip));
                            // A slice that names a pod which has not (or no more) this address is out of date: the address may
                            // be anybody's by now, whose identity is not the service's.
                            if owner.is_none() && self.hosted.get(&name).is_none() {
                                continue;
                            }
                            owner.cloned()
                        }
                    };
                    let endpoint = cluster.endpoint(Address::Ip(ip, number), endpoint.is_ready(), workload);
                    into.entry(slot.clone()).or_default().push(endpoint);
                }
            }
        }
    }
}

/// The service that a slice is of; none for names, which are no addresses.
fn service_of(slice: &EndpointSlice) -> Option<ServiceId> {
    let service = slice.service_name().filter(|_| slice.address_type != "FQDN")?;
    Some(ServiceId::kubernetes(&slice.metadata.namespace, service))
}

fn mentions(slices: &[Arc<EndpointSlice>]) -> BTreeSet<Mention> {
    let mut all = BTreeSet::new();
    for slice in slices {
        for endpoint in &slice.endpoints {
            match endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod") {
                Some(pod) => {
                    all.insert(Mention::Pod(NamespacedName::new(&slice.metadata.namespace, &pod.name)));
                }
                None => all.extend(endpoint.addresses.iter().filter_map(|a| a.parse().ok()).map(Mention::Ip)),
            }
        }
    }
    all
}
