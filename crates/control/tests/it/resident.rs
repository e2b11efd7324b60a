//! What lives in a cluster: one key for all replicas, one of them that writes, bundles that stay fresh. Against the embedded API.

use crate::cluster::{client, object};
use crate::fixture::local;
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::injector::{InjectorOptions, injector};
use carrick_control::leader::{LeaseOptions, election};
use carrick_control::{Control, ControlOptions, Resident, resident};
use carrick_pki::{Authority, SetTexts};
use carrick_runtime::drain;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::json;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const LENGTH: Duration = Duration::from_secs(2);

/// One replica; killed when it is dropped, as if its machine were gone.
struct Replica {
    _control: Control,
    authority: Arc<Authority>,
    leading: tokio::sync::watch::Receiver<bool>,
    election: JoinHandle<()>,
    _drain: drain::DrainTrigger,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.election.abort();
    }
}

async fn replica(client: &kube::Client, name: &str) -> Replica {
    of_revision(client, name, "default").await
}

async fn of_revision(client: &kube::Client, name: &str, revision: &str) -> Replica {
    let authority = resident::authority(client, "istio-system", Default::default()).await.expect("an authority");
    let authority = Arc::new(authority);
    let mut options = ControlOptions::new(client.clone(), authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    let (trigger, draining) = drain::channel();
    let own = draining.clone();
    let mut lease = LeaseOptions::new("istio-system", "istio-leader", name);
    (lease.length, lease.pause) = (LENGTH, Duration::from_millis(100));
    let gateways = LeaseOptions { name: format!("carrick-gateways-{revision}"), ..lease.clone() };
    let (leading, electing) = election(client.clone(), lease, draining.clone());
    let (deploys, electing_too) = election(client.clone(), gateways, draining);
    let electing = async { ((), ()) = tokio::join!(electing, electing_too) };
    options.leading = Some(leading.clone());
    let (knows, _) = tokio::sync::watch::channel(false);
    let (injector, knowing) = injector(client.clone(), InjectorOptions::new("istio-system", revision), knows, own);
    tokio::spawn(knowing);
    options.resident = Some(Resident {
        revision: revision.to_owned(),
        webhooks: local(0),
        inject: None,
        workloads: Some(injector.workloads),
        deploys: Some(deploys),
    });
    let control = Control::start(options).await.expect("starts");
    Replica { _control: control, authority, leading, election: tokio::spawn(electing), _drain: trigger }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_followed_and_writing_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let create = PostParams::default();

    // Both begin at once: there is one key.
    let (first, second) = tokio::join!(replica(&client, "a"), replica(&client, "b"));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "istio-system");
    let kept = secrets.get("istio-ca-secret").await.expect("the key").data.expect("data");
    let root = String::from_utf8(kept["ca-cert.pem"].0.clone()).expect("PEM");

    until("somebody leads", || async { *first.leading.borrow() || *second.leading.borrow() }).await;
    assert!(!(*first.leading.borrow() && *second.leading.borrow()), "two lead");
    let (leader, other) = if *first.leading.borrow() { (first, second) } else { (second, first) };
    let has_root = |namespace: &'static str| {
        let (client, root) = (client.clone(), root.clone());
        async move {
            let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
            let map = maps.get_opt("istio-ca-root-cert").await.expect("API");
            map.is_some_and(|m| m.data.is_some_and(|data| data.get("root-cert.pem") == Some(&root)))
        }
    };
    until("the roots are in a namespace", || has_root("istio-system")).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "istio-system");
    maps.delete("istio-ca-root-cert", &Default::default()).await.expect("deleted");
    until("a map that somebody deleted is back", || has_root("istio-system")).await;

    // Killed: nobody gives the lease back.
    leader.election.abort();
    let killed = Instant::now();
    drop(leader);
    namespaces.create(&create, &object(json!({"metadata": {"name": "shop"}}))).await.expect("namespace");
    until("the other leads", || async { *other.leading.borrow() }).await;
    assert!(killed.elapsed() >= LENGTH / 2, "it led before the lease had run out: {:?}", killed.elapsed());
    until("the other writes", || has_root("shop")).await;
    assert!(killed.elapsed() < LENGTH * 6, "{:?}", killed.elapsed());
    drop(other);
    server.drain(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugged_in_keys_are_exchanged_without_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let made = || SetTexts::self_signed(&Default::default(), "", std::time::SystemTime::now()).expect("a set");
    let text = |texts: &SetTexts| String::from_utf8(texts.cert.bytes.to_vec()).expect("PEM");
    let (old, new) = (made(), made());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "istio-system");
    let plug = |own: &SetTexts, roots: String| {
        let key = String::from_utf8(own.key.bytes.to_vec()).expect("PEM");
        let data = json!({"ca-cert.pem": text(own), "ca-key.pem": key, "cert-chain.pem": "", "root-cert.pem": roots});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts"}, "stringData": data});
        let secrets = secrets.clone();
        async move {
            let params = PatchParams::apply("test").force();
            secrets.patch("cacerts", &params, &Patch::Apply(&secret)).await.expect("plugged in");
        }
    };
    plug(&old, text(&old)).await;
    let (first, second) = tokio::join!(replica(&client, "a"), replica(&client, "b"));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "istio-system");
    let roots = || async {
        let map = maps.get_opt("istio-ca-root-cert").await.expect("API");
        map.and_then(|map| map.data?.remove("root-cert.pem")).unwrap_or_default()
    };
    until("the old root is told", || async { roots().await == text(&old) }).await;
    let signer = first.authority.set().key_id();
    // A root that nobody knows yet is not taken over; with the old one beside it, both replicas publish both.
    plug(&new, text(&new)).await;
    let both = text(&old) + &text(&new);
    plug(&old, both.clone()).await;
    let published = |count: usize| {
        let authorities = [first.authority.clone(), second.authority.clone()];
        move || {
            let all = authorities.iter().all(|authority| authority.roots().roots().len() == count);
            async move { all }
        }
    };
    until("both replicas publish both", published(2)).await;
    until("both roots are told", || async { roots().await == both }).await;
    assert_eq!(first.authority.set().key_id(), signer, "who signs is the same");
    plug(&new, both).await;
    until("both replicas sign with the new key", || async {
        [&first, &second].iter().all(|replica| replica.authority.set().key_id() != signer)
    })
    .await;
    plug(&new, text(&new)).await;
    until("the old root is gone", || async { roots().await == text(&new) }).await;
    until("at both replicas", published(1)).await;
    drop((first, second));
    server.drain(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_nobody_deployed_are_deployed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let create = PostParams::default();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["shop", "istio-system"] {
        let _ = namespaces.create(&create, &object(json!({"metadata": {"name": name}}))).await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "istio-system");
    let values = |tag: &str| json!({"global": {"hub": "example.test/mesh", "tag": tag}}).to_string();
    let map = json!({"metadata": {"name": "istio-sidecar-injector"}, "data": {"values": values("one"), "config": ""}});
    maps.create(&create, &object(map)).await.expect("settings");
    // Somebody's own of the same name, and one that another revision made, stay as they are.
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "shop");
    let theirs = |name: &str, labels: serde_json::Value, revision: &str| {
        let pods = json!({"gateway.networking.k8s.io/gateway-name": name.trim_end_matches("-istio")});
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"selector": {"matchLabels": pods}, "template": {
            "metadata": {"labels": pods, "annotations": {"istio.io/rev": revision}}, "spec": {"containers": [{"name": "x", "image": "x"}]}}}})
    };
    let managed = json!({"gateway.istio.io/managed": "istio.io-gateway-controller"});
    for theirs in [theirs("own-istio", json!({}), "default"), theirs("canary-istio", managed, "canary")] {
        deployments.create(&create, &object(theirs)).await.expect("created");
    }
    let replica = replica(&client, "a").await;
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway");
    let gateways: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &ApiResource::from_gvk(&kind));
    for (name, labels) in [
        ("own", json!({})),
        ("canary", json!({})),
        ("elsewhere", json!({"istio.io/rev": "canary"})),
        ("web", json!({"team": "a"})),
    ] {
        let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name, "labels": labels},
            "spec": {"gatewayClassName": "istio", "listeners": listeners},
        });
        gateways.create(&create, &object(gateway)).await.expect("created");
    }
    let services: Api<Service> = Api::namespaced(client.clone(), "shop");
    until("the service is there", || async { services.get_opt("web-istio").await.expect("API").is_some() }).await;
    let service = services.get("web-istio").await.expect("a service").spec.expect("a spec");
    assert_eq!(service.type_.as_deref(), Some("LoadBalancer"));
    let made = deployments.get("web-istio").await.expect("a deployment, which is made before");
    assert_eq!(made.metadata.owner_references.expect("an owner")[0].name, "web", "it goes with its Gateway");
    let pod = made.spec.expect("a spec").template;
    let (meta, spec) = (pod.metadata.expect("metadata"), pod.spec.expect("a spec"));
    let labels = meta.labels.expect("labels");
    assert_eq!(service.selector.expect("a selector").iter().find(|(key, value)| labels.get(*key) != Some(value)), None);
    assert_eq!((&*labels["sidecar.istio.io/inject"], &*labels["team"]), ("false", "a"));
    assert_eq!(spec.containers[0].image.as_deref(), Some("example.test/mesh/proxyv2:one"));
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    accounts.get(&spec.service_account_name.expect("an account")).await.expect("the account is there");
    for theirs in ["own-istio", "canary-istio"] {
        let theirs = deployments.get(theirs).await.expect("theirs").spec.expect("a spec");
        assert_eq!(theirs.template.spec.expect("a spec").containers[0].name, "x");
    }
    for nobodys in ["own-istio", "canary-istio", "elsewhere-istio"] {
        assert!(services.get_opt(nobodys).await.expect("API").is_none(), "{nobodys}");
    }
    // Another image reaches the gateways, and a Gateway that names us is ours.
    let patch = json!({"data": {"values": values("two")}});
    maps.patch("istio-sidecar-injector", &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
    let patch = json!({"metadata": {"labels": {"istio.io/rev": "default"}}});
    gateways.patch("canary", &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
    until("both follow", || async {
        // What is looked at now and then is looked at at once when an object changes.
        let touch = json!({"metadata": {"annotations": {"touched": format!("{:?}", Instant::now())}}});
        gateways.patch("web", &PatchParams::default(), &Patch::Merge(touch)).await.expect("patched");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut both = true;
        for name in ["web-istio", "canary-istio"] {
            let spec = deployments.get(name).await.expect("there").spec.expect("a spec").template.spec.expect("a spec");
            let ours = spec.containers.iter().find(|container| container.name == "istio-proxy");
            both &= ours.is_some_and(|c| c.image.as_deref() == Some("example.test/mesh/proxyv2:two"));
        }
        both
    })
    .await;
    // A Gateway that names another revision gets what it runs on from that one, whoever leads.
    assert!(deployments.get_opt("elsewhere-istio").await.expect("API").is_none());
    let map = json!({"metadata": {"name": "istio-sidecar-injector-canary"}, "data": {"values": values("three"), "config": ""}});
    maps.create(&create, &object(map)).await.expect("settings");
    let other = of_revision(&client, "b", "canary").await;
    until("the other revision makes its own", || async {
        deployments.get_opt("elsewhere-istio").await.expect("API").is_some()
    })
    .await;
    assert!(*replica.leading.borrow() && !*other.leading.borrow());
    drop((replica, other));
    server.drain(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_have_the_bundle_of_their_own_revision() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let create = PostParams::default();
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    for (name, revision) in [("ours", "default"), ("theirs", "other")] {
        let webhook = json!({
            "name": "rev.validation.istio.io", "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/validate", "port": 443}},
            "rules": [{"operations": ["CREATE"], "apiGroups": ["security.istio.io"], "apiVersions": ["*"], "resources": ["nothing"]}],
        });
        let configuration =
            json!({"metadata": {"name": name, "labels": {"istio.io/rev": revision}}, "webhooks": [webhook]});
        all.create(&create, &object(configuration)).await.expect("created");
    }
    let replica = replica(&client, "a").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "istio-system");
    let root = secrets.get("istio-ca-secret").await.expect("the key").data.expect("data")["ca-cert.pem"].clone();
    let fresh = || async {
        let webhooks = all.get("ours").await.expect("API").webhooks.expect("webhooks");
        webhooks[0].client_config.ca_bundle.as_ref() == Some(&root)
            && webhooks[0].failure_policy.as_deref() == Some("Fail")
    };
    until("the bundle is there", fresh).await;
    let spoilt = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let spoilt = Patch::<()>::Json(serde_json::from_value(spoilt).expect("a patch"));
    all.patch("ours", &PatchParams::default(), &spoilt).await.expect("patched");
    until("the bundle is put right", fresh).await;
    let theirs = all.get("theirs").await.expect("API").webhooks.expect("webhooks");
    assert_eq!(theirs[0].client_config.ca_bundle, None);
    assert_eq!(theirs[0].failure_policy.as_deref(), Some("Ignore"));
    drop(replica);
    server.drain(Duration::from_secs(2)).await;
}
