//! Servers that logs and traces are sent to, and how much is sent at once.
//!
//! Invariant: one value for each log or tracer of the configuration; its identity tells queues apart.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::Name;

/// A collector.
#[derive(Debug)]
pub struct Collector {
    /// Its cluster.
    pub cluster: Name,
    /// `:authority` or `host`.
    pub authority: Name,
    /// Path of the gRPC method, or of the HTTP service.
    pub path: Name,
    /// gRPC; else POST of the bare message.
    pub grpc: bool,
    /// More headers.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// An answer must come within; zero = no limit.
    pub timeout: Duration,
    /// What has gathered is sent after so long,
    pub flush: Duration,
    /// or when it is so many bytes.
    pub bytes: usize,
    /// Prefix of its counters.
    pub counters: Name,
}
