//! What an agent that keeps certificates as files and the control plane say to each other beside SDS: names, and a report of what
//! became of each delivery (gRPC `carrick.delivery.v1.Deliveries/Report`).
//!
//! Invariant: a report holds no secret. Certificates themselves go over SDS, as generic secrets; who may have which, and who may report
//! on what, is decided by the implementor of [`DeliveryService`].

pub use wire::deliveries_client::DeliveriesClient as DeliveryClient;
pub use wire::deliveries_server::{Deliveries as DeliveryService, DeliveriesServer as DeliveryServer};

mod wire {
    tonic::include_proto!("carrick.delivery.v1.Deliveries");
}

/// SDS names of whole Secrets of the agent's own namespace: `files://<name>`.
pub const SCHEME: &str = "files://";
/// `GENERATOR` in the metadata of such an agent's node.
pub const GENERATOR: &str = "files";
/// The Secrets it keeps, separated by commas, in the metadata of its node.
pub const SECRETS: &str = "CARRICK_SECRETS";
/// Secrets one agent may keep.
pub const MAX_SECRETS: usize = 256;

/// One of two things that are told apart: that the files are there, and that the consumer serves what is in them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    #[prost(string, tag = "1")]
    pub status: String,
    /// One word.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// For people.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Serial number of the certificate that is there, or served: lower-case hexadecimal.
    #[prost(string, tag = "4")]
    pub serial: String,
}

/// What became of one certificate at one consumer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Report {
    /// What the agent's configuration calls it.
    #[prost(string, tag = "1")]
    pub consumer: String,
    /// The agent's name.
    #[prost(string, tag = "2")]
    pub agent: String,
    /// The Secret it comes from, in the agent's namespace.
    #[prost(string, tag = "3")]
    pub secret: String,
    /// Whether the files are in place.
    #[prost(message, optional, tag = "4")]
    pub delivered: Option<Verdict>,
    /// Whether the endpoint serves it; absent where none is declared.
    #[prost(message, optional, tag = "5")]
    pub served: Option<Verdict>,
    /// Seconds after which the next report comes at the latest.
    #[prost(uint64, tag = "6")]
    pub period_seconds: u64,
}

/// All of an agent's.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReportRequest {
    /// One for each consumer.
    #[prost(message, repeated, tag = "1")]
    pub reports: Vec<Report>,
}

/// Taken.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReportResponse {}
