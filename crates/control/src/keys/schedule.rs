//! When which keys are fetched: pure, with time as an argument.
//!
//! Invariant: a source is asked at once when it is first wanted, every `refresh` after a success, and after pauses that double up to
//! `refresh` after failures; it is never asked twice at a time. A failure never takes keys away.

use super::{Fetched, Wanted};
use carrick_mesh::KeySource;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Schedule {
    refresh: Duration,
    first_retry: Duration,
    entries: BTreeMap<KeySource, Entry>,
}

#[derive(Debug)]
struct Entry {
    limit: Duration,
    keys: Option<Arc<str>>,
    tried: bool,
    asking: bool,
    due: Instant,
    retry: Duration,
}

impl Schedule {
    pub(super) fn new(refresh: Duration, first_retry: Duration) -> Self {
        Self { refresh, first_retry, entries: BTreeMap::new() }
    }

    /// Exactly these are wanted from now on.
    pub(super) fn want(&mut self, wanted: &Wanted, now: Instant) {
        self.entries.retain(|source, _| wanted.contains_key(source));
        for (source, limit) in wanted {
            let entry = self.entries.entry(source.clone()).or_insert_with(|| Entry {
                limit: *limit,
                keys: None,
                tried: false,
                asking: false,
                due: now,
                retry: self.first_retry,
            });
            entry.limit = *limit;
        }
    }

    /// Whom to ask now, and how long that may take.
    pub(super) fn start(&mut self, now: Instant) -> Vec<(KeySource, Duration)> {
        let due = self.entries.iter_mut().filter(|(_, e)| !e.asking && e.due <= now);
        due.map(|(source, entry)| {
            entry.asking = true;
            (source.clone(), entry.limit)
        })
        .collect()
    }

    /// When somebody is to be asked next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.values().filter(|e| !e.asking).map(|e| e.due).min()
    }

    /// A source answered, or did not. Whether anybody else cares.
    pub(super) fn done(&mut self, source: &KeySource, keys: Option<Arc<str>>, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(source) else { return false };
        entry.asking = false;
        let first = !std::mem::replace(&mut entry.tried, true);
        match keys {
            Some(keys) => {
                entry.due = now + self.refresh;
                entry.retry = self.first_retry;
                let other = entry.keys.as_ref() != Some(&keys);
                entry.keys = Some(keys);
                first || other
            }
            None => {
                entry.due = now + entry.retry;
                entry.retry = entry.retry.saturating_mul(2).min(self.refresh);
                first
            }
        }
    }

    pub(super) fn fetched(&self) -> Fetched {
        let keys = self.entries.iter().filter_map(|(s, e)| Some((s.clone(), e.keys.clone()?))).collect();
        Fetched { keys, tried: self.entries.iter().filter(|(_, e)| e.tried).map(|(s, _)| s.clone()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_outlive_failures_and_pauses_grow() {
        let second = Duration::from_secs(1);
        let mut schedule = Schedule::new(10 * second, second);
        let source = KeySource::Uri("https://keys".into());
        let start = Instant::now();
        schedule.want(&Wanted::from([(source.clone(), 5 * second)]), start);
        assert_eq!(schedule.start(start), [(source.clone(), 5 * second)]);
        assert!(schedule.start(start).is_empty(), "it is being asked");
        assert_eq!(schedule.next(), None);
        assert!(schedule.fetched().tried.is_empty());

        assert!(schedule.done(&source, None, start), "the first failure is news");
        assert_eq!(schedule.next(), Some(start + second));
        assert!(schedule.fetched().keys.is_empty() && schedule.fetched().tried.len() == 1);
        let mut now = start;
        for pause in [1, 2, 4, 8, 10, 10] {
            now += pause * second;
            assert_eq!(schedule.start(now).len(), 1, "after {pause} s");
            assert!(!schedule.done(&source, None, now));
        }

        now += 10 * second;
        schedule.start(now);
        assert!(schedule.done(&source, Some("keys".into()), now));
        assert_eq!(schedule.next(), Some(now + 10 * second));
        now += 10 * second;
        schedule.start(now);
        assert!(!schedule.done(&source, None, now), "the last good keys stay");
        assert_eq!(schedule.fetched().keys.len(), 1);
        assert_eq!(schedule.next(), Some(now + second), "and are asked for soon again");
        now += second;
        schedule.start(now);
        assert!(!schedule.done(&source, Some("keys".into()), now), "the same are no news");
        assert!(schedule.done(&source, Some("other".into()), now));

        schedule.want(&Wanted::new(), now);
        assert!(schedule.fetched().keys.is_empty());
        assert!(!schedule.done(&source, None, now), "nobody wants it any more");
    }
}
