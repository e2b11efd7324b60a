//! Per-kind behaviour: what writes are completed and refused with (`admission`), and the loops that keep derived objects
//! right: namespaces' contents, service accounts, root certificates, endpoint slices, garbage.
//!
//! Invariant: admission reads the store and never writes it; loops write through the store like any client, and each
//! derived object has exactly one of them as its writer. A loop that misses history starts again from a list, so nothing
//! depends on having seen every event.
//!
//! Order at start: `bootstrap` (awaited, before the server answers), then `start` (tasks). `Admission` is made once and
//! shared by all requests: it holds the addresses that are promised but not yet stored.

pub mod addresses;
mod admission;
mod bootstrap;
mod definitions;
mod deployments;
mod endpoint_slices;
mod follow;
mod garbage;
mod namespaces;

pub use self::admission::Admission;
pub use self::bootstrap::bootstrap;

use std::sync::Arc;

use carrick_runtime::tasks::TaskSet;
use tokio::sync::watch;

use crate::store::Store;

/// The mesh's root certificates as PEM; `None` until the authority is known.
pub type RootPem = Option<Arc<str>>;

/// Starts the loops. `root` and `lists` may change at any time; every namespace's `istio-ca-root-cert` and `istio-ca-crl` follow them.
pub fn start(store: &Store, root: watch::Receiver<RootPem>, lists: watch::Receiver<RootPem>, tasks: &mut TaskSet) {
    tasks.spawn("namespaces", namespaces::run(store.clone(), root, lists));
    tasks.spawn("endpoint-slices", endpoint_slices::run(store.clone()));
    tasks.spawn("deployments", deployments::run(store.clone()));
    tasks.spawn("definitions", definitions::run(store.clone()));
    tasks.spawn("garbage", garbage::run(store.clone()));
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
