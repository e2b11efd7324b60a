//! The mesh's own types: what objects mean once they are parsed, with nothing left to interpret.
//!
//! Invariant: values here cannot be contradictory in form (a port is a number, a mode is a mode); what is wrong
//! in an object was reported while it was read (`input`) and is not here.

pub mod authz;
pub mod endpoint;
pub mod gateway;
pub mod jwt;
pub mod legacy;
pub mod locality;
pub mod policy;
pub mod request;
pub mod service;
pub mod sidecar;
pub mod telemetry;
pub mod virtual_service;

pub use endpoint::{Address, Endpoint, TlsMode, Workload};
pub use locality::Locality;
pub use policy::{ClientTls, DestinationRule, MtlsMode, PeerAuth, Subset, TrafficPolicy};
pub use service::{ExportTo, Port, Registry, Resolution, Service, ServiceId};
pub use sidecar::SidecarConfig;

use std::{cmp::Ordering, sync::Arc};

use carrick_base::NamespacedName;

/// Where a rule comes from, and its age: the order in which Istio lets the older of two win.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The object's kind.
    pub kind: &'static str,
    /// The object's place.
    pub name: NamespacedName,
    /// Seconds since 1970 of `metadata.creationTimestamp`; absent counts as 0.
    pub created: i64,
}

impl Origin {
    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.name.namespace
    }

    /// The object as diagnostics name it.
    pub fn object(&self) -> carrick_base::ObjectRef {
        carrick_base::ObjectRef { kind: self.kind.into(), name: self.name.clone() }
    }
}

impl Ord for Origin {
    /// Oldest first, then by name, then by namespace (semantics, preamble).
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |o: &Self| (o.created, o.name.name.clone(), o.name.namespace.clone(), o.kind);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Origin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
