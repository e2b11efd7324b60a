//! Writes the conditions `Delivered` and `Served` on Certificates.
//!
//! Invariant: conditions of others stay as they are: what is written carries the version that was read. A write that fails is tried
//! again at the next round.

use super::verdict::{self, Wanted};
use super::{Deliveries, Key, LIMIT, Memory};
use carrick_api::timestamp::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use std::time::SystemTime;
use tracing::{debug, info, warn};

/// What was last written of a Secret's certificate.
pub(super) struct Written {
    certificate: String,
    conditions: Vec<Wanted>,
}

impl Deliveries {
    pub(super) async fn write(&self, client: &kube::Client, memory: &mut Memory, now: SystemTime) {
        let due: Vec<(Key, String, Vec<Wanted>)> = {
            let inner = self.lock();
            let of = |(key, told): (&Key, &std::collections::BTreeMap<_, verdict::Told>)| {
                let known = memory.known.get(key)?;
                let (certificate, serial) = (known.certificate.clone()?, known.serial.as_ref()?);
                let wanted = verdict::conditions(now, serial, known.since, told.values());
                let before = memory.written.get(key);
                let news = before.is_none_or(|w| w.certificate != certificate || w.conditions != wanted);
                (news && !wanted.is_empty()).then(|| (key.clone(), certificate, wanted))
            };
            inner.told.iter().filter_map(of).collect()
        };
        for (key, certificate, wanted) in due {
            match tokio::time::timeout(LIMIT, patch(client, &key, &certificate, &wanted, now)).await {
                Ok(Ok(())) => {
                    for condition in &wanted {
                        let Wanted { kind, status, reason, message } = condition;
                        match *status {
                            "True" => info!(namespace = key.0, certificate, kind, message, "delivery"),
                            _ => warn!(namespace = key.0, certificate, kind, status, reason, message, "delivery"),
                        }
                    }
                    memory.written.insert(key, Written { certificate, conditions: wanted });
                }
                Ok(Err(error)) => {
                    debug!(namespace = key.0, certificate, %error, "status not written; it is tried again")
                }
                Err(_) => warn!(namespace = key.0, certificate, "the API does not take a status in time"),
            }
        }
    }
}

async fn patch(
    client: &kube::Client,
    (namespace, secret): &Key,
    certificate: &str,
    wanted: &[Wanted],
    now: SystemTime,
) -> Result<(), kube::Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    // The controller of certificates writes too; who comes second reads again.
    for _ in 0..4 {
        let Some(object) = api.get_opt(certificate).await? else { return Ok(()) };
        if object.data.pointer("/spec/secretName").and_then(Value::as_str) != Some(secret) {
            return Ok(());
        }
        let Some(conditions) = merged(&object, wanted, now) else { return Ok(()) };
        let version = object.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
        match api.patch_status(certificate, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => return other.map(|_| ()),
        }
    }
    Ok(())
}

/// All conditions of an object with ours in place; `None` when they say the same already.
fn merged(object: &DynamicObject, wanted: &[Wanted], now: SystemTime) -> Option<Vec<Value>> {
    let there = object.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out = there.clone();
    for condition in wanted {
        let old = out.iter_mut().find(|c| c["type"] == condition.kind);
        let same_status = old.as_ref().is_some_and(|c| c["status"] == condition.status);
        let since = old.as_ref().filter(|_| same_status).map(|c| c["lastTransitionTime"].clone());
        let since = since.unwrap_or_else(|| Timestamp::from_system(now).to_string().into());
        let new = json!({
            "type": condition.kind, "status": condition.status, "reason": condition.reason,
            "message": condition.message, "lastTransitionTime": since,
            "observedGeneration": object.metadata.generation.unwrap_or(0),
        });
        match old {
            Some(old) => *old = new,
            None => out.push(new),
        }
    }
    (out != there).then_some(out)
}
