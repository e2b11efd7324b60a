//! The bundle that the API server verifies our webhooks with, in the webhook configurations of this revision.
//!
//! Invariant: only configurations that carry this revision's label are touched, and in them the bundle alone, and for validation
//! `failurePolicy`, which becomes Fail once we answer. Every replica does so: all of them write the same.

use std::time::Duration;

use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use futures_util::StreamExt;
use k8s_openapi::ByteString;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::roots::Published;

/// Mutating or validating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Webhooks {
    Mutating,
    Validating,
}

impl Webhooks {
    fn resource(self) -> ApiResource {
        let (kind, plural) = match self {
            Self::Mutating => ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
            Self::Validating => ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
        };
        ApiResource {
            group: "admissionregistration.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "admissionregistration.k8s.io/v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

/// Keeps the bundles fresh until drained.
pub(crate) async fn keep(
    client: Client,
    which: Webhooks,
    revision: String,
    mut published: watch::Receiver<Published>,
    drain: Drain,
) {
    let api: Api<DynamicObject> = Api::all_with(client, &which.resource());
    let labelled = watcher::Config::default().labels(&format!("istio.io/rev={revision}"));
    let mut stream = watcher(api.clone(), labelled).boxed();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let mut known: std::collections::BTreeMap<String, DynamicObject> = Default::default();
    loop {
        let mut due: Vec<DynamicObject> = Vec::new();
        tokio::select! {
            () = drain.graceful() => return,
            Ok(()) = published.changed() => due.extend(known.values().cloned()),
            event = stream.next() => match event {
                Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                    known.insert(object.name_any(), object.clone());
                    due.push(object);
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    known.remove(&object.name_any());
                }
                // Told anew: what went meanwhile is not told of.
                Some(Ok(watcher::Event::Init)) => known.clear(),
                Some(Ok(watcher::Event::InitDone)) => backoff.reset(),
                Some(Err(error)) => {
                    debug!(%error, ?which, "webhook configurations");
                    backoff.wait().await;
                }
                None => return,
            },
        }
        let roots = published.borrow().order.roots.clone();
        for object in due {
            let Some(patch) = missing(&object, which, &roots) else { continue };
            let name = object.name_any();
            match api.patch(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await {
                Ok(_) => info!(name, "webhook configuration has this control plane's bundle"),
                // Changed meanwhile: the watch tells it anew.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
                Err(error) => warn!(name, %error, "webhook configuration not written"),
            }
        }
    }
}

/// What has to change, if anything.
fn missing(object: &DynamicObject, which: Webhooks, roots: &str) -> Option<json_patch::Patch> {
    // Base64 as the API has it.
    let wanted = serde_json::to_value(ByteString(roots.as_bytes().to_vec())).ok()?;
    let mut steps = Vec::new();
    for (at, webhook) in object.data.get("webhooks").and_then(Value::as_array)?.iter().enumerate() {
        if webhook.pointer("/clientConfig/caBundle") != Some(&wanted) {
            steps.push(json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": wanted}));
        }
        if which == Webhooks::Validating && webhook.get("failurePolicy").and_then(Value::as_str) != Some("Fail") {
            steps.push(json!({"op": "add", "path": format!("/webhooks/{at}/failurePolicy"), "value": "Fail"}));
        }
    }
    if steps.is_empty() {
        return None;
    }
    // The places are those of the version that was seen.
    let version = object.resource_version()?;
    steps.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    serde_json::from_value(Value::Array(steps)).ok()
}
