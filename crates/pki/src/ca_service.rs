//! The wire form of the authority: gRPC `istio.v1.auth.IstioCertificateService/CreateCertificate` (spec §19.1).
//!
//! Invariant: messages and paths are Istio's, so that agents and authorities of either side interoperate. Who is asking,
//! and what they get, is decided by the implementor of [`CertificateService`].

pub use wire::istio_certificate_service_client::IstioCertificateServiceClient as CertificateClient;
pub use wire::istio_certificate_service_server::{
    IstioCertificateService as CertificateService, IstioCertificateServiceServer as CertificateServer,
};

mod wire {
    tonic::include_proto!("istio.v1.auth.IstioCertificateService");
}

/// Metadata of a refusal for want of proof: the mesh's roots, PEM. They prove nothing by themselves.
pub const ROOTS: &str = "carrick-roots-bin";
/// Metadata of the answer to a join token: what the machine is told of its WorkloadGroup, JSON.
pub const PROFILE: &str = "carrick-machine-bin";

/// A request for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PEM certificate request.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Life asked for in seconds; zero or less leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner`, `ImpersonatedIdentity`.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// Leaf, intermediates, and last the root bundle; each PEM.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
