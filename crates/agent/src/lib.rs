//! What runs beside a workload, or alone as a gateway: its identity, its secrets, its health, and the engine that carries its traffic.
//!
//! Invariants: the workload's key is made here and leaves only towards the engine of the same pod (memory, or a socket
//! that only its user may open) and, on a machine, a folder of its user's; without an identity the engine gets no secrets and refuses, it never falls back to
//! plaintext; nothing that comes from the network makes it panic. It knows none of the control
//! plane's code: the two meet in xDS and in the certificate service. Of Kubernetes it knows one question, which the CNI plugin asks.

pub mod app_probes;
pub mod cni;
pub mod config;
pub mod delivery;
pub mod dns;
pub mod health;
pub mod identity;
pub mod join;
pub mod metrics;
pub mod node;
pub mod outside;
pub mod rules;
pub mod secrets;

mod admin;
mod counts;
mod engine;
mod envoy;
mod error;
mod http_client;
mod kept;
mod library;
mod memory;
mod names;
mod native;
mod quarantine;
mod readiness;
mod run;
mod sds;
mod status;
pub mod tool;
mod trust;
pub mod workload_api;

pub use config::{AgentConfig, Command, ConfigErrors, EngineKind, JoinConfig, Role};
pub use error::AgentError;
pub use join::{JoinError, join};
pub use run::{Running, run, start};
pub use sds::secret_service;
