//! What was published when, and which resource version was seen when: the memory behind `/debug/distribution`.
//!
//! Invariant: bounded; the oldest entries go first. Sequence numbers and revisions only grow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

const EVENTS: usize = 8192;
const SNAPSHOTS: usize = 2048;

/// One published snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// Its number; the generation of the resource sets made from it.
    pub(crate) sequence: u64,
    /// `<RFC 3339 time>/<sequence>`.
    pub(crate) version: Arc<str>,
    /// How many real changes it contains.
    pub(crate) revision: u64,
    /// The highest resource version in it.
    pub(crate) resource_version: u64,
    /// When the first change it brings was seen.
    pub(crate) first_event: Instant,
    /// When it was decided to build it.
    pub(crate) time: SystemTime,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    version: u64,
    revision: u64,
    at: Instant,
}

/// The last events and snapshots.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Seen>,
    snapshots: VecDeque<Published>,
}

/// An answer to "which snapshot contains this".
#[derive(Debug, Clone)]
pub(crate) struct Contained {
    /// The first snapshot that does.
    pub(crate) snapshot: Published,
    /// When the change was seen.
    pub(crate) seen: Instant,
}

impl History {
    /// An event came; `revision` is the number of real changes including it.
    pub(crate) fn saw(&mut self, version: u64, revision: u64, at: Instant) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Seen { version, revision, at });
    }

    /// A snapshot was published.
    pub(crate) fn published(&mut self, snapshot: Published) {
        if self.snapshots.len() >= SNAPSHOTS {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(snapshot);
    }

    /// The newest snapshot.
    pub(crate) fn newest(&self) -> Option<&Published> {
        self.snapshots.back()
    }

    /// A snapshot by its number.
    pub(crate) fn snapshot(&self, sequence: u64) -> Option<&Published> {
        let at = self.snapshots.binary_search_by_key(&sequence, |s| s.sequence).ok()?;
        self.snapshots.get(at)
    }

    /// The revision after the event of exactly this resource version, and when it was seen.
    pub(crate) fn event(&self, version: u64) -> Option<(u64, Instant)> {
        self.events.iter().rev().find(|seen| seen.version == version).map(|seen| (seen.revision, seen.at))
    }

    /// When the change that made this revision was seen.
    pub(crate) fn seen(&self, revision: u64) -> Option<Instant> {
        self.events.iter().find(|seen| seen.revision == revision).map(|seen| seen.at)
    }

    /// The first snapshot that contains a revision.
    pub(crate) fn containing(&self, revision: u64) -> Option<&Published> {
        let at = self.snapshots.partition_point(|s| s.revision < revision);
        self.snapshots.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_snapshot_with_a_change() {
        let now = Instant::now();
        let mut history = History::default();
        let published = |sequence, revision| Published {
            sequence,
            version: "v".into(),
            revision,
            resource_version: revision * 10,
            first_event: now,
            time: SystemTime::UNIX_EPOCH,
        };
        history.saw(10, 1, now);
        history.saw(20, 2, now);
        history.saw(21, 2, now);
        history.published(published(1, 2));
        history.saw(30, 3, now);
        assert_eq!(history.event(21).map(|e| e.0), Some(2));
        assert_eq!(history.event(22).map(|e| e.0), None);
        assert_eq!(history.containing(1).map(|s| s.sequence), Some(1));
        assert_eq!(history.containing(3).map(|s| s.sequence), None);
        history.published(published(2, 3));
        assert_eq!(history.containing(3).map(|s| s.sequence), Some(2));
        assert_eq!(history.snapshot(2).map(|s| s.resource_version), Some(30));
    }
}
