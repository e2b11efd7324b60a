//! What Kubernetes' own API server answers (1.36.2, `e2e/same`), asked of this one: the words of refusals, and what is done besides
//! storing.

use crate::bench::Bench;
use crate::http::{Access, Client};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn client(bench: &Bench) -> Client {
    Access::of(bench.server.kubeconfig()).admin().await.unwrap()
}

async fn until(client: &mut Client, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let (_, object) = client.get(path).await;
        if holds(&object) {
            return object;
        }
        assert!(tokio::time::Instant::now() < end, "{path}: {object}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `same.txt`: a request (its body after `|`, its headers after `@`), and what Kubernetes answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_those_of_kubernetes() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    assert_eq!(admin.post(MAPS, &map).await.0, 201);
    let mut wrong = Vec::new();
    let mut request: Option<(Vec<&str>, String)> = None;
    let mut headers: Vec<(&str, &str)> = Vec::new();
    for line in include_str!("same.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let Some(wanted) = line.strip_prefix("> ") else {
            match line.strip_prefix("| ") {
                Some(body) => request.as_mut().unwrap().1.push_str(&format!("{body}\n")),
                None if line.starts_with('@') => headers.push(line[1..].trim().split_once(": ").unwrap()),
                None => request = Some((line.split(' ').collect(), String::new())),
            }
            continue;
        };
        let (words, body) = request.take().unwrap();
        let kind = words.get(2).copied().unwrap_or("application/json");
        let method = Method::from_bytes(words[0].as_bytes()).unwrap();
        let answer = admin.send_with(method, words[1], kind, &headers, Bytes::from(body)).await.unwrap();
        headers.clear();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let told = match serde_json::from_slice::<Value>(&bytes) {
            Ok(status) => status["message"].as_str().unwrap_or_default().replace('\n', "\\n"),
            Err(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        };
        let told = format!("{code} {told}");
        if told.trim_end() != wanted {
            wrong.push(format!("{}\n  Kubernetes: {wanted}\n  here:       {told}", words.join(" ")));
        }
    }
    bench.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_are_counted_and_kept() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "2", "requests.cpu": "1", "services": 0}}});
    let (code, made) = admin.post("/api/v1/namespaces/default/resourcequotas", &quota).await;
    assert_eq!((code, &made["spec"]["hard"]["services"]), (201, &json!("0")));
    let pod = |name: &str, cpu: &str| {
        let mut container = json!({"name": "c", "image": "i"});
        if !cpu.is_empty() {
            container["resources"] = json!({"requests": {"cpu": cpu}});
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}})
    };
    let (code, told) = admin.post(PODS, &pod("none", "")).await;
    assert_eq!(code, 403);
    assert_eq!(told["message"], "pods \"none\" is forbidden: failed quota: q: must specify requests.cpu for: c");
    assert_eq!(admin.post(PODS, &pod("one", "0.6")).await.0, 201);
    let (code, told) = admin.post(PODS, &pod("two", "500m")).await;
    assert_eq!(code, 403);
    assert_eq!(
        told["message"],
        "pods \"two\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    let used = json!({"pods": "1", "requests.cpu": "600m", "services": "1"});
    until(&mut admin, "/api/v1/namespaces/default/resourcequotas/q", |q| q["status"]["used"] == used).await;
    // Many at once do not count at the same moment.
    let at_once = (0..6).map(|n| {
        let (mut admin, pod) = (admin.clone(), pod(&format!("p{n}"), "10m"));
        async move { admin.post(PODS, &pod).await.0 }
    });
    let codes = futures_util::future::join_all(at_once).await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_given_and_kept() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "0.5"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": 1}}]}});
    assert_eq!(admin.post("/api/v1/namespaces/default/limitranges", &range).await.0, 201);
    let pod = |resources: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
    };
    let (code, made) = admin.post(PODS, &pod(json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}));
    assert_eq!(made["status"]["qosClass"], "Burstable");
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let (code, told) = admin.post(PODS, &pod(json!({"limits": {"cpu": "4"}}))).await;
    assert_eq!(code, 403);
    let why = "maximum cpu usage per Container is 1, but limit is 4";
    assert!(told["message"].as_str().unwrap().ends_with(why), "{told}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_in_cel_are_in_force_where_they_are_bound() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "small"}, "spec": {
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "variables": [{"name": "count", "expression": "has(object.data) ? size(object.data) : 0"}],
            "validations": [
                {"expression": "variables.count <= int(params.data.most)", "messageExpression": "'at most ' + params.data.most"},
                {"expression": "object.metadata.name != 'no'", "reason": "Forbidden"}]}});
    let (code, made) = admin.post(&format!("{group}/validatingadmissionpolicies"), &policy).await;
    assert_eq!((code, &made["spec"]["failurePolicy"]), (201, &json!("Fail")), "{made}");
    let map = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
    let two = json!({"a": "1", "b": "2"});
    // Without a binding it says nothing.
    assert_eq!(admin.post(MAPS, &map("before", two.clone())).await.0, 201);
    assert_eq!(admin.post(MAPS, &map("limit", json!({"most": "1"}))).await.0, 201);
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "b"}, "spec": {"policyName": "small", "validationActions": ["Deny"],
            "paramRef": {"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"},
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}}});
    assert_eq!(admin.post(&format!("{group}/validatingadmissionpolicybindings"), &binding).await.0, 201);
    let (code, told) = admin.post(MAPS, &map("two", two.clone())).await;
    assert_eq!((code, &told["reason"]), (422, &json!("Invalid")));
    assert_eq!(
        told["message"],
        "configmaps \"two\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'b' denied request: at most 1"
    );
    let (code, told) = admin.post(MAPS, &map("no", json!({}))).await;
    assert_eq!((code, &told["reason"]), (403, &json!("Forbidden")));
    assert!(told["message"].as_str().unwrap().ends_with("failed expression: object.metadata.name != 'no'"), "{told}");
    assert_eq!(admin.post(MAPS, &map("one", json!({"a": "1"}))).await.0, 201);
    assert_eq!(admin.post("/api/v1/namespaces/kube-public/configmaps", &map("two", two)).await.0, 201);
    // Without its parameters it refuses, as it says.
    assert_eq!(admin.call(Method::DELETE, &format!("{MAPS}/limit"), None).await.unwrap().0, 200);
    let (code, told) = admin.post(MAPS, &map("other", json!({}))).await;
    assert_eq!(code, 422);
    assert!(told["message"].as_str().unwrap().contains("failed to configure binding: no params found"), "{told}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_made_of_others() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let part = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "things", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}]});
    assert_eq!(admin.post(roles, &part).await.0, 201);
    let has = |role: &Value| {
        role["rules"].as_array().is_some_and(|rules| rules.iter().any(|r| r["apiGroups"] == json!(["example.com"])))
    };
    // Whoever may edit may view, and whoever administers may do both.
    for name in ["view", "edit", "admin"] {
        until(&mut admin, &format!("{roles}/{name}"), has).await;
    }
    assert_eq!(admin.call(Method::DELETE, &format!("{roles}/things"), None).await.unwrap().0, 200);
    until(&mut admin, &format!("{roles}/admin"), |role| !has(role)).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_roles_get_what_they_lack_at_the_next_start() {
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let mut bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let poorer = json!({"rules": [{"apiGroups": ["example.com"], "resources": ["own"], "verbs": ["get"]}]});
    for (name, autoupdate) in [("system:basic-user", "true"), ("system:discovery", "false")] {
        let mut patch = poorer.clone();
        patch["metadata"] = json!({"annotations": {"rbac.authorization.kubernetes.io/autoupdate": autoupdate}});
        let path = format!("{roles}/{name}");
        assert_eq!(admin.call(Method::PATCH, &path, Some(&patch)).await.unwrap().0, 200);
    }
    bench = bench.again().await;
    let mut admin = client(&bench).await;
    let (_, kept) = admin.get(&format!("{roles}/system:discovery")).await;
    assert_eq!(kept["rules"], poorer["rules"]);
    let (_, filled) = admin.get(&format!("{roles}/system:basic-user")).await;
    let rules = filled["rules"].as_array().unwrap();
    assert!(rules.contains(&poorer["rules"][0]) && rules.len() > 1, "{filled}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_and_pods_are_furnished() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let root = until(&mut admin, &format!("{MAPS}/kube-root-ca.crt"), |map| map["kind"] == "ConfigMap").await;
    assert!(root["data"]["ca.crt"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    let pod = |account: &str, mount: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"}, "spec": {
            "serviceAccountName": account, "automountServiceAccountToken": mount, "containers": [{"name": "c", "image": "i"}]}})
    };
    let (code, made) = admin.post(PODS, &pod("default", Value::Null)).await;
    assert_eq!(code, 201, "{made}");
    let volume = made["spec"]["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"), "{made}");
    assert_eq!(
        made["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
    let (_, bare) = admin.post(PODS, &pod("default", json!(false))).await;
    assert_eq!(bare["spec"].get("volumes"), None);
    // Quantities are written in their one form.
    let mut wide = pod("default", json!(false));
    wide["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "0.5Gi", "cpu": 2}});
    let (_, wide) = admin.post(PODS, &wide).await;
    let amounts = json!({"memory": "512Mi", "cpu": "2"});
    assert_eq!(wide["spec"]["containers"][0]["resources"], json!({"limits": amounts, "requests": amounts}));
    assert_eq!(wide["status"]["qosClass"], "Guaranteed");
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let (code, job) = admin.post("/apis/batch/v1/namespaces/default/jobs", &job).await;
    assert_eq!(code, 201, "{job}");
    let uid = &job["metadata"]["uid"];
    assert_eq!(job["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": uid}));
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_goes_says_what_it_waits_for() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    assert_eq!(admin.post("/api/v1/namespaces", &space).await.0, 201);
    let held =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/x"]}});
    assert_eq!(admin.post("/api/v1/namespaces/n/configmaps", &held).await.0, 201);
    assert_eq!(admin.call(Method::DELETE, "/api/v1/namespaces/n", None).await.unwrap().0, 200);
    let told = until(&mut admin, "/api/v1/namespaces/n", |n| n["status"]["conditions"][4]["status"] == "True").await;
    assert_eq!(
        told["status"]["conditions"][3]["message"],
        "Some resources are remaining: configmaps. has 1 resource instances"
    );
    assert_eq!(
        told["status"]["conditions"][4]["message"],
        "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
    );
    let free = json!({"metadata": {"finalizers": null}});
    let path = "/api/v1/namespaces/n/configmaps/held";
    assert_eq!(admin.call(Method::PATCH, path, Some(&free)).await.unwrap().0, 200);
    until(&mut admin, "/api/v1/namespaces/n", |n| n["code"] == 404).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_of_a_definition_are_there_in_what_was_stored_before() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let text = json!({"type": "string"});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "deprecated": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "properties": {"a": text}}}}}}]}});
    assert_eq!(admin.post(definitions, &definition).await.0, 201);
    let things = "/apis/example.com/v1/namespaces/default/things";
    until(&mut admin, things, |list| list["kind"] == "ThingList").await;
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"a": "x"}});
    let answer = admin.send(Method::POST, things, "application/json", Bytes::from(thing.to_string())).await.unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["warning"], "299 - \"example.com/v1 Thing is deprecated\"");
    let mut later = definition["spec"]["versions"].clone();
    later[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["later"] =
        json!({"type": "string", "default": "filled"});
    let patch = json!({"spec": {"versions": later}});
    assert_eq!(
        admin.call(Method::PATCH, &format!("{definitions}/things.example.com"), Some(&patch)).await.unwrap().0,
        200
    );
    until(&mut admin, &format!("{things}/t"), |thing| thing["spec"]["later"] == "filled").await;
    let (_, list) = admin.get(things).await;
    assert_eq!(list["items"][0]["spec"], json!({"a": "x", "later": "filled"}));
    bench.stop().await;
}

