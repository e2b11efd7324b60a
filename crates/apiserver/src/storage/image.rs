//! The readers' side of storage: the current records and the recent history, in memory.
//!
//! Invariant: records and logs are changed together, one batch at a time, under one lock, so a reader always sees the
//! state at exactly one revision. History is bounded in count and bytes, oldest out first.
//! What it leaves to others: durability and preconditions (`engine`).

use super::{Change, ChangeKind, Key, Loaded, Record, StorageError};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::watch;

/// How many of the newest changes of a resource keep their decoded form for sharing among watchers.
const DECODED_TAIL: usize = 256;

type Slot = (Arc<str>, Arc<str>);

/// One resource: its objects by (namespace, name), and its kept history.
pub(super) struct ResourceImage {
    objects: BTreeMap<Slot, Record>,
    log: VecDeque<Arc<Change>>,
    /// History at or below this revision may be incomplete.
    lost_through: u64,
    /// Revision of the last change of this resource.
    notify: watch::Sender<u64>,
    /// The same, of one namespace; those that somebody follows.
    within: HashMap<Arc<str>, watch::Sender<u64>>,
    /// Changes since everybody was told.
    quiet: usize,
}

/// Whoever follows one namespace is told of all others' changes once in so many, so that history does not run past it.
const QUIET: usize = 4096;

impl ResourceImage {
    fn new(lost_through: u64, revision: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            lost_through,
            notify: watch::Sender::new(revision),
            within: HashMap::new(),
            quiet: 0,
        }
    }
}

impl ResourceImage {
    /// Wakes whom a change concerns.
    fn tell(&mut self, change: &Change) {
        self.notify.send_replace(change.revision);
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet >= QUIET {
            self.tell_all(change.revision);
        } else if let Some(told) = self.within.get(&change.key.namespace) {
            told.send_replace(change.revision);
        }
    }

    fn tell_all(&mut self, revision: u64) {
        self.quiet = 0;
        self.notify.send_replace(revision);
        for told in self.within.values() {
            told.send_replace(revision);
        }
    }
}

/// Limits of the kept history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    pub changes: usize,
    pub bytes: usize,
}

/// The whole state.
pub(super) struct Image {
    revision: u64,
    /// Resources first seen later start their history here.
    compacted: u64,
    resources: HashMap<Arc<str>, ResourceImage>,
    /// All kept changes in order: revision, resource, weight.
    order: VecDeque<(u64, Arc<str>, usize)>,
    weight: usize,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The revision all items are at.
    pub revision: u64,
    /// Keys and records in key order.
    pub items: Vec<(Key, Record)>,
    /// Where the next page starts, if there is one: namespace and name of the last item given.
    pub next: Option<(String, String)>,
    /// How many items follow, where that is known.
    pub remaining: Option<u64>,
}

/// History after a revision.
#[derive(Debug, Clone)]
pub struct Tail {
    /// The changes, in order; all of them up to `through`.
    pub changes: Vec<Arc<Change>>,
    /// Nothing of this resource up to here is missing from `changes`.
    pub through: u64,
}

