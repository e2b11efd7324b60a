//! Evictions ask the pod's budget; services have Endpoints; health is told check by check.

use crate::bench::Bench;
use crate::http::{Access, Client};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGET: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b";

async fn until(client: &mut Client, path: &str, pointer: &str, wanted: Value) -> Value {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let (_, object) = client.get(path).await;
        if object.pointer(pointer) == Some(&wanted) {
            return object;
        }
        assert!(tokio::time::Instant::now() < end, "{pointer} is not {wanted}: {object}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_asks_the_budget() {
    let bench = Bench::start().await;
    let mut admin = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}},
        "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}});
    assert_eq!(admin.post("/api/v1/namespaces/default/services", &service).await.0, 201);
    for number in 1..=2 {
        let name = format!("p{number}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let (code, made) = admin.post(PODS, &pod).await;
        assert_eq!(
            (code, &made["spec"]["priority"], made["spec"]["tolerations"].as_array().unwrap().len()),
            (201, &json!(0), 2)
        );
        let ip = format!("10.0.0.{number}");
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(admin.call(Method::PATCH, &format!("{PODS}/{name}/status"), Some(&status)).await.unwrap().0, 200);
    }
    let endpoints =
        until(&mut admin, "/api/v1/namespaces/default/endpoints/s", "/subsets/0/addresses/1/ip", json!("10.0.0.2"))
            .await;
    assert_eq!(
        endpoints["metadata"]["labels"],
        json!({"a": "b", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
    );
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": "1", "selector": {"matchLabels": {"app": "x"}}}});
    let mut budget = budget;
    budget["spec"]["minAvailable"] = json!(1);
    assert_eq!(admin.post(BUDGET.trim_end_matches("/b"), &budget).await.0, 201);
    until(&mut admin, BUDGET, "/status/disruptionsAllowed", json!(1)).await;

    let eviction = |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}});
    let dry = format!("{PODS}/p1/eviction?dryRun=All");
    assert_eq!(admin.post(&dry, &eviction("p1")).await.0, 201);
    let (code, told) = admin.post(&format!("{PODS}/p1/eviction"), &eviction("p1")).await;
    assert_eq!((code, &told["status"]), (201, &json!("Success")), "{told}");
    let (code, told) = admin.post(&format!("{PODS}/p2/eviction"), &eviction("p2")).await;
    assert_eq!(
        (code, told["message"].as_str().unwrap(), &told["details"]["causes"][0]["reason"]),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.", &json!("DisruptionBudget"))
    );
    assert_eq!(admin.get(&format!("{PODS}/p1")).await.0, 404);
    until(&mut admin, BUDGET, "/status/currentHealthy", json!(1)).await;
    assert_eq!(admin.call(Method::DELETE, BUDGET, None).await.unwrap().0, 200);
    assert_eq!(admin.post(&format!("{PODS}/p2/eviction"), &eviction("p2")).await.0, 201);
    until(&mut admin, "/api/v1/namespaces/default/endpoints/s", "/metadata/name", json!("s")).await;
    assert_eq!(admin.call(Method::DELETE, "/api/v1/namespaces/default/services/s", None).await.unwrap().0, 200);
    until(&mut admin, "/api/v1/namespaces/default/endpoints/s", "/reason", json!("NotFound")).await;
    assert_eq!(admin.get("/readyz/etcd").await.0, 200);
}
