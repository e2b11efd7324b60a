//! Which objects wait to be looked at, and when.
//!
//! Invariant: an object is never worked on twice at the same time, and one that changed while it was worked on is looked at
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::Job;

/// Namespace (empty for cluster-wide objects) and name.
pub(crate) type Key = (String, String);

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    due: BTreeSet<Job>,
    later: BTreeMap<Job, SystemTime>,
    working: BTreeSet<Job>,
}

impl Queue {
    /// To be looked at now.
    pub(crate) fn add(&mut self, job: Job) {
        self.due.insert(job);
    }

    /// One to work on; it counts as worked on until [`Queue::done`].
    pub(crate) fn next(&mut self, now: SystemTime) -> Option<Job> {
        let ripe: Vec<Job> = self.later.iter().filter(|(_, at)| **at <= now).map(|(job, _)| job.clone()).collect();
        for job in ripe {
            self.later.remove(&job);
            self.due.insert(job);
        }
        let job = self.due.iter().find(|job| !self.working.contains(*job))?.clone();
        self.due.remove(&job);
        self.working.insert(job.clone());
        Some(job)
    }

    /// Its work is done; it is to be looked at again at a time.
    pub(crate) fn done(&mut self, job: Job, again: Option<SystemTime>) {
        self.working.remove(&job);
        match again {
            Some(at) => self.later.insert(job, at),
            None => self.later.remove(&job),
        };
    }

    /// How long until something is to be looked at; `None` when nothing waits.
    pub(crate) fn wait(&self, now: SystemTime) -> Option<Duration> {
        self.later.values().min().map(|at| at.duration_since(now).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Kind;

    #[test]
    fn nothing_is_worked_on_twice_and_nothing_is_forgotten() {
        let now = SystemTime::UNIX_EPOCH;
        let job = |name: &str| Job { kind: Kind::Certificate, key: ("ns".into(), name.into()) };
        let mut queue = Queue::default();
        queue.add(job("a"));
        queue.add(job("a"));
        assert_eq!(queue.next(now), Some(job("a")));
        assert_eq!(queue.next(now), None);
        queue.add(job("a"));
        assert_eq!(queue.next(now), None, "it is being worked on");
        queue.done(job("a"), Some(now + Duration::from_secs(9)));
        assert_eq!(queue.next(now), Some(job("a")), "it changed meanwhile");
        queue.done(job("a"), Some(now + Duration::from_secs(5)));
        assert_eq!(queue.wait(now), Some(Duration::from_secs(5)));
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next(now + Duration::from_secs(5)), Some(job("a")));
        assert_eq!(queue.wait(now), None);
    }
}
