//! Services as the mesh sees them: a name, its ports, its addresses, who may see it.
//!
//! Invariant: `ports` keeps the object's order and holds no UDP port; numbers are unique. Which endpoints stand behind a
//! service is in the snapshot's endpoint part, because that changes far more often.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use carrick_api::Protocol;
use carrick_base::{Hostname, Labels};

use super::{Endpoint, Origin};

/// Which service: unique over all registries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(Arc<str>);

impl ServiceId {
    /// A Kubernetes service's.
    pub fn kubernetes(namespace: &str, name: &str) -> Self {
        Self(format!("Service/{namespace}/{name}").into())
    }

    /// That of a ServiceEntry's host; entries of one namespace with the same host are one service.
    pub fn entry(namespace: &str, host: &Hostname) -> Self {
        Self(format!("ServiceEntry/{namespace}/{host}").into())
    }
}

/// Where a service is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    Entry,
}

/// How a service's endpoints are found (semantics §6.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// A virtual address, endpoints by EDS.
    ClusterIp,
    /// No virtual address: clients choose a pod's address themselves.
    Headless,
    /// Another name: routes and domains of the target, nothing of its own.
    ExternalName(Hostname),
    /// A ServiceEntry's NONE: where the client wanted to go.
    Passthrough,
    /// A ServiceEntry's STATIC: addresses by EDS.
    Static,
    /// A ServiceEntry's DNS: all addresses of all names.
    Dns,
    /// A ServiceEntry's DNS_ROUND_ROBIN: one address of the name at a time.
    DnsRoundRobin,
    /// A ServiceEntry's DYNAMIC_DNS: the name that the request asks for.
    DynamicDns,
}

impl Resolution {
    /// Whether the endpoints are part of the cluster, because they are names.
    pub fn is_inline(&self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin)
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The first address.
    pub ip: IpAddr,
    /// How many leading bits are fixed.
    pub length: u8,
}

impl Prefix {
    /// Reads `a.b.c.d/n`; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, length) = text.split_once('/')?;
        let (ip, length): (IpAddr, u8) = (ip.parse().ok()?, length.parse().ok()?);
        (length <= if ip.is_ipv6() { 128 } else { 32 }).then_some(Self { ip, length })
    }
}

/// `trafficDistribution`: which endpoints of a Kubernetes service come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// Those of the client's zone.
    SameZone,
    /// Those of the client's node, then of its zone.
    SameNode,
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
    /// The name under which its endpoints are kept.
    pub slot: Arc<str>,
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
    /// Which service.
    pub id: ServiceId,
    /// Where it is declared.
    pub registry: Registry,
    /// The full name; of a ServiceEntry it may begin with `*.`.
    pub hostname: Hostname,
    /// Its ports, UDP left out.
    pub ports: Vec<Port>,
    /// Its virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Ranges of addresses (ServiceEntry).
    pub prefixes: Vec<Prefix>,
    /// Automatic addresses of a ServiceEntry without own ones; they count where the proxy's pod resolves names by them.
    pub automatic: Vec<IpAddr>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Labels a pod needs to stand behind it; empty when endpoints are written by hand.
    pub selector: Labels,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Identities from `alpha.istio.io/*serviceaccounts` annotations, as SPIFFE URIs.
    pub identities: BTreeSet<Arc<str>>,
    /// Names that servers may have: a ServiceEntry's `subjectAltNames`, sorted.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Endpoints written into a ServiceEntry, by slot.
    pub written: BTreeMap<Arc<str>, Vec<Endpoint>>,
    /// Which endpoints come first, if the service says.
    pub distribution: Option<Distribution>,
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

    /// Whether it has no single name of its own.
    pub fn is_wildcard(&self) -> bool {
        self.hostname.as_str().starts_with('*')
    }

    /// The port of that number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.number == number)
    }
}
