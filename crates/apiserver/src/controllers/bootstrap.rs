//! What exists before anybody asked for it: the system namespaces, the default roles, the `kubernetes` service, the two classes
//! of priority that are the system's.
//!
//! Invariant: running it again changes nothing that is right already; an object that a user changed is not put back,
//! except for the namespaces' existence.

use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};
use crate::store::Store;

/// Namespaces that always exist.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "istio-system"];

/// Creates what is missing. To be awaited before the server answers requests.
///
/// # Errors
/// When the store refuses writes.
pub async fn bootstrap(store: &Store) -> ApiResult<()> {
    for name in NAMESPACES {
        create(store, "namespaces", namespace(name)).await?;
    }
    create(store, "services", kubernetes_service()).await?;
    for (name, value, why) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "description": why, "preemptionPolicy": "PreemptLowerPriority"});
        create(store, "priorityclasses.scheduling.k8s.io", class).await?;
    }
    for (resource, object) in crate::rbac::default_objects() {
        create(store, resource, object).await?;
    }
    super::definitions::serve(store);
    Ok(())
}

async fn create(store: &Store, resource: &str, object: Value) -> ApiResult<()> {
    match store.create(resource, object).await {
        Ok(_) | Err(ApiError::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

fn kubernetes_service() -> Value {
    let address = super::addresses::KUBERNETES.to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443 }],
        },
        "status": { "loadBalancer": {} },
    })
}
