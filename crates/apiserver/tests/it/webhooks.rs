//! Admission webhooks: a server of this test is asked as Kubernetes asks.

use crate::bench::Bench;
use crate::http::{Access, Client};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A hook's server: answers by path, and remembers what it was asked.
pub struct Hooks {
    address: SocketAddr,
    bundle: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

fn answer(path: &str, request: &Value) -> Value {
    let labels = &request["object"]["metadata"]["labels"];
    let add = |key: &str| match labels {
        Value::Null => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {key: "yes"}}])),
        _ => patch(json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": "yes"}])),
    };
    match path {
        "/count" => {
            let count = labels["count"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0) + 1;
            match labels {
                Value::Null => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"count": "1"}}])),
                _ => patch(json!([{"op": "add", "path": "/metadata/labels/count", "value": count.to_string()}])),
            }
        }
        "/first" => add("first"),
        "/second" => add("second"),
        "/warn" => json!({"allowed": true, "warnings": ["this is old"]}),
        "/deny" => {
            json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "not on a Sunday"}})
        }
        _ => json!({"allowed": true}),
    }
}

impl Hooks {
    pub async fn start() -> Self {
        let names = ["127.0.0.1".to_owned(), "hook.default.svc".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let seen = asked.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: hyper::Request<Incoming>| {
                        let seen = seen.clone();
                        async move { Ok::<_, Infallible>(serve(request, &seen).await) }
                    });
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self { address, bundle: STANDARD.encode(made.cert.pem()), asked, task }
    }

    /// Where to ask at a path.
    pub fn client(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": self.bundle})
    }

    fn hook(&self, name: &str, path: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{}{path}", self.address), "caBundle": self.bundle},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        for (field, value) in more.as_object().unwrap() {
            hook[field] = value.clone();
        }
        hook
    }

    /// What was asked at a path since the last time.
    pub fn taken(&self, path: &str) -> Vec<Value> {
        let mut asked = self.asked.lock().unwrap();
        let (here, rest) = asked.drain(..).partition(|(at, _)| at == path);
        *asked = rest;
        let here: Vec<(String, Value)> = here;
        here.into_iter().map(|(_, request)| request).collect()
    }
}

/// `spec.size` of `v1` is `spec.width` of `v2`; thirteen is neither.
fn converted(review: &Value) -> Value {
    let wanted = review["request"]["desiredAPIVersion"].as_str().unwrap();
    let (from, to) = if wanted.ends_with("v1") { ("width", "size") } else { ("size", "width") };
    let mut objects = review["request"]["objects"].as_array().unwrap().clone();
    let refused = objects.iter().any(|o| o["spec"][from] == 13);
    for object in &mut objects {
        object["apiVersion"] = json!(wanted);
        let value = object["spec"].as_object_mut().and_then(|spec| spec.remove(from));
        if let Some(value) = value {
            object["spec"][to] = value;
        }
    }
    let result =
        if refused { json!({"status": "Failed", "message": "no thirteen"}) } else { json!({"status": "Success"}) };
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"],
        "response": {"uid": review["request"]["uid"], "result": result, "convertedObjects": objects}})
}

async fn serve(request: hyper::Request<Incoming>, seen: &Mutex<Vec<(String, Value)>>) -> Response<Full<Bytes>> {
    let patience = if request.uri().path() == "/convert" { "timeout=30s" } else { "timeout=10s" };
    assert_eq!(request.uri().query(), Some(patience));
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    if path == "/convert" {
        seen.lock().unwrap().push((path, review["request"].clone()));
        return Response::new(Full::new(Bytes::from(converted(&review).to_string())));
    }
    let mut response = answer(&path, &review["request"]);
    response["uid"] = review["request"]["uid"].clone();
    seen.lock().unwrap().push((path, review["request"].clone()));
    let review = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
    Response::new(Full::new(Bytes::from(review.to_string())))
}

