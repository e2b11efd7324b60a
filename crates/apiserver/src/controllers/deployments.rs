//! Deployments, from the pods that there are: nothing here makes any, but `carrick run --as deployment/NAME` does.
//!
//! Invariant: a status says how many pods the selector finds, and why there are none; a status that somebody else wrote (its conditions are
//! not ours) is left alone. Each template that a Deployment has had is a ReplicaSet (`sets`); pods of an old one are ended when those of the
//! new one serve. What was written already is not written again.

mod sets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{debug, warn};

use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::selector::{Selectors, selector_text};
use crate::store::{DeleteOptions, Deleted, EventType, Intent, Store, WriteOptions, name_of, namespace_of, rfc3339};

const DEPLOYMENTS: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";
/// Pause before a status whose write failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Why a Deployment has no pods. Marks conditions as ours.
const NOBODY: &str = "NoContainerRuntime";

type Key = (String, String);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    let mut controller = Controller { store, known: HashMap::new(), dirty: BTreeSet::new() };
    if let Err(error) = controller.run().await {
        debug!(%error, "deployment loop ended");
    }
}

/// As much of a pod as counts.
#[derive(PartialEq)]
struct Pod {
    /// An object with nothing but its labels.
    labels: Value,
    /// The set it is of; empty for none.
    hash: String,
    ready: bool,
    created: String,
}

#[derive(Default)]
struct Namespace {
    pods: BTreeMap<String, Pod>,
    deployments: BTreeMap<String, Value>,
    sets: BTreeMap<String, Value>,
}

struct Controller {
    store: Store,
    known: HashMap<String, Namespace>,
    dirty: BTreeSet<Key>,
}

impl Controller {
    async fn run(&mut self) -> ApiResult<()> {
        let mut pods = Follower::new(&self.store, "pods");
        let mut deployments = Follower::new(&self.store, DEPLOYMENTS);
        let mut sets = Follower::new(&self.store, SETS);
        // No set may be made before those that there are are known.
        self.pods(pods.next().await?);
        self.sets(sets.next().await?);
        self.deployments(deployments.next().await?);
        loop {
            while let Some(news) = pods.ready()? {
                self.pods(news);
            }
            while let Some(news) = sets.ready()? {
                self.sets(news);
            }
            while let Some(news) = deployments.ready()? {
                self.deployments(news);
            }
            let mut failed = BTreeSet::new();
            for key in std::mem::take(&mut self.dirty) {
                if let Err(error) = self.reconcile(&key).await {
                    match error {
                        // Its deletion, or the change that was faster, is on its way.
                        ApiError::NotFound(_) | ApiError::Conflict { .. } | ApiError::AlreadyExists(_) => {}
                        error @ ApiError::Unavailable(_) => return Err(error),
                        error => {
                            warn!(namespace = %key.0, deployment = %key.1, %error, "no status written; trying again");
                            failed.insert(key);
                        }
                    }
                }
            }
            let retry = self.store.clock().sleep(RETRY);
            tokio::select! {
                news = pods.next() => self.pods(news?),
                news = sets.next() => self.sets(news?),
                news = deployments.next() => self.deployments(news?),
                () = retry, if !failed.is_empty() => {}
            }
            self.dirty.append(&mut failed);
        }
    }

