//! Other clusters of the mesh (semantics §23): named by Secrets of the root namespace, read like the own one, followed live.
//!
//! Invariant: a cluster is told of only after everything of it was listed; one that is away, or whose Secret was spoiled, keeps what was
//! last seen of it, and nothing that is wrong with one cluster touches another. Only what the mesh needs of another cluster is read: its
//! configuration is its own.

mod follow;
mod kubeconfig;
mod secrets;

use crate::objects::Known;
use crate::source::{Event, Kind};
use carrick_base::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

pub(crate) use follow::task;
pub(crate) use secrets::{Secrets, Source};

/// What is read of another cluster.
pub(crate) const REMOTE_KINDS: [Kind; 5] = [Kind::Namespace, Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Node];
/// How long the first snapshot waits for clusters that are named, so that a restart does not take their endpoints away.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// How long a cluster may take to be listed before it counts as away.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What a cluster is called.
pub(crate) type ClusterId = Arc<str>;

/// Clusters by what they are called, and where each is said to be.
pub(crate) type Wanted = BTreeMap<ClusterId, Source>;

/// What is told of a cluster.
#[derive(Debug)]
pub(crate) struct RemoteEvent {
    pub(crate) cluster: ClusterId,
    pub(crate) what: What,
}

/// What happened to it.
#[derive(Debug)]
pub(crate) enum What {
    /// Its Secret is new or changed, and is being tried.
    Begun,
    /// Its Secret cannot be used.
    Refused(Diagnostic),
    /// An object of it changed.
    Changed(Event),
    /// No Secret names it any more.
    Gone,
}

/// What is known of one cluster.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) known: Known,
    listed: BTreeSet<Kind>,
    pub(crate) problem: Option<Diagnostic>,
    begun: Instant,
}

impl Default for Remote {
    fn default() -> Self {
        Self { known: Known::default(), listed: BTreeSet::new(), problem: None, begun: Instant::now() }
    }
}

impl Remote {
    /// Whether everything was listed once.
    pub(crate) fn complete(&self) -> bool {
        self.listed.len() == REMOTE_KINDS.len()
    }

    /// Takes over what is told. Gives whether the mesh has something new to read, and whether it is of endpoints only.
    pub(crate) fn take(&mut self, what: What) -> Option<bool> {
        match what {
            What::Begun => {
                (self.problem, self.begun) = (None, Instant::now());
                Some(false)
            }
            What::Refused(problem) => {
                self.problem = Some(problem);
                Some(false)
            }
            What::Changed(event) => {
                let (kind, whole) = (event.kind, matches!(event.change, crate::source::Change::Replace(_)));
                let changed = self.known.take(kind, event.change).changed;
                let first = whole && self.listed.insert(kind);
                let now_complete = first && self.complete();
                ((changed && self.complete()) || now_complete).then(|| kind.info().endpoints && !now_complete)
            }
            What::Gone => Some(false),
        }
    }
}

/// A cluster as pages show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The Secret that names it.
    pub(crate) secret: String,
    /// Whether everything of it was listed.
    pub(crate) complete: bool,
    pub(crate) problem: Option<String>,
    pub(crate) begun: Instant,
}

impl Shown {
    pub(crate) fn of(secret: &str, remote: Option<&Remote>) -> Self {
        Self {
            secret: secret.to_owned(),
            complete: remote.is_some_and(Remote::complete),
            problem: remote.and_then(|r| r.problem.as_ref()).map(|p| p.message.clone()),
            begun: remote.map_or_else(Instant::now, |r| r.begun),
        }
    }

    /// One word, as `istioctl` has it, and `refused` for a Secret that cannot be used.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.problem, self.complete) {
            (Some(_), _) => "refused",
            (None, true) => "synced",
            (None, false) if self.begun.elapsed() > TIMEOUT => "timeout",
            (None, false) => "syncing",
        }
    }
}

/// The fold's side: what it wants, and what it is told.
#[derive(Debug)]
pub(crate) struct Remotes {
    wanted: watch::Sender<Wanted>,
    events: mpsc::Receiver<RemoteEvent>,
}

impl Remotes {
    /// Asks for exactly these.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let other = *now != wanted;
            if other {
                *now = wanted;
            }
            other
        });
    }

    /// The next thing told. Cancel safe; never returns when nobody tells any more.
    pub(crate) async fn next(&mut self) -> RemoteEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Whether a cluster that is wanted was neither listed nor refused yet.
    pub(crate) fn outstanding(&self, known: &BTreeMap<ClusterId, Remote>) -> bool {
        let settled = |id: &ClusterId| known.get(id).is_some_and(|r| r.complete() || r.problem.is_some());
        !self.wanted.borrow().keys().all(settled)
    }

    /// What pages show of them.
    pub(crate) fn shown(&self, known: &BTreeMap<ClusterId, Remote>) -> BTreeMap<ClusterId, Shown> {
        let wanted = self.wanted.borrow();
        wanted.iter().map(|(id, source)| (id.clone(), Shown::of(&source.secret, known.get(id)))).collect()
    }
}
