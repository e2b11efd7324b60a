//! Bytes in and out: sockets whose first bytes can be looked at and replayed, TLS or not, and the one duplex engine.
//!
//! Invariant: nothing here knows configuration. Every stream is `Send`, so that HTTP upgrades can take it over.

pub mod duplex;
pub mod socket;
pub mod stream;
pub mod sys;
pub mod ties;
pub mod tls;
pub mod witness;