    fn pods(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.known.values_mut().for_each(|n| n.pods.clear());
                list.iter().for_each(|pod| self.pod(namespace_of(&pod), name_of(&pod), Some(&pod)));
                for (namespace, known) in &self.known {
                    self.dirty.extend(known.deployments.keys().map(|name| (namespace.clone(), name.clone())));
                }
            }
            News::Change(event) => {
                let there = (event.kind != EventType::Deleted).then_some(&*event.object);
                self.pod(event.namespace(), event.name(), there);
            }
        }
    }

    fn pod(&mut self, namespace: &str, name: &str, pod: Option<&Value>) {
        let known = self.known.entry(namespace.to_owned()).or_default();
        // One that is going is no longer one of them.
        let now = pod.filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).map(|pod| Pod {
            labels: json!({"metadata": {"labels": pod.pointer("/metadata/labels")}}),
            hash: text(pod, &format!("/metadata/labels/{}", sets::HASH)),
            ready: is_ready(pod),
            created: text(pod, "/metadata/creationTimestamp"),
        });
        let before = match now {
            Some(now) if known.pods.get(name) == Some(&now) => return,
            Some(now) => known.pods.insert(name.to_owned(), now),
            None => known.pods.remove(name),
        };
        let after = known.pods.get(name);
        for (deployment, object) in &known.deployments {
            let Some(selectors) = selectors(object) else { continue };
            if before.iter().chain(after).any(|pod| selectors.matches(&pod.labels)) {
                self.dirty.insert((namespace.to_owned(), deployment.clone()));
            }
        }
    }

    fn sets(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.known.values_mut().for_each(|n| n.sets.clear());
                list.iter().for_each(|set| self.set(set, true));
            }
            News::Change(event) => self.set((*event.object).clone(), event.kind != EventType::Deleted),
        }
    }

    fn set(&mut self, set: Value, there: bool) {
        let (namespace, name) = (namespace_of(&set).to_owned(), name_of(&set).to_owned());
        let known = self.known.entry(namespace.clone()).or_default();
        let owner = known.deployments.iter().find(|(_, deployment)| sets::is_of(&set, deployment));
        self.dirty.extend(owner.map(|(name, _)| (namespace, name.clone())));
        match there {
            true => known.sets.insert(name, set),
            false => known.sets.remove(&name),
        };
    }

    fn deployments(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.known.values_mut().for_each(|n| n.deployments.clear());
                list.iter().for_each(|deployment| self.deployment(deployment));
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                if let Some(known) = self.known.get_mut(event.namespace()) {
                    known.deployments.remove(event.name());
                }
            }
            News::Change(event) => self.deployment((*event.object).clone()),
        }
    }

    fn deployment(&mut self, deployment: Value) {
        let key = (namespace_of(&deployment).to_owned(), name_of(&deployment).to_owned());
        self.known.entry(key.0.clone()).or_default().deployments.insert(key.1.clone(), deployment);
        self.dirty.insert(key);
    }

    async fn reconcile(&self, key: &Key) -> ApiResult<()> {
        let Some(known) = self.known.get(&key.0) else { return Ok(()) };
        let Some(deployment) = known.deployments.get(&key.1) else { return Ok(()) };
        if deployment.pointer("/metadata/deletionTimestamp").is_some() {
            return Ok(());
        }
        let pods: Vec<(&String, &Pod)> = match selectors(deployment) {
            Some(selectors) => known.pods.iter().filter(|(_, pod)| selectors.matches(&pod.labels)).collect(),
            None => Vec::new(),
        };
        let orphan = |set: &Value| selectors(deployment).is_some_and(|own| sets::is_orphan(set, &own));
        let own: Vec<&Value> = known.sets.values().filter(|set| sets::is_of(set, deployment) || orphan(set)).collect();
        let steps = sets::plan(deployment, &own, |name| known.sets.contains_key(name), &pods);
        let (hash, revision) = (steps.hash.clone(), steps.revision.clone());
        self.write_sets(&key.0, steps).await?;
        // A pod that is of no set was run without asking the API, and is taken for one of the newest template.
        let counted = pods.iter().fold(Counted::default(), |counted, (_, pod)| {
            let updated = pod.hash.is_empty() || pod.hash == hash;
            counted.with(pod.ready, updated)
        });
        let now = rfc3339(self.store.now());
        let said = |deployment: &Value| {
            deployment.pointer("/metadata/annotations").and_then(|all| all.get(sets::REVISION)).and_then(Value::as_str)
                == Some(revision.as_str())
        };
        if next(deployment, counted, &now).is_none() && said(deployment) {
            return Ok(());
        }
        let change = |old: Option<&Value>| {
            let old = old.ok_or_else(|| ApiError::not_found(DEPLOYMENTS, &key.1))?;
            let mut new = old.clone();
            // What it says now may be of another template; that is on its way here.
            let same = old.pointer("/spec/template") == deployment.pointer("/spec/template");
            if let (Some(status), Some(map)) = (next(old, counted, &now).filter(|_| same), new.as_object_mut()) {
                map.insert("status".into(), status);
            }
            if same && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
                let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
                if let Some(annotations) = annotations.as_object_mut() {
                    annotations.insert(sets::REVISION.into(), json!(revision));
                }
            }
            Ok(Intent::Put(new))
        };
        self.store.modify(DEPLOYMENTS, &key.0, &key.1, WriteOptions::default(), change).await.map(|_| ())
    }

    async fn write_sets(&self, namespace: &str, steps: sets::Steps) -> ApiResult<()> {
        if let Some(set) = steps.create {
            self.store.create(SETS, set).await?;
        }
        for set in steps.put {
            self.store.update(SETS, set).await?;
        }
        let gone = |outcome: ApiResult<Deleted>| match outcome {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        };
        for name in steps.delete {
            gone(self.store.delete(SETS, namespace, &name, &DeleteOptions::default()).await)?;
        }
        for name in steps.end {
            gone(self.store.delete("pods", namespace, &name, &DeleteOptions::default()).await)?;
        }
        Ok(())
    }
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Pods of a Deployment.
#[derive(Clone, Copy, Default)]
struct Counted {
    all: i64,
    ready: i64,
    updated: i64,
    updated_ready: i64,
}

