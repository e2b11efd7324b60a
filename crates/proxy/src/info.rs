//! What is known of a downstream connection once its chain has taken it.
//!
//! Invariant: complete before the first byte is served, and unchanged after.

use crate::tls::ClientProof;
use crate::upstream::connect::Source;
use carrick_pki::tls::VerifiedPeer;
use carrick_proxy_core::model::listener::{FilterChain, Listener};
use carrick_proxy_core::rbac::Peer;
use std::net::SocketAddr;
use std::sync::Arc;

/// What is known of a connection, shared by all its requests.
#[derive(Debug)]
pub struct Info {
    /// Local address as the client meant it: the original destination.
    pub local: SocketAddr,
    /// The original destination, only if the connection was redirected.
    pub restored: Option<SocketAddr>,
    /// The client, as a PROXY header says it if there is one.
    pub peer: SocketAddr,
    /// Who is at the other end of the socket.
    pub direct: SocketAddr,
    /// SNI.
    pub server_name: Option<String>,
    /// Proof of a TLS handshake; none on plain connections.
    pub tls: Option<ClientProof>,
    /// Number within the worker.
    pub id: u64,
    /// The listener.
    pub listener: Arc<Listener>,
    /// The chain.
    pub chain: Arc<FilterChain>,
}

impl Info {
    /// Where connections for this client come from, if it is to be seen.
    pub fn source(&self) -> Option<Source> {
        self.listener.original_src.map(|mark| Source { ip: self.peer.ip(), mark })
    }

    /// Whether the client proved who it is.
    pub fn mutual(&self) -> bool {
        self.tls.as_ref().is_some_and(|t| t.peer.is_some())
    }

    /// Names in the client's certificate, all empty if it showed none; `None` on plain connections.
    pub fn certificate_names(&self) -> Option<Peer<'_>> {
        self.tls.as_ref().map(|tls| tls.peer.as_ref().map_or_else(Peer::default, names))
    }
}

fn names(peer: &VerifiedPeer) -> Peer<'_> {
    Peer { uris: peer.uris(), dns: peer.dns_names(), subject: peer.subject() }
}
