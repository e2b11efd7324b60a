//! The Workload API's wire form: gRPC service `SpiffeWorkloadAPI`, as far as X.509 goes.
//!
//! Invariant: messages, tags and paths are SPIFFE's (workload.proto). What is told is decided by [`WorkloadApi`].

use std::collections::HashMap;

pub use generated::spiffe_workload_a_p_i_server::{
    SpiffeWorkloadAPI as SpiffeWorkloadApi, SpiffeWorkloadAPIServer as SpiffeWorkloadApiServer,
};

mod generated {
    tonic::include_proto!(".SpiffeWorkloadAPI");
}

/// `X509SVIDRequest` and `X509BundlesRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Svids {
    /// Identities, the default one first.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// Roots of other trust domains, DER one after the other, by SPIFFE ID of the domain.
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`. It holds a private key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct X509Svid {
    /// `spiffe://…`
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Leaf and intermediates, DER one after the other.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS#8 DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of its trust domain, DER one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// What it is for, where there are several.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// `X509BundlesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Bundles {
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub crl: Vec<Vec<u8>>,
    /// Roots, DER one after the other, by SPIFFE ID of the trust domain.
    #[prost(map = "string, bytes", tag = "2")]
    pub bundles: HashMap<String, Vec<u8>>,
}
