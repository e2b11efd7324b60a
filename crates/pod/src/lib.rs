//! Pods without Kubernetes: one process in a network namespace of its own, registered, captured and cleaned up after; the host's part of it;
//! and the sidecar of a machine on the machine's own network.
//!
//! Invariant: everything created here carries this crate's prefixes and is found again and removed after a crash; nothing else on the machine
//! is touched. It does not parse command lines, decide injection (`inject`) or packet rules (`capture`), and knows no policy.

pub mod host;
pub mod options;

mod api;
mod child;
mod cluster;
mod dns;
mod error;
mod exec;
mod guests;
mod injection;
mod inside;
mod logs;
pub mod machine;
#[cfg(test)]
mod namespace_tests;
mod network;
mod object;
mod output;
mod proxy_config;
mod run;
mod sandbox;
mod signals;
mod state;
mod sweep;
mod template;
mod terminal;
mod variables;

#[doc(hidden)]
pub use dns::parse_query;
pub use error::PodError;
pub use exec::exec;
pub use guests::LocalPods;
pub use inside::{HttpAnswer, connect_in_pod, http_get_in_pod, http_get_over, is_here};
pub use options::{Engine, ExecOptions, HostOptions, ManifestRef, Network, Port, RunOptions};
pub use run::run;
pub use sweep::sweep;
