//! How proxies tell what they trust and serve, and are told what to trust: gRPC `carrick.ca.v1.Trust/Follow`, beside the
//! certificate service and on the same connections.
//!
//! Invariant: a [`Report`] says what the engine holds, not what the agent was sent; only digests and public certificates
//! cross. Each side sends its whole state whenever that changes, so neither needs to remember what was said before. Who
//! reports, and what they are told, is decided by the implementor of [`TrustService`]. Authorities of others do not have it:
//! then the roots come with each certificate, as ever.

pub use wire::trust_client::TrustClient;
pub use wire::trust_server::{Trust as TrustService, TrustServer};

mod wire {
    tonic::include_proto!("carrick.ca.v1.Trust");
}

/// What a proxy holds at this moment.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Report {
    /// The pod's or machine's name; its namespace is that of the caller's identity.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Digests ([`crate::certificate::fingerprint`]) of the roots that the engine verifies peers with.
    #[prost(string, repeated, tag = "2")]
    pub trusts: Vec<String>,
    /// The certificate that the engine shows, and what leads from it to a root; PEM.
    #[prost(string, tag = "3")]
    pub chain: String,
    /// What kind of engine holds them.
    #[prost(string, tag = "4")]
    pub engine: String,
}

/// What a proxy is to hold.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Order {
    /// All roots, PEM.
    #[prost(string, tag = "1")]
    pub roots: String,
    /// Digests of the roots to one of which the certificate should lead; one that leads to none is to be renewed now. Empty
    /// asks for nothing.
    #[prost(string, repeated, tag = "2")]
    pub renew_unless: Vec<String>,
    /// Milliseconds over which proxies spread that renewal.
    #[prost(uint64, tag = "3")]
    pub spread_ms: u64,
}
