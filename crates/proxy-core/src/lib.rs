//! What the data plane decides: xDS v3 resources in, a validated immutable [`model::RuntimeConfig`] and pure verdicts out.
//!
//! Invariant: every function here is a function of its arguments. Time, randomness and counters are arguments, so that the
//! proxy, the simulator and the tests run the same code. A resource that sets something this engine does not run is rejected
//! with its field path, never ignored; what is harmless to ignore stands in one table, `decode::inert`.
//!
//! It deliberately does not know sockets, TLS handshakes, HTTP codecs, the control plane, or how secrets arrive.
//! One confession: protobuf field *numbers* unknown to the generated types are dropped by the decoder and cannot be rejected.

#[allow(deprecated)]
pub mod access_log;
pub mod balance;
pub mod chain;
pub mod circuit;
#[allow(deprecated)]
pub mod decode;
pub mod expr;
#[allow(deprecated)]
pub mod ext_authz;
pub mod facts;
pub mod format;
pub mod hygiene;
pub mod idle;
pub mod jws;
pub mod jwt;
pub mod matching;
pub mod model;
pub mod mutate;
pub mod otlp;
pub mod outlier;
pub mod peer;
pub mod proxy_protocol;
pub mod rbac;
pub mod request;
pub mod retry;
pub mod rewrite;
pub mod routing;
pub mod simulate;
pub mod steps;
pub mod store;
pub mod template;
pub mod timeouts;
pub mod trace;
pub mod xxhash;

pub use model::RuntimeConfig;
pub use store::{ConfigStore, Interests, Rejection, nack_text};
