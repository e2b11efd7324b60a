//! Disruption budgets: how many pods of each may be evicted now.
//!
//! Invariant: `status.disruptionsAllowed` is computed here and taken from by evictions alone; what an eviction took stays taken until
//! its pod is gone, or two minutes have passed without that. A change of a namespace without budgets costs nothing.
//! What it leaves to others: evictions (`rest::eviction`).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::selector::{Selectors, selector_text};
use crate::store::{Intent, Store, WriteOptions, name_of, namespace_of};

/// The resource of budgets.
pub const BUDGETS: &str = "poddisruptionbudgets.policy";
/// Changes are looked at together.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an evicted pod may take to begin to go.
const PATIENCE: time::Duration = time::Duration::minutes(2);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    if let Err(error) = follow(&store).await {
        debug!(%error, "disruption loop ended");
    }
}

async fn follow(store: &Store) -> ApiResult<()> {
    let mut budgets = Follower::new(store, BUDGETS);
    let mut pods = Follower::new(store, "pods");
    // How many there should be.
    let mut deployments = Follower::new(store, "deployments.apps");
    let mut sets = Follower::new(store, "statefulsets.apps");
    loop {
        let mut dirty: BTreeSet<String> = BTreeSet::new();
        let all = tokio::select! {
            news = budgets.next() => noted(news?, &mut dirty),
            news = pods.next() => noted(news?, &mut dirty),
            news = deployments.next() => noted(news?, &mut dirty),
            news = sets.next() => noted(news?, &mut dirty),
        };
        store.clock().sleep(PAUSE).await;
        let mut all = all;
        for follower in [&mut budgets, &mut pods, &mut deployments, &mut sets] {
            while let Some(news) = follower.ready()? {
                all |= noted(news, &mut dirty);
            }
        }
        for budget in &store.list(BUDGETS, None).items {
            if all || dirty.contains(namespace_of(budget)) {
                match update(store, budget).await {
                    Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => {}
                    Err(error @ ApiError::Unavailable(_)) => return Err(error),
                    Err(error) => {
                        warn!(budget = name_of(budget), %error, "a disruption budget's status could not be written")
                    }
                }
            }
        }
    }
}

/// Which namespaces are concerned; true for all.
fn noted(news: News, dirty: &mut BTreeSet<String>) -> bool {
    match news {
        News::All(_) => true,
        News::Change(event) => {
            dirty.insert(event.namespace().to_owned());
            false
        }
    }
}

async fn update(store: &Store, budget: &Value) -> ApiResult<()> {
    let pods = store.list("pods", Some(namespace_of(budget))).items;
    let now = store.now();
    let change = |old: Option<&Value>| {
        let Some(old) = old else { return Err(ApiError::not_found(BUDGETS, name_of(budget))) };
        let status = status(store, old, &pods, now);
        if old.get("status") == Some(&status) {
            return Ok(Intent::Keep);
        }
        let mut new = old.clone();
        if let Some(map) = new.as_object_mut() {
            map.insert("status".into(), status);
        }
        Ok(Intent::Put(new))
    };
    store.modify(BUDGETS, namespace_of(budget), name_of(budget), WriteOptions::default(), change).await.map(drop)
}

/// Whether a budget is about a pod.
pub fn selects(budget: &Value, pod: &Value) -> bool {
    let Some(selector) = budget.pointer("/spec/selector").filter(|s| s.is_object()) else { return false };
    let text = selector_text(selector);
    text.is_empty() || Selectors::parse("pods", Some(&text), None).is_ok_and(|selectors| selectors.matches(pod))
}

/// Whether a pod's condition `Ready` is true.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    conditions.into_iter().any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Ready")
            && c.get("status").and_then(Value::as_str) == Some("True")
    })
}

fn is_over(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed")
}