async fn configure(admin: &mut Client, kind: &str, name: &str, hooks: Vec<Value>) -> (u16, Value) {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}s", kind.to_ascii_lowercase());
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": hooks,
    });
    let (code, told) = admin.post(&path, &object).await;
    if code != 409 {
        return (code, told);
    }
    admin.call(Method::PUT, &format!("{path}/{name}"), Some(&object)).await.unwrap()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_called_as_kubernetes_calls_them() {
    let bench = Bench::start().await;
    let mut admin = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let hooks = Hooks::start().await;

    // In the order of the configurations' names, each seeing what the one before it did; the first is asked again
    // because it wants to be when others change something.
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    let (code, made) = configure(&mut admin, MUTATING, "b", vec![hooks.hook("b.x.y", "/second", json!({}))]).await;
    assert_eq!(code, 201, "{made}");
    let defaults = &made["webhooks"][0];
    assert_eq!(
        (
            &defaults["failurePolicy"],
            &defaults["matchPolicy"],
            &defaults["timeoutSeconds"],
            &defaults["rules"][0]["scope"]
        ),
        (&json!("Fail"), &json!("Equivalent"), &json!(10), &json!("*"))
    );
    let first = vec![hooks.hook("a.x.y", "/count", again), hooks.hook("a.x.z", "/first", json!({}))];
    configure(&mut admin, MUTATING, "a", first).await;
    let (code, made) = admin.post(MAPS, &map("one")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["labels"], json!({"count": "2", "first": "yes", "second": "yes"}));
    let counted = hooks.taken("/count");
    assert_eq!(counted.len(), 2);
    let review = &counted[0];
    assert_eq!((&review["operation"], &review["dryRun"]), (&json!("CREATE"), &json!(false)));
    assert_eq!(review["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(review["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(review["userInfo"]["username"], "kubernetes-admin");
    assert_eq!((&review["name"], &review["namespace"]), (&json!("one"), &json!("default")));
    assert_eq!(review["object"]["metadata"]["uid"], Value::Null);
    assert_eq!(hooks.taken("/second")[0]["object"]["metadata"]["labels"]["first"], "yes");
    let (code, _) = admin.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await;
    assert_eq!((code, &hooks.taken("/first").pop().unwrap()["dryRun"]), (201, &json!(true)));
    for name in ["a", "b"] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
        admin.call(Method::DELETE, &path, None).await.unwrap();
    }

    // A refusal comes in the hook's words.
    let chosen = json!({
        "objectSelector": {"matchLabels": {"sunday": "yes"}},
        "rules": [{"operations": ["CREATE", "DELETE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}],
    });
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/deny", chosen)]).await;
    assert_eq!(admin.post(MAPS, &map("two")).await.0, 201);
    let mut sunday = map("three");
    sunday["metadata"]["labels"] = json!({"sunday": "yes"});
    let (code, status) = admin.post(MAPS, &sunday).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(status["message"], "admission webhook \"v.x.y\" denied the request: not on a Sunday");
    // Changes are not in the rule, deletions are.
    let label = json!({"metadata": {"labels": {"sunday": "yes"}}});
    assert_eq!(admin.call(Method::PATCH, &format!("{MAPS}/two"), Some(&label)).await.unwrap().0, 200);
    let (code, _) = admin.call(Method::DELETE, &format!("{MAPS}/two"), None).await.unwrap();
    assert_eq!(code, 403);
    let review = hooks.taken("/deny").pop().unwrap();
    assert_eq!((&review["operation"], &review["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(review["oldObject"]["metadata"]["name"], "two");

    // By namespace, and by way of a service's endpoints.
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}});
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/deny", elsewhere)]).await;
    assert_eq!(admin.post(MAPS, &sunday).await.0, 201);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"}, "spec": {"ports": [{"port": 443, "name": "https"}]},
    });
    assert_eq!(admin.post("/api/v1/namespaces/default/services", &service).await.0, 201);
    let through = json!({"clientConfig": {
        "service": {"name": "hook", "namespace": "default", "path": "/warn"}, "caBundle": hooks.bundle,
    }});
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/", through)]).await;
    let (code, status) = admin.post(MAPS, &map("four")).await;
    assert_eq!(code, 500);
    assert_eq!(
        status["message"],
        "Internal error occurred: failed calling webhook \"v.x.y\": failed to call webhook: Post \"https://hook.default.svc:443/warn?timeout=10s\": no endpoints available for service \"hook\""
    );
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "ports": [{"name": "https", "port": hooks.address.port()}], "endpoints": [{"addresses": ["127.0.0.1"]}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(admin.post(slices, &slice).await.0, 201);
    let body = serde_json::to_vec(&map("four")).unwrap();
    let answer = admin.send(Method::POST, MAPS, "application/json", Bytes::from(body)).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["warning"].to_str().unwrap()),
        (201, "299 - \"this is old\"")
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_webhook_stops_writes_only_where_it_says_so_and_can_be_removed() {
    let bench = Bench::start().await;
    let mut admin = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let hooks = Hooks::start().await;
    let all = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]);
    let nowhere = json!({"url": "https://127.0.0.1:1/x"});
    let broken = json!({"rules": all, "clientConfig": nowhere});
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/", broken)]).await;
    let (code, status) = admin.post(MAPS, &map("one")).await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")));
    let told = status["message"].as_str().unwrap();
    assert!(
        told.contains(
            "failed calling webhook \"v.x.y\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=10s\""
        ),
        "{told}"
    );
    // A certificate of somebody else is no way in, either.
    let other = json!({"clientConfig": {"url": format!("https://{}/", hooks.address), "caBundle": Hooks::start().await.bundle}});
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/", other)]).await;
    assert_eq!(admin.post(MAPS, &map("one")).await.0, 500);
    let passed = json!({"rules": all, "clientConfig": nowhere, "failurePolicy": "Ignore"});
    configure(&mut admin, VALIDATING, "v", vec![hooks.hook("v.x.y", "/", passed)]).await;
    assert_eq!(admin.post(MAPS, &map("one")).await.0, 201);

    for (wrong, field) in [
        (json!({"sideEffects": "Some"}), "webhooks[0].sideEffects"),
        (json!({"name": "short"}), "webhooks[0].name"),
        (json!({"timeoutSeconds": 31}), "webhooks[0].timeoutSeconds"),
        (json!({"admissionReviewVersions": ["v9"]}), "webhooks[0].admissionReviewVersions"),
        (json!({"clientConfig": {"url": "http://x/"}}), "webhooks[0].clientConfig.url"),
        (json!({"clientConfig": {}}), "webhooks[0].clientConfig"),
        (json!({"failurePolicy": "Maybe"}), "webhooks[0].failurePolicy"),
    ] {
        let (code, status) = configure(&mut admin, MUTATING, "m", vec![hooks.hook("m.x.y", "/", wrong)]).await;
        assert_eq!((code, &status["details"]["causes"][0]["field"]), (422, &json!(field)), "{status}");
    }
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/v";
    assert_eq!(admin.call(Method::DELETE, path, None).await.unwrap().0, 200);
    bench.stop().await;
}
