//! Cases as files: objects and a proxy in, a summary of its view out.
//!
//! Invariant: a case's expectation lies beside it and is rewritten only when `UPDATE_GOLDEN` is set.

mod cases;
mod endpoints;
mod gateway_api;
mod order;
mod policies;
mod summary;
mod timing;
mod world;
