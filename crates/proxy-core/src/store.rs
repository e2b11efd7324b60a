//! The store of accepted resources, and the runtime configuration they make.
//!
//! Invariant: a rejected resource leaves its previous version in force, and does not touch its neighbours; a listener or cluster is
//! visible only when what it refers to by name (routes, endpoints) has arrived, and until then its previous version stays visible.
//! Secrets are not waited for: a handshake without its secret fails. It leaves to others how resources arrive and who is told.

mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterMessage;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerMessage;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::decode::bad::{Bad, unpack};
use crate::decode::{cluster, endpoint, listener, route};
use crate::model::{Cluster, Listener, Name, RouteTable, RuntimeConfig};

pub use warm::Warming;

/// Type URLs of the resources the store takes.
pub mod type_url {
    /// CDS
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// EDS
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// LDS
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// RDS
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
}

/// Why a resource was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {}{}{reason}", self.field, if self.field.is_empty() { "" } else { ": " })]
pub struct Rejection {
    /// Resource name.
    pub resource: Name,
    /// Field path within it, `filter_chains[2].filters[0].typed_config`; empty for the resource itself.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// All rejections of an update as one text, for a NACK.
#[must_use]
pub fn nack_text(rejections: &[Rejection]) -> String {
    rejections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Names that the accepted configuration asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interests {
    /// EDS service names.
    pub endpoints: BTreeSet<Name>,
    /// RDS route configuration names.
    pub routes: BTreeSet<Name>,
    /// SDS secret names.
    pub secrets: BTreeSet<Name>,
}

/// An accepted resource with its bytes. Its type is that of the map it is in.
#[derive(Debug)]
struct Accepted<T> {
    raw: Arc<[u8]>,
    value: T,
}

#[derive(Debug)]
struct ClusterEntry {
    cluster: Arc<Cluster>,
    /// A `ClusterLoadAssignment`.
    inline: Option<Arc<[u8]>>,
}

#[derive(Debug)]
struct Shared<T> {
    value: T,
    /// Something referred to it once; when nothing does any more it is dropped.
    used: bool,
    /// The server took it back; it stays while something refers to it, as in Envoy.
    removed: bool,
}

type Kept<T> = BTreeMap<Name, Accepted<T>>;

/// Accepted resources.
#[derive(Debug, Default)]
pub struct ConfigStore {
    clusters: Kept<ClusterEntry>,
    /// By their bytes alone: the message is many times their size, and is needed only when they change.
    endpoints: Kept<Shared<()>>,
    listeners: Kept<Arc<Listener>>,
    routes: Kept<Shared<Arc<RouteTable>>>,
    rejected: BTreeMap<(&'static str, Name), Rejection>,
    runtime: Arc<RuntimeConfig>,
    resolved: warm::Resolved,
}

impl ConfigStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an update of one type. Good resources are taken although others are refused.
    ///
    /// # Errors
    /// One [`Rejection`] per refused resource; the previous version of each stays in force.
    pub fn apply(&mut self, type_url: &str, upserts: Vec<(Name, Any)>, removed: &[Name]) -> Result<(), Vec<Rejection>> {
        let mut rejections = Vec::new();
        match type_url {
            type_url::CLUSTER => self.apply_clusters(upserts, removed, &mut rejections),
            type_url::ENDPOINT => self.apply_endpoints(upserts, removed, &mut rejections),
            type_url::LISTENER => self.apply_listeners(upserts, removed, &mut rejections),
            type_url::ROUTE => self.apply_routes(upserts, removed, &mut rejections),
            other => rejections.push(Rejection {
                resource: Name::from(other),
                field: String::new(),
                reason: "unsupported resource type".to_owned(),
            }),
        }
        self.rewarm();
        if rejections.is_empty() { Ok(()) } else { Err(rejections) }
    }

    fn apply_clusters(&mut self, upserts: Vec<(Name, Any)>, removed: &[Name], rejections: &mut Vec<Rejection>) {
        for name in removed {
            self.clusters.remove(name);
        }
        for (name, raw) in upserts {
            let decode = |raw: &Any| {
                let message: ClusterMessage = unpack(raw, "envoy.config.cluster.v3.Cluster")?;
                same_name(&name, "name", &message.name)?;
                let (cluster, inline) = cluster::cluster(&message)?;
                let inline = inline.map(|assignment| assignment.encode_to_vec().into());
                Ok(ClusterEntry { cluster: Arc::new(cluster), inline })
            };
            let result = keep(&mut self.clusters, &name, type_url::CLUSTER, raw, decode);
            self.rejected_or(type_url::CLUSTER, name, result, rejections);
        }
    }

    fn apply_endpoints(&mut self, upserts: Vec<(Name, Any)>, removed: &[Name], rejections: &mut Vec<Rejection>) {
        for name in removed {
            if let Some(entry) = self.endpoints.get_mut(name) {
                entry.value.removed = true;
            }
        }
        for (name, raw) in upserts {
            let decode = |raw: &Any| {
                let message: ClusterLoadAssignment = unpack(raw, "envoy.config.endpoint.v3.ClusterLoadAssignment")?;
                same_name(&name, "cluster_name", &message.cluster_name)?;
                endpoint::check(&message)?;
                Ok(Shared { value: (), used: false, removed: false })
            };
            let result = keep(&mut self.endpoints, &name, type_url::ENDPOINT, raw, decode);
            if let Some(entry) = self.endpoints.get_mut(&name).filter(|_| result.is_ok()) {
                entry.value.removed = false;
            }
            self.rejected_or(type_url::ENDPOINT, name, result, rejections);
        }
    }

    fn apply_listeners(&mut self, upserts: Vec<(Name, Any)>, removed: &[Name], rejections: &mut Vec<Rejection>) {
        for name in removed {
            self.listeners.remove(name);
        }
        let coming: BTreeSet<Name> = upserts.iter().map(|(name, _)| Arc::clone(name)).collect();
        let mut taken = BTreeSet::new();
        for (name, raw) in upserts {
            let others: Vec<&Arc<Listener>> = self
                .listeners
                .iter()
                .filter(|(other, _)| **other != name && (!coming.contains(*other) || taken.contains(*other)))
                .map(|(_, entry)| &entry.value)
                .collect();
            let decode = |raw: &Any| {
                let message: ListenerMessage = unpack(raw, "envoy.config.listener.v3.Listener")?;
                same_name(&name, "name", &message.name)?;
                let listener = listener::listener(&message)?;
                match others.iter().find(|other| other.addresses().any(|a| listener.addresses().any(|b| a == b))) {
                    Some(other) => {
                        Err(Bad::field("address", format_args!("listener \"{}\" has the same address", other.name)))
                    }
                    None => Ok(Arc::new(listener)),
                }
            };
            let decoded = match self.listeners.get(&name) {
                Some(entry) if entry.is(type_url::LISTENER, &raw) => Ok(None),
                _ => decode(&raw).map(Some),
            };
            let result = decoded.map(|value| {
                if let Some(value) = value {
                    self.listeners.insert(Arc::clone(&name), Accepted { raw: raw.value.into(), value });
                }
            });
            taken.insert(Arc::clone(&name));
            self.rejected_or(type_url::LISTENER, name, result, rejections);
        }
    }

    fn apply_routes(&mut self, upserts: Vec<(Name, Any)>, removed: &[Name], rejections: &mut Vec<Rejection>) {
        for name in removed {
            if let Some(entry) = self.routes.get_mut(name) {
                entry.value.removed = true;
            }
        }
        for (name, raw) in upserts {
            let decode = |raw: &Any| {
                let message: RouteConfiguration = unpack(raw, "envoy.config.route.v3.RouteConfiguration")?;
                same_name(&name, "name", &message.name)?;
                Ok(Shared { value: Arc::new(route::route_table(&message)?), used: false, removed: false })
            };
            let result = keep(&mut self.routes, &name, type_url::ROUTE, raw, decode);
            if let Some(entry) = self.routes.get_mut(&name).filter(|_| result.is_ok()) {
                entry.value.removed = false;
            }
            self.rejected_or(type_url::ROUTE, name, result, rejections);
        }
    }

    fn rejected_or(
        &mut self,
        kind: &'static str,
        name: Name,
        result: Result<(), Bad>,
        rejections: &mut Vec<Rejection>,
    ) {
        match result {
            Ok(()) => {
                self.rejected.remove(&(kind, name));
            }
            Err(bad) => {
                let rejection = Rejection { resource: Arc::clone(&name), field: bad.field, reason: bad.reason };
                rejections.push(rejection.clone());
                self.rejected.insert((kind, name), rejection);
            }
        }
    }

    /// The visible configuration.
    #[must_use]
    pub fn runtime(&self) -> Arc<RuntimeConfig> {
        Arc::clone(&self.runtime)
    }

    /// The accepted resources as received, by type URL and name. Resources that wait for others are among them.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<&'static str, Vec<(Name, Any)>> {
        fn list<T>(kind: &'static str, kept: &Kept<T>) -> (&'static str, Vec<(Name, Any)>) {
            let any = |entry: &Accepted<T>| Any { type_url: kind.to_owned(), value: entry.raw.to_vec() };
            (kind, kept.iter().map(|(name, entry)| (Arc::clone(name), any(entry))).collect())
        }
        BTreeMap::from([
            list(type_url::CLUSTER, &self.clusters),
            list(type_url::ENDPOINT, &self.endpoints),
            list(type_url::LISTENER, &self.listeners),
            list(type_url::ROUTE, &self.routes),
        ])
    }

    /// The last rejection of each resource whose latest version was refused, by type URL.
    #[must_use]
    pub fn rejected(&self) -> Vec<(&'static str, &Rejection)> {
        self.rejected.iter().map(|((kind, _), rejection)| (*kind, rejection)).collect()
    }
}

/// Decodes and keeps a resource, unless its bytes are those already kept.
fn keep<T>(
    kept: &mut Kept<T>,
    name: &Name,
    kind: &str,
    raw: Any,
    decode: impl FnOnce(&Any) -> Result<T, Bad>,
) -> Result<(), Bad> {
    if kept.get(name).is_some_and(|entry| entry.is(kind, &raw)) {
        return Ok(());
    }
    let value = decode(&raw)?;
    kept.insert(Arc::clone(name), Accepted { raw: raw.value.into(), value });
    Ok(())
}

impl<T> Accepted<T> {
    /// Whether a resource that came as one of type `kind` is this one.
    fn is(&self, kind: &str, raw: &Any) -> bool {
        raw.type_url == kind && *self.raw == *raw.value
    }
}

fn same_name(resource: &str, field: &str, message: &str) -> Result<(), Bad> {
    if message.is_empty() {
        Err(Bad::field(field, "empty"))
    } else if resource == message {
        Ok(())
    } else {
        Err(Bad::field(field, format_args!("\"{message}\" is not the resource's name")))
    }
}
