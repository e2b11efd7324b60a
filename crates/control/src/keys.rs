//! Keys of token issuers, fetched by the control plane so that proxies never have to (semantics §13.7).
//!
//! Invariant: what was fetched once stays in force until something newer was fetched; what never was is not there, and its issuer's
//! tokens are refused. When something is due is `schedule`'s, how it is got is `fetch`'s.

mod fetch;
mod schedule;

use crate::renderer::Renderer;
use carrick_mesh::{FetchedKeys, KeySource};
use carrick_runtime::drain::Drain;
pub(crate) use fetch::Fetcher;
use schedule::Schedule;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// How keys are fetched.
#[derive(Debug, Clone)]
pub struct KeyOptions {
    /// How often a key set is fetched anew.
    pub refresh: Duration,
    /// The first pause after a failure; it doubles up to `refresh`.
    pub retry: Duration,
    /// Certificates (PEM) that key servers are verified by, besides the operating system's.
    pub roots: Vec<String>,
    /// Bytes that a key server may answer with.
    pub max_bytes: usize,
}

impl Default for KeyOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            retry: Duration::from_secs(1),
            roots: Vec::new(),
            max_bytes: 1 << 20,
        }
    }
}

/// Where keys are, with the time that fetching them may take.
pub(crate) type Wanted = BTreeMap<KeySource, Duration>;

/// What was fetched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetched {
    pub(crate) keys: FetchedKeys,
    /// Sources that were asked at least once, with or without success.
    pub(crate) tried: BTreeSet<KeySource>,
}

/// The fold's side: what it wants, and what is there.
#[derive(Debug)]
pub(crate) struct Keys {
    wanted: watch::Sender<Wanted>,
    fetched: watch::Receiver<Fetched>,
}

impl Keys {
    /// Follows what is there.
    pub(crate) fn follow(&self) -> watch::Receiver<Fetched> {
        self.fetched.clone()
    }

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

    /// What is there.
    pub(crate) fn now(&mut self) -> FetchedKeys {
        self.fetched.borrow_and_update().keys.clone()
    }

    /// Whether something that is wanted was not even tried yet.
    pub(crate) fn outstanding(&self) -> bool {
        let fetched = self.fetched.borrow();
        self.wanted.borrow().keys().any(|source| !fetched.tried.contains(source))
    }

    /// Waits until something was fetched or tried. Cancel safe; never returns when nobody fetches any more.
    pub(crate) async fn changed(&mut self) {
        if self.fetched.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The task that fetches, and the fold's side of it.
pub(crate) fn task(
    options: &KeyOptions,
    renderer: Arc<Renderer>,
    drain: Drain,
) -> (Keys, impl Future<Output = ()> + use<>) {
    let (wanted, wanted_here) = watch::channel(Wanted::new());
    let (fetched_here, fetched) = watch::channel(Fetched::default());
    let schedule = Schedule::new(options.refresh, options.retry);
    let fetcher = Arc::new(Fetcher::new(options, renderer));
    (Keys { wanted, fetched }, run(schedule, fetcher, wanted_here, fetched_here, drain))
}

async fn run(
    mut schedule: Schedule,
    fetcher: Arc<Fetcher>,
    mut wanted: watch::Receiver<Wanted>,
    fetched: watch::Sender<Fetched>,
    drain: Drain,
) {
    let mut running = JoinSet::new();
    loop {
        for (source, limit) in schedule.start(Instant::now()) {
            let fetcher = fetcher.clone();
            running.spawn(async move {
                let got = tokio::time::timeout(limit, fetcher.keys(&source)).await;
                let got = got.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
                (source, got)
            });
        }
        let timer = async {
            match schedule.next() {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drain.graceful() => return,
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update().clone();
                schedule.want(&wanted, Instant::now());
                fetched.send_replace(schedule.fetched());
            }
            Some(done) = running.join_next() => {
                let Ok((source, got)) = done else { continue };
                match &got {
                    Ok(_) => info!(?source, "keys fetched"),
                    Err(reason) => warn!(?source, reason, "keys cannot be fetched"),
                }
                if schedule.done(&source, got.ok(), Instant::now()) {
                    fetched.send_replace(schedule.fetched());
                }
            }
            () = timer => {}
        }
    }
}

#[cfg(test)]
mod tests;
