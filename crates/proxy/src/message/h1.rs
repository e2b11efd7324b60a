//! HTTP/1.1 on the wire, both sides: heads read and written, bodies framed.
//!
//! Invariant: no byte is copied without need and none is looked at twice; what two parsers could read in two ways does not get past here
//! (`proxy-core`'s `hygiene::wire` says what that is). Deciding is the service's, pooling is `upstream::pool`'s.

pub mod body;
pub mod client;
pub mod date;
mod input;
pub mod maps;
mod names;
pub mod read;
pub mod server;
pub mod write;

pub use read::anything;

/// The most that is read at once, bytes. A record of TLS holds as much.
const PIECE: usize = 16 * 1024;
/// What a connection's buffer begins with; most messages fit.
const FIRST: usize = 4 * 1024;
