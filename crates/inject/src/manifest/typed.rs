//! Manifests as Kubernetes' own types write them: whoever reads a workload into its type and writes it again adds some empty fields
//! and loses others, and scripts that compare manifests see it.
//!
//! Invariant: a cluster reads the same from both; only kinds that have a pod template are touched.

use serde_json::{Value, json};

/// Fields that such a type writes though nobody gave them, by pointer to their parent.
fn always(kind: &str) -> Vec<(&'static str, &'static str, Value)> {
    let status = |status: Value| ("", "status", status);
    match kind {
        "Deployment" => vec![("/spec", "strategy", json!({})), status(json!({}))],
        "DaemonSet" => vec![
            ("/spec", "updateStrategy", json!({})),
            status(json!({
                "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
            })),
        ],
        "StatefulSet" => {
            vec![("/spec", "updateStrategy", json!({})), status(json!({ "availableReplicas": 0, "replicas": 0 }))]
        }
        "ReplicaSet" | "ReplicationController" => vec![status(json!({ "replicas": 0 }))],
        "DeploymentConfig" => vec![
            ("/spec", "strategy", json!({})),
            ("/spec/strategy", "resources", json!({})),
            ("/spec", "test", false.into()),
            status(json!({
                "availableReplicas": 0, "latestVersion": 0, "observedGeneration": 0, "replicas": 0,
                "unavailableReplicas": 0, "updatedReplicas": 0,
            })),
        ],
        "CronJob" => vec![
            ("/spec/jobTemplate", "metadata", json!({})),
            ("/spec/jobTemplate/spec/template", "metadata", json!({})),
            status(json!({})),
        ],
        "Job" | "Pod" => vec![status(json!({}))],
        _ => Vec::new(),
    }
}

/// Fields that such a type leaves out when they are zero.
const OMITTED: &[&str] = &["minReadySeconds", "paused"];

/// Writes a workload as its type does.
pub(super) fn workload(object: &mut Value) {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    for (parent, field, value) in always(&kind) {
        if let Some(Value::Object(parent)) = object.pointer_mut(parent) {
            parent.entry(field).or_insert(value);
        }
    }
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        spec.retain(|field, value| !OMITTED.contains(&field.as_str()) || !(value == 0 || value == false));
    }
    for metadata in ["/metadata", "/spec/template/metadata", "/spec/jobTemplate/metadata"] {
        if let Some(Value::Object(metadata)) = object.pointer_mut(metadata) {
            metadata.retain(|field, value| field != "creationTimestamp" || !value.is_null());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_written_as_their_types_write_them() {
        let written = |kind: &str, mut object: Value| {
            object["kind"] = kind.into();
            workload(&mut object);
            object.as_object_mut().unwrap().shift_remove("kind");
            object
        };
        let template = json!({"metadata": {"creationTimestamp": null, "name": "x"}});
        assert_eq!(
            written("Deployment", json!({"spec": {"minReadySeconds": 0, "paused": false, "template": template}})),
            json!({"spec": {"template": {"metadata": {"name": "x"}}, "strategy": {}}, "status": {}})
        );
        assert_eq!(
            written(
                "Deployment",
                json!({"spec": {"minReadySeconds": 3, "strategy": {"type": "Recreate"}}, "status": {"replicas": 1}})
            ),
            json!({"spec": {"minReadySeconds": 3, "strategy": {"type": "Recreate"}}, "status": {"replicas": 1}})
        );
        assert_eq!(
            written("CronJob", json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {}}}}}})),
            json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {}, "metadata": {}}}, "metadata": {}}}, "status": {}})
        );
        assert_eq!(
            written("DeploymentConfig", json!({"spec": {}}))["spec"],
            json!({"strategy": {"resources": {}}, "test": false})
        );
        assert_eq!(written("ReplicationController", json!({"spec": {}}))["status"], json!({"replicas": 0}));
        assert_eq!(written("Service", json!({"spec": {"paused": true}})), json!({"spec": {"paused": true}}));
    }
}
