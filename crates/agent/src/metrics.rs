//! The agent's own counters.
//!
//! Invariant: writing one is a single atomic operation; names are made when read. The engine's are its own.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::names;

/// Counters of one agent.
#[derive(Debug, Default)]
pub struct AgentMetrics {
    /// Certificates obtained.
    pub certificates: AtomicU64,
    /// Requests for one that failed.
    pub certificate_failures: AtomicU64,
    /// Unix time in seconds; 0 while there is no certificate.
    pub certificate_ends: AtomicI64,
    /// Streams to the control plane that ended.
    pub xds_ends: AtomicU64,
    /// Streams that could not be opened.
    pub xds_failures: AtomicU64,
    /// Times that the application's metrics could not be read.
    pub scrape_failures: AtomicU64,
    /// Starts of the engine's process.
    pub engine_starts: AtomicU64,
}

impl AgentMetrics {
    /// Counts one.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// Notes when the certificate ends.
    pub fn certificate_until(&self, end: SystemTime) {
        let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.certificate_ends.store(i64::try_from(seconds).unwrap_or(i64::MAX), Relaxed);
    }

    /// Prometheus text.
    pub fn render(&self, now: SystemTime) -> String {
        let mut out = String::new();
        for (name, counter) in [
            (names::CERTS, &self.certificates),
            (names::CERT_FAILURES, &self.certificate_failures),
            (names::XDS_ENDS, &self.xds_ends),
            (names::XDS_FAILURES, &self.xds_failures),
            (names::SCRAPE_FAILURES, &self.scrape_failures),
            (names::ENGINE_STARTS, &self.engine_starts),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", counter.load(Relaxed));
        }
        let ends = self.certificate_ends.load(Relaxed);
        if ends > 0 {
            let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let left = ends.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
            let name = names::CERT_EXPIRY;
            let _ = writeln!(out, "# TYPE {name} gauge\n{name}{{resource_name=\"default\"}} {left}");
        }
        out
    }
}
