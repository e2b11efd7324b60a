//! A gateway's listeners: which ports, which server names, how TLS is terminated, and what follows (semantics §9).
//!
//! Invariant: listeners are sorted by name, one for an address and port; of the chains of one listener no two match the same. A chain
//! that terminates TLS names its certificates; one that cannot be built is not there, and a diagnostic says why.

use std::sync::Arc;

use super::{ListenerSettings, TcpForward};
use crate::{model::service::Prefix, security::Security};

/// Everything a gateway listens for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Listeners.
    pub listeners: Vec<Arc<GatewayListener>>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayListener {
    /// `<address>_<port>`.
    pub name: Arc<str>,
    /// The address.
    pub address: Arc<str>,
    /// The port, as the gateway's process has it.
    pub port: u16,
    /// Settings of the mesh.
    pub settings: ListenerSettings,
    /// What stands before the gateway.
    pub topology: Topology,
    /// Policies about requests and connections.
    pub security: Arc<Security>,
    /// By what connections look like.
    pub chains: Vec<GatewayChain>,
}

/// What is done with connections of one look.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayChain {
    /// Server names, sorted; empty for any.
    pub server_names: Vec<Arc<str>>,
    /// Destination networks; empty for any.
    pub networks: Vec<Prefix>,
    /// How TLS is terminated; `None` leaves bytes as they are.
    pub tls: Option<GatewayTls>,
    /// What follows.
    pub payload: GatewayPayload,
}

/// What follows in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayPayload {
    /// HTTP by a route table.
    Http {
        /// The table's name.
        routes: Arc<str>,
    },
    /// Bytes to clusters by weight.
    Tcp {
        /// Where to.
        to: TcpForward,
        /// Whether policies are asked; not where bytes only pass through (AUTO_PASSTHROUGH).
        judged: bool,
    },
}

/// TLS of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayTls {
    /// SDS names of the own certificates.
    pub certificates: Vec<Arc<str>>,
    /// Whether clients show a certificate.
    pub client: ClientCertificate,
    /// SDS name of the roots clients are verified against; absent where none are asked for.
    pub roots: Option<Arc<str>>,
    /// Path of a revocation list.
    pub crl: Option<Arc<str>>,
    /// Names of which a client must have one, exactly.
    pub sans: Vec<Arc<str>>,
    /// Base64 SHA-256 of public keys of which a client must have one.
    pub spki: Vec<Arc<str>>,
    /// Hex SHA-256 of certificates of which a client must have one.
    pub hashes: Vec<Arc<str>>,
    /// A client's certificate that does not verify is taken all the same.
    pub accept_untrusted: bool,
    /// Lowest version.
    pub min: TlsVersion,
    /// Highest version.
    pub max: TlsVersion,
    /// TLS 1.2 suites in OpenSSL's names; empty for the engine's.
    pub cipher_suites: Vec<Arc<str>>,
    /// ALPN offered.
    pub alpn: GatewayAlpn,
}

/// Whether clients show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// Not asked for.
    None,
    /// Asked for, verified if there.
    Optional,
    /// Demanded.
    Required,
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.0
    V1_0,
    /// 1.1
    V1_1,
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

/// What ALPN a gateway offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GatewayAlpn {
    /// `h2,http/1.1`.
    Http,
    /// `istio-peer-exchange,h2,http/1.1`.
    MeshTcp,
    /// Nothing.
    None,
}

/// What stands before a gateway: `gatewayTopology` of its proxy configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Topology {
    /// Proxies whose `x-forwarded-for` entries are believed.
    pub trusted_proxies: u32,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ClientCertHeader,
    /// Connections begin with a PROXY header.
    pub proxy_protocol: bool,
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClientCertHeader {
    /// Removed, and set from the client's certificate.
    #[default]
    SanitizeSet,
    /// Removed.
    Sanitize,
    /// Kept on connections with a client certificate.
    ForwardOnly,
    /// Kept, and added to, on connections with a client certificate.
    AppendForward,
    /// Kept.
    AlwaysForwardOnly,
}
