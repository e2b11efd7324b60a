//! `istio-ca-root-cert` in every namespace (spec §19.8): what pods verify the control plane and each other with before they have more.
//!
//! Invariant: written by the leader only, and only where it says something else; a map that somebody changes or deletes is put right.

use std::collections::BTreeSet;
use std::time::Duration;

use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::roots::Published;

/// The map's name, and the key in it.
pub(crate) const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
const FIELD_MANAGER: &str = "carrick-roots";
/// How long a write may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Keeps the maps right until drained.
pub(crate) async fn furnish(client: Client, mut published: watch::Receiver<Published>, drain: Drain) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let mut namespaces = watcher(namespaces, watcher::Config::default()).boxed();
    let named = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut maps = watcher(maps, named).boxed();
    // Namespaces that may not have the map as it should be.
    let mut due: BTreeSet<String> = BTreeSet::new();
    let mut all: BTreeSet<String> = BTreeSet::new();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut failed = false;
    loop {
        tokio::select! {
            () = drain.graceful() => return,
            Ok(()) = published.changed() => due.extend(all.iter().cloned()),
            event = namespaces.next() => match event {
                Some(Ok(watcher::Event::Apply(namespace) | watcher::Event::InitApply(namespace))) => {
                    let active = namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
                        && namespace.metadata.deletion_timestamp.is_none();
                    let name = namespace.name_any();
                    if active {
                        if all.insert(name.clone()) {
                            due.insert(name);
                        }
                    } else {
                        all.remove(&name);
                        due.remove(&name);
                    }
                }
                Some(Ok(watcher::Event::Delete(namespace))) => {
                    all.remove(&namespace.name_any());
                    due.remove(&namespace.name_any());
                }
                Some(Ok(watcher::Event::InitDone)) => backoff.reset(),
                Some(Ok(watcher::Event::Init)) => {}
                Some(Err(error)) => {
                    debug!(%error, "namespaces");
                    backoff.wait().await;
                }
                None => return,
            },
            event = maps.next() => match event {
                Some(Ok(watcher::Event::Apply(map) | watcher::Event::Delete(map))) => {
                    due.extend(map.namespace().filter(|namespace| all.contains(namespace)));
                }
                Some(Ok(watcher::Event::InitDone)) => backoff.reset(),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    debug!(%error, "config maps of roots");
                    backoff.wait().await;
                }
                None => return,
            },
            () = tokio::time::sleep(backoff_of(failed)), if !due.is_empty() => {
                let roots = published.borrow_and_update().order.roots.clone();
                failed = false;
                for namespace in std::mem::take(&mut due) {
                    match tokio::time::timeout(LIMIT, write(&client, &namespace, &roots)).await {
                        Ok(Ok(())) => backoff.reset(),
                        // The namespace is going, or gone.
                        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409)
                            || (status.code == 403 && status.message.contains("being terminated")) => {}
                        Ok(Err(error)) => {
                            warn!(namespace, %error, "the roots are not written; it is tried again");
                            failed = true;
                            due.insert(namespace);
                        }
                        Err(_) => {
                            failed = true;
                            due.insert(namespace);
                        }
                    }
                }
            }
        }
    }
}

/// A moment to gather what comes together, or to let an API that refuses recover.
fn backoff_of(failed: bool) -> Duration {
    if failed { Duration::from_secs(2) } else { Duration::from_millis(20) }
}

async fn write(client: &Client, namespace: &str, roots: &str) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let there = api.get_opt(NAME).await?;
    if there.is_some_and(|map| map.data.is_some_and(|data| data.get(KEY).is_some_and(|text| text == roots))) {
        return Ok(());
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"istio.io/config": "true"}},
        "data": {KEY: roots},
    });
    api.patch(NAME, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&map)).await.map(drop)
}
