//! What is said of every consumer: one board that keepers write, and the task that tells the control plane of it.
//!
//! Invariant: a change is told at once, and everything again once in the shortest period, so that silence means something.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use carrick_runtime::backoff::Backoff;
use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use carrick_xds::client::{Connector, open_channel};
use carrick_xds::delivery::{DeliveryClient, Report, ReportRequest, Verdict};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::config::Spec;

/// How often there is a report at least.
const LATEST: Duration = Duration::from_secs(60);
/// How long the control plane may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Shares of a life, in hundredths, that are worth a word when they have passed without a renewal.
const STAGES: [u32; 3] = [75, 90, 100];

/// One consumer.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// What is told of it.
    pub report: Report,
    /// The life of the certificate it has.
    pub life: Option<(SystemTime, SystemTime)>,
    /// Sets of files put in place.
    pub deliveries: u64,
    /// Reloads that failed.
    pub reload_failures: u64,
    stage: u32,
}

/// All consumers.
#[derive(Debug)]
pub struct Board {
    entries: Mutex<BTreeMap<String, Entry>>,
    changed: watch::Sender<u64>,
    period: Duration,
}

impl Board {
    /// A board for these, of this agent.
    pub fn new(agent: &str, specs: &[Spec]) -> Arc<Self> {
        let periods = specs.iter().filter_map(|spec| spec.proof.as_ref()).map(|proof| proof.period);
        let period = periods.min().unwrap_or(LATEST).min(LATEST);
        let entry = |spec: &Spec| {
            let own = spec.proof.as_ref().map_or(period, |proof| proof.period);
            let report = Report {
                consumer: spec.name.clone(),
                agent: agent.to_owned(),
                secret: spec.secret.clone(),
                period_seconds: own.max(period).as_secs(),
                ..Report::default()
            };
            (spec.name.clone(), Entry { report, ..Entry::default() })
        };
        Arc::new(Self {
            entries: Mutex::new(specs.iter().map(entry).collect()),
            changed: watch::Sender::new(0),
            period,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy.
    pub fn all(&self) -> BTreeMap<String, Entry> {
        self.lock().clone()
    }

    /// Changes an entry; whoever reports is woken if what is told is another.
    pub fn note(&self, consumer: &str, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(consumer) else { return };
        let before = entry.report.clone();
        change(entry);
        let news = entry.report != before;
        drop(entries);
        if news {
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// What there is to report: consumers of which something is known.
    pub fn reports(&self) -> Vec<Report> {
        let known = |entry: &Entry| entry.report.delivered.is_some();
        self.lock().values().filter(|entry| known(entry)).map(|entry| entry.report.clone()).collect()
    }

    /// Says once of each certificate that it should have been renewed and was not.
    fn tell_ages(&self, now: SystemTime) {
        for (consumer, entry) in self.lock().iter_mut() {
            let Some((from, to)) = entry.life else { continue };
            let used = used(now, from, to);
            let stage = STAGES.iter().rev().find(|stage| used >= **stage).copied().unwrap_or(0);
            if stage > entry.stage {
                match stage {
                    100 => error!(consumer, "the certificate has ended, and there is no new one"),
                    90 => error!(
                        consumer,
                        used_percent = used,
                        "the certificate is about to end, and there is no new one"
                    ),
                    _ => warn!(consumer, used_percent = used, "the certificate was not renewed yet"),
                }
            }
            entry.stage = stage;
        }
    }

    /// Tells the control plane, until drained.
    pub async fn tell(self: Arc<Self>, connector: Connector, clock: SharedClock, drain: Drain) {
        let mut changes = self.changed.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut silent = false;
        loop {
            self.tell_ages(clock.now());
            let reports = self.reports();
            let pause = match reports.is_empty() {
                true => self.period,
                false => match tell(&connector, reports).await {
                    Ok(()) => {
                        backoff.reset();
                        if std::mem::take(&mut silent) {
                            info!("deliveries are reported again");
                        }
                        self.period
                    }
                    Err(reason) => {
                        if !std::mem::replace(&mut silent, true) {
                            warn!(reason, "deliveries cannot be reported; it is tried again");
                        }
                        debug!(reason, "report");
                        backoff.next_delay()
                    }
                },
            };
            tokio::select! {
                () = drain.graceful() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = clock.sleep(pause) => {}
            }
        }
    }
}

async fn tell(connector: &Connector, reports: Vec<Report>) -> Result<(), String> {
    let channel = open_channel(connector).await.map_err(|e| e.to_string())?;
    let mut client = DeliveryClient::new(channel);
    match tokio::time::timeout(LIMIT, client.report(ReportRequest { reports })).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err("the control plane does not answer in time".to_owned()),
    }
}

/// How much of a life has passed, in hundredths.
pub(super) fn used(now: SystemTime, from: SystemTime, to: SystemTime) -> u32 {
    let whole = to.duration_since(from).unwrap_or_default().as_secs_f64();
    let passed = now.duration_since(from).unwrap_or_default().as_secs_f64();
    if whole <= 0.0 || passed >= whole {
        return 100;
    }
    // From 0 to 99 here.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let percent = (passed / whole * 100.0) as u32;
    percent
}

/// A verdict.
pub(super) fn verdict(status: bool, reason: &str, message: String, serial: &str) -> Verdict {
    let status = if status { "True" } else { "False" };
    Verdict { status: status.to_owned(), reason: reason.to_owned(), message, serial: serial.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_life() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let of = |now| used(at(now), at(100), at(200));
        assert_eq!((of(0), of(100), of(150), of(199), of(200), of(999)), (0, 0, 50, 99, 100, 100));
        assert_eq!(used(at(5), at(5), at(5)), 100, "a life of nothing");
    }
}
