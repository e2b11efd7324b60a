//! Gateways, parsed (semantics §9).
//!
//! Invariant: a server here can be built: it has a port, a protocol, hosts, and if it terminates TLS, certificates. Which proxies it is
//! for, and which servers get along on one port, is decided in `gateways`.

use std::sync::Arc;

use carrick_base::{HostPattern, Labels};

use super::Origin;

/// One Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRule {
    /// The object.
    pub origin: Origin,
    /// Labels of its proxies; empty for all gateways.
    pub selector: Labels,
    /// The namespace of its proxies, if not any.
    pub only: Option<Arc<str>>,
    /// What they listen for.
    pub servers: Vec<GatewayServer>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayServer {
    /// Its place in the object.
    pub index: usize,
    /// The port, as the gateway's Service has it.
    pub port: u16,
    /// The port's name.
    pub port_name: Arc<str>,
    /// What is spoken, below TLS if there is any.
    pub payload: ServerPayload,
    /// The address; empty for all.
    pub bind: Arc<str>,
    /// Hosts, each for the VirtualServices of one namespace or of all.
    pub hosts: Vec<(Option<Arc<str>>, HostPattern)>,
    /// What becomes of TLS.
    pub security: ServerSecurity,
}

/// What is spoken on a server's port, as far as listeners differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerPayload {
    /// HTTP of any version.
    Http,
    /// Anything else.
    Tcp,
}

/// What becomes of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSecurity {
    /// There is none.
    Plain {
        /// Requests are redirected to HTTPS.
        https_redirect: bool,
    },
    /// Routed by server name, as VirtualServices say.
    Passthrough,
    /// Routed by server name, which names service, port and subset.
    AutoPassthrough,
    /// Terminated.
    Terminate(Box<GatewayTls>),
}

impl GatewayServer {
    /// Whether its connections begin with a ClientHello.
    pub fn is_tls(&self) -> bool {
        !matches!(self.security, ServerSecurity::Plain { .. })
    }

    /// Hosts that are for VirtualServices of this namespace.
    pub fn hosts_for<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a HostPattern> {
        let open = move |only: &Option<Arc<str>>| only.as_ref().is_none_or(|n| **n == *namespace);
        self.hosts.iter().filter(move |(only, _)| open(only)).map(|(_, host)| host)
    }
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
    /// `h2,http/1.1`, where anything may follow.
    MeshTcp,
    /// Nothing.
    None,
}
