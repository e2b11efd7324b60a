//! Workloads (Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs): defaults, and the rules of their selectors and templates.
//!
//! Invariant: a stored workload's selector finds the pods of its template, and never changes.

use serde_json::{Map, Value, json};

use super::{check, default, pod, section};
use crate::admission::{AdmitContext, Operation};
use crate::error::{ApiResult, Cause};
use crate::selector::{Selectors, selector_text};

pub(super) fn admit(object: &mut Value, operation: Operation, context: &AdmitContext<'_>) -> ApiResult<()> {
    let resource = context.resource;
    fill_in(object, resource);
    if resource == "cronjobs.batch" {
        let mut causes = Vec::new();
        if object.pointer("/spec/schedule").and_then(Value::as_str).is_none_or(str::is_empty) {
            causes.push(Cause::required("spec.schedule", ""));
        }
        return check(object, context, causes);
    }
    let mut causes = Vec::new();
    // A Job's selector is made of its uid by the controller that runs it; there is none.
    if resource != "jobs.batch" {
        selector(object, resource, &mut causes);
    }
    template(object, resource, &mut causes);
    if let Some(old) = context.old.filter(|_| operation == Operation::Update) {
        let now = |object: &Value| object.pointer("/spec/selector").cloned().unwrap_or(Value::Null);
        if now(old) != now(object) && resource != "jobs.batch" {
            causes.push(Cause::invalid("spec.selector", &now(object), "field is immutable"));
        }
    }
    check(object, context, causes)
}

fn selector(object: &Value, resource: &str, causes: &mut Vec<Cause>) {
    let selector = object.pointer("/spec/selector").filter(|selector| !selector.is_null());
    let Some(selector) = selector else {
        causes.push(Cause::required("spec.selector", ""));
        if resource != "replicasets.apps" {
            let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", &labels, why));
        }
        return;
    };
    let text = selector_text(selector);
    if text.is_empty() {
        causes.push(Cause::invalid("spec.selector", selector, "empty selector is invalid for deployment"));
        return;
    }
    let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let pod = json!({"metadata": {"labels": labels}});
    if Selectors::parse("pods", Some(&text), None).is_ok_and(|selectors| !selectors.matches(&pod)) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", &labels, why));
    }
}

fn template(object: &Value, resource: &str, causes: &mut Vec<Cause>) {
    let Some(template) = object.pointer("/spec/template") else {
        causes.push(Cause::required("spec.template.spec.containers", ""));
        return;
    };
    for cause in pod::problems(template) {
        causes.push(Cause { field: format!("spec.template.{}", cause.field), ..cause });
    }
    let policy = template.pointer("/spec/restartPolicy").and_then(Value::as_str).unwrap_or_default();
    let wrong = match resource {
        "jobs.batch" => (!matches!(policy, "OnFailure" | "Never")).then_some("\"OnFailure\", \"Never\""),
        _ => (policy != "Always").then_some("\"Always\""),
    };
    let known = matches!(policy, "Always" | "OnFailure" | "Never");
    if let Some(allowed) = wrong.filter(|_| known) {
        let what = if resource == "jobs.batch" { "Required value" } else { "Unsupported value" };
        let message = match resource {
            "jobs.batch" => format!("{what}: valid values: {allowed}"),
            _ => format!("{what}: {policy:?}: supported values: {allowed}"),
        };
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            message,
            field: "spec.template.spec.restartPolicy".into(),
        });
    }
}

fn fill_in(object: &mut Value, resource: &str) {
    let Some(spec) = section(object, "spec") else { return };
    match resource {
        "deployments.apps" => {
            default(spec, "replicas", 1);
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "progressDeadlineSeconds", 600);
            strategy(spec, "strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
        }
        "replicasets.apps" => default(spec, "replicas", 1),
        "statefulsets.apps" => {
            default(spec, "replicas", 1);
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "podManagementPolicy", "OrderedReady");
            strategy(spec, "updateStrategy", json!({"partition": 0}));
        }
        "daemonsets.apps" => {
            default(spec, "revisionHistoryLimit", 10);
            strategy(spec, "updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}));
        }
        "jobs.batch" => job(spec),
        "cronjobs.batch" => {
            default(spec, "concurrencyPolicy", "Allow");
            default(spec, "suspend", false);
            default(spec, "successfulJobsHistoryLimit", 3);
            default(spec, "failedJobsHistoryLimit", 1);
            if let Some(template) = spec.get_mut("jobTemplate").and_then(|t| t.pointer_mut("/spec/template")) {
                pod::fill_in_spec(template);
            }
        }
        _ => {}
    }
    if let Some(template) = spec.get_mut("template") {
        pod::fill_in_spec(template);
    }
}

fn job(spec: &mut Map<String, Value>) {
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    default(spec, "backoffLimit", 6);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    default(spec, "podReplacementPolicy", "TerminatingOrFailed");
}

/// A strategy; the rolling one with its numbers.
fn strategy(spec: &mut Map<String, Value>, field: &str, numbers: Value) {
    let strategy = spec.entry(field).or_insert_with(|| json!({}));
    if strategy.is_null() {
        *strategy = json!({});
    }
    let Some(strategy) = strategy.as_object_mut() else { return };
    default(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) != Some("RollingUpdate") {
        return;
    }
    let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
    if rolling.is_null() {
        *rolling = json!({});
    }
    if let (Some(rolling), Value::Object(numbers)) = (rolling.as_object_mut(), numbers) {
        for (name, value) in numbers {
            default(rolling, &name, value);
        }
    }
}
