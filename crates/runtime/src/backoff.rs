//! Exponential back-off with jitter.
//!
//! Invariant: every delay lies within `[(1 - jitter)·d, d]` for a `d` that grows from `initial` to `max`.
//! Whether an error deserves a retry is the caller's decision.

use std::time::Duration;

/// State of one retried operation.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    factor: f64,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    /// Doubles from `initial` up to `max`, each delay shortened by up to half at random.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, factor: 2.0, jitter: 0.5, next: initial.min(max) }
    }

    /// Sets the growth factor (at least 1) and the share of a delay that is random (0 to 1).
    #[must_use]
    pub fn with(mut self, factor: f64, jitter: f64) -> Self {
        self.factor = factor.max(1.0);
        self.jitter = jitter.clamp(0.0, 1.0);
        self
    }

    /// The next delay, for a random number in `[0, 1)`.
    pub fn next_with(&mut self, random: f64) -> Duration {
        let current = self.next;
        self.next = Duration::try_from_secs_f64(current.as_secs_f64() * self.factor).unwrap_or(self.max).min(self.max);
        current.mul_f64(1.0 - self.jitter * random.clamp(0.0, 1.0))
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.next_with(rand::random::<f64>())
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.initial.min(self.max);
    }

    /// Waits for the next delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_resets() {
        let mut b = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let delays: Vec<u128> = (0..4).map(|_| b.next_with(0.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
        b.reset();
        assert_eq!(b.next_with(1.0), Duration::from_millis(50));
    }

    #[test]
    fn random_delays_stay_in_range() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        for _ in 0..100 {
            let d = b.next_delay();
            assert!(d >= Duration::from_millis(500) && d <= Duration::from_secs(1), "{d:?}");
        }
    }
}
