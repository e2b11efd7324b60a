//! What every long-running part stands on: drain, owned tasks, back-off, clock, admin HTTP server, log and metric set-up.
//!
//! Invariant: nothing here knows what a mesh is, and no task outlives the value that owns it.
//! It leaves to others what is served, what is drained and which metrics exist.

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod drain;
pub mod metrics;
pub mod tasks;
pub mod telemetry;
