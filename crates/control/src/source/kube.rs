//! Watches of a Kubernetes API: list in pages, watch with bookmarks, resume, and begin anew when the version is too old.
//!
//! Invariant: each kind is told as a whole first ([`Change::Replace`]) and as single changes from there on; an error is
//! retried for ever with growing pauses and never loses what is known. Kinds an API does not have count as empty.

use super::{Change, Event, KINDS, Kind, KindInfo, Name};
use carrick_runtime::backoff::Backoff;
use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Objects of one kind: of a namespace, or of all.
pub(crate) fn api(client: &Client, info: &KindInfo, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: info.group.to_owned(),
        version: info.version.to_owned(),
        api_version: if info.group.is_empty() {
            info.version.to_owned()
        } else {
            format!("{}/{}", info.group, info.version)
        },
        kind: info.name.to_owned(),
        plural: info.plural.to_owned(),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Watches one kind until the receiver is gone.
pub(crate) async fn watch(client: Client, info: &'static KindInfo, events: mpsc::Sender<Event>) {
    let mut stream = watcher(api(&client, info, None), watcher::Config::default()).boxed();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut listing = Vec::new();
    let mut told_missing = false;
    while let Some(event) = stream.next().await {
        let change = match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listing.extend(value(&object));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                told_missing = false;
                Change::Replace(std::mem::take(&mut listing))
            }
            Ok(watcher::Event::Apply(object)) => match value(&object) {
                Some(value) => Change::Apply(value),
                None => continue,
            },
            Ok(watcher::Event::Delete(object)) => match value(&object) {
                Some(value) => Change::Delete(value),
                None => continue,
            },
            Err(error) => {
                let missing = is_missing(&error);
                if missing && !told_missing {
                    debug!(kind = info.name, "the API does not have this kind");
                    told_missing = true;
                    if events.send(Event { kind: info.kind, change: Change::Replace(Vec::new()) }).await.is_err() {
                        return;
                    }
                } else if !missing {
                    warn!(kind = info.name, error = %error, "watch; trying again");
                }
                backoff.wait().await;
                continue;
            }
        };
        backoff.reset();
        if events.send(Event { kind: info.kind, change }).await.is_err() {
            return;
        }
    }
}

fn value(object: &DynamicObject) -> Option<Value> {
    serde_json::to_value(object).ok()
}

fn is_missing(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// What the API has of one kind.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The resource version of the list: everything up to it is in there.
    pub(crate) version: u64,
    /// The version of each object.
    pub(crate) objects: BTreeMap<Name, u64>,
}

/// What the API has of all kinds now, for comparison with what was seen.
///
/// # Errors
/// The API did not answer.
pub(crate) async fn list(client: &Client) -> Result<BTreeMap<Kind, Listed>, kube::Error> {
    let mut all = BTreeMap::new();
    for info in &KINDS {
        let list = match api(client, info, None).list(&ListParams::default()).await {
            Ok(list) => list,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let number = |text: Option<String>| text.and_then(|v| v.parse().ok()).unwrap_or_default();
        let object = |object: &DynamicObject| {
            let name = (object.namespace().unwrap_or_default(), object.name_any());
            (name, number(object.resource_version()))
        };
        let objects = list.items.iter().map(object).collect();
        all.insert(info.kind, Listed { version: number(list.metadata.resource_version), objects });
    }
    Ok(all)
}
