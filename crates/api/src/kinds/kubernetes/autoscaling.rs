//! Autoscalers between their versions: `v1` knows a share of the processor alone, `v2` any measure.
//!
//! Invariant: what `v1` cannot say goes through it unharmed, in the annotations that Kubernetes keeps it in.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Makes an autoscaler one of `version`.
pub(super) fn convert(object: &mut Value, version: &str) {
    let from = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    match (from.as_str(), version) {
        ("autoscaling/v2", "v1") => older(object),
        ("autoscaling/v1", "v2") => newer(object),
        _ => {}
    }
}

/// A share of the processor's time.
fn is_cpu(metric: &Value) -> bool {
    metric.get("type").and_then(Value::as_str) == Some("Resource")
        && metric.pointer("/resource/name").and_then(Value::as_str) == Some("cpu")
}

fn section<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    object.as_object_mut()?.entry(name).or_insert_with(|| json!({})).as_object_mut()
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    let annotations = section(object, "metadata").map(|m| m.entry("annotations").or_insert_with(|| json!({})));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.insert(key.to_owned(), value.to_string().into());
    }
}

/// What an annotation kept; it is taken away.
fn kept(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.shift_remove(key);
    if annotations.is_empty() {
        metadata.shift_remove("annotations");
    }
    serde_json::from_str(text?.as_str()?).ok()
}

fn older(object: &mut Value) {
    let mut rest = Vec::new();
    if let Some(spec) = section(object, "spec") {
        let metrics = match spec.shift_remove("metrics") {
            Some(Value::Array(metrics)) => metrics,
            _ => Vec::new(),
        };
        for metric in metrics {
            let share = metric.pointer("/resource/target/averageUtilization").filter(|_| is_cpu(&metric)).cloned();
            match share {
                Some(share) if !spec.contains_key("targetCPUUtilizationPercentage") => {
                    spec.insert("targetCPUUtilizationPercentage".into(), share);
                }
                _ => rest.push(metric),
            }
        }
    }
    let behavior = section(object, "spec").and_then(|spec| spec.shift_remove("behavior"));
    let mut told = Vec::new();
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(Value::Array(current)) = status.shift_remove("currentMetrics") {
            let share =
                current.iter().find(|m| is_cpu(m)).and_then(|m| m.pointer("/resource/current/averageUtilization"));
            if let Some(share) = share {
                status.insert("currentCPUUtilizationPercentage".into(), share.clone());
            }
            told.push((CURRENT, Value::Array(current)));
        }
        if let Some(conditions) = status.shift_remove("conditions") {
            told.push((CONDITIONS, conditions));
        }
        for field in ["currentReplicas", "desiredReplicas"] {
            status.entry(field).or_insert_with(|| json!(0));
        }
    }
    if !rest.is_empty() {
        annotate(object, METRICS, &Value::Array(rest));
    }
    for (key, value) in behavior.map(|b| (BEHAVIOR, b)).into_iter().chain(told) {
        annotate(object, key, &value);
    }
    set_version(object, "autoscaling/v1");
}

fn newer(object: &mut Value) {
    let rest = kept(object, METRICS);
    let behavior = kept(object, BEHAVIOR);
    let (current, conditions) = (kept(object, CURRENT), kept(object, CONDITIONS));
    if let Some(spec) = section(object, "spec") {
        let share = spec.shift_remove("targetCPUUtilizationPercentage").filter(Value::is_number);
        let cpu = share.map(|share| {
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": share}}})
        });
        let rest = rest.and_then(|rest| rest.as_array().cloned()).unwrap_or_default();
        let metrics: Vec<Value> = cpu.into_iter().chain(rest).collect();
        if !metrics.is_empty() {
            spec.insert("metrics".into(), Value::Array(metrics));
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("currentCPUUtilizationPercentage");
        for (field, value) in [("currentMetrics", current), ("conditions", conditions)] {
            if let Some(value) = value {
                status.insert(field.into(), value);
            }
        }
    }
    set_version(object, "autoscaling/v2");
}

fn set_version(object: &mut Value, version: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), version.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_goes_through_it() {
        let whole = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"minReplicas": 1, "maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Pods", "pods": {"metric": {"name": "x"}}},
            ], "behavior": {"scaleUp": {"stabilizationWindowSeconds": 3}}},
        });
        let mut object = whole.clone();
        convert(&mut object, "v1");
        assert_eq!(object["apiVersion"], "autoscaling/v1");
        assert_eq!(object["spec"], json!({"minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 80}));
        convert(&mut object, "v2");
        assert_eq!(object, whole);
    }
}
