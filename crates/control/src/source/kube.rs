//! Watches of a Kubernetes API: list in pages, watch with bookmarks, resume, and begin anew when the version is too old.
//!
//! Invariant: each kind is told as a whole first ([`Change::Replace`]) and as single changes from there on; an error is
//! retried for ever with growing pauses and never loses what is known. Of a kind's versions the first that is served is read; kinds an API does
//! not have, or has no more, count as empty.

use super::{Change, Event, KINDS, Kind, KindInfo, Name};
use carrick_runtime::backoff::Backoff;
use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ObjectList};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Objects of one kind in one of its versions: of a namespace, or of all.
pub(crate) fn api(client: &Client, info: &KindInfo, version: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: info.group.to_owned(),
        version: version.to_owned(),
        api_version: if info.group.is_empty() { version.to_owned() } else { format!("{}/{version}", info.group) },
        kind: info.name.to_owned(),
        plural: info.plural.to_owned(),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// All objects of a kind, in the first of its versions that the API serves; `None` when it has no such kind.
///
/// # Errors
/// The API did not answer, or refused.
pub(crate) async fn list_kind(
    client: &Client,
    info: &KindInfo,
) -> Result<Option<ObjectList<DynamicObject>>, kube::Error> {
    for version in info.versions {
        match api(client, info, version, None).list(&ListParams::default()).await {
            Ok(list) => return Ok(Some(list)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Watches one kind until the receiver is gone.
pub(crate) async fn watch(client: Client, info: &'static KindInfo, events: mpsc::Sender<Event>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut told_missing = false;
    loop {
        let mut gone = false;
        for version in info.versions {
            match follow(&client, info, version, &events, &mut backoff).await {
                Followed::Closed => return,
                Followed::Missing { listed } => gone |= listed,
            }
        }
        if gone {
            // It was there until now: perhaps in another version.
            told_missing = false;
        } else if !told_missing {
            debug!(kind = info.name, "the API does not have this kind");
            told_missing = true;
            if events.send(Event { kind: info.kind, change: Change::Replace(Vec::new()) }).await.is_err() {
                return;
            }
        }
        backoff.wait().await;
    }
}

/// How following a version of a kind ended.
enum Followed {
    /// Nobody listens.
    Closed,
    /// The API does not serve it, or not any more.
    Missing { listed: bool },
}

/// Watches one version of a kind for as long as the API serves it.
async fn follow(
    client: &Client,
    info: &'static KindInfo,
    version: &str,
    events: &mpsc::Sender<Event>,
    backoff: &mut Backoff,
) -> Followed {
    let mut stream = watcher(api(client, info, version, None), watcher::Config::default()).boxed();
    let (mut listing, mut listed) = (Vec::new(), false);
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
                listed = true;
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
            Err(error) if is_missing(&error) => return Followed::Missing { listed },
            Err(error) => {
                warn!(kind = info.name, error = %error, "watch; trying again");
                backoff.wait().await;
                continue;
            }
        };
        backoff.reset();
        if events.send(Event { kind: info.kind, change }).await.is_err() {
            return Followed::Closed;
        }
    }
    Followed::Closed
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
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404)
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
        let Some(list) = list_kind(client, info).await? else { continue };
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
    /// An API that serves TCPRoutes in the version that is told, one object that names it, and watches that end with it.
    fn serving(version: tokio::sync::watch::Receiver<&'static str>) -> Client {
        let answer = move |request: http::Request<kube::client::Body>| {
            let mut served = version.clone();
            async move {
                let version = *served.borrow_and_update();
                let there = request.uri().path() == format!("/apis/gateway.networking.k8s.io/{version}/tcproutes");
                let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
                let body = if !there {
                    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}).to_string()
                } else if is_watch {
                    let _ = served.changed().await;
                    String::new()
                } else {
                    let object = json!({"metadata": {"name": version}});
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [object]})
                        .to_string()
                };
                let status = if there { 200 } else { 404 };
                http::Response::builder().status(status).body(kube::client::Body::from(body.into_bytes()))
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn the_first_version_that_is_served_is_read_also_when_it_changes() {
        let (version, served) = tokio::sync::watch::channel("v1alpha2");
        let (sender, mut events) = mpsc::channel(8);
        let watching = tokio::spawn(watch(serving(served), Kind::TcpRoute.info(), sender));
        for (next, wanted) in
            [("v1", vec!["v1alpha2"]), ("v0", vec!["v1"]), ("v1alpha2", vec![]), ("", vec!["v1alpha2"])]
        {
            let Some(Event { change: Change::Replace(all), .. }) = events.recv().await else { panic!("not a listing") };
            let names: Vec<&str> = all.iter().filter_map(|o| o.pointer("/metadata/name")?.as_str()).collect();
            assert_eq!(names, wanted);
            version.send_replace(next);
        }
        watching.abort();
    }
}
