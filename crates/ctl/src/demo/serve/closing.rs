//! When the service ends connections that it could have kept: after some idle time, or all of them at once.
//!
//! Invariant: only an idle connection is ended. A request whose first bytes were read is answered, as by any server that can be relied on;
//! what is still on its way then meets the end of its connection.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    ops::RangeInclusive,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};

/// How long after an answer has been given it may still be on its way to the socket.
const WRITING: Duration = Duration::from_millis(2);

/// Reads `MS` or `MIN-MAX`.
pub fn patience(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let range = number(least)?..=number(most)?;
    if range.is_empty() { Err(format!("{text:?} is empty")) } else { Ok(range) }
}

/// When connections are ended.
#[derive(Debug)]
pub struct Closing {
    idle: Option<RangeInclusive<u64>>,
    restarts: Option<watch::Receiver<u64>>,
}

/// What is under way on a connection.
#[derive(Debug, Default)]
pub struct Use {
    running: AtomicUsize,
    ended: Notify,
}

impl Use {
    /// A request was read.
    pub fn begins(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    /// It has its answer.
    pub fn ends(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.ended.notify_one();
    }
}

impl Closing {
    /// With a patience in milliseconds, and a restart every so many.
    pub fn new(idle: Option<RangeInclusive<u64>>, restart_every: Option<u64>) -> Self {
        let restarts = restart_every.map(|millis| {
            let (tell, told) = watch::channel(0_u64);
            tokio::spawn(async move {
                let every = Duration::from_millis(millis);
                let mut ticks = interval_at(Instant::now() + every, every);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    tell.send_modify(|count| *count = count.wrapping_add(1));
                }
            });
            told
        });
        Self { idle, restarts }
    }

    /// Serves a connection until its client or this ends it.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn watch(&self, mut running: Pin<Box<dyn Future<Output = Result<()>> + Send>>, used: &Use) -> Result<()> {
        if self.idle.is_none() && self.restarts.is_none() {
            return running.await;
        }
        let mut restarts = self.restarts.clone();
        if let Some(restarts) = &mut restarts {
            restarts.mark_unchanged();
        }
        // The first request may take its time.
        tokio::select! {
            biased;
            ended = &mut running => return ended,
            () = used.ended.notified() => {}
        }
        let mut leaving = false;
        loop {
            let patience = match &self.idle {
                _ if leaving => WRITING,
                Some(range) => Duration::from_millis(random(range)).max(WRITING),
                None => Duration::MAX,
            };
            let restart = async {
                match &mut restarts {
                    Some(restarts) if !leaving => restarts.changed().await.is_ok(),
                    _ => std::future::pending().await,
                }
            };
            // The connection first, each time: what has arrived is read before its patience is looked at.
            tokio::select! {
                biased;
                ended = &mut running => return ended,
                () = used.ended.notified() => {}
                restarted = restart => leaving = restarted,
                () = tokio::time::sleep(patience), if used.running.load(Ordering::SeqCst) == 0 => return Ok(()),
            }
        }
    }
}

fn random(range: &RangeInclusive<u64>) -> u64 {
    let span = range.end().saturating_sub(*range.start()).saturating_add(1);
    range.start().saturating_add(RandomState::new().build_hasher().finish() % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patience_is_a_number_or_a_range() {
        assert_eq!(patience("20"), Ok(20..=20));
        assert_eq!(patience("5-60"), Ok(5..=60));
        assert!(patience("60-5").is_err() && patience("x").is_err());
    }
}
