//! ServiceEntries, followed from the API: their hosts are names that pods with a sidecar resolve.
//!
//! Invariant: an API that has no ServiceEntries is as good as one that has none; an entry that cannot be read is left out alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carrick_api::ServiceEntry;
use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};

/// How long the first list may take before names are written without it.
const PATIENCE: Duration = Duration::from_secs(5);

type Key = (String, String);

/// All entries, by namespace and name.
pub(crate) struct Entries {
    known: Mutex<BTreeMap<Key, Arc<ServiceEntry>>>,
    listed: watch::Sender<bool>,
}

impl Default for Entries {
    fn default() -> Self {
        Entries { known: Mutex::default(), listed: watch::Sender::new(false) }
    }
}

impl Entries {
    /// Waits for the first list, or until it has taken too long.
    pub(crate) async fn listed(&self) {
        let mut listed = self.listed.subscribe();
        let _ = tokio::time::timeout(PATIENCE, listed.wait_for(|listed| *listed)).await;
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<ServiceEntry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Key, Arc<ServiceEntry>>)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn read(object: &DynamicObject) -> Option<(Key, Arc<ServiceEntry>)> {
    let entry: ServiceEntry = carrick_api::from_value(&serde_json::to_value(object).ok()?).ok()?;
    Some(((entry.metadata.namespace.clone(), entry.metadata.name.clone()), Arc::new(entry)))
}

/// Follows for ever.
pub(crate) async fn follow_entries(client: &Client, entries: &Entries, changed: &Notify) {
    let resource = ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "networking.istio.io/v1".to_owned(),
        kind: "ServiceEntry".to_owned(),
        plural: "serviceentries".to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut events = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
    let mut listing = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listing.extend(read(&object));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                let all = std::mem::take(&mut listing);
                entries.change(|known| *known = all);
                entries.listed.send_replace(true);
            }
            Ok(watcher::Event::Apply(object)) => {
                let name = |text: &Option<String>| text.clone().unwrap_or_default();
                let key = (name(&object.metadata.namespace), name(&object.metadata.name));
                entries.change(|known| match read(&object) {
                    Some((key, entry)) => drop(known.insert(key, entry)),
                    None => drop(known.remove(&key)),
                });
            }
            Ok(watcher::Event::Delete(object)) => {
                let name = |text: &Option<String>| text.clone().unwrap_or_default();
                let key = (name(&object.metadata.namespace), name(&object.metadata.name));
                entries.change(|known| drop(known.remove(&key)));
            }
            Err(error) => {
                tracing::debug!(%error, "watch interrupted");
                continue;
            }
        }
        changed.notify_one();
    }
}
