//! Gateways, parsed (semantics §9).
//!
//! Invariant: a server here can be built: it has a port, a protocol, hosts, and if it terminates TLS, certificates. Which proxies it is
//! for, and which servers get along on one port, is decided in `gateways`.

use std::sync::Arc;

use carrick_base::{HostPattern, Labels};

use super::Origin;
use crate::parts::gateway::GatewayTls;

/// One Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRule {
    /// The object.
    pub origin: Origin,
    /// Labels of its proxies, in any namespace; empty for all gateways.
    pub selector: Labels,
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
