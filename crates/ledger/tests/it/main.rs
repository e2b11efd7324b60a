//! The ledger as a whole: opened, killed, cut, changed behind its back.
//!
//! Invariant: each file here is one question about what survives.

mod chain;
mod killed;
