//! The native engine's IO: listeners, TLS, HTTP/1, HTTP/2, TCP, pools and counters, driven by a
//! [`carrick_proxy_core::RuntimeConfig`].
//!
//! Invariant: a connection lives and dies on one worker thread; no lock is taken and no other core woken on the path of
//! a byte; every decision (which chain, route, endpoint, retry) is `proxy-core`'s. A missing certificate or
//! configuration means refusal, never plaintext.
//!
//! It deliberately does not know the control plane, xDS, or how secrets arrive.
//!
//! A connection's way: `engine` binds → `accept` → `connection` asks the original destination, finds the
//! listener, inspects the first bytes, finds the chain, makes the handshake → `http` or `tcp` → `upstream`.

pub mod inspect;
pub mod io;

mod accept;
mod alarm;
mod call;
mod connection;
mod counter;
mod deliver;
mod engine;
mod export;
mod http;
mod info;
mod joint;
mod jwks;
mod lifecycle;
mod local;
mod log;
mod message;
mod metrics;
mod names;
mod options;
mod peers;
mod rbac;
mod secrets;
mod shared;
mod stats;
mod tcp;
mod tls;
mod tunnel;
mod turn;
mod upstream;
mod worker;

pub use engine::{BindError, Engine};
pub use message::h1::anything as read_anything;
pub use message::h2::anything as talk_anything;
pub use options::{EngineOptions, OriginalDst, OriginalDstFn, Workload};
pub use secrets::{Secret, Secrets};
pub use stats::Stats;
