//! Workloads (Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs): defaults, and the rules of their selectors and templates.
//!
//! Invariant: a stored workload's selector finds the pods of its template, and never changes.

use serde_json::{Map, Value, json};

use super::{check, default, pod, rules, section};
use crate::admission::{AdmitContext, Operation};
use crate::error::{ApiResult, Cause};
use crate::selector::{Selectors, selector_text};

pub(super) fn admit(object: &mut Value, operation: Operation, context: &AdmitContext<'_>) -> ApiResult<()> {
    let resource = context.resource;
    fill_in(object, resource);
    if resource == "cronjobs.batch" {
        let mut causes = Vec::new();
        match object.pointer("/spec/schedule").and_then(Value::as_str).unwrap_or_default() {
            "" => causes.push(Cause::required("spec.schedule", "")),
            text => causes.extend(rules::schedule(text).map(|why| Cause::invalid("spec.schedule", &json!(text), why))),
        }
        causes.extend(rules::broken(resource, object));
        let job = object.pointer("/spec/jobTemplate").cloned().unwrap_or_default();
        let mut inner = Vec::new();
        template(&job, "jobs.batch", &mut inner);
        causes.extend(inner.into_iter().map(|c| Cause { field: format!("spec.jobTemplate.{}", c.field), ..c }));
        return check(object, context, causes);
    }
    if resource == "jobs.batch" && operation == Operation::Create {
        name_pods(object);
    }
    let mut causes = rules::broken(resource, object);
    // A Job's selector is made of its uid by the controller that runs it; there is none.
    if resource != "jobs.batch" {
        selector(object, &mut causes);
    }
    template(object, resource, &mut causes);
    strategies(object, resource, &mut causes);
    if let Some(old) = context.old.filter(|_| operation == Operation::Update) {
        causes.extend(changed(object, old, resource));
    }
    check(object, context, causes)
}

/// A Job finds its pods by its own uid, unless it says that it knows better.
fn name_pods(object: &mut Value) {
    if object.pointer("/spec/manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (uid, name) = (text("/metadata/uid"), text("/metadata/name"));
    if uid.is_empty() {
        return;
    }
    let labels = [
        ("batch.kubernetes.io/controller-uid", uid.clone()),
        ("batch.kubernetes.io/job-name", name.clone()),
        ("controller-uid", uid.clone()),
        ("job-name", name),
    ];
    let Some(spec) = section(object, "spec") else { return };
    if let Some(template) = spec.get_mut("template").filter(|t| t.is_object()) {
        let target = section(template, "metadata").map(|m| m.entry("labels").or_insert_with(|| json!({})));
        if let Some(target) = target.and_then(Value::as_object_mut) {
            // Without a name yet, there is none to tell.
            for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
                target.insert((*key).into(), value.clone().into());
            }
        }
    }
    let selector = spec.entry("selector").or_insert_with(|| json!({}));
    if selector.is_null() {
        *selector = json!({});
    }
    if let Some(wanted) = section(selector, "matchLabels") {
        wanted.insert("batch.kubernetes.io/controller-uid".into(), uid.into());
    }
    // A Job without labels of its own has those of its pods.
    let own = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default();
    let bare = object.pointer("/metadata/labels").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
    if let (true, Some(metadata)) = (bare, section(object, "metadata")) {
        metadata.insert("labels".into(), own);
    }
}

