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
                listing.extend(value(info.kind, object));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                told_missing = false;
                Change::Replace(std::mem::take(&mut listing))
            }
            Ok(watcher::Event::Apply(object)) => match value(info.kind, object) {
                Some(value) => Change::Apply(value),
                None => continue,
            },
            Ok(watcher::Event::Delete(object)) => match value(info.kind, object) {
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

/// What people and tools keep on objects beside what they say: who wrote which field, and what was written last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object without what the mesh never reads, so that a listing of ten thousand pods is not held as a whole: in a cluster most of a
/// pod is volumes, variables, probes and the statuses of its containers.
fn value(kind: Kind, mut object: DynamicObject) -> Option<Value> {
    const SPEC: [&str; 8] = [
        "serviceAccountName",
        "serviceAccount",
        "nodeName",
        "hostname",
        "subdomain",
        "hostNetwork",
        "containers",
        "initContainers",
    ];
    const CONTAINER: [&str; 4] = ["name", "image", "restartPolicy", "ports"];
    const STATUS: [&str; 5] = ["phase", "podIP", "podIPs", "hostIP", "conditions"];
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if kind == Kind::Pod {
        let only = |value: Option<&mut Value>, fields: &[&str]| {
            if let Some(map) = value.and_then(Value::as_object_mut) {
                map.retain(|name, _| fields.contains(&name.as_str()));
            }
        };
        only(object.data.get_mut("spec"), &SPEC);
        only(object.data.get_mut("status"), &STATUS);
        for list in ["/spec/containers", "/spec/initContainers"] {
            for container in object.data.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                only(Some(container), &CONTAINER);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every field that the mesh reads of a pod is there: a field that is read anew has to be let through here.
    #[test]
    fn pods_are_held_without_what_nobody_reads() {
        let pod: Value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "managedFields": [{"manager": "x"}],
                "annotations": {LAST_APPLIED: "{}", "a": "b"}},
            "spec": {"serviceAccountName": "seller", "serviceAccount": "old", "nodeName": "n", "hostname": "h", "subdomain": "s",
                "hostNetwork": true, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "i", "env": [{"name": "E", "value": "1"}],
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]}],
                "initContainers": [{"name": "p", "restartPolicy": "Always", "command": ["x"]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "192.0.2.1",
                "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "a"}]},
        });
        let lean = value(Kind::Pod, serde_json::from_value(pod.clone()).unwrap()).unwrap();
        for gone in ["managedFields", LAST_APPLIED, "volumes", "env", "command", "containerStatuses"] {
            assert!(pod.to_string().contains(gone) && !lean.to_string().contains(gone), "{gone}: {lean}");
        }
        let read = |value: &Value| {
            let mut value = value.clone();
            value["metadata"]["annotations"].as_object_mut().unwrap().remove(LAST_APPLIED);
            carrick_api::from_value::<carrick_api::Pod>(&value).unwrap()
        };
        assert_eq!(read(&lean), read(&pod));
    }
}
