//! A time limit that moves on with what it watches.
//!
//! Invariant: it rings at its time or a little later, never before. Moving it on touches no timer: the timer goes off when it was set
//! for and is set again then, and serves one watch after another.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A timer that may be set already.
pub(crate) type Timer = Pin<Box<Sleep>>;

/// See the module.
pub(crate) struct Alarm {
    limit: Duration,
    due: Instant,
    timer: Timer,
}

impl Alarm {
    /// Rings when `limit` has gone by without [`Alarm::stir`]. `spare`: a timer that nobody needs any more.
    pub fn new(limit: Duration, spare: Option<Timer>) -> Self {
        let due = Instant::now() + limit;
        let timer = match spare {
            // One that is set for an earlier time finds out then.
            Some(spare) if spare.deadline() <= due && !spare.is_elapsed() => spare,
            Some(mut spare) => {
                spare.as_mut().reset(due);
                spare
            }
            None => Box::pin(tokio::time::sleep_until(due)),
        };
        Alarm { limit, due, timer }
    }

    /// Something moved.
    pub fn stir(&mut self) {
        self.due = Instant::now() + self.limit;
    }

    /// Ready when it rings.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.due);
        }
        Poll::Pending
    }

    /// The timer, for the next.
    pub fn into_timer(self) -> Timer {
        self.timer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn it_rings_after_the_last_stir() {
        let second = Duration::from_millis(40);
        let begun = Instant::now();
        let mut alarm = Alarm::new(second, None);
        tokio::time::sleep(second / 2).await;
        alarm.stir();
        poll_fn(|cx| alarm.poll(cx)).await;
        assert!(begun.elapsed() >= second * 3 / 2);
        // A timer that has gone off, one that is set for earlier and one that is set for later serve as well.
        let early = || Alarm::new(second / 4, None).into_timer();
        let late = || Alarm::new(second * 1000, None).into_timer();
        for spare in [alarm.into_timer(), early(), late()] {
            let begun = Instant::now();
            let mut alarm = Alarm::new(second, Some(spare));
            poll_fn(|cx| alarm.poll(cx)).await;
            assert!(begun.elapsed() >= second && begun.elapsed() < second * 100);
        }
    }
}
