//! A named, content-hashed resource and the immutable set of them that one proxy is to have.
//!
//! Invariant: two resources of one name with equal versions have equal bodies; cloning a set copies no resource.

use crate::TypeUrl;
use aws_lc_rs::digest;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Weak};

/// The resources of one type, by name.
pub type TypeMap = BTreeMap<Arc<str>, Arc<Resource>>;

/// One resource as it goes over the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// The name, unique in its type.
    pub name: Arc<str>,
    /// Hash of the content (not a counter): equal versions mean equal bodies.
    pub version: Arc<str>,
    /// The resource itself.
    pub body: Any,
    /// For a cluster that takes its endpoints from EDS: the name of that EDS resource. Envoy warms a changed cluster
    /// until these endpoints are sent again.
    pub endpoints: Option<Arc<str>>,
}

impl Resource {
    /// A resource whose version is computed from its body.
    pub fn new(name: impl Into<Arc<str>>, body: Any) -> Self {
        let version = content_version(&body);
        Self::with_version(name, version, body)
    }

    /// A resource with a version that came from elsewhere (a server's message, a cache that has hashed it before).
    pub fn with_version(name: impl Into<Arc<str>>, version: impl Into<Arc<str>>, body: Any) -> Self {
        let name = name.into();
        let endpoints = endpoints_of(&body);
        Self { name, version: version.into(), body, endpoints }
    }
}

/// The version of a body: 16 bytes of its SHA-256 in hex.
pub fn content_version(body: &Any) -> Arc<str> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(body.type_url.as_bytes());
    context.update(&[0]);
    context.update(&body.value);
    let mut text = String::with_capacity(32);
    for byte in context.finish().as_ref().iter().take(16) {
        let _ = write!(text, "{byte:02x}");
    }
    Arc::from(text)
}

fn endpoints_of(body: &Any) -> Option<Arc<str>> {
    if TypeUrl::parse(&body.type_url) != TypeUrl::Cluster {
        return None;
    }
    let cluster = Cluster::decode(body.value.as_slice()).ok()?;
    let eds = cluster.eds_cluster_config?;
    let name = if eds.service_name.is_empty() { cluster.name } else { eds.service_name };
    Some(Arc::from(name))
}

/// In which names the resources of a type differ from those of an earlier set, so that who has the earlier ones looks at nothing else.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The earlier resources, by their place in memory alone.
    from: Weak<TypeMap>,
    names: Arc<[Arc<str>]>,
}

impl Changes {
    /// The differences of two sets of resources of one type.
    pub fn between(from: &Arc<TypeMap>, to: &TypeMap) -> Self {
        let same = |name: &Arc<str>, resource: &Arc<Resource>| {
            from.get(name).is_some_and(|was| Arc::ptr_eq(was, resource) || was.version == resource.version)
        };
        let changed = to.iter().filter(|(name, resource)| !same(name, resource)).map(|(name, _)| name.clone());
        let gone = from.keys().filter(|name| !to.contains_key(*name)).cloned();
        Self { from: Arc::downgrade(from), names: changed.chain(gone).collect() }
    }

    /// The names, if they are the differences from exactly these resources.
    pub(crate) fn since(&self, from: &Arc<TypeMap>) -> Option<&[Arc<str>]> {
        std::ptr::eq(self.from.as_ptr(), Arc::as_ptr(from)).then_some(&*self.names)
    }
}

/// Everything one proxy is to have, at one generation of the configuration. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    generation: u64,
    version: Arc<str>,
    types: Arc<BTreeMap<TypeUrl, Arc<TypeMap>>>,
    changes: Arc<BTreeMap<TypeUrl, Changes>>,
}

impl ResourceSet {
    /// A set for `generation` (a counter that only grows; acknowledgements are told in it), with the version text that
    /// state-of-the-world responses carry (`<RFC 3339 time>/<counter>`).
    pub fn new(generation: u64, version: impl Into<Arc<str>>, types: BTreeMap<TypeUrl, Arc<TypeMap>>) -> Self {
        Self { generation, version: version.into(), types: Arc::new(types), changes: Arc::default() }
    }

