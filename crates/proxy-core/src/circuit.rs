//! Circuit limits: whether one more of something is allowed.
//!
//! Invariant: the counters belong to the caller (per cluster, all workers); the check is `current < limit`, so that a limit of 0 forbids.

use crate::model::cluster::{CircuitLimits, Cluster};

/// Current numbers of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CircuitCounts {
    /// Connections.
    pub connections: u32,
    /// Requests waiting for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Retries in flight.
    pub retries: u32,
}

impl Cluster {
    /// The limits for a request's priority.
    #[must_use]
    pub fn limits_for(&self, high_priority: bool) -> &CircuitLimits {
        if high_priority { &self.high_limits } else { &self.limits }
    }
}

impl CircuitLimits {
    /// One more connection?
    #[must_use]
    pub fn connection(&self, counts: &CircuitCounts) -> bool {
        counts.connections < self.max_connections
    }

    /// One more waiting request?
    #[must_use]
    pub fn pending(&self, counts: &CircuitCounts) -> bool {
        counts.pending < self.max_pending_requests
    }

    /// One more request?
    #[must_use]
    pub fn request(&self, counts: &CircuitCounts) -> bool {
        counts.requests < self.max_requests
    }

    /// One more retry? A budget allows a share of what is active and pending, at least its minimum.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn retry(&self, counts: &CircuitCounts) -> bool {
        let limit = match &self.retry_budget {
            None => self.max_retries,
            Some(budget) => {
                let load = f64::from(counts.requests.saturating_add(counts.pending));
                ((load * budget.percent / 100.0) as u32).max(budget.min_concurrency)
            }
        };
        counts.retries < limit
    }
}
