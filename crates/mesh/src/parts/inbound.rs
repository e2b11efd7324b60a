//! The server side of a sidecar: which ports, what is spoken on each, who may connect (semantics §2).
//!
//! Invariant: `ports` is sorted by target port, one entry each; `passthrough_ports` names no port of `ports`.

use std::{net::IpAddr, sync::Arc};

use carrick_base::{Hostname, NamespacedName};

use super::ListenerSettings;
use crate::{
    model::{MtlsMode, policy::ConnectionPool, sidecar::IngressTls},
    proxy::{FileCerts, Interception},
    security::Security,
};

/// The inbound listener's whole input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Inbound {
    /// The port it listens on, 15006.
    pub listen_port: u16,
    /// How packets arrive.
    pub interception: Interception,
    /// Whether the pod has addresses of IPv4 and of IPv6.
    pub families: Families,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// How mesh TLS is terminated.
    pub tls: ServerTls,
    /// Mode of ports that nothing names.
    pub mode: MtlsMode,
    /// Where `mode` comes from.
    pub mode_from: ModeSource,
    /// Ports of the services the workload stands behind.
    pub ports: Vec<InboundPort>,
    /// Ports that only a policy names.
    pub passthrough_ports: Vec<PassthroughPort>,
    /// Milliseconds to connect to the workload.
    pub connect_timeout: u64,
    /// What is asked before a request is let through.
    pub security: Arc<Security>,
}

/// Address families of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Families {
    /// Has an IPv4 address.
    pub v4: bool,
    /// Has an IPv6 address.
    pub v6: bool,
}

impl Families {
    /// The families of these addresses; IPv4 when there are none.
    pub fn of(ips: &[IpAddr]) -> Self {
        let v6 = ips.iter().any(IpAddr::is_ipv6);
        Self { v4: !v6 || ips.iter().any(IpAddr::is_ipv4), v6 }
    }
}

/// What is spoken on a port, as far as chains differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortClass {
    /// Not declared: the first bytes decide.
    Auto,
    /// Declared HTTP, with HTTP/2 towards the workload if `h2`.
    Http {
        /// HTTP/2 (http2, grpc, grpc-web).
        h2: bool,
    },
    /// Declared as anything that is not looked into.
    Tcp,
}

/// Which policy decided a mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModeSource {
    /// No policy says anything: PERMISSIVE.
    Default,
    /// The mesh-wide policy.
    Mesh(NamespacedName),
    /// The namespace's policy.
    Namespace(NamespacedName),
    /// The workload's policy.
    Workload(NamespacedName),
    /// A port level of the workload's policy.
    Port(NamespacedName),
    /// A policy of the old API about the service.
    Service(NamespacedName),
}

/// One port that has chains of its own because a service or a Sidecar names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboundPort {
    /// The workload's port.
    pub target: u16,
    /// What is spoken on it.
    pub class: PortClass,
    /// What it takes.
    pub mode: MtlsMode,
    /// Where `mode` comes from.
    pub mode_from: ModeSource,
    /// The service that names it, the oldest of several.
    pub service: Hostname,
    /// Name and namespace of that service.
    pub service_name: NamespacedName,
    /// That service's port.
    pub service_port: u16,
    /// The cluster behind it.
    pub cluster: InboundCluster,
    /// TLS of the workload's own, in place of mesh TLS; then `mode` is DISABLE.
    pub tls: Option<IngressTls>,
    /// The address to listen on for real, where packets are not brought to the sidecar.
    pub bind: Option<IpAddr>,
}

/// Where inbound requests of one port go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboundCluster {
    /// `inbound|<port>||`.
    pub name: Arc<str>,
    /// The workload's port.
    pub port: u16,
    /// Where the workload is.
    pub to: InboundTarget,
    /// What is spoken to the workload.
    pub class: PortClass,
    /// Limits, from the service's DestinationRule.
    pub pool: Option<ConnectionPool>,
    /// Milliseconds to connect.
    pub connect_timeout: u64,
    /// Source address family: true for `::6`, false for `127.0.0.6`.
    pub v6: bool,
    /// The service it belongs to, for metadata.
    pub service: Hostname,
    /// Name and namespace of that service.
    pub service_name: NamespacedName,
}

/// Where the workload is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum InboundTarget {
    /// The address and port that the client wanted.
    AsSent,
    /// This port on the loopback address.
    Loopback(u16),
    /// This port on the pod's own address.
    Pod(IpAddr, u16),
    /// This path.
    Unix(Arc<str>),
    /// Nowhere: what a Sidecar asks for cannot be done.
    Nowhere,
}

/// One port that has chains of its own because a policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PassthroughPort {
    /// The workload's port.
    pub port: u16,
    /// What it takes.
    pub mode: MtlsMode,
    /// Where `mode` comes from.
    pub mode_from: ModeSource,
}

/// How mesh TLS is terminated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// Trust domains whose identities are taken, sorted.
    pub trust_domains: Vec<Arc<str>>,
    /// TLS 1.3 only.
    pub min_tls13: bool,
    /// TLS 1.2 suites in OpenSSL's names; empty for Istio's list.
    pub cipher_suites: Vec<Arc<str>>,
    /// Files instead of SDS.
    pub files: Option<FileCerts>,
}
