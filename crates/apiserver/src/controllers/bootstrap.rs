//! What exists before anybody asked for it: the system namespaces, the default roles, the `kubernetes` service, the two classes
//! of priority that are the system's.
//!
//! Invariant: running it again changes nothing that is right already; an object that a user changed is not put back,
//! except for the namespaces' existence. Default roles and bindings get at each start what they lack of the rules and subjects of
//! this version, unless their annotation says that they are to be left alone; what somebody added stays.

use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};
use crate::store::{Intent, Store, WriteOptions, name_of};

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
        reconcile(store, resource, object).await?;
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

/// Creates a default role or binding, or gives an older one what it lacks.
async fn reconcile(store: &Store, resource: &str, wanted: Value) -> ApiResult<()> {
    const KEPT: &str = "/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate";
    let change = |old: Option<&Value>| {
        let Some(old) = old else { return Ok(Intent::Put(wanted.clone())) };
        if old.pointer(KEPT).and_then(Value::as_str) == Some("false") {
            return Ok(Intent::Keep);
        }
        let mut new = old.clone();
        lacking(&mut new, &wanted);
        Ok(if new == *old { Intent::Keep } else { Intent::Put(new) })
    };
    store.modify(resource, "", name_of(&wanted), WriteOptions::default(), change).await.map(drop)
}

fn lacking(role: &mut Value, wanted: &Value) {
    let Some(map) = role.as_object_mut() else { return };
    if let Some(rule) = wanted.get("aggregationRule") {
        // Its rules are the loop's to write.
        map.insert("aggregationRule".into(), rule.clone());
    } else {
        for field in ["rules", "subjects"] {
            let Some(wanted) = wanted.get(field).and_then(Value::as_array) else { continue };
            let list = map.entry(field).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                let missing: Vec<Value> = wanted.iter().filter(|w| !list.contains(w)).cloned().collect();
                list.extend(missing);
            }
        }
    }
    for field in ["labels", "annotations"] {
        let Some(wanted) = wanted.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) else { continue };
        let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) else { continue };
        if let Some(target) = metadata.entry(field).or_insert_with(|| json!({})).as_object_mut() {
            for (key, value) in wanted {
                target.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
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
