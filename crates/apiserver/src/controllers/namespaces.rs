//! Namespaces: what each of them holds from its first moment, and emptying the ones that are going away.
//!
//! Invariant: every active namespace has a service account `default`, a config map `kube-root-ca.crt` that says whom clients of this API
//! trust and, once the authority is known, a config map
//! `istio-ca-root-cert` that says exactly the current roots; the same for `istio-ca-crl`, while the authority has revocation lists. A namespace is removed only when nothing is left in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::RootPem;
use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Intent, Store, WriteOptions, name_of, namespace_of, rfc3339};

/// Name and key of the root certificates' config map, as sidecars expect them.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";
/// The same for the authority's revocation lists.
pub const CRL_CONFIG_MAP: &str = "istio-ca-crl";
const CRL_KEY: &str = "ca-crl.pem";

/// The certificate that clients of this API trust, as every namespace has it.
pub const API_CONFIG_MAP: &str = "kube-root-ca.crt";
const API_KEY: &str = "ca.crt";
const API_NOTE: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// The finalizer that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// How often a namespace that is not empty yet is looked at again; its pods' runners need their time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// Runs until the store is closed.
pub async fn run(store: Store, api: Arc<str>, root: watch::Receiver<RootPem>, lists: watch::Receiver<RootPem>) {
    let mut keeper =
        Keeper { store, api, root, lists, active: BTreeSet::new(), dying: BTreeSet::new(), dirty: BTreeSet::new() };
    if let Err(error) = keeper.run().await {
        debug!(%error, "namespace loop ended");
    }
}

struct Keeper {
    store: Store,
    api: Arc<str>,
    root: watch::Receiver<RootPem>,
    lists: watch::Receiver<RootPem>,
    active: BTreeSet<String>,
    dying: BTreeSet<String>,
    dirty: BTreeSet<String>,
}

impl Keeper {
    async fn run(&mut self) -> ApiResult<()> {
        let mut namespaces = Follower::new(&self.store, "namespaces");
        let mut accounts = Follower::new(&self.store, "serviceaccounts");
        let mut config_maps = Follower::new(&self.store, "configmaps");
        let (mut root_known, mut lists_known) = (true, true);
        loop {
            let waiting = !self.dying.is_empty() || !self.dirty.is_empty();
            let pause = self.store.clock().sleep(SWEEP_INTERVAL);
            tokio::select! {
                news = namespaces.next() => self.namespaces(news?),
                news = accounts.next() => self.contents(news?, &["default"]),
                news = config_maps.next() => self.contents(news?, &[API_CONFIG_MAP, ROOT_CONFIG_MAP, CRL_CONFIG_MAP]),
                changed = self.root.changed(), if root_known => match changed {
                    Ok(()) => self.dirty.extend(self.active.iter().cloned()),
                    // Whoever knew the roots is gone; what was published stays.
                    Err(_) => root_known = false,
                },
                changed = self.lists.changed(), if lists_known => match changed {
                    Ok(()) => self.dirty.extend(self.active.iter().cloned()),
                    Err(_) => lists_known = false,
                },
                () = pause, if waiting => {}
            }
            // Everything that is known by now is handled together.
            while let Some(news) = namespaces.ready()? {
                self.namespaces(news);
            }
            self.furnish().await?;
            self.sweep().await?;
        }
    }

    fn namespaces(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.active.clear();
                self.dying.clear();
                list.iter().for_each(|namespace| self.namespace(&namespace));
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                for set in [&mut self.active, &mut self.dying, &mut self.dirty] {
                    set.remove(event.name());
                }
            }
            News::Change(event) => self.namespace(&event.object),
        }
    }

    fn namespace(&mut self, namespace: &Value) {
        let name = name_of(namespace).to_owned();
        if namespace.pointer("/metadata/deletionTimestamp").is_some() {
            self.active.remove(&name);
            self.dirty.remove(&name);
            self.dying.insert(name);
        } else if self.active.insert(name.clone()) {
            self.dirty.insert(name);
        }
    }

    /// An account or config map changed: it may be one of those that every namespace has.
    fn contents(&mut self, news: News, names: &[&str]) {
        match news {
            News::All(_) => self.dirty.extend(self.active.iter().cloned()),
            News::Change(event) if names.contains(&event.name()) && self.active.contains(event.namespace()) => {
                self.dirty.insert(event.namespace().to_owned());
            }
            News::Change(_) => {}
        }
    }

    async fn furnish(&mut self) -> ApiResult<()> {
        let (root, lists) = (self.root.borrow().clone(), self.lists.borrow().clone());
        let mut failed = BTreeSet::new();
        for namespace in std::mem::take(&mut self.dirty) {
            match furnish(&self.store, &namespace, &self.api, root.as_deref(), lists.as_deref()).await {
                Ok(()) => {}
                Err(error @ ApiError::Unavailable(_)) => return Err(error),
                // The namespace went away in between.
                Err(ApiError::NotFound(_) | ApiError::Forbidden { .. }) => {}
                Err(error) => {
                    warn!(%namespace, %error, "a namespace could not be furnished; trying again");
                    failed.insert(namespace);
                }
            }
        }
        self.dirty = failed;
        Ok(())
    }

    async fn sweep(&mut self) -> ApiResult<()> {
        for namespace in self.dying.clone() {
            match sweep(&self.store, &namespace).await {
                Ok(false) => {}
                Ok(true) | Err(ApiError::NotFound(_)) => _ = self.dying.remove(&namespace),
                Err(error @ ApiError::Unavailable(_)) => return Err(error),
                Err(error) => warn!(%namespace, %error, "a namespace could not be emptied; trying again"),
            }
        }
        Ok(())
    }
}

