//! The objects: Kubernetes' and Istio's, as text, as JSON values with a schema, and as typed structs that the mesh reads.
//!
//! Invariant: everything here is a function of its arguments; no clock, no environment, no socket. A broken object is
//! reported as data and never affects another one.
//!
//! What objects mean together (which policy wins, who may talk to whom) belongs to `mesh`; storing and serving them
//! belongs to `apiserver`.

pub mod cert_manager;
pub mod convert;
pub mod core;
pub mod crd;
pub mod gateway_api;
pub mod istio;
pub mod kinds;
pub mod object;
pub mod parse;
pub mod protocol;
pub mod quantity;
pub mod scalar;
pub mod schema;
pub mod timestamp;
pub mod validate;

pub use self::core::{
    ConfigMap, Endpoint, EndpointPort, EndpointSlice, Namespace, Node, Pod, Secret, Service, ServiceAccount,
    ServicePort, ServiceSpec,
};
pub use self::istio::authorization_policy::AuthorizationPolicy;
pub use self::istio::destination_rule::{ClientTls, ClientTlsMode, DestinationRule, Subset, TrafficPolicy};
pub use self::istio::envoy_filter::EnvoyFilter;
pub use self::istio::gateway::Gateway;
pub use self::istio::legacy_policy::LegacyPolicy;
pub use self::istio::mesh_config::MeshConfig;
pub use self::istio::mesh_networks::MeshNetworks;
pub use self::istio::peer_authentication::{MutualTlsMode, PeerAuthentication};
pub use self::istio::proxy_config::ProxyConfig;
pub use self::istio::request_authentication::RequestAuthentication;
pub use self::istio::server_tls::{ServerTls, ServerTlsMode};
pub use self::istio::service_entry::ServiceEntry;
pub use self::istio::sidecar::Sidecar;
pub use self::istio::telemetry::Telemetry;
pub use self::istio::virtual_service::VirtualService;
pub use self::istio::workload_entry::WorkloadEntry;
pub use self::object::{Meta, Object, from_value};
pub use self::protocol::Protocol;
pub use self::schema::Schema;
