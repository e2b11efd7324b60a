//! A gateway's listeners: which ports, which server names, how TLS is terminated, and what follows (semantics §9).
//!
//! Invariant: listeners are sorted by name, one for an address and port; of the chains of one listener no two match the same. A chain
//! that terminates TLS names its certificates; one that cannot be built is not there, and a diagnostic says why.

use std::sync::Arc;

use super::{ListenerSettings, TcpForward};
use crate::{model::service::Prefix, security::Security};

pub use crate::{
    model::gateway::{ClientCertificate, GatewayAlpn, GatewayTls, TlsVersion},
    proxy::{ClientCertHeader, Topology},
};

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
