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
/// So long after a peer closed any idle connection, requests that could not be sent again keep clear of it.
const WARY: Duration = Duration::from_secs(60);

/// What is known of a peer.
#[derive(Debug, Clone, Default)]
pub struct IdleTimes {
    /// When it was seen, and how long the connection had been idle.
    seen: Vec<(Duration, Duration)>,
    /// The shortest of late, however short.
    shortest: Option<(Duration, Duration)>,
}

impl IdleTimes {
    /// The peer closed a connection that had been idle for `idle`. `now` is any monotonic time.
    pub fn closed(&mut self, now: Duration, idle: Duration) {
        if self.shortest.is_none_or(|(at, least)| idle <= least || now.saturating_sub(at) >= WARY) {
            self.shortest = Some((now, idle));
        }
        if idle < SHORTEST {
            return;
        }
        if self.seen.len() >= KEPT {
            self.seen.remove(0);
        }
        self.seen.push((now, idle));
    }

    /// How long a connection may have been idle to be used for a request that could not be sent again, should the peer close the connection
    /// over it: half of the shortest time after which it closed any; `None` = it closed none of late.
    #[must_use]
    pub fn wary_limit(&self, now: Duration) -> Option<Duration> {
        self.shortest
            .filter(|(at, _)| now.saturating_sub(*at) < WARY)
            .map(|(_, idle)| idle.checked_div(2).unwrap_or(idle))
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
    fn one_close_is_enough_to_be_wary() {
        let mut times = IdleTimes::default();
        assert_eq!(times.wary_limit(secs(1)), None);
        times.closed(secs(1), secs(4));
        times.closed(secs(2), Duration::from_millis(3));
        times.closed(secs(3), secs(9));
        assert_eq!(times.wary_limit(secs(3)), Some(Duration::from_micros(1500)));
        times.closed(secs(62), secs(9));
        assert_eq!(times.wary_limit(secs(63)), Some(Duration::from_millis(4500)), "the shorter is long ago");
        assert_eq!(times.wary_limit(secs(200)), None);
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
