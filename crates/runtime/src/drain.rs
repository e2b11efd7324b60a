//! Two-step shutdown: ask everybody to finish, and after a deadline tell them to stop.
//!
//! Invariant: [`DrainTrigger::drain`] returns only when every [`Drain`] is dropped or the deadline and a short
//! forced period have passed. What "finish" means (stop accepting, send GOAWAY…) is the holder's business.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    Graceful,
    Forced,
}

/// The side that starts the shutdown.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
    // Closed when the last holder is gone; nothing is ever sent.
    holders: mpsc::Receiver<()>,
}

/// Held by work that wants to be waited for; dropping it says "done".
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    _alive: mpsc::Sender<()>,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Everybody finished within the deadline.
    Gracefully,
    /// Some had to be told to stop.
    Forced,
}

/// How long holders get to drop their connections once they are told to stop.
const FORCED_PERIOD: Duration = Duration::from_millis(500);

/// A connected pair.
pub fn channel() -> (DrainTrigger, Drain) {
    let (phase_tx, phase_rx) = watch::channel(Phase::Running);
    let (alive, holders) = mpsc::channel(1);
    (DrainTrigger { phase: phase_tx, holders }, Drain { phase: phase_rx, _alive: alive })
}

impl DrainTrigger {
    /// Asks all holders to finish and waits for them, at most `deadline` before they are told to stop.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.phase.send_replace(Phase::Graceful);
        if tokio::time::timeout(deadline, self.holders.recv()).await.is_ok() {
            return Drained::Gracefully;
        }
        self.phase.send_replace(Phase::Forced);
        let _ = tokio::time::timeout(FORCED_PERIOD, self.holders.recv()).await;
        Drained::Forced
    }

    /// Asks all holders to finish without waiting; [`DrainTrigger::drain`] may follow.
    pub fn start(&self) {
        self.phase.send_replace(Phase::Graceful);
    }
}

impl Drain {
    /// Resolves when finishing is asked for, or the trigger is gone. Cancel safe.
    pub async fn graceful(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|p| *p != Phase::Running).await;
    }

    /// Resolves when stopping is demanded, or the trigger was dropped without a drain. Cancel safe.
    pub async fn forced(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|p| *p == Phase::Forced).await;
    }

    /// Whether finishing has been asked for.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_holders() {
        let (trigger, drain) = channel();
        let worker = tokio::spawn(async move {
            drain.graceful().await;
            assert!(drain.is_draining());
            tokio::time::sleep(Duration::from_millis(30)).await;
        });
        assert_eq!(trigger.drain(Duration::from_secs(5)).await, Drained::Gracefully);
        assert!(worker.await.is_ok());
    }

    #[tokio::test]
    async fn forces_the_slow() {
        let (trigger, drain) = channel();
        let worker = tokio::spawn(async move { drain.forced().await });
        assert_eq!(trigger.drain(Duration::from_millis(50)).await, Drained::Forced);
        assert!(worker.await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_trigger_releases_everybody() {
        let (trigger, drain) = channel();
        drop(trigger);
        drain.graceful().await;
        drain.forced().await;
    }
}
