//! From a view to Envoy's v3 resources: listeners, route configurations, clusters, endpoints.
//!
//! Invariant: a generator takes a small value that is `Eq + Hash` and is its cache key; it cannot see the snapshot. Output is
//! byte-stable: equal inputs give equal bytes, and a resource's version is the hash of its bytes.
//! This crate knows nothing of xDS sessions, and decides nothing: what a proxy may do is in the view.

use std::{collections::BTreeMap, sync::Arc};

use carrick_mesh::View;
use envoy_types::pb::google::protobuf::Any;

/// One rendered resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name, as xDS subscribes to it.
    pub name: Arc<str>,
    /// Hash of its bytes, hex.
    pub version: Arc<str>,
    /// The message.
    pub body: Any,
}

/// Resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Resource>>;

/// All resources of one proxy. Equal parts are the same `Arc` across proxies and pushes.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    /// CDS.
    pub clusters: Arc<Resources>,
    /// EDS.
    pub endpoints: Arc<Resources>,
    /// LDS.
    pub listeners: Arc<Resources>,
    /// RDS.
    pub routes: Arc<Resources>,
}

/// What was rendered before, shared over proxies and pushes.
#[derive(Debug, Default)]
pub struct Cache {}

impl Cache {
    /// Forgets what no call of [`resources`] used since the last sweep. To be called once per push round.
    pub fn sweep(&mut self) {}
}

/// All resources of one view.
pub fn resources(_view: &View, _cache: &mut Cache) -> Rendered {
    Rendered::default()
}
