//! xDS messages into the model, in two phases: the message itself, then its meaning.
//!
//! Invariant: what is set and not understood is an error with a field path ([`Bad`]); the compiler sees to it that no field of a
//! message is forgotten (each message is taken apart exhaustively by [`only!`]). What may be ignored stands in [`inert`].
//! Field numbers that the generated types do not know are dropped by the protobuf decoder and cannot be seen here.

pub mod access_log;
pub mod bad;
pub mod basic;
pub mod chain_match;
pub mod cluster;
pub mod cluster_dns;
pub mod cluster_lb;
pub mod cluster_policy;
pub mod cluster_socket;
pub mod collector;
pub mod endpoint;
pub mod ext_authz;
pub mod filter;
pub mod hcm;
pub mod headers;
pub mod health_check;
pub mod http_options;
pub mod inert;
pub mod jwt;
pub mod listener;
pub mod matcher;
pub mod mirror;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod route_action;
pub mod stats;
pub mod steps;
pub mod tls;
pub mod tracing;

pub use bad::Bad;
