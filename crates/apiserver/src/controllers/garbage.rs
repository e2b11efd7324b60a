//! Garbage: objects whose owners are gone.
//!
//! Invariant: an object with at least one owner that exists stays, and loses its references to owners that are gone: a
//! later orphaning by the last one then leaves it free, not owned by the dead. Owners are looked up in the store before
//! anything is deleted, so an owner that is merely not seen yet costs nothing.

use std::collections::{HashMap, HashSet};

use carrick_api::kinds::split_api_version;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tracing::{debug, warn};

use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Intent, Store, WriteOptions, name_of, namespace_of};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Only an object with one of these can be any of our business; most have none.
const CONCERNED: [&str; 2] = ["ownerReferences", "deletionTimestamp"];

/// Resource, namespace, name.
type Place = (String, String, String);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    let mut served = store.catalog().changes();
    loop {
        served.mark_unchanged();
        let mut collector = Collector { store: store.clone(), owners_of: HashMap::new(), owned_by: HashMap::new() };
        tokio::select! {
            ended = collector.run() => {
                if let Err(error) = ended {
                    debug!(%error, "garbage loop ended");
                }
                return;
            }
            // Other kinds are served now: all of them are looked at anew.
            Ok(()) = served.changed() => {}
        }
    }
}

struct Collector {
    store: Store,
    /// UIDs of an object's owners, for the objects that have some.
    owners_of: HashMap<Place, Vec<String>>,
    owned_by: HashMap<String, HashSet<Place>>,
}

impl Collector {
    async fn run(&mut self) -> ApiResult<()> {
        let resources: Vec<_> = self.store.catalog().iter().filter(|r| r.stored).map(|r| r.id.clone()).collect();
        let next = |mut follower: Follower| async move {
            let news = follower.next().await;
            (follower, news)
        };
        let mut pending: FuturesUnordered<_> = resources.iter().map(|r| next(Follower::new(&self.store, r))).collect();
        while let Some((follower, news)) = pending.next().await {
            let resource = follower.resource().to_owned();
            match news? {
                News::All(list) => {
                    for object in list.mentioning(&CONCERNED) {
                        self.seen(&resource, &object).await?;
                    }
                }
                News::Change(event) if event.kind == EventType::Deleted => self.gone(&resource, &event.object).await?,
                News::Change(event) => self.seen(&resource, &event.object).await?,
            }
            pending.push(next(follower));
        }
        Ok(())
    }

    fn index(&mut self, place: &Place, owners: Vec<String>) {
        for old in self.owners_of.remove(place).unwrap_or_default() {
            if let Some(owned) = self.owned_by.get_mut(&old) {
                owned.remove(place);
                if owned.is_empty() {
                    self.owned_by.remove(&old);
                }
            }
        }
        for owner in &owners {
            self.owned_by.entry(owner.clone()).or_default().insert(place.clone());
        }
        if !owners.is_empty() {
            self.owners_of.insert(place.clone(), owners);
        }
    }

    async fn seen(&mut self, resource: &str, object: &Value) -> ApiResult<()> {
        let place = (resource.to_owned(), namespace_of(object).to_owned(), name_of(object).to_owned());
        let owners = owner_uids(object);
        let new = self.owners_of.get(&place) != Some(&owners);
        if new {
            let owned = !owners.is_empty();
            self.index(&place, owners);
            if owned {
                self.collect(&place).await?;
            }
        }
        if object.pointer("/metadata/deletionTimestamp").is_some() {
            self.release(&place, object).await?;
        }
        Ok(())
    }

    async fn gone(&mut self, resource: &str, object: &Value) -> ApiResult<()> {
        let place = (resource.to_owned(), namespace_of(object).to_owned(), name_of(object).to_owned());
        self.index(&place, Vec::new());
        for dependent in self.dependents(object) {
            self.collect(&dependent).await?;
        }
        Ok(())
    }

