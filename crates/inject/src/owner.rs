//! Which workload a pod is of, from the pod alone.
//!
//! Invariant: only what the controllers of Kubernetes name by a rule is guessed at: a ReplicaSet with its template's hash is of a
//! Deployment, a Job with a minute's number is of a CronJob.

use serde_json::Value;

/// The workload of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The owner of a pod as a webhook sees it.
pub fn of_pod(pod: &Value) -> Owner {
    let label = |name: &str| pod.pointer("/metadata/labels").and_then(|l| l.get(name)).and_then(Value::as_str);
    let mut owner = Owner {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: text(pod, "/metadata/name").to_owned(),
        namespace: text(pod, "/metadata/namespace").to_owned(),
    };
    let references = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let controller = references.into_iter().find(|r| r.get("controller") == Some(&Value::Bool(true)));
    // A pod with a name of its own is nobody's copy, whoever owns it.
    let Some(controller) = controller.filter(|_| !text(pod, "/metadata/generateName").is_empty()) else { return owner };
    owner.api_version = text(controller, "/apiVersion").to_owned();
    owner.kind = text(controller, "/kind").to_owned();
    let name = text(controller, "/name");
    owner.name = name.to_owned();
    let of_template = |hash: &str| {
        let hash = label(hash).filter(|hash| !hash.is_empty())?;
        let base = name.strip_suffix(hash)?;
        Some(base.strip_suffix('-').map_or(name, |base| base).to_owned())
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            if let Some(name) = of_template("pod-template-hash") {
                owner.kind = "Deployment".to_owned();
                owner.name = name;
            } else if let Some(name) = of_template("rollouts-pod-template-hash") {
                owner.kind = "Rollout".to_owned();
                owner.api_version = "v1alpha1".to_owned();
                owner.name = name;
            }
        }
        "ReplicationController" => {
            if let Some(name) = label("deploymentconfig").filter(|name| !name.is_empty()) {
                owner.kind = "DeploymentConfig".to_owned();
                owner.name = name.to_owned();
            }
        }
        "Job" => {
            if let Some(name) = of_cron_job(name) {
                owner.kind = "CronJob".to_owned();
                owner.api_version = "batch/v1".to_owned();
                owner.name = name.to_owned();
            }
        }
        _ => {}
    }
    if owner.name.is_empty() {
        owner.name = text(pod, "/metadata/name").to_owned();
    }
    owner
}

/// The CronJob that made a Job: its name ends in the minutes or seconds since 1970, eight to ten digits.
fn of_cron_job(job: &str) -> Option<&str> {
    let (name, number) = job.rsplit_once('-')?;
    let digits = number.len() >= 8 && number.len() <= 10 && number.bytes().all(|b| b.is_ascii_digit());
    (digits && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(kind: &str, name: &str, labels: Value, generated: &str) -> String {
        let owner = of_pod(&json!({"metadata": {
            "name": "own", "generateName": generated, "namespace": "n", "labels": labels,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true}],
        }}));
        format!("{}/{}/{}", owner.api_version, owner.kind, owner.name)
    }

    #[test]
    fn owners() {
        let hash = json!({"pod-template-hash": "abc"});
        assert_eq!(shown("ReplicaSet", "web-abc", hash.clone(), "web-abc-"), "apps/v1/Deployment/web");
        assert_eq!(shown("ReplicaSet", "web-xyz", hash.clone(), "web-"), "apps/v1/ReplicaSet/web-xyz");
        assert_eq!(shown("ReplicaSet", "web-abc", hash, ""), "v1/Pod/own");
        assert_eq!(shown("StatefulSet", "db", json!({}), "db-"), "apps/v1/StatefulSet/db");
        assert_eq!(shown("Job", "nightly-28373460", json!({}), "nightly-"), "batch/v1/CronJob/nightly");
        assert_eq!(shown("Job", "once-1", json!({}), "once-"), "apps/v1/Job/once-1");
        assert_eq!(shown("ReplicaSet", "r-1", json!({"rollouts-pod-template-hash": "1"}), "r-"), "v1alpha1/Rollout/r");
        assert_eq!(
            shown("ReplicationController", "c-1", json!({"deploymentconfig": "c"}), "c-"),
            "apps/v1/DeploymentConfig/c"
        );
        assert_eq!(of_pod(&json!({"metadata": {"name": "p"}})).name, "p");
    }
}
