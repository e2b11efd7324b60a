//! From accepted to visible: warming, interests, and reuse of what did not change.
//!
//! Invariant: a visible listener's route tables and a visible cluster's endpoints are in the same [`RuntimeConfig`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;

use super::{ConfigStore, Interests};
use crate::decode::endpoint;
use crate::model::cluster::Discovery;
use crate::model::hcm::RouteSource;
use crate::model::{ChainKind, Cluster, EndpointSet, FilterChain, Listener, Listeners, Name, RuntimeConfig};

/// Endpoint sets already resolved, by cluster name, with what they were made of.
pub(super) type Resolved = HashMap<Name, (Arc<Cluster>, Arc<[u8]>, Arc<EndpointSet>)>;

impl Listener {
    /// All filter chains, the default chain last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// The addresses it stands for.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::SocketAddr> {
        std::iter::once(self.address).chain(self.additional_addresses.iter().copied())
    }

    /// Route configurations it needs by name.
    pub fn route_names(&self) -> impl Iterator<Item = &Name> {
        self.all_chains().filter_map(|chain| match &chain.kind {
            ChainKind::Http(manager) => match &manager.routes {
                RouteSource::Rds(name) => Some(name),
                RouteSource::Inline(_) => None,
            },
            ChainKind::Tcp(_) => None,
        })
    }

    /// Secrets it needs by name.
    pub fn secret_names(&self) -> impl Iterator<Item = &Name> {
        let contexts = self.all_chains().filter_map(|chain| chain.tls.as_ref());
        contexts.flat_map(|tls| {
            let own = tls.certificates.iter().filter_map(|c| c.secret_name());
            own.chain(tls.validation.iter().flat_map(|v| v.secret_names()))
        })
    }
}

impl Cluster {
    /// Secrets it needs by name.
    pub fn secret_names(&self) -> impl Iterator<Item = &Name> {
        let sockets = self.transport.matches.iter().map(|m| &m.socket).chain(std::iter::once(&self.transport.default));
        let contexts = sockets.filter_map(|socket| socket.tls());
        contexts.flat_map(|tls| {
            let own = tls.certificate.iter().filter_map(|c| c.secret_name());
            own.chain(tls.validation.iter().flat_map(|v| v.secret_names()))
        })
    }

    fn service(&self) -> Option<&Name> {
        match &self.discovery {
            Discovery::Eds(service) => Some(service),
            _ => None,
        }
    }
}

/// Resources that are accepted and wait for others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warming {
    /// Clusters without endpoints.
    pub clusters: BTreeSet<Name>,
    /// Listeners without routes.
    pub listeners: BTreeSet<Name>,
}

impl ConfigStore {
    /// What must be subscribed to by name: for the accepted configuration, and for older versions that are still visible.
    #[must_use]
    pub fn interests(&self) -> Interests {
        let mut out = Interests::default();
        let listeners = self.listeners.values().map(|e| &e.value).chain(self.runtime.listeners.by_name.values());
        for listener in listeners {
            out.routes.extend(listener.route_names().cloned());
            out.secrets.extend(listener.secret_names().cloned());
        }
        let clusters = self.clusters.values().map(|e| &e.value.cluster).chain(self.runtime.clusters.values());
        for cluster in clusters {
            out.endpoints.extend(cluster.service().cloned());
            out.secrets.extend(cluster.secret_names().cloned());
        }
        out
    }

    /// What waits for what.
    #[must_use]
    pub fn warming(&self) -> Warming {
        let clusters = self.clusters.values().map(|e| &e.value.cluster);
        let listeners = self.listeners.values().map(|e| &e.value);
        Warming {
            clusters: clusters.filter(|c| !self.cluster_is_warm(c)).map(|c| Arc::clone(&c.name)).collect(),
            listeners: listeners.filter(|l| !self.listener_is_warm(l)).map(|l| Arc::clone(&l.name)).collect(),
        }
    }

    fn cluster_is_warm(&self, cluster: &Cluster) -> bool {
        cluster.service().is_none_or(|service| self.endpoints.contains_key(service))
    }

    fn listener_is_warm(&self, listener: &Listener) -> bool {
        listener.route_names().all(|name| self.routes.contains_key(name))
    }

