//! Who asks: what the control plane knows of a connected proxy when it derives its view.
//!
//! Invariant: these are facts told by the node's id and metadata after its identity was checked; nothing here
//! is looked up. Checking them against the certificate is the xDS server's.

use std::{net::IpAddr, sync::Arc};

use carrick_base::Labels;

/// How the workload's packets reach the sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Interception {
    /// Redirected by NAT; the default.
    #[default]
    Redirect,
    /// Transparent proxying, which keeps the peer's address.
    Tproxy,
    /// Not intercepted: no catch-all listeners.
    None,
}

/// Certificate files a proxy was given in place of the mesh's SDS secrets (legacy; semantics §2.7, §3.6).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileCerts {
    /// Path of the certificate chain, PEM.
    pub chain: Arc<str>,
    /// Path of the private key, PEM.
    pub key: Arc<str>,
    /// Path of the roots, PEM.
    pub root: Arc<str>,
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

impl ClientCertHeader {
    /// By the name in a proxy's configuration; what is unknown or unset is the default.
    pub fn named(text: &str) -> Self {
        match text {
            "SANITIZE" => Self::Sanitize,
            "FORWARD_ONLY" => Self::ForwardOnly,
            "APPEND_FORWARD" => Self::AppendForward,
            "ALWAYS_FORWARD_ONLY" => Self::AlwaysForwardOnly,
            _ => Self::SanitizeSet,
        }
    }
}

/// What a proxy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    /// Beside one workload.
    #[default]
    Sidecar,
    /// A gateway.
    Router,
}

/// Who counts requests and connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Counting {
    /// Nobody that control knows of.
    #[default]
    Nobody,
    /// The native engine, as Istio's own Envoy would.
    Engine,
    /// The agent beside a stock Envoy, of the access logs it is sent over its socket.
    Agent,
}

/// One proxy as the mesh sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ProxyNode {
    /// The node id as sent: `sidecar~<ip>~<name>.<ns>~<ns>.svc.<domain>`.
    pub id: Arc<str>,
    /// What it is.
    pub kind: ProxyKind,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace: of the node's metadata, else of its id.
    pub namespace: Arc<str>,
    /// The pod's addresses, primary first.
    pub ips: Vec<IpAddr>,
    /// Labels of the node's metadata; empty means those of the pod the snapshot knows under this name.
    pub labels: Labels,
    /// The service account proven by the certificate.
    pub service_account: Arc<str>,
    /// The network it says it is in; empty when it says nothing.
    pub network: Arc<str>,
    /// Whether its pod resolves ServiceEntries' hosts by their automatic addresses.
    pub dns_capture: bool,
    /// Whether its agent resolves names, and is to be told what they stand for.
    pub resolves: bool,
    /// How packets are captured.
    pub interception: Interception,
    /// Files to use as a server instead of SDS.
    pub server_certs: Option<FileCerts>,
    /// Files to use as a client instead of SDS.
    pub client_certs: Option<FileCerts>,
    /// What stands before it, if it is a gateway whose own configuration says so; else it is the mesh's word.
    pub topology: Option<Topology>,
    /// Who counts its requests and connections.
    pub counting: Counting,
    /// It may not bind ports below 1024.
    pub unprivileged: bool,
    /// Its engine cannot tell whether an upstream that closed a connection used before has seen the request on it (Envoy), so that the
    /// request would be lost or repeated.
    pub blind_reuse: bool,
}
