//! When a certificate is renewed (spec §19.4).
//!
//! Invariant: before it ends, whatever the ratio; randomness is an argument.

use std::time::{Duration, SystemTime};

/// The shortest wait, so that a certificate that ends at once does not become a busy loop.
const MIN: Duration = Duration::from_secs(1);

/// The longest time for one try.
const LIMIT: Duration = Duration::from_secs(20);

/// The longest sleep at a stretch while waiting to renew: a machine that was suspended, or whose clock was set, finds out this late.
pub(super) const STEP: Duration = Duration::from_secs(60);

/// First and longest pause between tries to renew a certificate that has `left` to live: several fit in, however short it is.
pub(super) fn pauses(left: Duration) -> (Duration, Duration) {
    let longest = (left / 20).clamp(Duration::from_millis(50), Duration::from_secs(60));
    (Duration::from_secs(1).min(longest), longest)
}

/// How long one try may take to renew a certificate that has `left` to live: several fit in, whatever the authority does. One that has ended,
/// or none, has no hurry.
pub(super) fn patience(left: Duration) -> Duration {
    if left.is_zero() { LIMIT } else { (left / 6).clamp(MIN, LIMIT) }
}

/// How long to wait after `received` with a certificate that ends at `not_after`: until `ratio ± jitter` of its life is
/// left. `random` is from −1 to 1.
pub fn renew_after(received: SystemTime, not_after: SystemTime, ratio: f64, jitter: f64, random: f64) -> Duration {
    let life = not_after.duration_since(received).unwrap_or_default();
    let left = (ratio + jitter * random.clamp(-1.0, 1.0)).clamp(0.0, 1.0);
    life.mul_f64(1.0 - left).max(MIN.min(life)).max(if life.is_zero() { MIN } else { Duration::ZERO })
}

/// The same for a certificate that was obtained earlier, as far as it tells: how long to wait from `now`, so that `ratio ± jitter` of its
/// whole life is left. However often an agent is started again, that moment stays where it is.
pub fn renew_in(life: (SystemTime, SystemTime), now: SystemTime, ratio: f64, jitter: f64, random: f64) -> Duration {
    let (from, until) = life;
    let due = from.checked_add(renew_after(from, until, ratio, jitter, random)).unwrap_or(until);
    due.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_life_with_jitter() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let day = Duration::from_secs(86_400);
        let at = |random| renew_after(start, start + day, 0.5, 0.01, random).as_secs();
        assert_eq!(at(0.0), 43_200);
        assert_eq!((at(1.0), at(-1.0)), (42_336, 44_064));
        assert_eq!(at(100.0), at(1.0), "out of range is clamped");
    }

    #[test]
    fn a_failed_renewal_is_tried_again_many_times_before_the_end() {
        for left in [1, 2, 30, 300, 1_800, 43_200] {
            let (first, longest) = pauses(Duration::from_secs(left));
            assert!(first <= longest && longest * 20 <= Duration::from_secs(left), "{left}: {first:?} {longest:?}");
        }
        assert_eq!(pauses(Duration::from_secs(43_200)), (Duration::from_secs(1), Duration::from_secs(60)));
        assert_eq!(pauses(Duration::ZERO).0, Duration::from_millis(50), "no busy loop");
    }

    #[test]
    fn an_authority_that_hangs_leaves_time_for_others() {
        let of = |left| patience(Duration::from_secs(left)).as_secs();
        assert_eq!((of(0), of(3), of(30), of(43_200)), (20, 1, 5, 20));
    }

    #[test]
    fn odd_lives() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let after = |life: u64, ratio| renew_after(start, start + Duration::from_secs(life), ratio, 0.0, 0.0);
        assert_eq!(after(0, 0.5), Duration::from_secs(1), "ended already: no busy loop");
        assert_eq!(renew_after(start, start - Duration::from_secs(5), 0.5, 0.0, 0.0), Duration::from_secs(1));
        assert_eq!(after(10, 1.0), Duration::from_secs(1));
        assert_eq!(after(10, 0.0), Duration::from_secs(10));
        assert_eq!(after(1, 0.5), Duration::from_secs(1));
    }

    #[test]
    fn a_restart_moves_nothing() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let hour = |n: u64| Duration::from_secs(n * 3600);
        let life = (start, start + hour(24));
        let left = |passed| renew_in(life, start + passed, 0.5, 0.0, 0.0);
        assert_eq!((left(hour(1)), left(hour(11))), (hour(11), hour(1)));
        assert_eq!((left(hour(12)), left(hour(30))), (Duration::ZERO, Duration::ZERO), "overdue: at once");
    }
}
