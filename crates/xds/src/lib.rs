//! The xDS v3 transport: state of the world and delta, as state machines without IO, with a gRPC server and client around them.
//!
//! Invariant: a session never sends a resource the peer is known to hold in the same version, except where Envoy needs
//! it again (warming), and never has more than one unanswered response per type. This crate does not know what the
//! resources mean beyond the one link a cluster has to its endpoints, nor who may see which: a [`server::Source`] decides that.

pub mod client;
pub mod delivery;
pub mod health;
pub mod kept;
pub mod name_table;
pub mod node;
pub mod relay;
pub mod resource;
pub mod server;
pub mod type_url;

pub use node::{NodeId, NodeIdError, NodeType};
pub use resource::{Changes, Resource, ResourceSet, TypeMap};
pub use type_url::TypeUrl;

pub use envoy_types::pb::envoy::config::core::v3::Node;
pub use envoy_types::pb::google::protobuf::Any;
