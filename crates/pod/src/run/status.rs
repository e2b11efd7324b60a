//! The Pod object kept true: every change of what the runner sees is written, and its deletion is noticed.
//!
//! Invariant: the newest observation is written, older ones may be skipped; while the API is away, writing is repeated and nothing stops.

use std::time::Duration;

use carrick_api::timestamp::Timestamp;
use carrick_runtime::backoff::Backoff;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use tokio::sync::watch;

use crate::api;
use crate::object::{Observed, Transitions, status};

/// Now, as Kubernetes writes times.
pub(crate) fn now() -> String {
    Timestamp::from_system(std::time::SystemTime::now()).to_string()
}

/// Writes observations until the sender is dropped.
pub(crate) async fn publish(pods: Api<Pod>, name: String, mut observed: watch::Receiver<Observed>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut transitions = Transitions::default();
    loop {
        let patch = status(&observed.borrow_and_update().clone(), &mut transitions, &now());
        match pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                backoff.reset();
                if observed.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // A deleted pod is noticed by the watch below.
                if !api::not_found(&error) {
                    tracing::debug!(%error, pod = %name, "status not written");
                }
                backoff.wait().await;
                if observed.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

/// What is left to finish for a pod whose object is gone already (deleted by force): another may take its name at once.
const FORCED: Duration = Duration::from_secs(2);

/// Returns when the object is being deleted or is gone, with the time that is left to finish if it says so.
pub(crate) async fn deleted(pods: Api<Pod>, name: String, uid: String) -> Option<Duration> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut changes = Box::pin(kube::runtime::watcher::watch_object(pods.clone(), &name));
        while let Some(change) = changes.next().await {
            match change {
                Ok(None) => return Some(FORCED),
                Ok(Some(pod)) if pod.metadata.uid.as_deref() != Some(&uid) => return Some(FORCED),
                Ok(Some(pod)) if pod.metadata.deletion_timestamp.is_some() => {
                    let grace = pod.metadata.deletion_grace_period_seconds;
                    return grace.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
                }
                Ok(Some(_)) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(%error, pod = %name, "watch interrupted");
                    backoff.wait().await;
                }
            }
        }
        backoff.wait().await;
    }
}
