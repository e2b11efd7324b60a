//! Namespaces: what each of them holds from its first moment, and emptying the ones that are going away.
//!
//! Invariant: every active namespace has a service account `default` and, once the authority is known, a config map
//! `istio-ca-root-cert` that says exactly the current roots; the same for `istio-ca-crl`, while the authority has revocation lists. A namespace is removed only when nothing is left in it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::RootPem;
use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Intent, Store, WriteOptions, name_of, namespace_of};

/// Name and key of the root certificates' config map, as sidecars expect them.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";
/// The same for the authority's revocation lists.
pub const CRL_CONFIG_MAP: &str = "istio-ca-crl";
const CRL_KEY: &str = "ca-crl.pem";

/// The finalizer that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// How often a namespace that is not empty yet is looked at again; its pods' runners need their time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// Runs until the store is closed.
pub async fn run(store: Store, root: watch::Receiver<RootPem>, lists: watch::Receiver<RootPem>) {
    let mut keeper =
        Keeper { store, root, lists, active: BTreeSet::new(), dying: BTreeSet::new(), dirty: BTreeSet::new() };
    if let Err(error) = keeper.run().await {
        debug!(%error, "namespace loop ended");
    }
}

struct Keeper {
    store: Store,
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
                news = config_maps.next() => self.contents(news?, &[ROOT_CONFIG_MAP, CRL_CONFIG_MAP]),
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
            match furnish(&self.store, &namespace, root.as_deref(), lists.as_deref()).await {
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

async fn furnish(store: &Store, namespace: &str, root: Option<&str>, lists: Option<&str>) -> ApiResult<()> {
    if !store.exists("serviceaccounts", namespace, "default") {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
        match store.create("serviceaccounts", account).await {
            Ok(_) | Err(ApiError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(root) = root {
        keep(store, namespace, ROOT_CONFIG_MAP, json!({ ROOT_KEY: root })).await?;
    }
    match lists {
        Some(lists) => keep(store, namespace, CRL_CONFIG_MAP, json!({ CRL_KEY: lists })).await,
        // Whoever reads a list that nobody keeps any more would refuse everybody once it ends.
        None if store.exists("configmaps", namespace, CRL_CONFIG_MAP) => {
            let gone = store.delete("configmaps", namespace, CRL_CONFIG_MAP, &DeleteOptions::default()).await;
            gone.map(drop)
        }
        None => Ok(()),
    }
}

/// A config map that says exactly this.
async fn keep(store: &Store, namespace: &str, name: &str, data: Value) -> ApiResult<()> {
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
            None => Ok(Intent::Put(json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": { "name": name, "namespace": namespace, "labels": { "istio.io/config": "true" } },
                "data": data,
            }))),
        })
        .await;
    written.map(drop)
}

/// Deletes what a namespace holds; once nothing is left, lets the namespace go. True when it is gone.
async fn sweep(store: &Store, namespace: &str) -> ApiResult<bool> {
    let resources: Vec<_> = store.catalog().iter().filter(|r| r.namespaced && r.stored).map(|r| r.id.clone()).collect();
    let mut left = 0usize;
    for resource in resources {
        for object in store.list(&resource, Some(namespace)).items {
            left = left.saturating_add(1);
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                continue;
            }
            match store.delete(&resource, namespace_of(&object), name_of(&object), &DeleteOptions::default()).await {
                Ok(crate::store::Deleted::Gone(_)) => left = left.saturating_sub(1),
                Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
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
