//! What stands behind a service: addresses, and the workloads that own them.
//!
//! Invariant: an endpoint whose pod is known carries that pod's identity and labels; one whose pod is not known
//! has no identity and counts as outside of the mesh.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use carrick_base::{Labels, NamespacedName, SpiffeId};

/// What a workload says it can speak: the label `security.istio.io/tlsMode` (semantics §3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsMode {
    /// No label, or another value: no sidecar.
    #[default]
    Disabled,
    /// Exactly `istio`.
    Istio,
}

/// One pod, as far as the mesh cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its place.
    pub name: NamespacedName,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// What its certificate will say.
    pub identity: SpiffeId,
    /// Whether it speaks mesh TLS.
    pub tls_mode: TlsMode,
    /// Container port names and numbers, for named target ports.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// The name of what owns it (for telemetry); the pod's own name when unknown.
    pub workload_name: Arc<str>,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
}

/// One address behind one service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The workload's port.
    pub port: u16,
    /// Whether it takes new traffic.
    pub ready: bool,
    /// Who owns the address, when it is a pod.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// Whether the endpoint says that it speaks mesh TLS.
    pub fn tls_mode(&self) -> TlsMode {
        self.workload.as_ref().map_or(TlsMode::Disabled, |w| w.tls_mode)
    }

    /// Whether its workload carries all of these labels. An address without a pod has none.
    pub fn carries(&self, labels: &Labels) -> bool {
        labels.is_empty() || self.workload.as_ref().is_some_and(|w| carries_all(&w.labels, labels))
    }
}

/// Whether `all` are among `own`, with equal values.
pub fn carries_all(own: &Labels, all: &Labels) -> bool {
    all.iter().all(|(key, value)| own.get(key) == Some(value))
}