impl Counted {
    fn with(self, ready: bool, updated: bool) -> Self {
        Self {
            all: self.all.saturating_add(1),
            ready: self.ready.saturating_add(ready.into()),
            updated: self.updated.saturating_add(updated.into()),
            updated_ready: self.updated_ready.saturating_add((ready && updated).into()),
        }
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn selectors(deployment: &Value) -> Option<Selectors> {
    let text = selector_text(deployment.pointer("/spec/selector")?);
    // An empty selector would be everybody's.
    if text.is_empty() { None } else { Selectors::parse("pods", Some(&text), None).ok() }
}

/// The status that a Deployment should have; `None` when it has it, or when it is somebody else's.
fn next(deployment: &Value, counted: Counted, now: &str) -> Option<Value> {
    let Counted { all, ready, updated, updated_ready } = counted;
    let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_i64);
    let before = deployment.get("status").cloned().unwrap_or_else(|| json!({}));
    let conditions: Vec<Value> = before.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    if !conditions.is_empty() && !conditions.iter().any(|c| c["type"] == "ReplicaFailure" && c["reason"] == NOBODY) {
        return None;
    }
    let wanted = number("/spec/replicas").unwrap_or(1);
    let name = name_of(deployment);
    let namespace = namespace_of(deployment);
    let hint = format!(
        "there is no container runtime here, and {updated} of {wanted} pods{}: run each process with `carrick run -n {namespace} --as deployment/{name} -- COMMAND`",
        if all > updated { " of the newest template" } else { "" }
    );
    let (enough, short) = (ready >= wanted, updated < wanted);
    let progress = match (updated_ready >= wanted, short) {
        (true, _) => ("True", "NewReplicaSetAvailable", format!("{ready} pods are ready")),
        (false, true) => ("False", "ProgressDeadlineExceeded", hint.clone()),
        (false, false) => ("True", "ReplicaSetUpdated", format!("{ready} of {wanted} pods are ready")),
    };
    let available = match enough {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned()),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned()),
    };
    let failure = match short {
        true => ("True", NOBODY, hint),
        false => ("False", NOBODY, "every pod is run by a `carrick run`".to_owned()),
    };
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let old = conditions.iter().find(|c| c["type"] == kind);
        let kept = |field: &str, same: bool| match old.filter(|_| same).and_then(|c| c.get(field)) {
            Some(time) => time.clone(),
            None => json!(now),
        };
        let stays = old.is_some_and(|c| c["status"] == status);
        let same = stays && old.is_some_and(|c| c["reason"] == reason && c["message"] == message.as_str());
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastUpdateTime": kept("lastUpdateTime", same), "lastTransitionTime": kept("lastTransitionTime", stays),
        })
    };
    let conditions =
        [condition("Available", available), condition("Progressing", progress), condition("ReplicaFailure", failure)];
    let mut status =
        json!({"observedGeneration": number("/metadata/generation").unwrap_or(1), "terminatingReplicas": 0});
    if let Some(map) = status.as_object_mut() {
        let missing = wanted.saturating_sub(ready).max(0);
        for (field, count) in [
            ("replicas", all),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
            ("unavailableReplicas", missing),
        ] {
            if count > 0 {
                map.insert(field.into(), json!(count));
            }
        }
        map.insert("conditions".into(), json!(conditions));
    }
    (status != before).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i64, status: Value) -> Value {
        json!({
            "metadata": {"name": "shop", "namespace": "a", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "shop"}}},
            "status": status,
        })
    }

    #[test]
    fn what_a_status_says() {
        let none = next(&deployment(1, json!({})), Counted::default(), "t1").unwrap();
        assert_eq!(none["conditions"][1]["reason"], "ProgressDeadlineExceeded");
        assert!(none["conditions"][2]["message"].as_str().unwrap().contains("--as deployment/shop"), "{none}");
        assert_eq!((&none["observedGeneration"], &none["unavailableReplicas"]), (&json!(3), &json!(1)));
        // Said once.
        assert_eq!(next(&deployment(1, none.clone()), Counted::default(), "t2"), None);
        let some = next(&deployment(1, none), Counted::default().with(true, true), "t3").unwrap();
        assert_eq!((&some["readyReplicas"], &some["conditions"][0]["status"]), (&json!(1), &json!("True")));
        assert_eq!(some["conditions"][0]["lastTransitionTime"], "t3");
        assert_eq!(some.get("unavailableReplicas"), None);
        // Somebody else's.
        let foreign = json!({"availableReplicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
        assert_eq!(next(&deployment(1, foreign), Counted::default(), "t1"), None);
        let zero = next(&deployment(0, json!({})), Counted::default(), "t1").unwrap();
        assert_eq!(zero["conditions"][0]["status"], "True");
    }
}