/// What `metadata.managedFields` of a new object says in Kubernetes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_creator_owns() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let none = json!({});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}},
        "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}});
    let port = json!({".": none, "f:port": none, "f:protocol": none, "f:targetPort": none});
    let owned = json!({"f:metadata": {"f:labels": {".": none, "f:a": none}}, "f:spec": {
        "f:internalTrafficPolicy": none, "f:ports": {".": none, "k:{\"port\":80,\"protocol\":\"TCP\"}": port},
        "f:selector": none, "f:sessionAffinity": none, "f:type": none}});
    let (code, made) = admin.post("/api/v1/namespaces/default/services", &service).await;
    assert_eq!((code, &made["metadata"]["managedFields"][0]["fieldsV1"]), (201, &owned));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let container = json!({".": none, "f:image": none, "f:imagePullPolicy": none, "f:name": none, "f:resources": none,
        "f:terminationMessagePath": none, "f:terminationMessagePolicy": none});
    let owned = json!({"f:metadata": {"f:generateName": none}, "f:spec": {
        "f:containers": {"k:{\"name\":\"c\"}": container}, "f:dnsPolicy": none, "f:enableServiceLinks": none,
        "f:restartPolicy": none, "f:schedulerName": none, "f:securityContext": none,
        "f:terminationGracePeriodSeconds": none}});
    let (code, made) = admin.post(PODS, &pod).await;
    assert_eq!((code, &made["metadata"]["managedFields"][0]["fieldsV1"]), (201, &owned));
    // What is taken away whole has no owner left.
    let path = "/api/v1/namespaces/default/services/s";
    let bare = json!({"metadata": {"labels": {"a": null}}});
    let (_, made) = admin.call(Method::PATCH, path, Some(&bare)).await.unwrap();
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"].get("f:metadata"), None, "{made}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_the_old_way_of_watching() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    assert_eq!(admin.post(MAPS, &map).await.0, 201);
    let (_, list) = admin.get(&format!("{MAPS}?fieldSelector=metadata.name%3Da")).await;
    assert_eq!((&list["items"][0]["metadata"]["name"], list["items"][0].get("kind")), (&json!("a"), None));
    // An object is not watched by its path, but by the path that was for it once.
    let (code, object) = admin.get(&format!("{MAPS}/a?watch=true")).await;
    assert_eq!((code, &object["kind"]), (200, &json!("ConfigMap")));
    let mut watch = admin.watch("/api/v1/watch/namespaces/default/configmaps/a?timeoutSeconds=5").await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("ADDED"), &json!("ConfigMap")));
    // What the server has at hand comes whole, whatever the limit.
    let (_, list) = admin.get("/api/v1/namespaces?limit=1&resourceVersion=0").await;
    assert!(list["items"].as_array().unwrap().len() > 1, "{list}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_goes_leaves_its_pods_unless_asked_otherwise() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "finalizers": ["example.com/x"]},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(admin.post(jobs, &job).await.0, 201);
    let answer = admin.send(Method::DELETE, &format!("{jobs}/j"), "", Bytes::new()).await.unwrap();
    assert!(answer.headers()["warning"].to_str().unwrap().contains("child pods are preserved"), "{answer:?}");
    let held: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(held["metadata"]["finalizers"], json!(["example.com/x", "orphan"]));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_kinds_are_selected_by_the_fields_that_their_definition_names() {
    let bench = Bench::start().await;
    let mut admin = client(&bench).await;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "selectableFields": [{"jsonPath": ".spec.a"}], "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"a": {"type": "string"}, "when": {"type": "string",
                    "format": "date-time"}, "n": {"type": "integer", "maximum": 3}}}}}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(admin.post(definitions, &definition).await.0, 201);
    let things = "/apis/example.com/v1/namespaces/default/things";
    until(&mut admin, things, |list| list["kind"] == "ThingList").await;
    let thing = |name: &str, spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec});
    for (name, a) in [("x", "red"), ("y", "blue")] {
        assert_eq!(admin.post(things, &thing(name, json!({"a": a}))).await.0, 201);
    }
    let (_, list) = admin.get(&format!("{things}?fieldSelector=spec.a%3Dred")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["metadata"]["name"], "x");
    let (code, told) = admin.get(&format!("{things}?fieldSelector=spec.n%3D1")).await;
    assert_eq!((code, &told["message"]), (400, &json!("field label not supported: spec.n")));
    // All mistakes are told, those of type and the others.
    let (_, told) = admin.post(things, &thing("z", json!({"a": 1, "n": 5, "when": "soon"}))).await;
    let causes: Vec<&str> =
        told["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(causes, ["spec.a", "spec.when", "spec.n"], "{told}");
    // A definition without a finalizer of its own gets the one that empties it when it goes.
    let path = format!("{definitions}/things.example.com");
    let (_, kept) = admin.get(&path).await;
    assert_eq!(kept["metadata"].get("finalizers"), None);
    let (_, gone) = admin.call(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(gone["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    until(&mut admin, &path, |object| object["code"] == 404).await;
    bench.stop().await;
}
