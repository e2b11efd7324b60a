//! Time as a value that is handed in.
//!
//! Invariant: who holds a [`Clock`] reads no other clock, so that a test can turn days into an instant.
//! Deciding what a time means is left to the caller.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

/// A boxed wait.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Wall time and the passing of it.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall time.
    fn now(&self) -> SystemTime;
    /// A wait of `duration` in this clock's time. Cancel safe.
    fn sleep(&self, duration: Duration) -> Sleep;
    /// Monotonic time since an arbitrary start.
    fn monotonic(&self) -> Duration;
}

/// A clock shared by many.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl SystemClock {
    /// The machine's clock, ready to share.
    pub fn shared() -> SharedClock {
        Arc::new(Self::default())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that only moves when told to; clones share the time.
#[derive(Clone, Debug)]
pub struct TestClock {
    start: SystemTime,
    passed: Arc<watch::Sender<Duration>>,
}

impl TestClock {
    /// A clock that stands at `start`.
    pub fn new(start: SystemTime) -> Self {
        Self { start, passed: Arc::new(watch::Sender::new(Duration::ZERO)) }
    }

    /// Moves time and wakes whoever waited for it.
    pub fn advance(&self, by: Duration) {
        self.passed.send_modify(|passed| *passed = passed.saturating_add(by));
    }

    /// How many waits are pending; lets a test know that its subject has gone to sleep.
    pub fn sleepers(&self) -> usize {
        self.passed.receiver_count()
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.start.checked_add(self.monotonic()).unwrap_or(self.start)
    }
    fn sleep(&self, duration: Duration) -> Sleep {
        let until = self.monotonic().saturating_add(duration);
        let mut passed = self.passed.subscribe();
        // The clock is kept alive by the wait itself: a dropped clock must not end it early.
        let keep = Arc::clone(&self.passed);
        Box::pin(async move {
            let _ = passed.wait_for(|now| *now >= until).await;
            drop(keep);
        })
    }
    fn monotonic(&self) -> Duration {
        *self.passed.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_test_clock_moves_when_told() {
        let clock = TestClock::new(SystemTime::UNIX_EPOCH);
        let mut wait = clock.sleep(Duration::from_secs(3600));
        assert_eq!(clock.sleepers(), 1);
        assert!(futures_util::poll!(&mut wait).is_pending());
        clock.advance(Duration::from_secs(3599));
        assert!(futures_util::poll!(&mut wait).is_pending());
        clock.advance(Duration::from_secs(1));
        wait.await;
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + Duration::from_secs(3600));
    }
}