    /// Makes the visible configuration anew from what is accepted, reusing what is the same.
    pub(super) fn rewarm(&mut self) {
        let mut next = RuntimeConfig { generation: self.runtime.generation, ..RuntimeConfig::default() };
        for (name, entry) in &self.listeners {
            let warm = self.listener_is_warm(&entry.value).then_some(&entry.value);
            if let Some(listener) = warm.or_else(|| self.runtime.listeners.by_name.get(name)) {
                next.listeners.by_name.insert(Arc::clone(name), Arc::clone(listener));
            }
        }
        next.listeners.by_address = by_address(&next.listeners);
        for (name, entry) in &self.clusters {
            let warm = self.cluster_is_warm(&entry.value.cluster).then_some(&entry.value.cluster);
            if let Some(cluster) = warm.or_else(|| self.runtime.clusters.get(name)) {
                next.clusters.insert(Arc::clone(name), Arc::clone(cluster));
            }
        }
        self.resolve_endpoints(&mut next);
        self.drop_unused(&next);
        for name in next.listeners.by_name.values().flat_map(|l| l.route_names()) {
            if let Some(entry) = self.routes.get(name) {
                next.routes.insert(Arc::clone(name), Arc::clone(&entry.value.value));
            }
        }
        if !same(&self.runtime, &next) {
            next.generation = next.generation.saturating_add(1);
            self.runtime = Arc::new(next);
        }
    }

    fn resolve_endpoints(&mut self, next: &mut RuntimeConfig) {
        let mut resolved = Resolved::with_capacity(next.clusters.len());
        for (name, cluster) in &next.clusters {
            let assignment = match cluster.service() {
                Some(service) => self.endpoints.get(service).map(|e| &e.raw),
                None => self.clusters.get(name).and_then(|e| e.value.inline.as_ref()),
            };
            let Some(assignment) = assignment else { continue };
            let known =
                self.resolved.get(name).filter(|(c, a, _)| Arc::ptr_eq(c, cluster) && Arc::ptr_eq(a, assignment));
            let set = match known {
                Some((_, _, set)) => Arc::clone(set),
                // What could fail was checked when the assignment was accepted.
                None => read(assignment, cluster).unwrap_or_default(),
            };
            next.endpoints.insert(Arc::clone(name), Arc::clone(&set));
            resolved.insert(Arc::clone(name), (Arc::clone(cluster), Arc::clone(assignment), set));
        }
        self.resolved = resolved;
    }

    /// Drops routes and endpoints that nothing refers to any more. What was never referred to waits for its listener or cluster,
    /// unless the server took it back.
    fn drop_unused(&mut self, next: &RuntimeConfig) {
        let mut services: BTreeSet<Name> = next.clusters.values().filter_map(|c| c.service().cloned()).collect();
        services.extend(self.clusters.values().filter_map(|e| e.value.cluster.service().cloned()));
        self.endpoints
            .retain(|name, entry| retain(&mut entry.value.used, entry.value.removed, services.contains(name)));
        let mut tables: BTreeSet<Name> =
            next.listeners.by_name.values().flat_map(|l| l.route_names().cloned()).collect();
        tables.extend(self.listeners.values().flat_map(|e| e.value.route_names().cloned()));
        self.routes.retain(|name, entry| retain(&mut entry.value.used, entry.value.removed, tables.contains(name)));
    }
}

fn read(assignment: &[u8], cluster: &Cluster) -> Option<Arc<EndpointSet>> {
    endpoint::shared(&ClusterLoadAssignment::decode(assignment).ok()?, cluster).ok()
}

fn retain(used: &mut bool, removed: bool, wanted: bool) -> bool {
    *used |= wanted;
    wanted || !(*used || removed)
}

fn by_address(listeners: &Listeners) -> HashMap<std::net::SocketAddr, Arc<Listener>> {
    let pairs = listeners.by_name.values().flat_map(|l| l.addresses().map(move |a| (a, Arc::clone(l))));
    pairs.collect()
}

fn same(old: &RuntimeConfig, new: &RuntimeConfig) -> bool {
    fn maps<V>(a: &HashMap<Name, Arc<V>>, b: &HashMap<Name, Arc<V>>) -> bool {
        a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| Arc::ptr_eq(v, w)))
    }
    let listeners = |c: &RuntimeConfig| c.listeners.by_name.values().map(Arc::as_ptr).collect::<Vec<_>>();
    listeners(old) == listeners(new)
        && maps(&old.clusters, &new.clusters)
        && maps(&old.endpoints, &new.endpoints)
        && maps(&old.routes, &new.routes)
}
