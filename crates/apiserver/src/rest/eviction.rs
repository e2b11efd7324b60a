//! `pods/eviction`: a pod is deleted, if its disruption budget allows that.
//!
//! Invariant: an eviction takes one from its budget before the pod goes, in one write, so that two at the same time do not take the
//! same one. Words, codes and causes are Kubernetes', which `kubectl drain` waits by.
//! What it leaves to others: what budgets allow (`controllers::disruption`).

use super::decode;
use super::objects::Call;
use super::respond::{self, Answer};
use crate::controllers::disruption::{BUDGETS, is_ready, selects};
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::{Intent, WriteOptions, name_of, namespace_of};
use bytes::Bytes;
use serde_json::{Value, json};

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl Call<'_> {
    /// POST of an eviction.
    pub async fn evict(&self, body: &Bytes) -> ApiResult<Answer> {
        let sent = decode::document(&self.content_type, body)?.value;
        let kind = sent.get("kind").and_then(Value::as_str).unwrap_or("Eviction");
        if kind != "Eviction" {
            return Err(ApiError::BadRequest(format!(
                "{kind} cannot be handled as an Eviction: the object provided is of another kind"
            )));
        }
        let named = sent.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if !named.is_empty() && named != self.path.name {
            return Err(ApiError::BadRequest("name in URL does not match name in Eviction object".into()));
        }
        let store = &self.api.store;
        let pod = store.get("pods", &self.path.namespace, &self.path.name);
        let pod = pod.ok_or_else(|| ApiError::not_found("pods", &self.path.name))?;
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        let mut options = sent.get("deleteOptions").filter(|o| o.is_object()).cloned().unwrap_or(options);
        let dry_run = self.query.dry_run()?
            || options.get("dryRun").and_then(Value::as_array).is_some_and(|all| all.iter().any(|v| v == "All"));
        if let Some(map) = options.as_object_mut().filter(|_| dry_run) {
            map.insert("dryRun".into(), json!(["All"]));
        }
        if !needs_no_budget(&pod) {
            self.take(&pod, dry_run).await?;
        }
        let own = Call {
            api: self.api,
            resource: self.resource.clone(),
            path: super::request::ResourcePath { subresource: String::new(), ..self.path.clone() },
            query: self.query.clone(),
            user: self.user.clone(),
            accept: String::new(),
            agent: self.agent.clone(),
            content_type: "application/json".into(),
        };
        own.delete(&Bytes::from(options.to_string())).await?;
        let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(201, &done))
    }

    /// Takes one from the pod's budget, if it has one.
    async fn take(&self, pod: &Value, dry_run: bool) -> ApiResult<()> {
        let store = &self.api.store;
        let budgets = store.list(BUDGETS, Some(namespace_of(pod))).items;
        let mut budgets = budgets.iter().filter(|budget| selects(budget, pod));
        let Some(budget) = budgets.next() else { return Ok(()) };
        if budgets.next().is_some() {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::Internal(why.into()));
        }
        let now = crate::store::rfc3339(store.now());
        let change = |budget: Option<&Value>| {
            let Some(budget) = budget else { return Err(ApiError::not_found(BUDGETS, "")) };
            let number = |pointer: &str| budget.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
            let refused = |why: String| ApiError::Evicting {
                message: REFUSED.into(),
                cause: Cause { reason: "DisruptionBudget", message: why, field: String::new() },
            };
            let (healthy, desired) = (number("/status/currentHealthy"), number("/status/desiredHealthy"));
            if !is_ready(pod) {
                let policy = budget.pointer("/spec/unhealthyPodEvictionPolicy").and_then(Value::as_str);
                if policy == Some("AlwaysAllow") || (healthy >= desired && desired > 0) {
                    return Ok(Intent::Keep);
                }
            }
            if number("/status/observedGeneration") < number("/metadata/generation") {
                let why = format!("The disruption budget {} is still being processed by the server.", name_of(budget));
                return Err(refused(why));
            }
            let allowed = number("/status/disruptionsAllowed");
            if allowed <= 0 {
                let why = format!(
                    "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
                    name_of(budget)
                );
                return Err(refused(why));
            }
            let mut new = budget.clone();
            if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
                status.insert("disruptionsAllowed".into(), json!(allowed.saturating_sub(1)));
                let taken = status.entry("disruptedPods").or_insert_with(|| json!({}));
                if let Some(taken) = taken.as_object_mut() {
                    taken.insert(name_of(pod).to_owned(), json!(now));
                }
            }
            Ok(Intent::Put(new))
        };
        let options = WriteOptions { dry_run };
        store.modify(BUDGETS, namespace_of(budget), name_of(budget), options, change).await.map(drop)
    }
}

/// Pods that are over, not begun, or on their way out anyway.
fn needs_no_budget(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed" | "Pending") || pod.pointer("/metadata/deletionTimestamp").is_some()
}
