//! The loops and admission over a real store.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::{Fixture, root_pem};
use crate::authorize::{Attributes, Authorizer, User};
use crate::error::ApiError;
use crate::rbac::Rbac;
use crate::store::{DeleteOptions, Intent, Store, WriteOptions};

const SLICES: &str = "endpointslices.discovery.k8s.io";

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

fn pod(namespace: &str, name: &str, app: &str, port_name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": app } },
        "spec": {
            "nodeName": "here",
            "containers": [{ "name": "app", "image": "x", "ports": [{ "name": port_name, "containerPort": port }] }],
        },
    })
}

async fn set_status(store: &Store, namespace: &str, name: &str, ip: &str, ready: bool) {
    let status = json!({
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{ "ip": ip }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
    });
    let written = store.modify("pods", namespace, name, WriteOptions::default(), |old| {
        let mut new = old.unwrap().clone();
        new["status"] = status.clone();
        Ok(Intent::Put(new))
    });
    written.await.unwrap();
}

fn slices(store: &Store, namespace: &str, service: &str) -> Vec<Value> {
    let all = store.list(SLICES, Some(namespace)).items;
    all.into_iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == service).collect()
}

/// `address:port ready` of each endpoint.
fn endpoints(store: &Store, namespace: &str, service: &str) -> Vec<String> {
    let mut found = Vec::new();
    for slice in slices(store, namespace, service) {
        let ports: Vec<String> =
            slice["ports"].as_array().into_iter().flatten().map(|p| p["port"].to_string()).collect();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().unwrap();
            found.push(format!("{address}:{} {}", ports.join("+"), endpoint["conditions"]["ready"]));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_furnished_and_follow_the_root() {
    let fixture = Fixture::new(true).await;
    fixture.namespace("shop").await;
    fixture.until("the default account", |s| s.exists("serviceaccounts", "shop", "default").then_some(())).await;
    assert!(!fixture.store.exists("configmaps", "shop", "istio-ca-root-cert"), "no root is known yet");
    let root_is = |text: &'static str| {
        move |s: &Store| {
            let all = ["shop", "default", "istio-system"].iter().all(|n| {
                s.get("configmaps", n, "istio-ca-root-cert").is_some_and(|c| c["data"]["root-cert.pem"] == text)
            });
            all.then_some(())
        }
    };
    fixture.root.send(root_pem("one")).unwrap();
    fixture.until("the first root", root_is("one")).await;
    fixture.root.send(root_pem("two")).unwrap();
    fixture.until("the second root", root_is("two")).await;
    // What a user breaks is repaired.
    fixture.store.delete("configmaps", "shop", "istio-ca-root-cert", &DeleteOptions::default()).await.unwrap();
    fixture.store.delete("serviceaccounts", "shop", "default", &DeleteOptions::default()).await.unwrap();
    fixture.until("the root again", root_is("two")).await;
    assert!(!fixture.store.exists("configmaps", "shop", "istio-ca-crl"), "there are no lists");
    let lists = |s: &Store| s.get("configmaps", "shop", "istio-ca-crl").map(|c| c["data"]["ca-crl.pem"].clone());
    fixture.lists.send(root_pem("revoked")).unwrap();
    fixture.until("the lists", |s| (lists(s)? == "revoked").then_some(())).await;
    fixture.lists.send(None).unwrap();
    fixture.until("no lists", |s| lists(s).is_none().then_some(())).await;
    fixture.until("the account again", |s| s.exists("serviceaccounts", "shop", "default").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let fixture = Fixture::new(true).await;
    fixture.namespace("shop").await;
    for i in 0..20 {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("c{i}"), "namespace": "shop" } });
        fixture.store.create("configmaps", object).await.unwrap();
    }
    fixture.apply("pods", "Pod", pod("shop", "p", "a", "http", 80)).await.unwrap();
    fixture.store.delete("namespaces", "", "shop", &DeleteOptions::default()).await.unwrap();
    fixture
        .until("the pod's deletion", |s| {
            s.get("pods", "shop", "p").filter(|p| p["metadata"].get("deletionTimestamp").is_some())
        })
        .await;
    let namespace = fixture.store.get("namespaces", "", "shop").expect("waits for the pod's runner");
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    fixture.store.delete("pods", "shop", "p", &options).await.unwrap();
    fixture.until("the namespace's end", |s| (!s.exists("namespaces", "", "shop")).then_some(())).await;
    assert_eq!(fixture.store.list("configmaps", Some("shop")).items.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_follow_services_and_pods() {
    let fixture = Fixture::new(true).await;
    fixture.namespace("shop").await;
    let spec = json!({ "selector": { "app": "a" }, "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] });
    let web = fixture.apply("services", "Service", service("shop", "web", spec)).await.unwrap();
    let empty = fixture.until("an empty slice", |s| slices(s, "shop", "web").pop()).await;
    assert_eq!(empty["endpoints"], Value::Null);
    assert_eq!(empty["metadata"]["ownerReferences"][0]["uid"], web["metadata"]["uid"]);

    fixture.apply("pods", "Pod", pod("shop", "p1", "a", "web", 8080)).await.unwrap();
    set_status(&fixture.store, "shop", "p1", "10.244.0.5", false).await;
    let says =
        |expected: &'static [&'static str]| move |s: &Store| (endpoints(s, "shop", "web") == expected).then_some(());
    fixture.until("an endpoint that is not ready", says(&["10.244.0.5:8080 false"])).await;
    set_status(&fixture.store, "shop", "p1", "10.244.0.5", true).await;
    fixture.until("a ready endpoint", says(&["10.244.0.5:8080 true"])).await;
    let slice = slices(&fixture.store, "shop", "web").pop().unwrap();
    assert_eq!(slice["metadata"]["name"], empty["metadata"]["name"], "the slice is changed in place");
    assert_eq!(slice["ports"], json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]));
    assert_eq!(slice["endpoints"][0]["targetRef"]["name"], "p1");
    assert_eq!(slice["endpoints"][0]["nodeName"], "here");

    // A pod that names another port for the same name needs a slice of its own; one that has no such port has no ports.
    fixture.apply("pods", "Pod", pod("shop", "p2", "a", "web", 9090)).await.unwrap();
    set_status(&fixture.store, "shop", "p2", "10.244.0.6", true).await;
    fixture.until("two slices", says(&["10.244.0.5:8080 true", "10.244.0.6:9090 true"])).await;
    fixture.apply("pods", "Pod", pod("shop", "p3", "a", "other", 1)).await.unwrap();
    set_status(&fixture.store, "shop", "p3", "10.244.0.7", true).await;
    fixture.until("three slices", says(&["10.244.0.5:8080 true", "10.244.0.6:9090 true", "10.244.0.7: true"])).await;

    // A pod that is being stopped is not ready; one that has ended is no endpoint.
    fixture.store.delete("pods", "shop", "p1", &DeleteOptions::default()).await.unwrap();
    fixture.until("p1 terminating", says(&["10.244.0.5:8080 false", "10.244.0.6:9090 true", "10.244.0.7: true"])).await;
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    for name in ["p1", "p3"] {
        fixture.store.delete("pods", "shop", name, &now).await.unwrap();
    }
    fixture.until("p2 alone", says(&["10.244.0.6:9090 true"])).await;

    // A slice that somebody deletes comes back under its name; a service that goes takes its slices along.
    let slice = slices(&fixture.store, "shop", "web").pop().unwrap();
    let name = slice["metadata"]["name"].as_str().unwrap();
    fixture.store.delete(SLICES, "shop", name, &now).await.unwrap();
    fixture.until("the slice again", says(&["10.244.0.6:9090 true"])).await;
    fixture.store.delete("services", "shop", "web", &now).await.unwrap();
    fixture.until("no slices", |s| slices(s, "shop", "web").is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headless_services_and_unready_addresses() {
    let fixture = Fixture::new(true).await;
    fixture.namespace("shop").await;
    let spec = json!({ "clusterIP": "None", "selector": { "app": "a" }, "publishNotReadyAddresses": true, "ports": [{ "port": 80 }] });
    fixture.apply("services", "Service", service("shop", "db", spec)).await.unwrap();
    // Without a selector nobody's endpoints are ours.
    fixture
        .apply("services", "Service", service("shop", "manual", json!({ "ports": [{ "port": 80 }] })))
        .await
        .unwrap();
    let mut object = pod("shop", "db-0", "a", "x", 80);
    object["spec"]["hostname"] = "db-0".into();
    object["spec"]["subdomain"] = "db".into();
    fixture.apply("pods", "Pod", object).await.unwrap();
    set_status(&fixture.store, "shop", "db-0", "10.244.0.9", false).await;
    let slice = fixture
        .until("the endpoint", |s| {
            slices(s, "shop", "db").pop().filter(|slice| slice["endpoints"][0]["conditions"]["ready"] == true)
        })
        .await;
    assert_eq!(slice["endpoints"][0]["hostname"], "db-0");
    assert_eq!(slice["endpoints"][0]["conditions"]["serving"], false);
    assert_eq!(slice["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    assert!(slices(&fixture.store, "shop", "manual").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_services_are_cheap_and_a_change_is_quick() {
    let fixture = Fixture::new(true).await;
    fixture.namespace("shop").await;
    for i in 0..300 {
        let spec = json!({ "selector": { "app": format!("a{i}") }, "ports": [{ "port": 80, "targetPort": 8080 }] });
        fixture.apply("services", "Service", service("shop", &format!("s{i}"), spec)).await.unwrap();
    }
    fixture.until("all slices", |s| (s.list(SLICES, Some("shop")).items.len() == 300).then_some(())).await;
    fixture.apply("pods", "Pod", pod("shop", "p", "a7", "x", 8080)).await.unwrap();
    let mut times = Vec::new();
    for round in 0..20 {
        let ready = round % 2 == 0;
        let mut watch = fixture.store.watch(SLICES, fixture.store.revision()).unwrap();
        set_status(&fixture.store, "shop", "p", "10.244.1.1", ready).await;
        let written = std::time::Instant::now();
        loop {
            let event =
                tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("a slice changes").unwrap();
            if event.object["endpoints"][0]["conditions"]["ready"] == ready {
                assert_eq!(event.object["metadata"]["labels"]["kubernetes.io/service-name"], "s7");
                break;
            }
        }
        times.push(written.elapsed());
    }
    times.sort();
    println!("reaction after the status was durable: median {:?}, worst {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(250), "median {:?}", times[10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_with_their_owners() {
    let fixture = Fixture::new(true).await;
    let config = |name: &str, owners: Vec<(&str, &str)>| {
        let owners: Vec<Value> = owners
            .iter()
            .map(|(name, uid)| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid }))
            .collect();
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "default", "ownerReferences": owners } })
    };
    let a = fixture.store.create("configmaps", config("a", vec![])).await.unwrap();
    let b = fixture.store.create("configmaps", config("b", vec![])).await.unwrap();
    let (a, b) = (a["metadata"]["uid"].as_str().unwrap(), b["metadata"]["uid"].as_str().unwrap());
    fixture.store.create("configmaps", config("of-a", vec![("a", a)])).await.unwrap();
    fixture.store.create("configmaps", config("of-both", vec![("a", a), ("b", b)])).await.unwrap();
    fixture.store.create("configmaps", config("of-nobody", vec![("a", "another-uid")])).await.unwrap();
    let gone = |name: &'static str| move |s: &Store| (!s.exists("configmaps", "default", name)).then_some(());
    fixture.until("the object whose owner never was", gone("of-nobody")).await;
    fixture.store.delete("configmaps", "default", "a", &DeleteOptions::default()).await.unwrap();
    fixture.until("the dependent of a", gone("of-a")).await;
    let owners = |name: &'static str| {
        move |s: &Store| {
            let object = s.get("configmaps", "default", name)?;
            let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
            Some(owners.iter().map(|o| o["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
        }
    };
    let owned_by = |name, by: Vec<&'static str>| move |s: &Store| (owners(name)(s)? == by).then_some(());
    fixture.until("the reference to a, which is gone, to go", owned_by("of-both", vec!["b"])).await;
    let orphan = DeleteOptions { finalizer: Some("orphan".into()), ..DeleteOptions::default() };
    fixture.store.delete("configmaps", "default", "b", &orphan).await.unwrap();
    fixture.until("b", gone("b")).await;
    assert_eq!(owners("of-both")(&fixture.store), Some(vec![]), "orphaned, not deleted");

    // In the foreground an owner takes along only what nobody else owns.
    let c = fixture.store.create("configmaps", config("c", vec![])).await.unwrap();
    let d = fixture.store.create("configmaps", config("d", vec![])).await.unwrap();
    let (c, d) = (c["metadata"]["uid"].as_str().unwrap(), d["metadata"]["uid"].as_str().unwrap());
    fixture.store.create("configmaps", config("of-c", vec![("c", c)])).await.unwrap();
    fixture.store.create("configmaps", config("of-c-and-d", vec![("c", c), ("d", d)])).await.unwrap();
    let foreground = DeleteOptions { finalizer: Some("foregroundDeletion".into()), ..DeleteOptions::default() };
    fixture.store.delete("configmaps", "default", "c", &foreground).await.unwrap();
    fixture.until("c", gone("c")).await;
    fixture.until("the dependent of c", gone("of-c")).await;
    fixture.until("the reference to c to go", owned_by("of-c-and-d", vec!["d"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_ips_are_never_given_twice() {
    let fixture = Fixture::new(false).await;
    let one = || json!({ "ports": [{ "port": 80 }] });
    // Many at once: each admission happens before any of the writes is durable.
    let all = (0..200).map(|i| fixture.apply("services", "Service", service("default", &format!("s{i}"), one())));
    let all = futures_util::future::join_all(all).await;
    let ips: HashSet<String> =
        all.iter().map(|s| s.as_ref().unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ips.len(), 200);
    assert!(ips.iter().all(|ip| ip.starts_with("10.96.") && ip != "10.96.0.1" && ip != "10.96.0.10"), "{ips:?}");

    let with_ip =
        |name: &str, ip: &str| service("default", name, json!({ "clusterIP": ip, "ports": [{ "port": 80 }] }));
    let explicit = fixture.apply("services", "Service", with_ip("mine", "10.96.7.7")).await.unwrap();
    assert_eq!(explicit["spec"]["clusterIPs"], json!(["10.96.7.7"]));
    for (name, ip, why) in [
        ("twice", "10.96.7.7", "failed to allocate IP 10.96.7.7: provided IP is already allocated"),
        ("api", "10.96.0.1", "already allocated"),
        ("outside", "10.97.0.1", "the provided network does not match the current range"),
        ("first", "10.96.0.0", "not in the valid range"),
        ("last", "10.96.255.255", "not in the valid range"),
        ("text", "ten", "must be a valid IP address"),
        ("six", "fd00::1", "IPv6 is not configured"),
    ] {
        let error = fixture.apply("services", "Service", with_ip(name, ip)).await.unwrap_err();
        assert_eq!(error.code(), 422, "{name}");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
    // Immutable, kept when left out, and free again after the deletion.
    let error = fixture.apply("services", "Service", with_ip("mine", "10.96.7.8")).await.unwrap_err();
    assert!(error.to_string().contains("may not change once set"), "{error}");
    let kept = fixture
        .apply("services", "Service", service("default", "mine", json!({ "ports": [{ "port": 81 }] })))
        .await
        .unwrap();
    assert_eq!(kept["spec"]["clusterIP"], "10.96.7.7");
    fixture.store.delete("services", "default", "mine", &DeleteOptions::default()).await.unwrap();
    fixture.apply("services", "Service", with_ip("next", "10.96.7.7")).await.unwrap();
    // An address given up is free at once, also after an update that changed nothing.
    fixture.apply("services", "Service", with_ip("next", "10.96.7.7")).await.unwrap();
    fixture.store.delete("services", "default", "next", &DeleteOptions::default()).await.unwrap();
    fixture.apply("services", "Service", with_ip("after", "10.96.7.7")).await.unwrap();
    // Names that are generated share no promise.
    let generated = || json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "generateName": "g-", "namespace": "default" }, "spec": { "ports": [{ "port": 80 }] } });
    let both = futures_util::future::join(
        fixture.apply("services", "Service", generated()),
        fixture.apply("services", "Service", generated()),
    )
    .await;
    assert_ne!(both.0.unwrap()["spec"]["clusterIP"], both.1.unwrap()["spec"]["clusterIP"]);
    // To another type and back: the address is given up, and a new one found.
    let mut away = fixture.store.get("services", "default", "s0").unwrap();
    away["spec"]["type"] = "ExternalName".into();
    away["spec"]["externalName"] = "x.example".into();
    let away = fixture.apply("services", "Service", away).await.unwrap();
    assert_eq!(away["spec"].get("clusterIP"), None);
    let back = fixture
        .apply("services", "Service", service("default", "s0", json!({ "ports": [{ "port": 80 }] })))
        .await
        .unwrap();
    assert!(back["spec"]["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("10.96.")), "{back}");
    let headless = fixture.apply("services", "Service", with_ip("headless", "None")).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_completed_and_node_ports_kept() {
    let fixture = Fixture::new(false).await;
    let spec = json!({ "type": "NodePort", "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81, "targetPort": "web", "nodePort": 31000 }] });
    let stored = fixture.apply("services", "Service", service("default", "np", spec.clone())).await.unwrap();
    let ports = &stored["spec"]["ports"];
    assert_eq!(ports[0]["targetPort"], 80);
    assert_eq!(ports[0]["protocol"], "TCP");
    assert_eq!(ports[1]["targetPort"], "web");
    assert_eq!(ports[1]["nodePort"], 31000);
    let allocated = ports[0]["nodePort"].as_u64().unwrap();
    assert!((30_000..=32_767).contains(&allocated) && allocated != 31_000);
    for (field, value) in [
        ("sessionAffinity", "None"),
        ("internalTrafficPolicy", "Cluster"),
        ("externalTrafficPolicy", "Cluster"),
        ("ipFamilyPolicy", "SingleStack"),
    ] {
        assert_eq!(stored["spec"][field], value, "{field}");
    }
    assert_eq!(stored["spec"]["ipFamilies"], json!(["IPv4"]));
    let again = fixture.apply("services", "Service", service("default", "np", spec.clone())).await.unwrap();
    assert_eq!(again["spec"]["ports"], stored["spec"]["ports"], "an update without them keeps the node ports");
    let error = fixture.apply("services", "Service", service("default", "other", spec)).await.unwrap_err();
    assert!(
        error.to_string().contains("spec.ports[1].nodePort: Invalid value: 31000: provided port is already allocated"),
        "{error}"
    );
    for (spec, why) in [
        (json!({ "ports": [] }), "spec.ports: Required value"),
        (json!({ "ports": [{ "port": 80 }, { "port": 81 }] }), "spec.ports[0].name: Required value"),
        (
            json!({ "ports": [{ "port": 0 }] }),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({ "ports": [{ "name": "a", "port": 1 }, { "name": "a", "port": 2 }] }),
            "spec.ports[1].name: Duplicate value",
        ),
        (
            json!({ "ports": [{ "name": "a", "port": 1 }, { "name": "b", "port": 1 }] }),
            "spec.ports[1]: Duplicate value",
        ),
        (json!({ "ports": [{ "port": 1, "targetPort": "Not_A_Name" }] }), "spec.ports[0].targetPort"),
        (json!({ "ports": [{ "port": 1, "protocol": "QUIC" }] }), "spec.ports[0].protocol: Unsupported value"),
        (json!({ "type": "ExternalName" }), "spec.externalName: Required value"),
        (json!({ "type": "Magic", "ports": [{ "port": 1 }] }), "spec.type: Unsupported value"),
        (
            json!({ "type": "NodePort", "clusterIP": "None", "ports": [{ "port": 1 }] }),
            "may not be set to 'None' for NodePort services",
        ),
    ] {
        let error = fixture.apply("services", "Service", service("default", "bad", spec.clone())).await.unwrap_err();
        assert!(error.to_string().contains(why), "{spec}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_secrets_and_policies_are_admitted() {
    let fixture = Fixture::new(false).await;
    let stored = fixture.apply("pods", "Pod", pod("default", "p", "a", "http", 80)).await.unwrap();
    assert_eq!(stored["spec"]["serviceAccountName"], "default");
    assert_eq!(stored["spec"]["restartPolicy"], "Always");
    assert_eq!(stored["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(stored["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    assert_eq!(stored["status"]["phase"], "Pending");
    let mut other = pod("default", "q", "a", "http", 80);
    other["spec"]["serviceAccountName"] = "nobody".into();
    let error = fixture.apply("pods", "Pod", other).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pods \"q\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
    );

    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "default" }, "stringData": { "a": "b" } });
    let stored = fixture.apply("secrets", "Secret", secret).await.unwrap();
    assert_eq!(
        (&stored["data"]["a"], &stored["type"], stored.get("stringData")),
        (&json!("Yg=="), &json!("Opaque"), None)
    );

    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "p", "namespace": "default" },
        "spec": { "portLevelMtls": { "80": { "mode": "STRICT" } } },
    });
    let error = fixture.apply("peerauthentications.security.istio.io", "PeerAuthentication", policy).await.unwrap_err();
    assert!(error.to_string().contains("spec.portLevelMtls: Invalid value"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_decide_and_nobody_escalates() {
    let fixture = Fixture::new(false).await;
    fixture.namespace("shop").await;
    let rbac = Rbac::new(fixture.store.clone());
    let user = |name: &str| User { name: name.into(), groups: vec!["system:authenticated".into()], ..User::default() };
    let asks = |verb: &str, resource: &str, namespace: &str| Attributes {
        verb: verb.into(),
        resource: resource.into(),
        namespace: namespace.into(),
        ..Attributes::default()
    };
    let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
    assert!(!rbac.authorize(&user("ann"), &asks("get", "pods", "shop")).allowed());
    assert!(rbac.authorize(&user("ann"), &path("/apis/apps")).allowed());
    assert!(!rbac.authorize(&User::anonymous(), &path("/apis/apps")).allowed());
    assert!(rbac.authorize(&User::anonymous(), &path("/version")).allowed());

    let bind = |name: &str, role: &str, subject: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": name, "namespace": "shop" },
            "roleRef": { "kind": "ClusterRole", "name": role }, "subjects": [subject],
        })
    };
    const BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
    fixture.apply(BINDINGS, "RoleBinding", bind("v", "view", json!({ "kind": "User", "name": "ann" }))).await.unwrap();
    // In force with the next decision, in its namespace only, and without secrets.
    assert!(rbac.authorize(&user("ann"), &asks("list", "pods", "shop")).allowed());
    assert!(!rbac.authorize(&user("ann"), &asks("list", "pods", "default")).allowed());
    assert!(!rbac.authorize(&user("ann"), &asks("list", "pods", "")).allowed());
    assert!(!rbac.authorize(&user("ann"), &asks("get", "secrets", "shop")).allowed());
    assert!(!rbac.authorize(&user("ann"), &asks("delete", "pods", "shop")).allowed());

    let account = json!({ "kind": "ServiceAccount", "name": "robot", "namespace": "shop" });
    fixture.apply(BINDINGS, "RoleBinding", bind("a", "admin", account)).await.unwrap();
    let robot = user("system:serviceaccount:shop:robot");
    assert!(rbac.authorize(&robot, &asks("delete", "pods", "shop")).allowed());
    let subject = || json!({ "kind": "User", "name": "bob" });
    fixture.apply_as(&robot, BINDINGS, "RoleBinding", bind("e", "edit", subject())).await.unwrap();
    let error =
        fixture.apply_as(&robot, BINDINGS, "RoleBinding", bind("c", "cluster-admin", subject())).await.unwrap_err();
    assert!(matches!(error, ApiError::Forbidden { .. }), "{error}");
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "r", "namespace": "shop" },
        "rules": [{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }],
    });
    let error = fixture.apply_as(&robot, "roles.rbac.authorization.k8s.io", "Role", role).await.unwrap_err();
    assert!(error.to_string().contains("attempting to grant RBAC permissions not currently held"), "{error}");
    // A binding that is gone counts no more.
    fixture.store.delete(BINDINGS, "shop", "v", &DeleteOptions::default()).await.unwrap();
    assert!(!rbac.authorize(&user("ann"), &asks("list", "pods", "shop")).allowed());
}