/// What ways of replacing pods are there, and what does not go together.
fn strategies(object: &Value, resource: &str, causes: &mut Vec<Cause>) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let go = |strategy: &str| {
        let rolling = object.pointer(&format!("/spec/{strategy}/rollingUpdate")).filter(|r| r.is_object());
        let of = |field: &str| rolling.and_then(|r| r.get(field)).cloned().unwrap_or_else(|| json!(0));
        let rolling = rolling.map(|_| json!({"MaxUnavailable": of("maxUnavailable"), "MaxSurge": of("maxSurge")}));
        json!({"Type": text(&format!("/spec/{strategy}/type")), "RollingUpdate": rolling})
    };
    match resource {
        "deployments.apps" => match text("/spec/strategy/type") {
            "Recreate" if object.pointer("/spec/strategy/rollingUpdate").is_some_and(|r| !r.is_null()) => {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
            }
            "RollingUpdate" => {
                let zero = |field: &str| {
                    let value = object.pointer(&format!("/spec/strategy/rollingUpdate/{field}"));
                    value.is_some_and(|v| v.as_i64() == Some(0) || v.as_str() == Some("0%"))
                };
                if zero("maxSurge") && zero("maxUnavailable") {
                    let value =
                        object.pointer("/spec/strategy/rollingUpdate/maxUnavailable").cloned().unwrap_or_default();
                    let why = "may not be 0 when `maxSurge` is 0";
                    causes.push(Cause::invalid("spec.strategy.rollingUpdate.maxUnavailable", &value, why));
                }
            }
            "Recreate" => {}
            _ => causes.push(Cause::unsupported("spec.strategy", &go("strategy"), &["Recreate", "RollingUpdate"])),
        },
        "daemonsets.apps" if !matches!(text("/spec/updateStrategy/type"), "RollingUpdate" | "OnDelete") => {
            let known = ["RollingUpdate", "OnDelete"];
            causes.push(Cause::unsupported("spec.updateStrategy", &go("updateStrategy"), &known));
        }
        "statefulsets.apps" if !matches!(text("/spec/podManagementPolicy"), "OrderedReady" | "Parallel") => {
            let why = "must be 'OrderedReady' or 'Parallel'";
            let value = json!(text("/spec/podManagementPolicy"));
            causes.push(Cause::invalid("spec.podManagementPolicy", &value, why));
        }
        _ => {}
    }
}

/// What of a workload may not change.
fn changed(object: &Value, old: &Value, resource: &str) -> Option<Cause> {
    let at = |object: &Value, field: &str| object.pointer(&format!("/spec/{field}")).cloned().unwrap_or(Value::Null);
    match resource {
        "jobs.batch" => ["completions", "selector", "template", "completionMode"].iter().find_map(|field| {
            let now = at(object, field);
            (now != at(old, field) && *field != "template")
                .then(|| Cause::invalid(format!("spec.{field}"), &now, "field is immutable"))
        }),
        "statefulsets.apps" => {
            let fixed = |object: &Value| {
                let mut spec = object.get("spec").cloned().unwrap_or_default();
                for field in [
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "revisionHistoryLimit",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                ] {
                    spec.as_object_mut().map(|s| s.shift_remove(field));
                }
                spec
            };
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            (fixed(old) != fixed(object)).then(|| Cause::forbidden("spec", why))
        }
        _ => {
            let now = at(object, "selector");
            (now != at(old, "selector")).then(|| Cause::invalid("spec.selector", &now, "field is immutable"))
        }
    }
}

fn selector(object: &Value, causes: &mut Vec<Cause>) {
    let selector = object.pointer("/spec/selector").filter(|selector| !selector.is_null());
    let Some(selector) = selector else {
        causes.push(Cause::required("spec.selector", ""));
        let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", &labels, why));
        return;
    };
    let unread = rules::selector(selector, "spec.selector");
    if !unread.is_empty() {
        causes.extend(unread);
        causes.push(Cause::invalid("spec.selector", selector, "invalid label selector"));
        return;
    }
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
        let field = "spec.template.spec.restartPolicy";
        causes.push(match resource {
            "jobs.batch" if policy == "Always" => Cause::required(field, format!("valid values: {allowed}")),
            "jobs.batch" => Cause::unsupported(field, &json!(policy), &["OnFailure", "Never"]),
            _ => Cause::unsupported(field, &json!(policy), &["Always"]),
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
            let kept = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
            default(spec, "persistentVolumeClaimRetentionPolicy", kept);
            let claims = spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut);
            for claim in claims.into_iter().flatten().filter_map(Value::as_object_mut) {
                default(claim, "apiVersion", "v1");
                default(claim, "kind", "PersistentVolumeClaim");
                default(claim, "status", json!({"phase": "Pending"}));
                if let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) {
                    default(spec, "volumeMode", "Filesystem");
                }
            }
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
            for place in ["/jobTemplate", "/jobTemplate/spec/template"] {
                let mut at = place.split('/').skip(1);
                let first = at.next().and_then(|step| spec.get_mut(step));
                let found = at.try_fold(first, |at, step| Some(at?.get_mut(step))).flatten();
                if let Some(template) = found.and_then(Value::as_object_mut) {
                    default(template, "metadata", json!({}));
                }
            }
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