    /// A set out of loose resources, for tests and small sources.
    pub fn from_resources(
        generation: u64,
        version: impl Into<Arc<str>>,
        resources: impl IntoIterator<Item = (TypeUrl, Resource)>,
    ) -> Self {
        let mut types: BTreeMap<TypeUrl, TypeMap> = BTreeMap::new();
        for (type_url, resource) in resources {
            types.entry(type_url).or_default().insert(resource.name.clone(), Arc::new(resource));
        }
        Self::new(generation, version, types.into_iter().map(|(t, m)| (t, Arc::new(m))).collect())
    }

    /// The same content at a later generation: what a proxy is told when a change does not concern it.
    #[must_use]
    pub fn at(&self, generation: u64, version: impl Into<Arc<str>>) -> Self {
        Self { generation, version: version.into(), types: self.types.clone(), changes: self.changes.clone() }
    }

    /// The same with what is different from earlier resources of some types. Only spares work: without it everything is compared.
    #[must_use]
    pub fn knowing(mut self, changes: BTreeMap<TypeUrl, Changes>) -> Self {
        self.changes = Arc::new(changes);
        self
    }

    /// What is known of the differences of a type.
    pub(crate) fn changes(&self, type_url: &TypeUrl) -> Option<&Changes> {
        self.changes.get(type_url)
    }

    /// The generation of the configuration this set was made from.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The version text of the whole set.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// The resources of a type; `None` when there are none.
    pub fn of(&self, type_url: &TypeUrl) -> Option<&Arc<TypeMap>> {
        self.types.get(type_url)
    }

    /// All types with their resources, in push order.
    pub fn types(&self) -> impl Iterator<Item = (&TypeUrl, &Arc<TypeMap>)> {
        self.types.iter()
    }

    /// One resource.
    pub fn get(&self, type_url: &TypeUrl, name: &str) -> Option<&Arc<Resource>> {
        self.types.get(type_url)?.get(name)
    }

    /// Whether both sets hold the same resources in the same versions (generations may differ).
    pub fn same_content(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.types, &other.types) {
            return true;
        }
        self.types.len() == other.types.len()
            && self.types.iter().zip(other.types.iter()).all(|((at, a), (bt, b))| {
                at == bt
                    && (Arc::ptr_eq(a, b)
                        || (a.len() == b.len()
                            && a.iter().zip(b.iter()).all(|((an, ar), (bn, br))| an == bn && ar.version == br.version)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::cluster::EdsClusterConfig;
    use envoy_types::util::pack_any;

    #[test]
    fn version_follows_content_only() {
        let a = Resource::new("a", Any { type_url: "x/y".into(), value: vec![1, 2] });
        let b = Resource::new("b", Any { type_url: "x/y".into(), value: vec![1, 2] });
        let c = Resource::new("a", Any { type_url: "x/y".into(), value: vec![1, 3] });
        assert_eq!(a.version, b.version);
        assert_ne!(a.version, c.version);
        assert_eq!(a.version.len(), 32);
    }

    #[test]
    fn a_cluster_knows_its_endpoints() {
        let mut cluster = Cluster { name: "outbound|80||a".into(), ..Default::default() };
        assert_eq!(Resource::new("c", pack_any(cluster.clone())).endpoints, None);
        cluster.eds_cluster_config = Some(EdsClusterConfig::default());
        assert_eq!(Resource::new("c", pack_any(cluster.clone())).endpoints.as_deref(), Some("outbound|80||a"));
        cluster.eds_cluster_config = Some(EdsClusterConfig { service_name: "svc".into(), ..Default::default() });
        assert_eq!(Resource::new("c", pack_any(cluster)).endpoints.as_deref(), Some("svc"));
    }
}
