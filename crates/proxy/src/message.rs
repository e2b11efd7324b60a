//! Messages between the wire and the rest of the engine: their bodies, whichever protocol they come in, HTTP/1.1 and HTTP/2 themselves.
//!
//! Invariant: what is here knows no route, no pool and no configuration; it frames, reads and writes.

pub mod h1;
pub mod h2;
pub mod incoming;
mod output;
pub mod request_body;
