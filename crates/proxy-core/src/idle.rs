//! How long a peer keeps idle connections, learned from those it closed.
//!
//! Invariant: pure; time is an argument. One close says nothing (a restart closes everything at once); several after a like time are a
//! rule of the peer's, and a connection idle for nearly as long is not used again. What is not seen again is forgotten.

use std::time::Duration;

/// Closes that must agree.
const AGREEING: usize = 2;
/// Closes remembered.
const KEPT: usize = 4;
/// They agree if the longest is at most this much longer than the shortest, in percent.
const SPREAD: u32 = 150;
/// A connection is used up to this part of the shortest, in percent.
const MARGIN: u32 = 80;
/// Forgotten after this.
const FORGET: Duration = Duration::from_secs(600);
/// Shorter idle times are no idle timeout of anybody's.
const SHORTEST: Duration = Duration::from_millis(20);

/// What is known of a peer.
#[derive(Debug, Clone, Default)]
pub struct IdleTimes {
    /// When it was seen, and how long the connection had been idle.
    seen: Vec<(Duration, Duration)>,
}

impl IdleTimes {
    /// The peer closed a connection that had been idle for `idle`. `now` is any monotonic time.
    pub fn closed(&mut self, now: Duration, idle: Duration) {
        if idle < SHORTEST {
            return;
        }
        if self.seen.len() >= KEPT {
            self.seen.remove(0);
        }
        self.seen.push((now, idle));
    }

    /// How long a connection may have been idle to be used again; `None` = no limit is known.
    #[must_use]
    pub fn limit(&self, now: Duration) -> Option<Duration> {
        let fresh = self.seen.iter().filter(|(at, _)| now.saturating_sub(*at) < FORGET).map(|(_, idle)| *idle);
        let mut idle: Vec<Duration> = fresh.collect();
        idle.sort();
        let shortest = *idle.first()?;
        let alike = shortest.saturating_mul(SPREAD).checked_div(100)?;
        let agreeing = idle.iter().filter(|i| **i <= alike).count();
        (agreeing >= AGREEING).then(|| shortest.saturating_mul(MARGIN).checked_div(100).unwrap_or(shortest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn closes_after_a_like_time_make_a_limit() {
        let mut times = IdleTimes::default();
        times.closed(secs(1), secs(5));
        assert_eq!(times.limit(secs(1)), None, "one close may be a restart");
        times.closed(secs(7), Duration::from_millis(5020));
        assert_eq!(times.limit(secs(7)), Some(secs(4)));
        assert_eq!(times.limit(secs(700)), None, "forgotten");
    }

    #[test]
    fn closes_that_differ_make_none() {
        let mut times = IdleTimes::default();
        for (at, idle) in [(1, 3), (2, 50), (3, 9)] {
            times.closed(secs(at), secs(idle));
        }
        assert_eq!(times.limit(secs(3)), None);
        times.closed(secs(4), Duration::from_millis(1));
        assert_eq!(times.limit(secs(4)), None, "too short to be a rule");
    }
}
