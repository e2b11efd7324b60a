//! What stands behind a service: addresses, and the workloads that own them (pods, WorkloadEntries, a ServiceEntry's own endpoints).
//!
//! Invariant: an endpoint whose pod is known carries that pod's identity and labels; one whose pod is not known
//! has no identity and counts as outside of the mesh.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use carrick_base::{Labels, NamespacedName, SpiffeId};

use super::Locality;

/// What a workload says it can speak: the label `security.istio.io/tlsMode` (semantics §3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsMode {
    /// No label, or another value: no sidecar.
    #[default]
    Disabled,
    /// Exactly `istio`.
    Istio,
}

/// One workload, as far as the mesh cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its place.
    pub name: NamespacedName,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// What its certificate will say; `None` when no service account is known.
    pub identity: Option<SpiffeId>,
    /// Whether it speaks mesh TLS.
    pub tls_mode: TlsMode,
    /// Container port names and numbers, for named target ports.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// The name of what owns it (for telemetry); the pod's own name when unknown, empty when there is none.
    pub workload_name: Arc<str>,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
    /// Where it stands.
    pub locality: Locality,
    /// The network it is in; empty for the mesh's own.
    pub network: Arc<str>,
    /// Its share of traffic, relative to its neighbours'; at least 1.
    pub weight: u32,
    /// Whether it takes new traffic, where no endpoint slice says so.
    pub ready: bool,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An address and a port.
    Ip(IpAddr, u16),
    /// A name to be resolved, and a port.
    Name(Arc<str>, u16),
    /// A path of a Unix domain socket.
    Unix(Arc<str>),
}

impl Address {
    /// Reads what WorkloadEntries write: an address, a name or `unix://` and a path.
    pub fn parse(text: &str, port: u16) -> Self {
        match (text.strip_prefix("unix://"), text.parse()) {
            (Some(path), _) => Self::Unix(path.into()),
            (None, Ok(ip)) => Self::Ip(ip, port),
            (None, Err(_)) => Self::Name(text.into(), port),
        }
    }

    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip, _) => Some(*ip),
            Self::Name(..) | Self::Unix(_) => None,
        }
    }

    /// The port; 0 for a path.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(_, port) | Self::Name(_, port) => *port,
            Self::Unix(_) => 0,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, port) => SocketAddr::new(*ip, *port).fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// One address behind one service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Whether it takes new traffic.
    pub ready: bool,
    /// Who owns the address, when that is known.
    pub workload: Option<Arc<Workload>>,
    /// The cluster it is in.
    pub cluster: Arc<str>,
    /// The network it is in; empty when that is not known.
    pub network: Arc<str>,
}

impl Endpoint {
    /// Its share of traffic.
    pub fn weight(&self) -> u32 {
        self.workload.as_ref().map_or(1, |w| w.weight)
    }

    /// Whether the endpoint says that it speaks mesh TLS.
    pub fn tls_mode(&self) -> TlsMode {
        self.workload.as_ref().map_or(TlsMode::Disabled, |w| w.tls_mode)
    }

    /// Whether its workload carries all of these labels. An address without a workload has none.
    pub fn carries(&self, labels: &Labels) -> bool {
        labels.is_empty() || self.workload.as_ref().is_some_and(|w| carries_all(&w.labels, labels))
    }
}

/// Whether `all` are among `own`, with equal values.
pub fn carries_all(own: &Labels, all: &Labels) -> bool {
    all.iter().all(|(key, value)| own.get(key) == Some(value))
}
