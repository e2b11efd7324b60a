//! Judges a store by its watchers: given what writers were answered and what watchers saw, whether anything was lost,
//! doubled, reordered or invented.
//!
//! Invariant: every write carries a number of its own, so that an event is known for the write it came from; a write whose
//! answer never came may have happened or not, but for all watchers alike. Judging is pure.
//! What it leaves to others: writing and watching (`run`), and over what (`Access`).

mod run;
mod store;

pub use run::{Access, Answer, Failure, Fault, Next, Options, Outcome, Seeded, Stream, Write, run};
pub use store::StoreAccess;

use std::collections::{BTreeMap, HashMap, HashSet};

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `ADDED`.
    Added,
    /// `MODIFIED`.
    Modified,
    /// `DELETED`.
    Deleted,
}

/// One event, as a watcher saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Its `resourceVersion`.
    pub revision: u64,
    /// What it says.
    pub kind: Kind,
    /// Which object, by number.
    pub object: u32,
    /// The number of the write that made this content.
    pub number: u64,
}

/// Why a store is not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A watcher did not see an acknowledged write.
    #[error("watcher {watcher} lost write {number} of object {object} at {revision}")]
    Lost {
        /// Who.
        watcher: usize,
        /// Which object.
        object: u32,
        /// Which write.
        number: u64,
        /// When.
        revision: u64,
    },
    /// An event came with a revision at or before one that was there already.
    #[error("watcher {watcher} saw object {object} at {revision} when it was at {before} already")]
    Backwards {
        /// Who.
        watcher: usize,
        /// Which object.
        object: u32,
        /// When.
        revision: u64,
        /// What had been seen.
        before: u64,
    },
    /// An event that does not follow from what was: added twice, changed or removed without being there.
    #[error("watcher {watcher} saw {kind:?} of object {object} at {revision}, which was {was}")]
    Unfitting {
        /// Who.
        watcher: usize,
        /// Which object.
        object: u32,
        /// When.
        revision: u64,
        /// What.
        kind: Kind,
        /// `there` or `not there`.
        was: &'static str,
    },
    /// An event of a write that nobody made, or with another content or place than the writer was told.
    #[error("watcher {watcher} saw write {number} of object {object} at {revision}, which nobody made there")]
    Invented {
        /// Who.
        watcher: usize,
        /// Which object.
        object: u32,
        /// Which write.
        number: u64,
        /// When.
        revision: u64,
    },
    /// What a watcher holds in the end is not what the store holds.
    #[error("watcher {watcher} ends with {held} objects as they are, of {stored}")]
    Other {
        /// Who.
        watcher: usize,
        /// Objects that are right.
        held: usize,
        /// Objects that are stored.
        stored: usize,
    },
    /// A list or a store holds another content than the last acknowledged write.
    #[error("object {object} holds write {number:?}, not {wanted:?}")]
    Stored {
        /// Which object.
        object: u32,
        /// What is there.
        number: Option<u64>,
        /// What was acknowledged last.
        wanted: Option<u64>,
    },
}

/// What the writers know.
#[derive(Debug, Default)]
pub struct Journal {
    /// Acknowledged contents: revision → object, number.
    puts: BTreeMap<u64, (u32, u64)>,
    /// Contents whose writer got no answer: number → object.
    doubtful: HashMap<u64, u32>,
    /// Removals: object and the revision that was removed, acknowledged or without an answer.
    removed: HashSet<(u32, u64)>,
}

impl Journal {
    /// Notes an acknowledged content.
    pub fn put(&mut self, revision: u64, object: u32, number: u64) {
        self.puts.insert(revision, (object, number));
    }

    /// Notes a content whose writer got no answer.
    pub fn doubtful(&mut self, object: u32, number: u64) {
        self.doubtful.insert(number, object);
    }

    /// Notes the removal of an object that was at `revision`, whether it was acknowledged or nobody knows.
    pub fn removed(&mut self, object: u32, revision: u64) {
        self.removed.insert((object, revision));
    }

