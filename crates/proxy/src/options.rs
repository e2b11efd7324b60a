//! What an engine is started with.
//!
//! Invariant: nothing here changes after the start; everything that may change comes as configuration or secrets.

use carrick_proxy_core::peer::Peer;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Settings of an [`crate::Engine`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Worker threads, at least 1. Default: the number of CPUs, at most 2.
    pub workers: usize,
    /// How long connections of a removed listener or a changed chain may go on (Envoy's `--drain-time-s`). Default 45 s.
    pub drain_time: Duration,
    /// Where the original destination of a redirected connection is asked.
    pub original_dst: OriginalDst,
    /// Labels of this workload for Istio's metrics.
    pub workload: Workload,
    /// TLS sessions between mesh peers are taken up again, under the trust that made them. Default true.
    pub resume: bool,
    /// `%ENVIRONMENT(X)%` and the like are answered from the process environment only if set. Default false.
    pub expose_environment: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        EngineOptions {
            workers: cpus.clamp(1, 2),
            drain_time: Duration::from_secs(45),
            original_dst: OriginalDst::Kernel,
            workload: Workload::default(),
            resume: true,
            expose_environment: false,
        }
    }
}

/// How this workload calls itself in metrics, and towards mesh peers if it has a name.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Workload name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `app` label.
    pub app: String,
    /// `version` label.
    pub version: String,
    /// Canonical service.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Cluster id.
    pub cluster: String,
    /// Name of the pod or entry.
    pub instance: String,
    /// The node's id in xDS.
    pub node: String,
    /// The node's cluster in xDS.
    pub service: String,
    /// Its zone.
    pub zone: String,
}

impl Workload {
    /// What its peers are told.
    pub fn peer(&self) -> Peer {
        Peer {
            instance: self.instance.as_str().into(),
            workload: self.name.as_str().into(),
            namespace: self.namespace.as_str().into(),
            app: self.app.as_str().into(),
            version: self.version.as_str().into(),
            canonical_service: self.canonical_service.as_str().into(),
            canonical_revision: self.canonical_revision.as_str().into(),
            cluster: self.cluster.as_str().into(),
        }
    }
}

/// Answers (local address, peer address) with the original destination, if the connection was redirected.
pub type OriginalDstFn = dyn Fn(SocketAddr, SocketAddr) -> Option<SocketAddr> + Send + Sync;

/// Source of original destinations.
#[derive(Clone)]
pub enum OriginalDst {
    /// `SO_ORIGINAL_DST`.
    Kernel,
    /// A function, for tests without redirection.
    Function(Arc<OriginalDstFn>),
}

impl fmt::Debug for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OriginalDst::Kernel => "Kernel",
            OriginalDst::Function(_) => "Function",
        })
    }
}