async fn furnish(store: &Store, namespace: &str, api: &str, root: Option<&str>, lists: Option<&str>) -> ApiResult<()> {
    if !store.exists("serviceaccounts", namespace, "default") {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
        match store.create("serviceaccounts", account).await {
            Ok(_) | Err(ApiError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let note = json!({ "annotations": { "kubernetes.io/description": API_NOTE } });
    keep(store, namespace, API_CONFIG_MAP, &note, json!({ API_KEY: api })).await?;
    let ours = json!({ "labels": { "istio.io/config": "true" } });
    if let Some(root) = root {
        keep(store, namespace, ROOT_CONFIG_MAP, &ours, json!({ ROOT_KEY: root })).await?;
    }
    match lists {
        Some(lists) => keep(store, namespace, CRL_CONFIG_MAP, &ours, json!({ CRL_KEY: lists })).await,
        // Whoever reads a list that nobody keeps any more would refuse everybody once it ends.
        None if store.exists("configmaps", namespace, CRL_CONFIG_MAP) => {
            let gone = store.delete("configmaps", namespace, CRL_CONFIG_MAP, &DeleteOptions::default()).await;
            gone.map(drop)
        }
        None => Ok(()),
    }
}

/// A config map that says exactly this; `metadata` is what a new one has besides its name.
async fn keep(store: &Store, namespace: &str, name: &str, metadata: &Value, data: Value) -> ApiResult<()> {
    let written = store
        .modify("configmaps", namespace, name, WriteOptions::default(), |old| match old {
            Some(old) if old.get("data") == Some(&data) => Ok(Intent::Keep),
            Some(old) => {
                let mut new = old.clone();
                if let Some(map) = new.as_object_mut() {
                    map.insert("data".into(), data.clone());
                }
                Ok(Intent::Put(new))
            }
            None => {
                let mut metadata = metadata.clone();
                if let Some(map) = metadata.as_object_mut() {
                    map.insert("name".into(), name.into());
                    map.insert("namespace".into(), namespace.into());
                }
                let object =
                    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data.clone() });
                Ok(Intent::Put(object))
            }
        })
        .await;
    written.map(drop)
}

/// Deletes what a namespace holds; once nothing is left, lets the namespace go. True when it is gone.
async fn sweep(store: &Store, namespace: &str) -> ApiResult<bool> {
    let resources: Vec<_> = store.catalog().iter().filter(|r| r.namespaced && r.stored).map(|r| r.id.clone()).collect();
    // How many of each kind, and of each finalizer.
    let (mut left, mut held) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    for resource in resources {
        for object in store.list(&resource, Some(namespace)).items {
            let going = object.pointer("/metadata/deletionTimestamp").is_some();
            if !going {
                let options = DeleteOptions::default();
                match store.delete(&resource, namespace_of(&object), name_of(&object), &options).await {
                    Ok(crate::store::Deleted::Gone(_)) | Err(ApiError::NotFound(_)) => continue,
                    Ok(_) | Err(ApiError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let count = left.entry(resource.to_string()).or_default();
            *count = count.saturating_add(1);
            let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten();
            for finalizer in finalizers.filter_map(Value::as_str) {
                let count = held.entry(finalizer.to_owned()).or_default();
                *count = count.saturating_add(1);
            }
        }
    }
    if !left.is_empty() {
        tell(store, namespace, &left, &held).await?;
        return Ok(false);
    }
    let released = store
        .modify("namespaces", "", namespace, WriteOptions::default(), |old| {
            let mut new = old.ok_or_else(|| ApiError::not_found("namespaces", namespace))?.clone();
            if let Some(Value::Array(finalizers)) = new.pointer_mut("/spec/finalizers") {
                finalizers.retain(|f| f != FINALIZER);
            }
            Ok(Intent::Put(new))
        })
        .await?;
    let held =
        |pointer: &str| released.object.pointer(pointer).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    Ok(!held("/spec/finalizers") && !held("/metadata/finalizers"))
}

/// Says in the namespace's conditions what it waits for.
async fn tell(
    store: &Store,
    namespace: &str,
    left: &BTreeMap<String, usize>,
    held: &BTreeMap<String, usize>,
) -> ApiResult<()> {
    let now = rfc3339(store.now());
    let condition = |kind: &str, status: bool, reason: &str, message: String| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": now,
            "reason": reason, "message": message,
        })
    };
    let listed = |counts: &BTreeMap<String, usize>, what: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, n)| format!("{name} {what} {n} resource instances")).collect();
        parts.join(", ")
    };
    let remain = format!("Some resources are remaining: {}", listed(left, "has").replace(" has ", ". has "));
    let mut conditions = vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".into(),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".into(),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".into(),
        ),
        condition("NamespaceContentRemaining", true, "SomeResourcesRemain", remain),
    ];
    conditions.push(if held.is_empty() {
        let none = "All content-preserving finalizers finished";
        condition("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", none.into())
    } else {
        let some = format!("Some content in the namespace has finalizers remaining: {}", listed(held, "in"));
        condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", some)
    });
    let told = |object: &Value| {
        let list = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().map(|c| (c.get("type").cloned(), c.get("message").cloned())).collect::<Vec<_>>()
    };
    let change = |old: Option<&Value>| {
        let Some(old) = old else { return Err(ApiError::not_found("namespaces", namespace)) };
        let mut new = old.clone();
        if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
            status.insert("conditions".into(), json!(conditions));
        }
        Ok(if told(old) == told(&new) { Intent::Keep } else { Intent::Put(new) })
    };
    match store.modify("namespaces", "", namespace, WriteOptions::default(), change).await {
        Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
