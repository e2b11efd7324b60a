//! Sidecar objects, parsed (semantics §8).
//!
//! Invariant: what a host list, a bind or an endpoint says is resolved; ports are numbers. Which Sidecar a workload follows is decided in
//! `scope`.

use std::{net::IpAddr, sync::Arc};

use carrick_api::Protocol;
use carrick_base::{HostPattern, Hostname, Labels};

use super::{Origin, policy::ConnectionPool};

/// One Sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarConfig {
    /// The object.
    pub origin: Origin,
    /// Labels of the workloads it is for; `None` for all of its namespace.
    pub selector: Option<Labels>,
    /// What is listened on for the workload, if the object says.
    pub ingress: Vec<Ingress>,
    /// What the workload sees; at least one.
    pub egress: Vec<Egress>,
    /// Limits towards the workload.
    pub inbound_pool: Option<ConnectionPool>,
    /// What happens to traffic for destinations nobody declared; `None` leaves it to the mesh.
    pub outbound: Option<OutboundPolicy>,
}

/// One port of the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The workload's port.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The address to listen on, if given.
    pub bind: Option<IpAddr>,
    /// Whether packets are brought to it; else it is listened on for real.
    pub captured: bool,
    /// Where the workload is.
    pub to: IngressTarget,
    /// TLS terminated with the workload's own certificate, in place of mesh TLS.
    pub tls: Option<IngressTls>,
    /// Limits towards the workload on this port.
    pub pool: Option<ConnectionPool>,
}

/// Where the workload listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IngressTarget {
    /// The address and port that the client wanted.
    AsSent,
    /// This port on the loopback address.
    Loopback(u16),
    /// This port on the pod's address.
    Pod(u16),
    /// This path.
    Unix(Arc<str>),
    /// Nowhere: what the object asks for cannot be done.
    Nowhere,
}

/// TLS of a workload's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IngressTls {
    /// What is asked of clients.
    pub clients: ClientCertificates,
    /// SDS name of the certificate and key.
    pub certificate: Arc<str>,
    /// SDS name of the roots of client certificates, unless none are asked for.
    pub roots: Option<Arc<str>>,
    /// Path of a revocation list.
    pub crl: Option<Arc<str>>,
    /// Exact names of which a client's certificate must have one.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Lowest version: minor number, 2 or 3.
    pub min_version: u8,
    /// Highest version: minor number, 2 or 3.
    pub max_version: u8,
    /// TLS 1.2 suites; empty for the defaults.
    pub cipher_suites: Vec<Arc<str>>,
}

/// What a server asks of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientCertificates {
    /// Nothing.
    None,
    /// A certificate that verifies, if any.
    Optional,
    /// A certificate that verifies.
    Required,
}

/// What is seen: on one port, or everywhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The one port, if it is about one.
    pub port: Option<EgressPort>,
    /// Where it is listened, if given.
    pub bind: Option<EgressBind>,
    /// Whether packets are brought to it; else it is listened on for real.
    pub captured: bool,
    /// Which services.
    pub hosts: Vec<HostSelector>,
}

/// The port of an egress listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressPort {
    /// Its number; 0 for a path.
    pub number: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The protocol is HTTP_PROXY: requests name their destination, with its port.
    pub proxy: bool,
}

/// Where an egress listener is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EgressBind {
    /// An address.
    Ip(IpAddr),
    /// A path.
    Unix(Arc<str>),
}

/// `<namespace>/<host>` of a Sidecar's host list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostSelector {
    /// Whose services.
    pub namespace: NamespaceSelector,
    /// Which names.
    pub host: HostPattern,
    /// These are taken out again.
    pub exclude: bool,
}

/// The namespace of a [`HostSelector`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamespaceSelector {
    /// Every one.
    Any,
    /// None.
    None,
    /// This one (`.` was replaced by the client's own).
    Named(Arc<str>),
    /// The client's own: a Sidecar of the root namespace is for others too.
    Own,
}

/// What happens to traffic for destinations nobody declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OutboundPolicy {
    /// It passes.
    AllowAny,
    /// It is refused.
    RegistryOnly,
    /// It goes to this service.
    Proxy {
        /// The service.
        host: Hostname,
        /// Its port.
        port: u16,
        /// Its subset; empty for all of it.
        subset: Arc<str>,
    },
}