    fn dependents(&self, owner: &Value) -> Vec<Place> {
        let uid = owner.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        self.owned_by.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Deletes an object if none of its owners exists; else drops its references to those that do not.
    async fn collect(&self, place: &Place) -> ApiResult<()> {
        self.collect_without(place, "").await
    }

    /// The same, with the owner `leaving` counted as gone.
    async fn collect_without(&self, (resource, namespace, name): &Place, leaving: &str) -> ApiResult<()> {
        let Some(object) = self.store.get(resource, namespace, name) else { return Ok(()) };
        let references = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let references: Vec<&Value> = references.into_iter().flatten().collect();
        let stays = |reference: &&Value| uid_of_reference(reference) != leaving && self.exists(reference, namespace);
        let (present, absent): (Vec<&Value>, Vec<&Value>) = references.into_iter().partition(stays);
        if absent.is_empty() {
            return Ok(());
        }
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        if present.is_empty() {
            let options = DeleteOptions { uid: uid.map(str::to_owned), ..DeleteOptions::default() };
            return self.settle(self.store.delete(resource, namespace, name, &options).await.map(drop), name);
        }
        let absent: Vec<&str> = absent.into_iter().map(uid_of_reference).collect();
        self.disown((resource, namespace, name), &absent).await
    }

    /// Takes the references to these owners away.
    async fn disown(&self, (resource, namespace, name): (&str, &str, &str), owners: &[&str]) -> ApiResult<()> {
        let done = self.store.modify(resource, namespace, name, WriteOptions::default(), |old| {
            let mut new = old.ok_or_else(|| ApiError::not_found(resource, name))?.clone();
            if let Some(Value::Array(references)) = new.pointer_mut("/metadata/ownerReferences") {
                references.retain(|reference| !owners.contains(&uid_of_reference(reference)));
            }
            Ok(Intent::Put(new))
        });
        let done = done.await.map(drop);
        self.settle(done, name)
    }

    /// Whether the object that an owner reference names is there. A kind that is not served counts as there: deleting
    /// because of our own ignorance would be worse.
    fn exists(&self, reference: &Value, namespace: &str) -> bool {
        let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
        let (group, _) = split_api_version(text("apiVersion"));
        let Some(kind) = self.store.catalog().iter().find(|r| r.group == group && r.kind == text("kind")) else {
            return true;
        };
        let namespace = if kind.namespaced { namespace } else { "" };
        let found = self.store.get(&kind.id, namespace, text("name"));
        found.is_some_and(|owner| owner.pointer("/metadata/uid").and_then(Value::as_str) == Some(text("uid")))
    }

    /// Does what the deletion policy of an owner asks for, then takes its finalizer away.
    async fn release(&self, place: &Place, owner: &Value) -> ApiResult<()> {
        let finalizers = owner.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        let uid = owner.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        if finalizers.iter().any(|f| f == ORPHAN) {
            for (resource, namespace, name) in self.dependents(owner) {
                self.disown((&resource, &namespace, &name), &[uid]).await?;
            }
            return self.take_finalizer(place, ORPHAN).await;
        }
        if finalizers.iter().any(|f| f == FOREGROUND) {
            for dependent in self.dependents(owner) {
                self.collect_without(&dependent, uid).await?;
            }
            return self.take_finalizer(place, FOREGROUND).await;
        }
        Ok(())
    }

    async fn take_finalizer(&self, (resource, namespace, name): &Place, finalizer: &str) -> ApiResult<()> {
        let taken = self.store.modify(resource, namespace, name, WriteOptions::default(), |old| {
            let mut new = old.ok_or_else(|| ApiError::not_found(resource, name))?.clone();
            if let Some(Value::Array(list)) = new.pointer_mut("/metadata/finalizers") {
                list.retain(|f| f != finalizer);
            }
            Ok(Intent::Put(new))
        });
        let taken = taken.await.map(drop);
        self.settle(taken, name)
    }

    /// Only a closed store ends the loop; what else goes wrong with one object is told.
    fn settle(&self, result: ApiResult<()>, name: &str) -> ApiResult<()> {
        match result {
            Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => Ok(()),
            Err(error @ ApiError::Unavailable(_)) => Err(error),
            Err(error) => {
                warn!(object = name, %error, "an object without owners could not be handled");
                Ok(())
            }
        }
    }
}

fn owner_uids(object: &Value) -> Vec<String> {
    let references = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    references.map(|reference| uid_of_reference(reference).to_owned()).collect()
}

fn uid_of_reference(reference: &Value) -> &str {
    reference.get("uid").and_then(Value::as_str).unwrap_or_default()
}
