//! What the engine tells of its requests: metrics, access logs, traces.

mod collector;
mod logs;
mod metrics;
mod servers;
mod traces;
