//! Messages between the wire and the rest of the engine: their bodies, whichever protocol they come in, and HTTP/1.1 itself.
//!
//! Invariant: what is here knows no route, no pool and no configuration; it frames, reads and writes. HTTP/2's framing is a library's.

pub mod h1;
pub mod incoming;
pub mod request_body;
