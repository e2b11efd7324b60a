//! What informers need of a watch: the state at the beginning, its end marked, and an end when there is nothing left to watch.

use crate::bench::Bench;
use crate::http::Access;
use http::Method;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_kind_that_is_gone_ends_its_watches() {
    let bench = Bench::start().await;
    let mut client = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(client.post(definitions, &definition).await.0, 201);
    let things = "/apis/stable.example.com/v1/namespaces/default/things";
    let thing = json!({"apiVersion": "stable.example.com/v1", "kind": "Thing", "metadata": {"name": "a"}});
    let mut made = 0;
    for _ in 0..500 {
        made = client.post(things, &thing).await.0;
        if made == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(made, 201);
    let asked = "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut lines = client.clone().watch(&format!("{things}?{asked}")).await;
    let first = lines.next().await.unwrap();
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    let mark = lines.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let path = format!("{definitions}/things.stable.example.com");
    assert_eq!(client.call(Method::DELETE, &path, None).await.unwrap().0, 200);
    let rest = async {
        assert_eq!(lines.next().await.unwrap()["type"], "DELETED");
        assert_eq!(lines.next().await, None, "the watch ends");
    };
    tokio::time::timeout(Duration::from_secs(10), rest).await.unwrap();
    assert_eq!(client.get(&format!("{things}?watch=1")).await.0, 404);
    bench.stop().await;
}
