//! HTTP/2 on the wire, both sides (RFC 9113, RFC 7541, RFC 8441).
//!
//! Invariant: a connection is one task on one thread; all that its peer has sent is read before anything is written, and all that is to be
//! said goes out in one write. A peer's demands are bounded (`limits`). Deciding is the service's, pooling is `upstream::pool`'s.

mod alive;
mod anything;
pub mod client;
mod core;
mod driver;
mod fault;
mod frame;
mod hpack;
mod jobs;
mod limits;
mod message;
pub mod pipe;
mod receive;
pub mod recv;
mod send;
pub mod server;
mod stream;

pub use alive::Alive;
pub use anything::anything;
pub use core::Own;
pub use fault::{Fault, Reason};
pub use limits::Patience;
pub use message::Protocol;
pub use send::Outgoing;

/// What a client says first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Marks the PING whose answer says that a goodbye has come, and that which asks whether anybody is there.
const LEAVING: [u8; 8] = *b"leaving?";
const ALIVE: [u8; 8] = *b"alive?\0\0";