    /// Takes over what another writer knows.
    pub fn merge(&mut self, other: Self) {
        self.puts.extend(other.puts);
        self.doubtful.extend(other.doubtful);
        self.removed.extend(other.removed);
    }

    /// Acknowledged changes.
    pub fn len(&self) -> usize {
        self.puts.len().saturating_add(self.removed.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One object as a watcher holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its revision.
    pub revision: u64,
    /// The number of the write.
    pub number: u64,
}

/// A revision, and the object and content that came with it.
type Sight = (u64, u32, u64);

/// One watcher: what it holds, and what it saw between lists.
#[derive(Debug)]
pub struct Witness {
    id: usize,
    held: HashMap<u32, Held>,
    /// Everything up to here has been seen.
    at: u64,
    /// From where the present stretch without a list began.
    since: u64,
    /// Contents seen in the present stretch, by revision.
    seen: Vec<Sight>,
    removed: Vec<(u32, Held, u64)>,
    /// Earlier stretches: from where, to where, and what was seen.
    stretches: Vec<(u64, u64, Vec<Sight>)>,
    findings: Vec<Finding>,
    /// Events taken.
    pub events: u64,
    /// Lists read.
    pub lists: u64,
}

impl Witness {
    /// A watcher that has seen nothing.
    pub fn new(id: usize) -> Self {
        Self {
            id,
            held: HashMap::new(),
            at: 0,
            since: 0,
            seen: Vec::new(),
            removed: Vec::new(),
            stretches: Vec::new(),
            findings: Vec::new(),
            events: 0,
            lists: 0,
        }
    }

    /// Where a watch goes on.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Begins anew with a list.
    pub fn list(&mut self, revision: u64, items: impl IntoIterator<Item = (u32, Held)>) {
        self.close();
        if revision < self.at {
            let before = self.at;
            self.findings.push(Finding::Backwards { watcher: self.id, object: u32::MAX, revision, before });
        }
        self.held = items.into_iter().collect();
        self.at = revision;
        self.since = revision;
        self.lists = self.lists.saturating_add(1);
    }

    fn close(&mut self) {
        if self.lists > 0 {
            self.stretches.push((self.since, self.at, std::mem::take(&mut self.seen)));
        }
    }

    /// A bookmark: nothing is missing up to here.
    pub fn bookmark(&mut self, revision: u64) {
        if revision < self.at {
            let before = self.at;
            self.findings.push(Finding::Backwards { watcher: self.id, object: u32::MAX, revision, before });
        }
        self.at = self.at.max(revision);
    }

    /// One event. Revisions of a stream never go back; those of one object always grow.
    pub fn event(&mut self, event: Event) {
        self.events = self.events.saturating_add(1);
        let Event { revision, kind, object, number } = event;
        let watcher = self.id;
        let held = self.held.get(&object).copied();
        let before = held.map_or(0, |h| h.revision).max(if revision < self.at { self.at } else { 0 });
        if revision <= before {
            self.findings.push(Finding::Backwards { watcher, object, revision, before });
        }
        self.at = self.at.max(revision);
        if held.is_some() == (kind == Kind::Added) {
            let was = if held.is_some() { "there" } else { "not there" };
            self.findings.push(Finding::Unfitting { watcher, object, revision, kind, was });
        }
        if kind == Kind::Deleted {
            if let Some(held) = self.held.remove(&object) {
                self.removed.push((object, held, revision));
            }
        } else {
            self.held.insert(object, Held { revision, number });
            self.seen.push((revision, object, number));
        }
    }

    /// Everything that is wrong with what was seen; `stored` is what the store holds in the end, for a watcher that has
    /// caught up with it.
    pub fn judge(mut self, journal: &Journal, stored: &HashMap<u32, Held>) -> Vec<Finding> {
        self.close();
        let watcher = self.id;
        let mut findings = std::mem::take(&mut self.findings);
        for (since, at, seen) in &self.stretches {
            let mut seen = seen.iter().peekable();
            let mut take = |wanted: Option<Sight>, findings: &mut Vec<Finding>| {
                // What was seen before the next acknowledged write can only be of a writer that got no answer.
                while let Some((revision, object, number)) =
                    seen.next_if(|s| wanted.is_none_or(|w| s.0 < w.0 || s.0 == w.0 && **s != w))
                {
                    if journal.doubtful.get(number) != Some(object) {
                        let (revision, object, number) = (*revision, *object, *number);
                        findings.push(Finding::Invented { watcher, object, number, revision });
                    }
                }
                let Some((revision, object, number)) = wanted else { return };
                if seen.next_if(|s| s.0 == revision).is_none() {
                    findings.push(Finding::Lost { watcher, object, number, revision });
                }
            };
            if since < at {
                for (revision, (object, number)) in journal.puts.range(since.saturating_add(1)..=*at) {
                    take(Some((*revision, *object, *number)), &mut findings);
                }
            }
            take(None, &mut findings);
        }
        for (object, held, revision) in &self.removed {
            if !journal.removed.contains(&(*object, held.revision)) {
                let (object, number, revision) = (*object, held.number, *revision);
                findings.push(Finding::Invented { watcher, object, number, revision });
            }
        }
        if self.held != *stored {
            let held = self.held.iter().filter(|(object, held)| stored.get(object) == Some(held)).count();
            findings.push(Finding::Other { watcher, held, stored: stored.len() });
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> (Journal, Vec<Event>, HashMap<u32, Held>) {
        let mut journal = Journal::default();
        let mut events = Vec::new();
        let mut put = |revision, object, kind| {
            journal.put(revision, object, revision * 10);
            events.push(Event { revision, kind, object, number: revision * 10 });
        };
        put(2, 1, Kind::Added);
        put(3, 2, Kind::Added);
        put(4, 1, Kind::Modified);
        put(5, 1, Kind::Modified);
        put(7, 1, Kind::Added);
        put(8, 2, Kind::Modified);
        journal.removed(1, 5);
        events.insert(4, Event { revision: 6, kind: Kind::Deleted, object: 1, number: 50 });
        let stored = [(1, Held { revision: 7, number: 70 }), (2, Held { revision: 8, number: 80 })].into();
        (journal, events, stored)
    }

    fn judged(events: &[Event]) -> Vec<Finding> {
        let (journal, _, stored) = story();
        let mut witness = Witness::new(0);
        witness.list(1, []);
        for event in events {
            witness.event(*event);
        }
        witness.judge(&journal, &stored)
    }

    #[test]
    fn a_true_story_has_no_findings() {
        assert_eq!(judged(&story().1), []);
    }

    #[test]
    fn every_missing_doubled_or_swapped_event_is_found() {
        let events = story().1;
        for at in 0..events.len() {
            let mut lost = events.clone();
            lost.remove(at);
            assert_ne!(judged(&lost), [], "event {at} lost");
            let mut doubled = events.clone();
            doubled.insert(at, events[at]);
            assert_ne!(judged(&doubled), [], "event {at} doubled");
            if at > 0 {
                let mut swapped = events.clone();
                swapped.swap(at - 1, at);
                assert_ne!(judged(&swapped), [], "event {at} too early");
            }
            let mut other = events.clone();
            other[at].number += 1;
            if other[at].kind != Kind::Deleted {
                assert_ne!(judged(&other), [], "event {at} with another content");
            }
        }
    }

    #[test]
    fn a_write_without_an_answer_may_be_seen_or_not() {
        let (mut journal, events, mut stored) = story();
        journal.doubtful(2, 85);
        journal.doubtful(2, 86);
        stored.insert(2, Held { revision: 9, number: 85 });
        let mut witness = Witness::new(0);
        witness.list(1, []);
        for event in &events {
            witness.event(*event);
        }
        witness.event(Event { revision: 9, kind: Kind::Modified, object: 2, number: 85 });
        assert_eq!(witness.judge(&journal, &stored), []);
    }
}
