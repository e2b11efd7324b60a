//! The part of a snapshot that changes most often: which addresses stand behind which service, and who owns them.
//!
//! Invariant: built from slices and pods alone, in any order. `facts` is what clusters and listeners depend on; it stays the same value
//! (and the same `Arc`) when only addresses change, so that most changes touch nothing but endpoint assignments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use carrick_base::NamespacedName;

use crate::{
    EndpointInput, Settings,
    model::{Endpoint, TlsMode, Workload},
    read,
};

/// Endpoints of one service by port name, each list sorted by address.
pub type ServiceEndpoints = BTreeMap<Arc<str>, Vec<Endpoint>>;

/// Addresses and workloads.
#[derive(Debug, Default)]
pub struct EndpointPart {
    services: HashMap<NamespacedName, ServiceEndpoints>,
    by_name: HashMap<NamespacedName, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
}

/// What clusters and listeners depend on, of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Identities of all endpoints, as SPIFFE URIs.
    pub identities: BTreeSet<Arc<str>>,
    /// By port name.
    pub ports: BTreeMap<Arc<str>, PortFacts>,
}

/// What clusters and listeners depend on, of one service port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortFacts {
    /// There is an endpoint, and all have a sidecar.
    pub all_in_mesh: bool,
    /// Addresses and workload ports; only of services without a virtual address, which are listened for one by one.
    pub addresses: Vec<(IpAddr, u16)>,
}

/// Facts of all services.
pub type Facts = HashMap<NamespacedName, ServiceFacts>;

impl EndpointPart {
    /// Joins slices with pods.
    pub fn build(input: &EndpointInput, settings: &Settings) -> Self {
        let mut part = Self::default();
        for pod in &input.pods {
            if let Some(workload) = read::pod::read(pod, settings).map(Arc::new) {
                for ip in &workload.ips {
                    // Two pods of one address: the younger name wins whichever comes first, so that order does not matter.
                    let slot = part.by_ip.entry(*ip).or_insert_with(|| workload.clone());
                    if slot.name < workload.name {
                        *slot = workload.clone();
                    }
                }
                part.by_name.insert(workload.name.clone(), workload);
            }
        }
        for slice in &input.endpoint_slices {
            let Some(service) = slice.service_name().filter(|_| slice.address_type != "FQDN") else { continue };
            let service = part.services.entry(NamespacedName::new(&slice.metadata.namespace, service)).or_default();
            for port in slice.ports.iter().filter(|p| p.protocol.is_empty() || p.protocol == "TCP") {
                let Some(number) = port.port.filter(|n| *n > 0) else { continue };
                let list = service.entry(port.name.as_str().into()).or_default();
                for endpoint in &slice.endpoints {
                    let ready = endpoint.is_ready();
                    for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                        let pod =
                            endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod").and_then(|t| {
                                part.by_name.get(&NamespacedName::new(&slice.metadata.namespace, &t.name))
                            });
                        let workload = pod.filter(|w| w.ips.contains(&ip)).or_else(|| part.by_ip.get(&ip)).cloned();
                        list.push(Endpoint { ip, port: number, ready, workload });
                    }
                }
            }
        }
        for list in part.services.values_mut().flat_map(BTreeMap::values_mut) {
            // Ready first, so that of two entries for one address the ready one stays.
            list.sort_by_key(|e| (e.ip, e.port, !e.ready));
            list.dedup_by_key(|e| (e.ip, e.port));
        }
        part
    }

    /// What clusters and listeners depend on. `headless` says which services need their addresses listed.
    pub fn facts(&self, headless: impl Fn(&NamespacedName) -> bool) -> Facts {
        let of_service = |(name, ports): (&NamespacedName, &ServiceEndpoints)| {
            let headless = headless(name);
            let workloads = ports.values().flatten().filter_map(|e| e.workload.as_ref());
            let identities = workloads.map(|w| w.identity.as_str().into()).collect();
            let of_port = |(port, list): (&Arc<str>, &Vec<Endpoint>)| {
                let addresses = list.iter().filter(|e| headless && e.ready).map(|e| (e.ip, e.port)).collect();
                let all_in_mesh = !list.is_empty() && list.iter().all(|e| e.tls_mode() == TlsMode::Istio);
                (port.clone(), PortFacts { all_in_mesh, addresses })
            };
            (name.clone(), ServiceFacts { identities, ports: ports.iter().map(of_port).collect() })
        };
        self.services.iter().map(of_service).collect()
    }

    /// Endpoints of a service port.
    pub fn of(&self, service: &NamespacedName, port_name: &str) -> &[Endpoint] {
        self.services.get(service).and_then(|ports| ports.get(port_name)).map_or(&[], Vec::as_slice)
    }

    /// All endpoints of a service.
    pub fn of_service(&self, service: &NamespacedName) -> impl Iterator<Item = (&Arc<str>, &Endpoint)> {
        self.services.get(service).into_iter().flatten().flat_map(|(name, list)| list.iter().map(move |e| (name, e)))
    }

    /// A workload by its place.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    /// The workload that owns an address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }
}
