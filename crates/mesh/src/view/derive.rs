//! From a snapshot and a proxy to its view.
//!
//! Invariant: a function of its arguments; what is remembered between calls is only what would come out again.

use super::View;
use crate::{proxy::ProxyNode, snapshot::Snapshot};

/// The view of one sidecar.
pub fn sidecar(snapshot: &Snapshot, proxy: &ProxyNode) -> View {
    Views::new(snapshot.clone()).sidecar(proxy)
}

/// Views over one snapshot, sharing what several proxies see alike.
#[derive(Debug)]
pub struct Views {
    snapshot: Snapshot,
}

impl Views {
    /// Starts with an empty memory.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { snapshot }
    }

    /// Goes on with a newer snapshot, keeping what did not change.
    pub fn update(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The view of one sidecar.
    pub fn sidecar(&mut self, _proxy: &ProxyNode) -> View {
        unimplemented!()
    }
}
