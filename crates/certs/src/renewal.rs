//! When a certificate is replaced, and how long to wait after a failure.
//!
//! Invariant: the time of renewal lies within the certificate's life; a pause after failures is never longer than a quarter of
//! what is left of it, so that a repaired issuer is always asked again in time.

use std::time::Duration;

use carrick_api::timestamp::Timestamp;

/// Shortest and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(32 * 60 * 60));
/// The first pause after a failure as a part of a certificate's life.
const PAUSE_OF_LIFE: u32 = 2160;

/// How long before its end a certificate is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// A third of its life.
    Third,
    /// So long; a certificate that lives shorter is replaced after two thirds of its life.
    Time(Duration),
    /// So many hundredths of its life.
    Percent(u32),
}

impl Before {
    /// The time of renewal of a certificate with this life, which may be shorter than the one asked for.
    pub fn at(self, not_before: Timestamp, not_after: Timestamp) -> Timestamp {
        let life = span(not_before, not_after);
        let before = match self {
            Self::Time(time) if time < life => time,
            Self::Percent(share) if share < 100 => life.mul_f64(f64::from(share) / 100.0),
            _ => life / 3,
        };
        earlier(not_after, before)
    }
}

/// How long to wait after failures in a row. `left` is what remains of the certificate that is held.
pub fn pause(failures: u32, life: Duration, left: Option<Duration>) -> Duration {
    let first = (life / PAUSE_OF_LIFE).clamp(PAUSE.0, Duration::from_secs(60 * 60));
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let most = left.filter(|left| !left.is_zero()).map_or(PAUSE.1, |left| (left / 4).min(PAUSE.1));
    doubled.min(most).max(PAUSE.0)
}

/// The time between two moments; nothing when they are out of order.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0))
}

pub(crate) fn later(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: i64) -> Timestamp {
        Timestamp::from_seconds(n)
    }

    #[test]
    fn a_certificate_is_replaced_within_its_life() {
        let at = |before: Before, life: i64| before.at(seconds(0), seconds(life)).seconds();
        assert_eq!(at(Before::Third, 90), 60);
        assert_eq!(at(Before::Time(Duration::from_secs(30)), 90), 60);
        assert_eq!(at(Before::Time(Duration::from_secs(100)), 90), 60);
        assert_eq!(at(Before::Percent(10), 100), 90);
        assert_eq!(at(Before::Percent(100), 90), 60);
    }

    #[test]
    fn pauses_double_and_leave_time_to_renew() {
        let day = Duration::from_secs(24 * 60 * 60);
        let pauses: Vec<u64> = (1..=5).map(|n| pause(n, day, None).as_secs()).collect();
        assert_eq!(pauses, [40, 80, 160, 320, 640]);
        assert_eq!(pause(20, day, Some(Duration::from_secs(400))).as_secs(), 100);
        assert_eq!(pause(40, day, Some(Duration::ZERO)).as_secs(), 32 * 60 * 60);
        assert_eq!(pause(9, Duration::from_secs(60), Some(Duration::from_secs(8))).as_secs(), 5);
    }
}