fn status(store: &Store, budget: &Value, pods: &[Value], now: time::OffsetDateTime) -> Value {
    let going = |pod: &Value| pod.pointer("/metadata/deletionTimestamp").is_some();
    let pods: Vec<&Value> = pods.iter().filter(|pod| selects(budget, pod) && !is_over(pod)).collect();
    let taken = still_taken(budget, &pods, now);
    let healthy = pods.iter().filter(|pod| is_ready(pod) && !going(pod) && !taken.contains_key(name_of(pod))).count();
    let (count, healthy) = (count(pods.len()), count(healthy));
    let spec = |field: &str| budget.pointer(&format!("/spec/{field}")).filter(|v| !v.is_null());
    let planned = planned(store, &pods);
    let (expected, desired) = match (spec("maxUnavailable"), spec("minAvailable")) {
        (Some(most), _) => (planned, planned.map(|planned| planned.saturating_sub(scaled(most, planned)).max(0))),
        (None, Some(least)) if least.is_string() => (planned, planned.map(|planned| scaled(least, planned))),
        (None, Some(least)) => (Some(count), Some(scaled(least, count))),
        (None, None) => (Some(count), Some(0)),
    };
    let (reason, allowed) = match (expected, desired) {
        (Some(expected), Some(desired)) if expected > 0 && healthy > desired => {
            ("SufficientPods", healthy.saturating_sub(desired))
        }
        (None, _) | (_, None) => ("SyncFailed", 0),
        _ => ("InsufficientPods", 0),
    };
    let old = budget.pointer("/status/conditions/0");
    let is = if allowed > 0 { "True" } else { "False" };
    let since = old.filter(|c| c.get("status").and_then(Value::as_str) == Some(is));
    let since = since.and_then(|c| c.get("lastTransitionTime")).cloned();
    let generation = budget.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({
        "conditions": [{"type": "DisruptionAllowed", "status": is, "reason": reason, "message": "",
            "lastTransitionTime": since.unwrap_or_else(|| json!(crate::store::rfc3339(now))), "observedGeneration": generation}],
        "currentHealthy": healthy, "desiredHealthy": desired.unwrap_or(0), "disruptionsAllowed": allowed,
        "expectedPods": expected.unwrap_or(0), "observedGeneration": generation,
    });
    if let Some(map) = status.as_object_mut().filter(|_| !taken.is_empty()) {
        map.insert("disruptedPods".into(), Value::Object(taken));
    }
    status
}

/// Evictions whose pods are still there and have not begun to go.
fn still_taken(budget: &Value, pods: &[&Value], now: time::OffsetDateTime) -> Map<String, Value> {
    let taken = budget.pointer("/status/disruptedPods").and_then(Value::as_object).into_iter().flatten();
    let format = &time::format_description::well_known::Rfc3339;
    let holds = |name: &str, since: &Value| {
        let there = pods.iter().any(|p| name_of(p) == name && p.pointer("/metadata/deletionTimestamp").is_none());
        let since = since.as_str().and_then(|s| time::OffsetDateTime::parse(s, format).ok());
        there && since.is_some_and(|since| now < since.saturating_add(PATIENCE))
    };
    taken.filter(|(name, since)| holds(name, since)).map(|(name, since)| (name.clone(), since.clone())).collect()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number, or a share of `all`, rounded up.
fn scaled(value: &Value, all: i64) -> i64 {
    match value.as_str() {
        None => value.as_i64().unwrap_or(0),
        Some(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = all.saturating_mul(percent);
            product.saturating_add(99).checked_div(100).unwrap_or(0)
        }
    }
}

/// How many pods their owners want; nothing when one has no owner that says so.
fn planned(store: &Store, pods: &[&Value]) -> Option<i64> {
    let mut owners: BTreeMap<String, i64> = BTreeMap::new();
    for pod in pods {
        let (uid, wanted) = owner(store, pod)?;
        owners.insert(uid, wanted);
    }
    Some(owners.values().sum())
}

fn controller(object: &Value) -> Option<(&str, &str)> {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array)?;
    let owner = owners.iter().find(|o| o.get("controller") == Some(&Value::Bool(true)))?;
    Some((owner.get("kind")?.as_str()?, owner.get("name")?.as_str()?))
}

fn owner(store: &Store, pod: &Value) -> Option<(String, i64)> {
    let namespace = namespace_of(pod);
    let (kind, name) = controller(pod)?;
    let get = |resource: &str, name: &str| store.get(resource, namespace, name);
    let object = match kind {
        "ReplicaSet" => {
            let set = get("replicasets.apps", name)?;
            match controller(&set) {
                Some(("Deployment", name)) => get("deployments.apps", name).unwrap_or(set),
                _ => set,
            }
        }
        "Deployment" => get("deployments.apps", name)?,
        "StatefulSet" => get("statefulsets.apps", name)?,
        "ReplicationController" => get("replicationcontrollers", name)?,
        _ => return None,
    };
    let uid = object.pointer("/metadata/uid")?.as_str()?.to_owned();
    Some((uid, object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up() {
        for (value, all, is) in [(json!(2), 5, 2), (json!("50%"), 5, 3), (json!("0%"), 5, 0), (json!("100%"), 3, 3)] {
            assert_eq!(scaled(&value, all), is, "{value} of {all}");
        }
    }

    #[test]
    fn an_empty_selector_is_about_every_pod_and_none_about_no_pod() {
        let pod = json!({"metadata": {"labels": {"app": "a"}}});
        assert!(selects(&json!({"spec": {"selector": {}}}), &pod));
        assert!(selects(&json!({"spec": {"selector": {"matchLabels": {"app": "a"}}}}), &pod));
        assert!(!selects(&json!({"spec": {"selector": {"matchLabels": {"app": "b"}}}}), &pod));
        assert!(!selects(&json!({"spec": {}}), &pod));
    }
}
