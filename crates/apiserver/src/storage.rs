//! Durable, revisioned key–value storage: the one place where order is made.
//!
//! Invariant: every committed change has a revision of its own, in one sequence for all resources; a change is visible
//! to readers only after the backend has made it durable. Values are opaque bytes here.
//! What it leaves to others: what the bytes mean (`store`). A backend keeps only the batch contract of [`Storage`],
//! so that a distributed one can take the file's place.

mod engine;
pub mod etcd;
mod image;
mod redb_file;

pub use engine::{Engine, EngineOptions};
pub use image::{Page, Tail};
pub use redb_file::{FolderLock, RedbFile};

use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Names one record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `plural` or `plural.group`.
    pub resource: Arc<str>,
    /// Namespace, empty for cluster scope.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

/// One stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Revision of the last change.
    pub revision: u64,
    /// The bytes.
    pub value: Bytes,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The key was not there before.
    Created,
    /// The value was replaced.
    Updated,
    /// The key is gone; the value is the last one.
    Deleted,
}

/// One committed change, as the log keeps it.
#[derive(Debug)]
pub struct Change {
    /// Its place in the order.
    pub revision: u64,
    /// What it did.
    pub kind: ChangeKind,
    /// To whom.
    pub key: Key,
    /// The new value, for `Deleted` the last one.
    pub value: Bytes,
    /// The record before, absent for `Created`.
    pub previous: Option<Record>,
    /// Decoded forms shared by the watchers that are up to date; dropped when the change is no longer recent.
    pub decoded: OnceLock<Arc<Decoded>>,
}

/// Forms of a change that are made once for all who want them.
#[derive(Debug)]
pub struct Decoded {
    /// The object.
    pub object: Arc<serde_json::Value>,
    /// The line of a watch that shows it as it is stored.
    pub line: OnceLock<Bytes>,
}

impl Change {
    /// Bytes that keeping this change costs, roughly.
    pub fn weight(&self) -> usize {
        self.value.len() + self.previous.as_ref().map_or(0, |p| p.value.len()) + 256
    }
}

/// What must hold for an operation to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key's last change has this revision.
    Revision(u64),
}

/// One wanted change.
#[derive(Debug, Clone)]
pub struct Op {
    /// Which key.
    pub key: Key,
    /// Precondition.
    pub expect: Expect,
    /// New value, or `None` to remove the key.
    pub value: Option<Bytes>,
    /// For how long it is kept if nobody writes it again; `None`: for good. Only a medium that can do so by itself keeps
    /// to it (etcd, by leases).
    pub ttl: Option<Duration>,
    /// What only one record may have at a time. Only where several servers write: one that is alone knows what it gave out.
    pub claims: Claims,
}

/// Names of which each is one record's, or nobody's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Nobody's so far.
    pub taken: Vec<String>,
    /// Nobody's from now on.
    pub freed: Vec<String>,
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// `Expect::Absent`, but the key is there.
    #[error("the key exists already")]
    Exists(Key),
    /// `Expect::Revision`, but the key is gone.
    #[error("the key does not exist")]
    Missing(Key),
    /// `Expect::Revision`, but the key has changed since.
    #[error("the key was changed meanwhile")]
    Changed(Key),
    /// A name in [`Claims::taken`] is another record's.
    #[error("{0} is taken")]
    Claimed(String),
    /// The revision asked for is no longer kept.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// Asked for.
        asked: u64,
        /// Oldest that can be answered.
        oldest: u64,
    },
    /// Another process holds the folder.
    #[error("{0}")]
    Locked(String),
    /// The medium failed; nothing of the batch was acknowledged.
    #[error("storage failed: {0}")]
    Medium(String),
    /// The medium is elsewhere and does not answer; nothing was sent.
    #[error("the storage is out of reach: {0}")]
    Unreachable(String),
    /// The medium is elsewhere and did not answer in time: whether the change was made is not known.
    #[error("the storage did not answer: {0}")]
    Unanswered(String),
    /// The medium takes no values of this size.
    #[error("{0}")]
    TooLarge(String),
    /// The engine has been shut down.
    #[error("storage is closed")]
    Closed,
}

/// Everything a backend holds when it is opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Last revision given out.
    pub revision: u64,
    /// Changes up to this revision are no longer in `changes`.
    pub compacted: u64,
    /// All records.
    pub records: Vec<(Key, Record)>,
    /// The kept tail of the history, in order.
    pub changes: Vec<Change>,
}

/// A durable medium.
pub trait Storage: Send + 'static {
    /// Reads everything, once, at start.
    ///
    /// # Errors
    /// `Medium` when the content cannot be read or is not ours.
    fn load(&mut self) -> Result<Loaded, StorageError>;

    /// Makes all of `changes` durable together, in the order given, and forgets history up to `compact_through`.
    /// On return the changes survive a crash of the machine.
    ///
    /// # Errors
    /// `Medium`: then nothing more is committed before [`Storage::recover`] has said what became of them.
    fn commit(&mut self, changes: &[Arc<Change>], compact_through: u64) -> Result<(), StorageError>;

    /// After a failed commit: brings the medium back into use, and gives the last durable revision, which is the one before
    /// that commit or its last one.
    ///
    /// # Errors
    /// `Medium` while that is not possible.
    fn recover(&mut self) -> Result<u64, StorageError>;
}
