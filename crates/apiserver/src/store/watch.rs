//! Objects of one resource as they change, from a revision on.
//!
//! Invariant: a watch holds no queue of its own; it is a place in the shared history, so a slow reader costs nothing
//! and is told `Expired` when history has gone on without it. Events come in revision order, none twice, none left out.
//! What it leaves to others: selectors, bookmarks and encoding (`rest::watch`).

use super::{Store, decode, decode_record, storage_error};
use crate::error::ApiResult;
use crate::storage::{Change, ChangeKind, Decoded, Engine};
use bytes::Bytes;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Changes fetched from the history at once.
const STRIDE: usize = 256;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// New.
    Added,
    /// Changed.
    Modified,
    /// Removed.
    Deleted,
}

impl EventType {
    /// Word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: EventType,
    /// The new object; for `Deleted` the last form, with the deletion's resourceVersion.
    pub object: Arc<Value>,
    change: Arc<Change>,
}

impl Event {
    /// Place in the global order.
    pub fn revision(&self) -> u64 {
        self.change.revision
    }

    /// Namespace, empty for cluster scope.
    pub fn namespace(&self) -> &str {
        &self.change.key.namespace
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.change.key.name
    }

    /// The line of a watch that shows the change as it is; made once for all watchers that are up to date.
    pub(crate) fn line(&self) -> Bytes {
        let make = || {
            // A `Value` always serializes: its keys are strings.
            let mut bytes = br#"{"type":""#.to_vec();
            bytes.extend_from_slice(self.kind.as_str().as_bytes());
            bytes.extend_from_slice(br#"","object":"#);
            bytes.extend(serde_json::to_vec(&*self.object).unwrap_or_default());
            bytes.extend_from_slice(b"}\n");
            Bytes::from(bytes)
        };
        match self.change.decoded.get() {
            Some(decoded) => decoded.line.get_or_init(make).clone(),
            None => make(),
        }
    }

    /// The object before; decoded on demand.
    pub fn previous(&self) -> Option<Value> {
        self.change.previous.as_ref().and_then(decode_record)
    }

    fn of(change: Arc<Change>) -> Option<Self> {
        let kind = match change.kind {
            ChangeKind::Created => EventType::Added,
            ChangeKind::Updated => EventType::Modified,
            ChangeKind::Deleted => EventType::Deleted,
        };
        let object = match change.decoded.get() {
            Some(decoded) => decoded.object.clone(),
            None => {
                let object = Arc::new(decode(&change.value, change.revision)?);
                let decoded = Arc::new(Decoded { object, line: OnceLock::new() });
                change.decoded.get_or_init(|| decoded).object.clone()
            }
        };
        Some(Self { kind, object, change })
    }
}

/// A place in the history of one resource.
pub struct Watch {
    engine: Engine,
    resource: String,
    namespace: Option<String>,
    /// Everything up to here has been handed out or fetched.
    seen: u64,
    fetched: VecDeque<Arc<Change>>,
    news: tokio::sync::watch::Receiver<u64>,
}

impl Watch {
    pub(super) fn start(store: &Store, resource: &str, namespace: Option<&str>, revision: u64) -> ApiResult<Self> {
        let engine = store.engine.clone();
        let news = engine.subscribe(resource, namespace);
        engine.tail(resource, namespace, revision, 0).map_err(|e| storage_error(resource, "", e))?;
        let namespace = namespace.map(str::to_owned);
        Ok(Self { engine, resource: resource.to_owned(), namespace, seen: revision, fetched: VecDeque::new(), news })
    }

    /// The next change. Cancel safe.
    ///
    /// # Errors
    /// `Expired` when this watch fell behind what is kept; `Unavailable` when the store is closed.
    pub async fn next(&mut self) -> ApiResult<Event> {
        loop {
            if let Some(event) = self.ready()? {
                return Ok(event);
            }
            if self.news.changed().await.is_err() {
                return Err(storage_error(&self.resource, "", crate::storage::StorageError::Closed));
            }
        }
    }

    /// The next change if it is there already.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn ready(&mut self) -> ApiResult<Option<Event>> {
        loop {
            while let Some(change) = self.fetched.pop_front() {
                if let Some(event) = Event::of(change) {
                    return Ok(Some(event));
                }
            }
            // Mark before looking, so that a change in between wakes us.
            self.news.mark_unchanged();
            let tail = self
                .engine
                .tail(&self.resource, self.namespace.as_deref(), self.seen, STRIDE)
                .map_err(|e| storage_error(&self.resource, "", e))?;
            self.seen = self.seen.max(tail.through);
            if tail.changes.is_empty() {
                return Ok(None);
            }
            self.fetched.extend(tail.changes);
        }
    }

    /// A revision up to which everything has been handed out; `None` while some is still on its way.
    pub fn caught_up(&self) -> Option<u64> {
        self.fetched.is_empty().then_some(self.seen)
    }
}
