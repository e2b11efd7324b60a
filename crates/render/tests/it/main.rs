//! Rendered resources: golden chain tables, verdicts of simulated connections, byte stability, and Envoy's own validation.
//!
//! Invariant: every resource that a case renders is also loaded by a real Envoy and by the native engine.

mod chains;
mod envoy;
mod native;
mod security;
mod shared;
mod stable;
mod validate;
mod verdicts;
#[path = "../../../mesh/tests/it/world.rs"]
mod world;
