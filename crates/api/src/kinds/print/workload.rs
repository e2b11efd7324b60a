//! Workloads and what is about them as rows: Deployments, ReplicaSets, autoscalers, budgets, policies.
//!
//! Invariant: as Kubernetes' printers; a number that nobody wrote prints as 0.

use serde_json::Value;

use super::{NONE, UNKNOWN, age, items, labels, map, name, or_none, since, text};
use crate::timestamp::{Timestamp, human_duration};

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Container names, images and the selector, as `-o wide` shows them.
fn wide(object: &Value, template: &str) -> [Value; 3] {
    let containers = items(object, &format!("{template}/spec/containers"));
    let all = |field: &str| containers.iter().map(|c| text(c, field)).collect::<Vec<_>>().join(",").into();
    [all("/name"), all("/image"), selector(object, "/spec/selector")]
}

/// A label selector in one line.
fn selector(object: &Value, pointer: &str) -> Value {
    let Some(selector) = object.pointer(pointer).filter(|s| s.is_object()) else { return NONE.into() };
    let mut parts: Vec<String> = Vec::new();
    if let Some(pairs) = map(selector, "/matchLabels").filter(|pairs| !pairs.is_empty()) {
        parts.push(labels(pairs));
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let values: Vec<&str> = items(expression, "/values").iter().filter_map(Value::as_str).collect();
        parts.push(match text(expression, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(&parts.join(","))
}

pub(in crate::kinds) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let own = [
        name(object),
        ready.into(),
        number(object, "/status/updatedReplicas").into(),
        number(object, "/status/availableReplicas").into(),
        age(object, now),
    ];
    own.into_iter().chain(wide(object, "/spec/template")).collect()
}

pub(in crate::kinds) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let own = [
        name(object),
        number(object, "/spec/replicas").into(),
        number(object, "/status/replicas").into(),
        number(object, "/status/readyReplicas").into(),
        age(object, now),
    ];
    own.into_iter().chain(wide(object, "/spec/template")).collect()
}

pub(in crate::kinds) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = replica_set(object, now);
    if let Some(last) = cells.last_mut() {
        *last = or_none(&map(object, "/spec/selector").map(labels).unwrap_or_default());
    }
    cells
}

pub(in crate::kinds) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let [names, images, _] = wide(object, "/spec/template");
    vec![name(object), ready.into(), age(object, now), names, images]
}

pub(in crate::kinds) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let nodes = map(object, "/spec/template/spec/nodeSelector").map(labels).unwrap_or_default();
    let own = [
        name(object),
        number(object, "/status/desiredNumberScheduled").into(),
        number(object, "/status/currentNumberScheduled").into(),
        number(object, "/status/numberReady").into(),
        number(object, "/status/updatedNumberScheduled").into(),
        number(object, "/status/numberAvailable").into(),
        or_none(&nodes),
        age(object, now),
    ];
    own.into_iter().chain(wide(object, "/spec/template")).collect()
}

pub(in crate::kinds) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = number(object, "/status/succeeded");
    let completions =
        match (object.pointer("/spec/completions").and_then(Value::as_i64), number(object, "/spec/parallelism")) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, several @ 2..) => format!("{succeeded}/1 of {several}"),
            (None, _) => format!("{succeeded}/1"),
        };
    let has = |type_: &str| {
        items(object, "/status/conditions").iter().any(|c| text(c, "/type") == type_ && text(c, "/status") == "True")
    };
    let status = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if object.pointer("/metadata/deletionTimestamp").is_some() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let (from, to) = (text(object, "/status/startTime"), text(object, "/status/completionTime"));
    let took = match (Timestamp::parse(from), Timestamp::parse(to)) {
        (Some(from), Some(to)) => human_duration(to.seconds().saturating_sub(from.seconds())),
        (Some(_), None) => since(from, now),
        _ => String::new(),
    };
    let own = [name(object), status.into(), completions.into(), took.into(), age(object, now)];
    own.into_iter().chain(wide(object, "/spec/template")).collect()
}

pub(in crate::kinds) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let last = match text(object, "/status/lastScheduleTime") {
        "" => NONE.to_owned(),
        time => since(time, now),
    };
    let suspended = object.pointer("/spec/suspend") == Some(&Value::Bool(true));
    let [names, images, _] = wide(object, "/spec/jobTemplate/spec/template");
    vec![
        name(object),
        text(object, "/spec/schedule").into(),
        or_none(text(object, "/spec/timeZone")),
        if suspended { "True" } else { "False" }.into(),
        items(object, "/status/active").len().into(),
        last.into(),
        age(object, now),
        names,
        images,
        selector(object, "/spec/jobTemplate/spec/selector"),
    ]
}

pub(in crate::kinds) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let target = format!("{}/{}", text(object, "/spec/scaleTargetRef/kind"), text(object, "/spec/scaleTargetRef/name"));
    let metrics: Vec<String> = items(object, "/spec/metrics")
        .iter()
        .map(|metric| {
            let resource = text(metric, "/resource/name");
            let goal = match metric.pointer("/resource/target/averageUtilization").and_then(Value::as_i64) {
                Some(percent) => format!("{percent}%"),
                None => text(metric, "/resource/target/averageValue").to_owned(),
            };
            format!("{}: {UNKNOWN}/{goal}", if resource.is_empty() { text(metric, "/type") } else { resource })
        })
        .collect();
    let least = object.pointer("/spec/minReplicas").and_then(Value::as_i64);
    vec![
        name(object),
        target.into(),
        if metrics.is_empty() { NONE.into() } else { metrics.join(", ").into() },
        least.map_or_else(|| "<unset>".into(), |n| n.to_string().into()),
        number(object, "/spec/maxReplicas").into(),
        number(object, "/status/currentReplicas").into(),
        age(object, now),
    ]
}

/// A number or a percentage, which Kubernetes lets people write in one place.
fn amount(object: &Value, pointer: &str) -> Value {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Number(number)) => number.to_string().into(),
        _ => "N/A".into(),
    }
}

pub(in crate::kinds) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        amount(object, "/spec/minAvailable"),
        amount(object, "/spec/maxUnavailable"),
        number(object, "/status/disruptionsAllowed").into(),
        age(object, now),
    ]
}

pub(in crate::kinds) fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), selector(object, "/spec/podSelector"), age(object, now)]
}

pub(in crate::kinds) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(object, "/webhooks").len().into(), age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_as_kubectl_shows_it() {
        let object = json!({
            "metadata": {"name": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]},
                "template": {"spec": {"containers": [{"name": "web", "image": "x:1"}, {"name": "log", "image": "y"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1},
        });
        let now = Timestamp::parse("2026-01-01T00:01:00Z").unwrap();
        assert_eq!(
            deployment(&object, now),
            [
                json!("shop"),
                json!("1/2"),
                json!(2),
                json!(1),
                json!("60s"),
                json!("web,log"),
                json!("x:1,y"),
                json!("a=1,b=2,c")
            ]
        );
        assert_eq!(network_policy(&json!({"metadata": {"name": "n"}, "spec": {"podSelector": {}}}), now)[1], NONE);
        assert_eq!(job(&json!({"status": {"succeeded": 1}, "spec": {"completions": 3}}), now)[2], "1/3");
    }
}
