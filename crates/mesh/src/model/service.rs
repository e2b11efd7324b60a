//! Services as the mesh sees them: a name, its ports, its addresses, who may see it.
//!
//! Invariant: `ports` keeps the object's order and holds no UDP port; numbers are unique. Which endpoints stand behind a
//! service is in the snapshot's endpoint part, because that changes far more often.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use carrick_api::Protocol;
use carrick_base::{Hostname, Labels};

use super::Origin;

/// How a service's endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// A virtual address, endpoints by EDS.
    ClusterIp,
    /// No virtual address: clients choose a pod's address themselves.
    Headless,
    /// Another name: routes and domains of the target, nothing of its own.
    ExternalName(Hostname),
}

/// Namespaces that may see an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExportTo {
    /// Every namespace.
    All,
    /// Only these; `.` was replaced by the object's own. Empty is nobody.
    Namespaces(BTreeSet<Arc<str>>),
}

impl ExportTo {
    /// Whether a namespace may see the object.
    pub fn allows(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(set) => set.contains(namespace),
        }
    }

    /// Whether the object is for one namespace alone, its own.
    pub fn is_private_to(&self, namespace: &str) -> bool {
        match self {
            Self::All => false,
            Self::Namespaces(set) => set.len() == 1 && set.contains(namespace),
        }
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Port {
    /// The service port.
    pub number: u16,
    /// Its name; empty when unnamed.
    pub name: Arc<str>,
    /// The number that `targetPort` gives, if it is a number (a name differs from pod to pod).
    pub target: Target,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// The workload's side of a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The object it comes from.
    pub origin: Origin,
    /// The full name.
    pub hostname: Hostname,
    /// Its ports, UDP left out.
    pub ports: Vec<Port>,
    /// Its virtual addresses.
    pub vips: Vec<IpAddr>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Labels a pod needs to stand behind it; empty when endpoints are written by hand.
    pub selector: Labels,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Identities from `alpha.istio.io/*serviceaccounts` annotations, as SPIFFE URIs.
    pub identities: BTreeSet<Arc<str>>,
    /// Whether it is outside of the mesh (ServiceEntry MESH_EXTERNAL).
    pub external: bool,
}

impl Service {
    /// The namespace of the service.
    pub fn namespace(&self) -> &Arc<str> {
        self.origin.namespace()
    }

    /// The object's name, without namespace and domain.
    pub fn short_name(&self) -> &Arc<str> {
        &self.origin.name.name
    }

    /// The port of that number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.number == number)
    }
}