impl Image {
    pub fn new(loaded: Loaded) -> Self {
        let mut image = Self {
            revision: loaded.revision,
            compacted: loaded.compacted,
            resources: HashMap::new(),
            order: VecDeque::new(),
            weight: 0,
        };
        for (key, record) in loaded.records {
            image.resource(&key.resource).objects.insert((key.namespace, key.name), record);
        }
        for change in loaded.changes {
            image.remember(Arc::new(change));
        }
        image
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn record(&self, key: &Key) -> Option<&Record> {
        self.resources.get(&key.resource)?.objects.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// All records, by resource, namespace and name.
    pub fn everything(&self) -> (u64, Vec<(Key, Record)>) {
        let mut resources: Vec<_> = self.resources.iter().collect();
        resources.sort_by(|a, b| a.0.cmp(b.0));
        let of = |(resource, image): (&Arc<str>, &ResourceImage)| {
            let key = |slot: &Slot| Key { resource: resource.clone(), namespace: slot.0.clone(), name: slot.1.clone() };
            image.objects.iter().map(|(slot, record)| (key(slot), record.clone())).collect::<Vec<_>>()
        };
        (self.revision, resources.into_iter().flat_map(of).collect())
    }

    pub fn len(&self, resource: &str) -> usize {
        self.resources.get(resource).map_or(0, |r| r.objects.len())
    }

    pub fn subscribe(&mut self, resource: &str, namespace: Option<&str>) -> watch::Receiver<u64> {
        let revision = self.revision;
        let image = self.resource(resource);
        match namespace {
            None => image.notify.subscribe(),
            Some(namespace) => {
                image.within.retain(|_, told| told.receiver_count() > 0);
                image.within.entry(namespace.into()).or_insert_with(|| watch::Sender::new(revision)).subscribe()
            }
        }
    }

    fn resource(&mut self, resource: &str) -> &mut ResourceImage {
        let (lost, revision) = (self.compacted, self.revision);
        self.resources.entry(resource.into()).or_insert_with(|| ResourceImage::new(lost, revision))
    }

    fn remember(&mut self, change: Arc<Change>) {
        let weight = change.weight();
        self.order.push_back((change.revision, change.key.resource.clone(), weight));
        self.weight = self.weight.saturating_add(weight);
        let log = &mut self.resource(&change.key.resource.clone()).log;
        log.push_back(change);
        if let Some(old) = log.len().checked_sub(DECODED_TAIL + 1).and_then(|i| log.get_mut(i))
            && old.decoded.get().is_some()
        {
            *old = Arc::new(Change {
                revision: old.revision,
                kind: old.kind,
                key: old.key.clone(),
                value: old.value.clone(),
                previous: old.previous.clone(),
                decoded: Default::default(),
            });
        }
    }

    /// The revision through which history must go so that `incoming` more changes fit.
    pub fn compact_through(&self, incoming: &[Arc<Change>], keep: Retention) -> u64 {
        let mut count = self.order.len().saturating_add(incoming.len());
        let mut bytes = incoming.iter().fold(self.weight, |sum, c| sum.saturating_add(c.weight()));
        let mut through = self.compacted;
        for (revision, _, weight) in &self.order {
            if count <= keep.changes && bytes <= keep.bytes {
                break;
            }
            count = count.saturating_sub(1);
            bytes = bytes.saturating_sub(*weight);
            through = *revision;
        }
        through
    }

    /// Makes a durable batch visible.
    pub fn apply(&mut self, changes: &[Arc<Change>], compact_through: u64) {
        self.forget(compact_through);
        for change in changes {
            self.revision = change.revision;
            let slot = (change.key.namespace.clone(), change.key.name.clone());
            let image = self.resource(&change.key.resource);
            match change.kind {
                ChangeKind::Deleted => {
                    image.objects.remove(&slot);
                }
                ChangeKind::Created | ChangeKind::Updated => {
                    image.objects.insert(slot, Record { revision: change.revision, value: change.value.clone() });
                }
            }
            self.remember(change.clone());
        }
        for change in changes {
            if let Some(image) = self.resources.get_mut(&change.key.resource) {
                image.tell(change);
            }
        }
    }

    fn forget(&mut self, through: u64) {
        while let Some((revision, _, _)) = self.order.front() {
            if *revision > through {
                break;
            }
            let Some((revision, resource, weight)) = self.order.pop_front() else { break };
            self.weight = self.weight.saturating_sub(weight);
            if let Some(image) = self.resources.get_mut(&resource) {
                image.log.pop_front();
                image.lost_through = image.lost_through.max(revision);
            }
        }
        self.compacted = self.compacted.max(through);
    }

    /// Nothing visible has happened up to `revision`.
    pub fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Takes another state in, of which it is not known how it came about: every watch has to begin anew.
    pub fn replace(&mut self, loaded: Loaded) {
        let old = std::mem::replace(self, Self::new(loaded));
        let (lost, revision) = (self.compacted, self.revision);
        for (resource, was) in old.resources {
            let now = self.resource(&resource);
            now.lost_through = now.lost_through.max(lost);
            (now.notify, now.within) = (was.notify, was.within);
            now.tell_all(revision);
        }
    }

    /// Changes of `resource`, of one namespace or all, after `since`, about `limit` at most: those of one revision stay
    /// together.
    pub fn tail(
        &self,
        resource: &str,
        namespace: Option<&str>,
        since: u64,
        limit: usize,
    ) -> Result<Tail, StorageError> {
        let Some(image) = self.resources.get(resource) else {
            return if since < self.compacted {
                Err(StorageError::Compacted { asked: since, oldest: self.compacted })
            } else {
                Ok(Tail { changes: Vec::new(), through: self.revision })
            };
        };
        if since < image.lost_through {
            return Err(StorageError::Compacted { asked: since, oldest: image.lost_through });
        }
        let start = image.log.partition_point(|c| c.revision <= since);
        let mut changes: Vec<Arc<Change>> = Vec::new();
        let mut last = since;
        for change in image.log.range(start..) {
            if namespace.is_some_and(|ns| ns != &*change.key.namespace) {
                continue;
            }
            if changes.len() >= limit && change.revision != last {
                return Ok(Tail { changes, through: last });
            }
            last = change.revision;
            changes.push(change.clone());
        }
        let through = self.revision;
        Ok(Tail { changes, through })
    }

    /// A page of `resource`, of one namespace or all, after the item `after`, at revision `at` (`None`: now).
    pub fn page(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        limit: Option<usize>,
        at: Option<u64>,
    ) -> Result<Page, StorageError> {
        let revision = at.unwrap_or(self.revision).min(self.revision);
        let mut page = Page { revision, items: Vec::new(), next: None, remaining: None };
        let Some(image) = self.resources.get(resource) else { return Ok(page) };
        // What the objects were at `revision`, for those that have changed since.
        let mut undo: BTreeMap<Slot, Option<Record>> = BTreeMap::new();
        if revision < self.revision {
            for change in self.tail(resource, None, revision, usize::MAX)?.changes {
                undo.entry((change.key.namespace.clone(), change.key.name.clone())).or_insert(change.previous.clone());
            }
        }
        let name: Arc<str> = resource.into();
        let start: Bound<Slot> = match (after, namespace) {
            (Some((ns, name)), _) => Bound::Excluded((ns.into(), name.into())),
            (None, Some(ns)) => Bound::Included((ns.into(), "".into())),
            (None, None) => Bound::Unbounded,
        };
        let within = |slot: &Slot| namespace.is_none_or(|ns| &*slot.0 == ns);
        let mut current =
            image.objects.range((start.clone(), Bound::Unbounded)).take_while(|(s, _)| within(s)).peekable();
        let mut undone = undo.range((start, Bound::Unbounded)).take_while(|(s, _)| within(s)).peekable();
        let limit = limit.unwrap_or(usize::MAX);
        loop {
            let from_undo = match (current.peek(), undone.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((a, _)), Some((b, _))) => {
                    if a == b {
                        current.next();
                        true
                    } else {
                        b < a
                    }
                }
            };
            let found = if from_undo {
                undone.next().and_then(|(slot, old)| old.clone().map(|record| (slot, record)))
            } else {
                current.next().map(|(slot, record)| (slot, record.clone()))
            };
            let Some((slot, record)) = found else { continue };
            if page.items.len() >= limit {
                page.next = page.items.last().map(|(k, _)| (k.namespace.to_string(), k.name.to_string()));
                // Counted once, on the first page: whoever goes on knows what was left.
                if undo.is_empty() && after.is_none() {
                    let left = match namespace {
                        Some(_) => current.count().saturating_add(1),
                        None => image.objects.len().saturating_sub(page.items.len()),
                    };
                    page.remaining = Some(left as u64);
                }
                return Ok(page);
            }
            let key = Key { resource: name.clone(), namespace: slot.0.clone(), name: slot.1.clone() };
            page.items.push((key, record));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::OnceLock;

    fn change(image: &Image, revision: u64, name: &str, value: Option<&'static str>) -> Arc<Change> {
        let key = Key::new("things", "ns", name);
        let previous = image.record(&key).cloned();
        let kind = match (&value, &previous) {
            (None, _) => ChangeKind::Deleted,
            (Some(_), None) => ChangeKind::Created,
            (Some(_), Some(_)) => ChangeKind::Updated,
        };
        let bytes = value.map_or_else(
            || previous.clone().map(|p| p.value).unwrap_or_default(),
            |v| Bytes::from_static(v.as_bytes()),
        );
        Arc::new(Change { revision, kind, key, value: bytes, previous, decoded: OnceLock::new() })
    }

    fn names(page: &Page) -> Vec<String> {
        page.items.iter().map(|(k, r)| format!("{}={}", k.name, String::from_utf8_lossy(&r.value))).collect()
    }

    #[test]
    fn an_old_page_is_read_as_it_was() {
        let mut image = Image::new(Loaded { revision: 1, ..Loaded::default() });
        for (revision, name, value) in [
            (2, "a", Some("1")),
            (3, "b", Some("1")),
            (4, "c", Some("1")),
            (5, "b", None),
            (6, "a", Some("2")),
            (7, "d", Some("1")),
            (8, "b", Some("3")),
        ] {
            let c = change(&image, revision, name, value);
            image.apply(&[c], 0);
        }
        let at = |r| names(&image.page("things", Some("ns"), None, None, Some(r)).unwrap());
        assert_eq!(at(4), ["a=1", "b=1", "c=1"]);
        assert_eq!(at(5), ["a=1", "c=1"]);
        assert_eq!(at(7), ["a=2", "c=1", "d=1"]);
        assert_eq!(at(8), ["a=2", "b=3", "c=1", "d=1"]);
        let first = image.page("things", None, None, Some(1), Some(4)).unwrap();
        assert_eq!(first.next, Some(("ns".into(), "a".into())));
        let second = image.page("things", None, Some(("ns", "a")), Some(5), Some(4)).unwrap();
        assert_eq!(names(&second), ["b=1", "c=1"]);
        assert!(second.next.is_none());
    }

    #[test]
    fn compaction_is_told_per_resource() {
        let mut image = Image::new(Loaded { revision: 1, ..Loaded::default() });
        for revision in 2..12 {
            let c = change(&image, revision, "a", Some("x"));
            let through = image.compact_through(std::slice::from_ref(&c), Retention { changes: 4, bytes: usize::MAX });
            image.apply(&[c], through);
        }
        assert!(matches!(image.tail("things", None, 3, 9), Err(StorageError::Compacted { .. })));
        let tail = image.tail("things", Some("ns"), 8, 2).unwrap();
        assert_eq!(tail.changes.iter().map(|c| c.revision).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(tail.through, 10);
        assert_eq!(image.tail("things", None, 11, 9).unwrap().through, 11);
        assert!(image.page("things", None, None, None, Some(2)).is_err());
    }
}
