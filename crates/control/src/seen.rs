//! What the fold has seen, for others to read: objects' versions, events and snapshots, and the objects that carry a status.
//!
//! Invariant: written by the fold alone; never locked across an await.

use crate::history::History;
use crate::ledger::Ledger;
use crate::remote::{ClusterId, Shown};
use crate::source::{Kind, Name};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// What others may read of the fold's state.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    inner: Mutex<SeenInner>,
}

#[derive(Debug, Default)]
pub(crate) struct SeenInner {
    /// Events and snapshots.
    pub(crate) history: History,
    /// How many real changes there were.
    pub(crate) revision: u64,
    /// The resource version of each object that was seen last.
    pub(crate) versions: BTreeMap<Kind, BTreeMap<Name, u64>>,
    /// Other clusters.
    pub(crate) clusters: BTreeMap<ClusterId, Shown>,
    /// The objects whose status is written.
    pub(crate) ledger: Ledger,
}

impl Seen {
    /// For a moment; never held across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SeenInner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
