//! Per-kind behaviour: what writes are completed and refused with (`admission`), and the loops that keep derived objects
//! right: namespaces' contents, service accounts, root certificates, endpoint slices and endpoints, disruption budgets, quotas, aggregated
//! roles, garbage.
//!
//! Invariant: admission reads the store and never writes it; loops write through the store like any client, and each
//! derived object has exactly one of them as its writer, also where several servers share one storage (`turn`). A loop that misses history starts again from a list, so nothing
//! depends on having seen every event.
//!
//! Order at start: `bootstrap` (awaited, before the server answers), then `start` (tasks). `Admission` is made once and
//! shared by all requests: it holds the addresses that are promised but not yet stored.

pub mod addresses;
mod admission;
mod aggregation;
mod bootstrap;
mod definitions;
mod deployments;
pub mod disruption;
mod endpoint_slices;
mod endpoints;
mod events;
mod follow;
mod garbage;
mod namespaces;
mod quotas;
mod turn;

pub use self::admission::Admission;
pub use self::bootstrap::bootstrap;

use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::tasks::TaskSet;
use tokio::sync::watch;

use crate::store::Store;

/// The usual length of the loops' turn: after a server that has it is killed, another one begins within this.
pub const TURN: Duration = Duration::from_secs(9);

/// The mesh's root certificates as PEM; `None` until the authority is known.
pub type RootPem = Option<Arc<str>>;

/// Starts the loops. `api` is the certificate of the API's own authority, as PEM. `root` and `lists` may change at any time; every namespace's `istio-ca-root-cert` and `istio-ca-crl` follow them.
/// Where several servers share a storage, one of them has the turn to run most loops, for `length` at least.
pub fn start(
    store: &Store,
    api: Arc<str>,
    root: watch::Receiver<RootPem>,
    lists: watch::Receiver<RootPem>,
    length: Duration,
    tasks: &mut TaskSet,
) {
    // What is served depends on it: every server does that for itself.
    let own = store.clone();
    tasks.spawn("definitions", turn::run_here(store.clone(), move || definitions::run(own.clone())));
    let own = store.clone();
    tasks.spawn(
        "loops",
        turn::run(store.clone(), length, move || loops(own.clone(), api.clone(), root.clone(), lists.clone())),
    );
}

/// Ends when one of them does.
async fn loops(store: Store, api: Arc<str>, root: watch::Receiver<RootPem>, lists: watch::Receiver<RootPem>) {
    let expiry = async {
        if store.engine().is_shared() { std::future::pending().await } else { events::run(store.clone()).await }
    };
    tokio::select! {
        () = namespaces::run(store.clone(), api, root, lists) => {}
        () = endpoint_slices::run(store.clone()) => {}
        () = endpoints::run(store.clone()) => {}
        () = deployments::run(store.clone()) => {}
        () = disruption::run(store.clone()) => {}
        () = quotas::run(store.clone()) => {}
        () = aggregation::run(store.clone()) => {}
        () = garbage::run(store.clone()) => {}
        () = expiry => {}
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
