//! The store of accepted resources, and the runtime configuration they make.
//!
//! Invariant: a rejected resource leaves its previous version in force; a listener or cluster is visible only when what it refers
//! to by name (routes, endpoints) has been answered. It leaves to others how resources arrive and who is told about rejections.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;

use crate::model::{Name, RuntimeConfig};

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
#[error("{resource}: {field}: {reason}")]
pub struct Rejection {
    /// Resource name.
    pub resource: Name,
    /// Field path within it, `filter_chains[2].filters[0].typed_config`; empty for the resource itself.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
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

/// Accepted resources.
#[derive(Debug, Default)]
pub struct ConfigStore {
    runtime: Arc<RuntimeConfig>,
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
    /// One [`Rejection`] per refused resource field; the previous version of those resources stays in force.
    pub fn apply(
        &mut self,
        _type_url: &str,
        _upserts: Vec<(Name, Any)>,
        _removed: &[Name],
    ) -> Result<(), Vec<Rejection>> {
        Ok(())
    }

    /// What must be subscribed to by name.
    #[must_use]
    pub fn interests(&self) -> Interests {
        Interests::default()
    }

    /// The visible configuration.
    #[must_use]
    pub fn runtime(&self) -> Arc<RuntimeConfig> {
        Arc::clone(&self.runtime)
    }

    /// The accepted resources as received, by type URL and name.
    #[must_use]
    pub fn dump(&self) -> std::collections::BTreeMap<&str, Vec<(Name, Any)>> {
        std::collections::BTreeMap::new()
    }
}
