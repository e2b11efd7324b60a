//! Versions of one kind that differ: a webhook of this test converts, as Kubernetes has it convert; `autoscaling/v1` beside `v2`.

use crate::bench::Bench;
use crate::http::{Access, Client};
use crate::webhooks::Hooks;
use http::Method;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn things(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/things")
}

/// `v1` has `spec.size`, `v2` has `spec.width`.
fn definition(hooks: &Hooks) -> Value {
    let version = |name: &str, field: &str, stored: bool| {
        json!({"name": name, "served": true, "storage": stored, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {field: {"type": "integer"}}}}}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version("v1", "size", false), version("v2", "width", true)],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": hooks.client("/convert")}}},
    })
}

async fn get(client: &mut Client, path: &str) -> Value {
    client.call(Method::GET, path, None).await.unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_converted_by_a_webhook() {
    let bench = Bench::start().await;
    let mut admin = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let hooks = Hooks::start().await;
    let (code, made) = admin.post(CRDS, &definition(&hooks)).await;
    assert_eq!(code, 201, "{made}");
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while get(&mut admin, &things("v1")).await["kind"] != "ThingList" {
        assert!(tokio::time::Instant::now() < end);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    let old = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"size": 3}});
    let (code, made) = admin.post(&things("v1"), &old).await;
    assert_eq!(
        (code, &made["apiVersion"], &made["spec"]),
        (201, &json!("example.com/v1"), &json!({"size": 3})),
        "{made}"
    );
    let new = get(&mut admin, &format!("{}/a", things("v2"))).await;
    assert_eq!((&new["apiVersion"], &new["spec"]), (&json!("example.com/v2"), &json!({"width": 3})));

    // A patch is about the version of its path, and so are lists and watches.
    let path = format!("{}/a", things("v1"));
    let (code, patched) = admin.call(Method::PATCH, &path, Some(&json!({"spec": {"size": 4}}))).await.unwrap();
    assert_eq!((code, &patched["spec"]), (200, &json!({"size": 4})), "{patched}");
    let apply = "?fieldManager=t&force=true";
    let (code, applied) = admin
        .apply(
            &format!("{path}{apply}"),
            &json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"size": 5}}),
        )
        .await;
    assert_eq!((code, &applied["spec"]), (200, &json!({"size": 5})), "{applied}");
    let list = get(&mut admin, &things("v1")).await;
    assert_eq!(list["items"][0]["spec"], json!({"size": 5}), "{list}");
    let asked = hooks.taken("/convert").len();
    assert_eq!(get(&mut admin, &things("v2")).await["items"][0]["spec"], json!({"width": 5}));
    assert!(asked > 4 && hooks.taken("/convert").is_empty(), "{asked}");
    let watched = get(&mut admin, &format!("{}?watch=1&timeoutSeconds=1", things("v1"))).await;
    assert_eq!((&watched["type"], &watched["object"]["spec"]), (&json!("ADDED"), &json!({"size": 5})), "{watched}");

    // What the webhook refuses is an error that says so, and nothing is stored.
    let bad = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": {"size": 13}});
    let (code, told) = admin.post(&things("v1"), &bad).await;
    assert_eq!(
        (code, told["message"].as_str().unwrap()),
        (500, "conversion webhook for example.com/v1, Kind=Thing failed: no thirteen")
    );
    let (code, _) = admin.call(Method::GET, &format!("{}/b", things("v2")), None).await.unwrap();
    assert_eq!(code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autoscalers_are_served_in_both_versions() {
    let bench = Bench::start().await;
    let mut admin = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
    let (code, made) = admin.post(&path("v1"), &old).await;
    assert_eq!((code, &made["spec"]["targetCPUUtilizationPercentage"]), (201, &json!(80)), "{made}");
    let new = get(&mut admin, &format!("{}/a", path("v2"))).await;
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80, "{new}");
}
