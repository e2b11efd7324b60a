//! What the engine tells of its requests: metrics, access logs, traces.

mod metrics;
