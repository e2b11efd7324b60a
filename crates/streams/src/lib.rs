//! What `kubectl exec`, `attach` and `port-forward` speak with an API server: the upgrade of a request, the two transports
//! (WebSocket with channels, SPDY/3.1), and the sessions over them. Who runs the processes is behind [`Pods`].
//!
//! Invariant: nothing a peer sends makes this panic or hold more than a fixed number of bytes; a session that ends, in whatever way, drops
//! its guest, and with it the process.
//! What it leaves to others: HTTP, and who may do it (`apiserver`); processes and their namespaces (`pod`).

pub mod forward;
pub mod handshake;
mod pods;
pub mod remote;
mod session;
pub mod spdy;
mod status;
mod websocket;

pub use pods::{Duplex, Ended, Guest, LogRequest, Pods, PodsError, Size, Target, Want};

/// Feeds the parser of SPDY frames, for fuzzing; it must return, and hold no more than a fixed amount.
#[doc(hidden)]
pub fn parse_anything(bytes: &[u8]) {
    spdy::parse_anything(bytes);
}
