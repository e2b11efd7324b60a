//! Rows of the data file as bytes.
//!
//! Invariant: what is decoded is what was encoded, or nothing: lengths, kinds and revisions have to fit each other.
//! What it leaves to others: the tables (`redb_file`), and that pages are what was written (redb's hashes).

use super::super::{Change, ChangeKind, Key, Record};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub(super) fn encode_key(key: &Key) -> String {
    format!("{}\0{}\0{}", key.resource, key.namespace, key.name)
}

/// Decodes keys; neighbours share the names of their resource and namespace.
#[derive(Debug, Default)]
pub(super) struct Keys {
    resource: Arc<str>,
    namespace: Arc<str>,
}

impl Keys {
    pub(super) fn decode(&mut self, text: &str) -> Option<Key> {
        let mut parts = text.split('\0');
        let (resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        if *self.resource != *resource {
            self.resource = resource.into();
        }
        if *self.namespace != *namespace {
            self.namespace = namespace.into();
        }
        Some(Key { resource: self.resource.clone(), namespace: self.namespace.clone(), name: name.into() })
    }
}

pub(super) fn encode_record(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len().saturating_add(8));
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(value);
    out
}

pub(super) fn decode_record(bytes: &[u8]) -> Option<Record> {
    let (revision, value) = bytes.split_first_chunk::<8>()?;
    Some(Record { revision: u64::from_be_bytes(*revision), value: Bytes::copy_from_slice(value) })
}

/// Kind, key, then the previous record if there was one; every part with its length before it. The value is not here:
/// the next change of the object has it as its previous one, or the object has it; a deletion's is the previous one.
pub(super) fn encode_change(change: &Change) -> Vec<u8> {
    let key = encode_key(&change.key);
    let previous = change.previous.as_ref().map(|previous| encode_record(previous.revision, &previous.value));
    let mut out = Vec::with_capacity(previous.as_ref().map_or(0, Vec::len).saturating_add(key.len()).saturating_add(9));
    out.push(match change.kind {
        ChangeKind::Created => 1,
        ChangeKind::Updated => 2,
        ChangeKind::Deleted => 3,
    });
    let mut part = |bytes: &[u8]| {
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    part(key.as_bytes());
    if let Some(previous) = previous {
        part(&previous);
    }
    out
}

/// The parts of a change's row.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn kind(&mut self) -> Option<ChangeKind> {
        let (kind, rest) = self.0.split_first()?;
        self.0 = rest;
        match kind {
            1 => Some(ChangeKind::Created),
            2 => Some(ChangeKind::Updated),
            3 => Some(ChangeKind::Deleted),
            _ => None,
        }
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let (length, after) = self.0.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = after;
        Some(part)
    }

    fn key(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.part()?).ok()
    }

    /// The previous record, which is the last part.
    fn previous(mut self, kind: ChangeKind) -> Option<Option<Record>> {
        let previous = match kind {
            ChangeKind::Created => None,
            ChangeKind::Updated | ChangeKind::Deleted => Some(decode_record(self.part()?)?),
        };
        self.0.is_empty().then_some(previous)
    }
}

/// A change of format 1: with its value behind the key.
pub(super) fn decode_full_change(revision: u64, bytes: &[u8]) -> Option<Change> {
    let mut parts = Parts(bytes);
    let kind = parts.kind()?;
    let key = Keys::default().decode(parts.key()?)?;
    let value = Bytes::copy_from_slice(parts.part()?);
    let previous = parts.previous(kind)?;
    Some(Change { revision, kind, key, value, previous, decoded: OnceLock::new() })
}

/// Decodes changes from the last one back, and gives each the value that what came later has of it.
pub(super) struct Later<'a> {
    /// Sorted by key.
    records: &'a [(Key, Record)],
    /// Objects of which a later change is known: their key, and what was there before that change.
    before: HashMap<String, (Key, Option<Record>)>,
    keys: Keys,
}

impl<'a> Later<'a> {
    pub(super) fn of(records: &'a [(Key, Record)]) -> Self {
        Self { records, before: HashMap::new(), keys: Keys::default() }
    }

    pub(super) fn decode_change(&mut self, revision: u64, bytes: &[u8]) -> Option<Change> {
        let mut parts = Parts(bytes);
        let kind = parts.kind()?;
        let text = parts.key()?;
        let previous = parts.previous(kind)?;
        let (key, left) = match self.before.get_mut(text) {
            Some((key, before)) => (key.clone(), std::mem::replace(before, previous.clone())),
            None => {
                let decoded = self.keys.decode(text)?;
                let there = self.records.binary_search_by(|(key, _)| key.cmp(&decoded)).ok();
                let (key, record) = match there.and_then(|index| self.records.get(index)) {
                    Some((key, record)) => (key.clone(), Some(record.clone())),
                    None => (decoded, None),
                };
                self.before.insert(text.to_owned(), (key.clone(), previous.clone()));
                (key, record)
            }
        };
        let value = match (kind, left, &previous) {
            (ChangeKind::Deleted, None, Some(previous)) => previous.value.clone(),
            (ChangeKind::Created | ChangeKind::Updated, Some(left), _) if left.revision == revision => left.value,
            _ => return None,
        };
        Some(Change { revision, kind, key, value, previous, decoded: OnceLock::new() })
    }
}
