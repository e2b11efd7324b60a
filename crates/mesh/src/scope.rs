//! What a workload may see: which Sidecar it follows, and which services are visible to it (semantics §0.3, §8).
//!
//! Invariant: of several Sidecars for one workload the oldest counts; a host name is visible at most once: the client's own namespace's,
//! else Kubernetes' before others', else the oldest's.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use carrick_base::{Diagnostic, HostPattern, Hostname, Labels, NamespacedName, Severity};

use crate::{
    codes,
    model::{
        Registry, Service, SidecarConfig,
        endpoint::carries_all,
        sidecar::{HostSelector, NamespaceSelector},
        virtual_service::VirtualService,
    },
    read::finding,
};

/// All Sidecars, by namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SidecarIndex {
    root: Arc<str>,
    /// Oldest first.
    namespaces: HashMap<Arc<str>, Vec<Arc<SidecarConfig>>>,
}

impl SidecarIndex {
    /// Sorts Sidecars by namespace and age.
    pub fn build(mut all: Vec<SidecarConfig>, root: &Arc<str>, found: &mut Vec<Diagnostic>) -> Self {
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut index = Self { root: root.clone(), namespaces: HashMap::new() };
        for sidecar in all {
            let list = index.namespaces.entry(sidecar.origin.namespace().clone()).or_default();
            if let Some(older) = list.iter().find(|s| s.selector == sidecar.selector) {
                let message =
                    format!("{} is older and for the same workloads; this one has no effect", older.origin.name);
                found.push(finding(&sidecar.origin, codes::POLICY_SHADOWED, Severity::Warning, "", message));
            }
            list.push(Arc::new(sidecar));
        }
        index
    }

    /// The Sidecar that a workload follows (§8.1).
    pub fn select(&self, namespace: &str, labels: &Labels) -> Option<&Arc<SidecarConfig>> {
        let of = |namespace: &str| self.namespaces.get(namespace).map_or(&[][..], Vec::as_slice).iter();
        let selects = |s: &&Arc<SidecarConfig>| s.selector.as_ref().is_some_and(|l| carries_all(labels, l));
        let for_all = |s: &&Arc<SidecarConfig>| s.selector.is_none();
        of(namespace).find(selects).or_else(|| of(namespace).find(for_all)).or_else(|| of(&self.root).find(for_all))
    }

    /// The Sidecar of that name.
    pub fn get(&self, name: &NamespacedName) -> Option<&Arc<SidecarConfig>> {
        self.namespaces.get(&name.namespace)?.iter().find(|s| s.origin.name == *name)
    }
}

/// Those of `services` that a client's namespace sees through a host list, in their order. An empty list shows nothing.
pub fn visible<'a>(services: &'a [Arc<Service>], namespace: &str, hosts: &[HostSelector]) -> Vec<&'a Arc<Service>> {
    let may = |s: &&Arc<Service>| s.export_to.allows(namespace) && selected(hosts, namespace, s);
    let all: Vec<_> = services.iter().filter(may).collect();
    let mut best: HashMap<&Hostname, &Arc<Service>> = HashMap::new();
    let rank = |s: &Service| (**s.namespace() != *namespace, s.registry != Registry::Kubernetes);
    for service in &all {
        let slot = best.entry(&service.hostname).or_insert(service);
        if rank(service) < rank(slot) {
            *slot = service;
        }
    }
    let chosen: HashSet<_> = best.into_values().map(|s| &s.id).collect();
    all.into_iter().filter(|s| chosen.contains(&s.id)).collect()
}

fn selected(hosts: &[HostSelector], namespace: &str, service: &Service) -> bool {
    let names = |h: &HostSelector| covers(h, namespace, service);
    hosts.iter().filter(|h| !h.exclude).any(names) && !hosts.iter().filter(|h| h.exclude).any(names)
}

/// Whether a client's namespace follows a VirtualService through a host list (§8.2): its own namespace counts, not that of the services it
/// names, and one of its hosts and one of the list meet.
pub fn imports(hosts: &[HostSelector], namespace: &str, rule: &VirtualService) -> bool {
    let own = rule.origin.namespace();
    let meets = |s: &HostSelector| {
        let meet = |host: &HostPattern| s.host.covers(host) || host.covers(&s.host);
        is_of(&s.namespace, namespace, own) && rule.hosts.iter().any(meet)
    };
    let takes_out =
        |s: &HostSelector| is_of(&s.namespace, namespace, own) && rule.hosts.iter().all(|host| s.host.covers(host));
    hosts.iter().filter(|h| !h.exclude).any(meets) && !hosts.iter().filter(|h| h.exclude).any(takes_out)
}

fn covers(selector: &HostSelector, namespace: &str, service: &Service) -> bool {
    let host = HostPattern::new(service.hostname.as_str());
    is_of(&selector.namespace, namespace, service.namespace()) && selector.host.covers(&host)
}

/// Whether `own` is meant, where a client of `namespace` asks.
fn is_of(selector: &NamespaceSelector, namespace: &str, own: &Arc<str>) -> bool {
    match selector {
        NamespaceSelector::Any => true,
        NamespaceSelector::None => false,
        NamespaceSelector::Own => **own == *namespace,
        NamespaceSelector::Named(name) => name == own,
    }
}
