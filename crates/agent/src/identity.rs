//! The workload's certificate: obtained, and renewed before it ends.
//!
//! Invariant: each certificate has a new key, made here and never written to disk but into a machine's own folder; the old one
//! stays in force until the new one is there. What is done with it is decided by whoever reads the store.

mod folder;
mod request;
mod schedule;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_pki::Identity;
use carrick_runtime::backoff::Backoff;
use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use tracing::{error, info, warn};

use crate::config::AgentConfig;
use crate::metrics::AgentMetrics;
use crate::secrets::SecretStore;

pub use folder::{Folder, FolderError};
pub(crate) use request::{Authority, bearer, read_answer};
pub use request::{FetchError, Requester};
pub use schedule::{renew_after, renew_in};

/// First and longest pause after a failure while there is no certificate, or none that is good any more: the workload waits, and so do all
/// others, whom an authority that comes back has to serve at once.
const FIRST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Keeps the store's identity valid.
#[derive(Debug)]
pub struct IdentityKeeper {
    requester: Requester,
    store: Arc<SecretStore>,
    clock: SharedClock,
    metrics: Arc<AgentMetrics>,
    ratio: f64,
    jitter: f64,
    /// Of a machine.
    folder: Option<Folder>,
}

impl IdentityKeeper {
    /// A keeper of `store`, with the settings of `config`.
    pub fn new(config: &AgentConfig, store: Arc<SecretStore>, clock: SharedClock, metrics: Arc<AgentMetrics>) -> Self {
        let requester = Requester::new(config, Arc::clone(&store));
        Self {
            requester,
            store,
            clock,
            metrics,
            ratio: config.identity.grace_ratio,
            jitter: config.identity.grace_jitter,
            folder: config.identity.folder.clone().map(Folder::new),
        }
    }

    /// Obtains and renews until drained.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut kept = self.kept();
        loop {
            let random = rand::random_range(-1.0..=1.0);
            let kept = kept.take();
            let life = kept.as_ref().map(|identity| (identity.not_before, identity.not_after));
            let identity = match kept {
                Some(identity) => identity,
                None => self.obtain().await,
            };
            let received = self.clock.now();
            let wait = match life {
                Some(life) => renew_in(life, received, self.ratio, self.jitter, random),
                None => renew_after(received, identity.not_after, self.ratio, self.jitter, random),
            };
            info!(
                serial = %identity.serial,
                spiffe = identity.spiffe.as_ref().map_or("", |s| s.as_str()),
                renew_in_seconds = wait.as_secs(),
                "certificate obtained"
            );
            self.wait(received, wait).await;
        }
    }

    /// Until `wait` after `since`, by the machine's clock or by what was slept, whichever comes first; or until somebody asks
    /// for another one before its time.
    async fn wait(&self, since: SystemTime, wait: Duration) {
        let mut slept = Duration::ZERO;
        loop {
            let passed = self.clock.now().duration_since(since).unwrap_or_default().max(slept);
            let Some(left) = wait.checked_sub(passed).filter(|left| !left.is_zero()) else { return };
            let step = left.min(schedule::STEP);
            tokio::select! {
                () = self.clock.sleep(step) => {}
                () = self.store.renewal_asked() => {
                    info!("another certificate is asked for");
                    return;
                }
            }
            slept += step;
        }
    }

    /// What a machine kept, if it is still good; it is in force then.
    fn kept(&self) -> Option<Arc<Identity>> {
        let folder = self.folder.as_ref()?;
        let (identity, roots) = match folder.load() {
            Ok(kept) => kept?,
            Err(error) => {
                error!(%error, "what this machine kept cannot be read");
                return None;
            }
        };
        if identity.not_after <= self.clock.now() {
            return None;
        }
        let identity = Arc::new(identity);
        self.metrics.certificate_until(identity.not_after);
        self.store.set_identity(Arc::clone(&identity), roots);
        Some(identity)
    }

    /// What to do about a machine's certificate that has ended; empty where there is nothing to say.
    fn advice(&self) -> &'static str {
        let ended = |folder: &Folder| folder.load().is_ok_and(|kept| kept.is_some());
        match self.folder.as_ref() {
            Some(folder) if ended(folder) => {
                "; the certificate that this machine kept has ended: make a join token (carrick vm token create) and join again (carrick \
                 vm join), it keeps its name"
            }
            _ => "",
        }
    }

    /// Asks until it is given.
    async fn obtain(&self) -> Arc<Identity> {
        let current = self.store.identity();
        let left = |identity: &Arc<Identity>| identity.not_after.duration_since(self.clock.now()).unwrap_or_default();
        let (first, longest) = current.as_ref().map_or(FIRST, |identity| schedule::pauses(left(identity)));
        let mut backoff = Backoff::new(first, longest);
        let mut told = String::new();
        let mut over = false;
        loop {
            let limit = schedule::patience(current.as_ref().map(left).unwrap_or_default());
            match self.requester.obtain(current.as_deref(), limit).await {
                Ok((identity, roots)) => {
                    let identity = Arc::new(identity);
                    AgentMetrics::add(&self.metrics.certificates);
                    self.metrics.certificate_until(identity.not_after);
                    if let Some(Err(error)) = self.folder.as_ref().map(|folder| folder.save(&identity, &roots)) {
                        error!(%error, "the new certificate is not kept: it is in force until this process ends");
                    }
                    self.store.set_identity(Arc::clone(&identity), roots);
                    return identity;
                }
                Err(reason) => {
                    AgentMetrics::add(&self.metrics.certificate_failures);
                    let ended = current.as_ref().is_some_and(|i| i.not_after <= self.clock.now());
                    if ended && !std::mem::replace(&mut over, true) {
                        backoff = Backoff::new(FIRST.0, FIRST.1);
                    }
                    // Meanwhile somebody may have joined this machine anew.
                    let live = current.as_ref().is_some_and(|i| i.not_after > self.clock.now());
                    if let Some(identity) = Some(()).filter(|()| !live).and_then(|()| self.kept()) {
                        return identity;
                    }
                    let text = format!("{reason}{}", if live { "" } else { self.advice() });
                    match (ended, text == told) {
                        (true, _) => error!(error = %text, "the certificate has ended and cannot be renewed"),
                        (false, false) => warn!(error = %text, "no certificate"),
                        (false, true) => tracing::debug!(error = %text, "no certificate"),
                    }
                    told = text;
                }
            }
            self.clock.sleep(backoff.next_delay()).await;
        }
    }
}
