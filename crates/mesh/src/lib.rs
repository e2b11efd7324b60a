//! The mesh's decisions: from all objects (`Snapshot`) to what one proxy may see and do (`View`).
//!
//! Invariant: pure. No clock, no socket, no environment; equal inputs give equal views, whatever order the
//! objects came in. What is missing never makes traffic plaintext: a TLS block that cannot be honoured closes
//! its cluster and a diagnostic says why.
//! This crate knows nothing of Envoy's resources (`carrick-render` writes them) and nothing of how objects are
//! read or proxies connected (`carrick-control` does both).

pub mod auto_address;
pub mod codes;
mod derive;
mod difference;
pub mod endpoints;
pub mod envoy_filters;
pub mod gateway_api;
pub mod gateways;
pub mod input;
pub mod legacy;
pub mod locality;
pub mod model;
pub mod names;
pub mod networks;
mod parts;
mod path_template;
pub mod peer_auth;
pub mod policies;
pub mod proxy;
mod read;
pub mod rules;
pub mod scope;
pub mod secrets;
pub mod security;
pub mod settings;
mod shards;
pub mod snapshot;
pub mod telemetry;
mod telemetry_rules;
pub mod tls;
mod trust_domains;
pub mod virtual_services;

pub use derive::{Concerned, Views, sidecar};
pub use input::{EndpointInput, PolicyInput, RemoteEndpoints, RemoteInput, SnapshotInput};
pub use model::jwt::KeySource;
pub use parts::View;
pub use proxy::{Counting, FileCerts, Interception, ProxyKind, ProxyNode};
pub use read::request_authentication::{FetchedKeys, is_key_set};
pub use security::Security;
pub use settings::Settings;
pub use snapshot::Snapshot;

/// What one sidecar may see and do, and how that is derived.
pub mod view {
    pub use crate::derive::{Views, sidecar};
    pub use crate::parts::*;
}
