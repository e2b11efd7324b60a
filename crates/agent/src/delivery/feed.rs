//! Where certificates come from: a stream that pushes them, and questions of our own, so that neither alone has to be relied on.
//!
//! Invariant: both ways end in the same place, and a Secret that cannot be used is refused by name while the last good one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::{self, Drain};
use carrick_xds::TypeUrl;
use carrick_xds::client::{ClientOptions, Handler, Interest, Nack, Update};
use carrick_xds::delivery::SCHEME;
use tokio::sync::{oneshot, watch};
use tracing::{debug, info, warn};

use super::bundle::Bundle;
use super::decide::ask_after;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(15);

/// The newest certificate of each Secret.
#[derive(Debug)]
pub(super) struct Feed {
    slots: BTreeMap<Arc<str>, watch::Sender<Option<Arc<Bundle>>>>,
}

impl Feed {
    pub(super) fn new(secrets: impl IntoIterator<Item = String>) -> Arc<Self> {
        let slot = |name: String| (Arc::from(format!("{SCHEME}{name}")), watch::Sender::new(None));
        Arc::new(Self { slots: secrets.into_iter().map(slot).collect() })
    }

    /// A Secret's certificates, now and later.
    pub(super) fn of(&self, secret: &str) -> Option<watch::Receiver<Option<Arc<Bundle>>>> {
        self.slots.get(format!("{SCHEME}{secret}").as_str()).map(watch::Sender::subscribe)
    }

    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        let names: BTreeSet<Arc<str>> = self.slots.keys().cloned().collect();
        vec![(TypeUrl::Secret, Interest::Names(names))]
    }

    fn take(&self, update: Update) -> Result<(), Nack> {
        for name in &update.removed {
            if let Some(slot) = self.slots.get(name) {
                let had = slot.borrow().is_some();
                warn!(secret = %name, had, "not given: there is no such Secret, or this service account may not get it");
            }
        }
        let mut complaints = Vec::new();
        for resource in update.upserts {
            let Some(slot) = self.slots.get(&resource.name) else { continue };
            match Bundle::read(&resource.name, &resource.body) {
                Ok(bundle) => {
                    slot.send_replace(Some(Arc::new(bundle)));
                }
                Err(error) => complaints.push(format!("{}: {error}", resource.name)),
            }
        }
        if complaints.is_empty() { Ok(()) } else { Err(Nack { message: complaints.join("; ") }) }
    }

    /// Follows the control plane until drained.
    pub(super) async fn follow(self: Arc<Self>, options: ClientOptions, drain: Drain) {
        let handler = Pushed { feed: self, last_reason: String::new() };
        carrick_xds::client::run(options, handler, drain).await;
    }

    /// Asks by itself, by the time that is left, until drained.
    pub(super) async fn ask(
        self: Arc<Self>,
        options: ClientOptions,
        every: Duration,
        clock: SharedClock,
        drain: Drain,
    ) {
        loop {
            let life = |slot: &watch::Sender<Option<Arc<Bundle>>>| {
                slot.borrow().as_ref().map(|bundle| (bundle.not_before, bundle.not_after))
            };
            let now = clock.now();
            let pause = self.slots.values().map(|slot| ask_after(now, life(slot), every)).min().unwrap_or(every);
            tokio::select! {
                () = drain.graceful() => return,
                () = clock.sleep(pause) => {}
            }
            let (answered, answer) = oneshot::channel();
            let (_trigger, own) = drain::channel();
            let once = carrick_xds::client::run(
                options.clone(),
                Asked { feed: Arc::clone(&self), answered: Some(answered) },
                own,
            );
            tokio::select! {
                () = drain.graceful() => return,
                _ = once => {}
                _ = answer => debug!("asked, and answered"),
                () = tokio::time::sleep(LIMIT) => debug!("asked, without an answer"),
            }
        }
    }
}

struct Pushed {
    feed: Arc<Feed>,
    last_reason: String,
}

impl Handler for Pushed {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        self.feed.interests()
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        self.feed.take(update).inspect_err(|nack| warn!(message = %nack.message, "refused; the last good ones stay"))
    }

    fn connected(&mut self) {
        self.last_reason.clear();
        info!("connected to the control plane");
    }

    fn disconnected(&mut self, reason: &str) {
        if self.last_reason != reason {
            warn!(reason, "no connection to the control plane; the files stay as they are");
            reason.clone_into(&mut self.last_reason);
        }
    }
}

struct Asked {
    feed: Arc<Feed>,
    answered: Option<oneshot::Sender<()>>,
}

impl Handler for Asked {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        self.feed.interests()
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        let taken = self.feed.take(update);
        if let Some(answered) = self.answered.take() {
            let _ = answered.send(());
        }
        taken
    }
}
