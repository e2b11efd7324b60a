//! What a client must not be able to do: get in without a name, fill the memory, make the server fall over.

use crate::bench::Bench;
use crate::http::{Access, config_map};
use bytes::Bytes;
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATH: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_do_nothing() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut nobody = access.with_token(None).await;
    for path in ["/api/v1/pods", "/api/v1/namespaces/default/secrets", "/apis", "/metrics", "/nope", "/api/v1/nope"] {
        let (code, status) = nobody.get(path).await;
        assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{path}");
        assert!(status["message"].as_str().unwrap().contains("system:anonymous"), "{status}");
    }
    for path in ["/version", "/livez", "/readyz"] {
        assert_eq!(nobody.get(path).await.0, 200, "{path}");
    }
    let (code, _) = nobody.post(PATH, &config_map("x", 0)).await;
    assert_eq!(code, 403);
    for token in ["x", "a.b.c", "", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06bWFzdGVycyJ9."] {
        let mut client = access.with_token(Some(token)).await;
        let (code, status) = client.get("/api/v1/pods").await;
        assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{token:?}");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_bound_to_account_audience_and_pod() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut admin = access.admin().await.unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(admin.post(accounts, &account).await.0, 201);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "robot"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "robot"}]});
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &role).await;
    let tokens = format!("{accounts}/robot/token");
    let ask = |spec: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let (code, answer) = admin.post(&tokens, &ask(json!({}))).await;
    assert_eq!(code, 201, "{answer}");
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let mut robot = access.with_token(Some(&token)).await;
    let (code, me) = robot
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
        )
        .await;
    assert_eq!(code, 201, "{me}");
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");

    // For another audience: not for us, but a review says for whom.
    let (_, answer) = admin.post(&tokens, &ask(json!({"audiences": ["istio-ca"], "expirationSeconds": 600}))).await;
    let other = answer["status"]["token"].as_str().unwrap();
    assert_eq!(access.with_token(Some(other)).await.get("/api/v1/pods").await.0, 401);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": other, "audiences": ["istio-ca", "x"]}});
    let (_, answer) = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
    assert_eq!(answer["status"]["audiences"], json!(["istio-ca"]));
    let (code, _) = admin.post(&tokens, &ask(json!({"expirationSeconds": 5}))).await;
    assert_eq!(code, 422);
    let missing = ask(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "none"}}));
    assert_eq!(admin.post(&tokens, &missing).await.0, 404);
    // A token that was tampered with.
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[1] = parts[1].chars().rev().collect();
    assert_eq!(access.with_token(Some(&parts.join("."))).await.get("/api/v1/pods").await.0, 401);

    // The account goes and comes again: another uid.
    admin.call(Method::DELETE, &format!("{accounts}/robot"), None).await.unwrap();
    admin.post(accounts, &account).await;
    assert_eq!(robot.get("/api/v1/pods").await.0, 401);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded_and_checked() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut admin = access.admin().await.unwrap();
    let big = Bytes::from(vec![b'a'; 4 << 20]);
    let answer = admin.send(Method::POST, PATH, "application/json", big).await;
    // The server may answer before it has read everything.
    assert!(answer.is_err() || answer.unwrap().status() == 413);
    let mut admin = access.admin().await.unwrap();
    let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    for (kind, body, code) in [
        ("application/json", deep.as_str(), 400),
        ("application/json", "", 400),
        ("application/json", "null", 400),
        ("application/json", "[]", 400),
        ("application/json", "{\"kind\":3}", 422),
        ("application/json", "{\"metadata\":[]}", 400),
        ("application/json", "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"}}", 400),
        ("application/json", "{\"metadata\":{\"name\":\"x\",\"namespace\":\"other\"}}", 400),
        ("application/json", "{\"metadata\":{\"name\":\"UPPER\"}}", 422),
        ("application/json", "{\"metadata\":{\"name\":\"a\"},\"data\":[1]}", 400),
        ("application/json", "{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"7\"}}", 500),
        ("text/html", "{}", 415),
        ("application/vnd.kubernetes.protobuf", "k8s\0garbage", 400),
    ] {
        let answer = admin.send(Method::POST, PATH, kind, Bytes::copy_from_slice(body.as_bytes())).await.unwrap();
        assert_eq!(answer.status().as_u16(), code, "{kind} {}", &body[..body.len().min(80)]);
    }
    let yaml = "metadata: {name: from-yaml}\ndata: {a: b}\n";
    let answer = admin.send(Method::POST, PATH, "application/yaml", Bytes::from_static(yaml.as_bytes())).await.unwrap();
    assert_eq!(answer.status(), 201);
    for path in [
        "?continue=xyz",
        "?limit=many",
        "?resourceVersion=abc",
        "?labelSelector=a%20in%20(",
        "?fieldSelector=nope%3Dx",
        "?watch=1&sendInitialEvents=true",
        "?watch=1&timeoutSeconds=soon",
    ] {
        let (code, status) = admin.get(&format!("{PATH}{path}")).await;
        assert!(matches!(code, 400 | 422), "{path}: {code}");
        assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")), "{path}");
    }
    for (method, path, code) in [
        (Method::POST, "/api/v1/configmaps", 405),
        (Method::PUT, PATH, 405),
        (Method::POST, "/api/v1/namespaces/default/configmaps/x", 405),
        (Method::GET, "/api/v1/namespaces/default/configmaps/x/status", 404),
        (Method::GET, "/api/v9/pods", 404),
        (Method::GET, "/apis/nope/v1/things", 404),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404),
        (Method::GET, "/apis/authorization.k8s.io/v1/subjectaccessreviews", 405),
        (Method::OPTIONS, PATH, 405),
        (Method::POST, "/version", 405),
    ] {
        let (got, _) = admin.call(method.clone(), path, Some(&json!({}))).await.unwrap();
        assert_eq!(got, code, "{method} {path}");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_never_break_the_server() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut random = StdRng::seed_from_u64(7);
    let words = [
        "api",
        "apis",
        "v1",
        "namespaces",
        "default",
        "pods",
        "configmaps",
        "status",
        "token",
        "..",
        "%00",
        "%2f",
        "a",
        "networking.istio.io",
        "v1beta1",
        "destinationrules",
        "openapi",
        "v3",
        "ü",
        "",
    ];
    let kinds = [
        "application/json",
        "application/yaml",
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
        "application/vnd.kubernetes.protobuf",
    ];
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let seeds = [
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","$patch":"delete"}]}}"#,
        r#"[{"op":"add","path":"/metadata/labels/x","value":"1"},{"op":"move","from":"/a","path":"/b"}]"#,
        "k8s\0\n\x0c\n\x02v1\x12\x06Secret\x12\x10\n\x08\n\x04name\x12\0\x12\x04\n\x01a\x12\0",
        "a: &x [1,2]\nb: *x\n",
    ];
    let mut client = access.admin().await.unwrap();
    for _ in 0..600 {
        let path: String = (0..random.random_range(1..8))
            .map(|_| format!("/{}", words[random.random_range(0..words.len())]))
            .collect();
        let path = if random.random_bool(0.4) { PATH.replace("configmaps", "pods") + "/a" } else { path };
        let mut body = seeds[random.random_range(0..seeds.len())].as_bytes().to_vec();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..body.len());
            body[at] = random.next_u32().to_le_bytes()[0];
        }
        let method = methods[random.random_range(0..methods.len())].clone();
        let kind = kinds[random.random_range(0..kinds.len())];
        let Ok(_uri) = format!("https://api{path}").parse::<http::Uri>() else { continue };
        let answer = client.send(method.clone(), &path, kind, Bytes::from(body.clone())).await;
        let answer =
            answer.unwrap_or_else(|e| panic!("{method} {path} {kind} {:?}: {e}", String::from_utf8_lossy(&body)));
        assert_ne!(answer.status().as_u16(), 500, "{method} {path} {kind} {:?}", String::from_utf8_lossy(&body));
    }
    // Bytes that are no HTTP at all.
    for alpn in [&b"h2"[..], b"http/1.1"] {
        for _ in 0..10 {
            let mut stream = access.raw(alpn).await;
            let mut bytes = vec![0; random.random_range(1..2000)];
            random.fill_bytes(&mut bytes);
            if stream.write_all(&bytes).await.is_ok() {
                let mut answer = Vec::new();
                // The server closes, or waits for more; both are fine, as long as it lives.
                drop(tokio::time::timeout(std::time::Duration::from_millis(50), stream.read_to_end(&mut answer)).await);
            }
        }
    }
    let (code, _) = access.admin().await.unwrap().get("/readyz").await;
    assert_eq!(code, 200);
    let metrics = bench.server.metrics()();
    assert!(metrics.contains("apiserver_request_total{verb=\"get\""), "{metrics}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_of_one_object_conflict() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut admin = access.admin().await.unwrap();
    let (_, first) = admin.post(PATH, &config_map("x", 1)).await;
    let mut change = first.clone();
    change["data"]["n"] = json!("2");
    let path = format!("{PATH}/x");
    let (code, second) = admin.call(Method::PUT, &path, Some(&change)).await.unwrap();
    assert_eq!(code, 200);
    let (code, status) = admin.call(Method::PUT, &path, Some(&change)).await.unwrap();
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on configmaps \"x\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // The same content again is no change.
    let (_, third) = admin.call(Method::PUT, &path, Some(&second)).await.unwrap();
    assert_eq!(third["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let wrong = json!({"preconditions": {"uid": "not-this"}});
    assert_eq!(admin.call(Method::DELETE, &path, Some(&wrong)).await.unwrap().0, 409);
    // Many patches at once: each is made on what is there, none is lost.
    let patches = (0..20).map(|n| {
        let (access, path) = (access.clone(), path.clone());
        tokio::spawn(async move {
            let patch = json!({"data": {format!("k{n}"): "v"}});
            access.admin().await.unwrap().call(Method::PATCH, &path, Some(&patch)).await.unwrap().0
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        assert_eq!(patch.await.unwrap(), 200);
    }
    let (_, last) = admin.get(&path).await;
    assert_eq!(last["data"].as_object().unwrap().len(), 21);
    // Finalizers hold, and let go.
    let hold = json!({"metadata": {"finalizers": ["x.io/hold"]}});
    admin.call(Method::PATCH, &path, Some(&hold)).await.unwrap();
    let (code, pending) = admin.call(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(code, 200);
    assert!(pending["metadata"]["deletionTimestamp"].is_string(), "{pending}");
    assert_eq!(admin.get(&path).await.0, 200);
    let (code, _) = admin.call(Method::PATCH, &path, Some(&json!({"metadata": {"finalizers": null}}))).await.unwrap();
    assert_eq!(code, 200);
    assert_eq!(admin.get(&path).await.0, 404);
    bench.stop().await;
}
