//! One outbound cluster: how a service's port is reached, and how its connections are secured (semantics §3, §4, §6).
//!
//! Invariant: `socket` is final. Where the TLS a rule asks for cannot be built, it is `Refused`, never plaintext.

use std::sync::Arc;

use carrick_base::{Hostname, NamespacedName};

use super::{Load, inbound::Families};
use crate::{
    model::policy::{ConnectionPool, LoadBalancer, OutlierDetection, ProxyHeader, RetryBudget, Tunnel, Warmup},
    proxy::FileCerts,
};

/// One outbound cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<fqdn>`.
    pub name: Arc<str>,
    /// The service's full name.
    pub hostname: Hostname,
    /// Name and namespace of the service.
    pub service: NamespacedName,
    /// The service port.
    pub port: u16,
    /// The subset; empty for the default cluster.
    pub subset: Arc<str>,
    /// How endpoints are found.
    pub kind: ClusterKind,
    /// How connections are secured.
    pub socket: ClientSocket,
    /// What HTTP is spoken upstream.
    pub http: UpstreamHttp,
    /// Limits and timeouts.
    pub limits: Limits,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
    /// How new endpoints are brought up.
    pub warmup: Option<Warmup>,
    /// Whether places have shares of traffic that a rule gives them.
    pub shares: bool,
    /// The endpoints, where they are part of the cluster.
    pub endpoints: Option<Arc<Load>>,
    /// How names are resolved, where endpoints are names.
    pub names: Option<NameLookup>,
    /// The PROXY header that connections begin with.
    pub proxy_header: Option<ProxyHeader>,
    /// The tunnel that TCP connections go through.
    pub tunnel: Option<Tunnel>,
    /// How many retries there may be at once.
    pub retry_budget: Option<RetryBudget>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// The rule that shaped it, if one did.
    pub rule: Option<NamespacedName>,
    /// Endpoints in the mesh are told by Envoy which workload calls, for their metrics; the native engine does so by itself.
    pub tells: bool,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterKind {
    /// By EDS.
    Eds,
    /// The address the client chose.
    OriginalDst,
    /// All addresses of names that are part of the cluster.
    StrictDns,
    /// One address at a time of a name that is part of the cluster.
    LogicalDns,
    /// The name that the request asks for.
    DynamicForward,
}

/// How names are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameLookup {
    /// Milliseconds after which a name that could not be resolved is tried again.
    pub refresh: u64,
    /// Address families the pod has.
    pub families: Families,
}

/// How connections are secured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientSocket {
    /// Plaintext, with the reason.
    Plain(PlainReason),
    /// Mesh TLS to endpoints marked `tlsMode: istio`, plaintext to the others.
    Auto(MeshTls),
    /// Mesh TLS to all.
    Mesh(MeshTls),
    /// TLS of a rule's own.
    User(UserTls),
    /// No connection at all, with the reason: what was asked for cannot be done, and less would be plaintext.
    Refused(Arc<str>),
}

/// Why a cluster is plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlainReason {
    /// A rule says DISABLE.
    Rule,
    /// The service is outside of the mesh.
    External,
    /// Auto mTLS is off in the mesh.
    AutoMtlsOff,
    /// The namespace's (or mesh's) policy is DISABLE.
    Policy,
    /// What passes through has TLS of its own (AUTO_PASSTHROUGH).
    Passthrough,
    /// The service has no virtual address and not all of its endpoints have a sidecar.
    NotAllInMesh,
}

/// Mesh TLS of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MeshTls {
    /// The server name sent.
    pub sni: Arc<str>,
    /// Identities of which the server must have one, sorted; empty checks the chain only.
    pub sans: Vec<Arc<str>>,
    /// TLS 1.3 only.
    pub min_tls13: bool,
    /// TLS 1.2 suites; empty for the library's.
    pub cipher_suites: Vec<Arc<str>>,
    /// Files instead of SDS.
    pub files: Option<FileCerts>,
    /// ALPN of the connection: by what the cluster speaks.
    pub alpn: MeshAlpn,
}

/// Which ALPN list mesh TLS offers (semantics §3.8, §6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeshAlpn {
    /// `istio`.
    Tcp,
    /// `istio-http/1.1,istio,http/1.1`.
    Http1,
    /// `istio-h2,istio,h2`.
    Http2,
    /// As `Tcp`, unless an HTTP route chose the cluster: then by the request's protocol.
    ByRequest,
}

/// TLS of a rule's own: SIMPLE or MUTUAL with files or secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserTls {
    /// The server name; absent sends none, unless `auto_sni`.
    pub sni: Option<Arc<str>>,
    /// The server name is the request's Host.
    pub auto_sni: bool,
    /// The server's certificate must be for the Host that was asked for (no server name, no list, verification on).
    pub auto_san: bool,
    /// Exact names of which the server must have one.
    pub sans: Vec<Arc<str>>,
    /// SDS name of the roots; `None` does not verify.
    pub roots: Option<Arc<str>>,
    /// SDS name of the own certificate.
    pub certificate: Option<Arc<str>>,
    /// Path of a revocation list.
    pub crl: Option<Arc<str>>,
}

/// What HTTP is spoken upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamHttp {
    /// HTTP/1.1, also for TCP ports, where it does not matter.
    Http1,
    /// HTTP/2.
    Http2,
    /// What downstream spoke.
    Downstream,
}

/// Limits and timeouts, every one resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Milliseconds to connect.
    pub connect_timeout: u64,
    /// The rest, absent where unlimited.
    pub pool: ConnectionPool,
}
