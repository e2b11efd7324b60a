//! Certificates on a real API, the embedded one.

mod forms;
mod mesh;
mod outside;
mod pebble;
mod token;

use std::path::Path;
use std::time::{Duration, SystemTime};

use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_issuing::Issuing;
use carrick_pki::{CertificateInfo, PrivateKey, pem};
use carrick_runtime::clock::SystemClock;
use carrick_runtime::drain;
use k8s_openapi::api::core::v1::{Event, Secret};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

struct World {
    client: kube::Client,
    _server: ApiServer,
    _folder: tempfile::TempDir,
    _trigger: drain::DrainTrigger,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        Self::with(|_, issuing| issuing).await
    }

    /// A world whose controllers are made up first; they get a folder of their own.
    async fn with(set_up: impl FnOnce(&Path, Issuing) -> Issuing) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = ApiServer::start(ApiOptions::new(folder.path(), 0)).await.expect("API");
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("kubeconfig");
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("config");
        let client = kube::Client::try_from(config).expect("client");
        let (trigger, drain) = drain::channel();
        let issuing = set_up(folder.path(), Issuing::new(client.clone(), "istio-system", SystemClock::shared()));
        let task = tokio::spawn(issuing.run(drain));
        let world = Self { client, _server: server, _folder: folder, _trigger: trigger, task };
        world.create("", "v1", "Namespace", json!({"metadata": {"name": "shop"}})).await;
        world
    }

    fn api(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match kind {
            "Namespace" | "ClusterIssuer" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), "shop", &resource),
        }
    }

    async fn create(&self, group: &str, version: &str, kind: &str, object: Value) {
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        self.api(group, version, kind).create(&PostParams::default(), &object).await.expect("created");
    }

    async fn cert_manager(&self, kind: &str, name: &str, spec: Value) {
        self.create("cert-manager.io", "v1", kind, json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "shop")
    }

    /// Waits until the Ready condition is as wanted; its message.
    async fn ready(&self, kind: &str, name: &str, status: &str) -> String {
        let api = self.api("cert-manager.io", "v1", kind);
        let mut last = String::new();
        let found = async {
            loop {
                let object = api.get_opt(name).await.expect("API");
                let conditions = object.as_ref().and_then(|o| o.data.pointer("/status/conditions")?.as_array());
                let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
                last = format!("{ready:?}");
                if let Some(ready) = ready.filter(|c| c["status"] == status) {
                    return ready["message"].as_str().unwrap_or_default().to_owned();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, found).await;
        found.unwrap_or_else(|_| panic!("{kind} {name} is not Ready={status}: {last}"))
    }

    /// The first certificate of a secret, once the secret is there and `wanted` holds.
    async fn certificate(&self, secret: &str, wanted: impl Fn(&CertificateInfo) -> bool) -> (CertificateInfo, Secret) {
        let found = async {
            loop {
                if let Some(found) = self.secrets().get_opt(secret).await.expect("API") {
                    let info = value(&found, "tls.crt").and_then(|text| {
                        let chain = pem::certificates(&text).ok()?;
                        CertificateInfo::read(chain.first()?).ok()
                    });
                    if let Some(info) = info.filter(|info| wanted(info)) {
                        return (info, found);
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, found).await.expect("a certificate in the secret")
    }

    /// The event of an object with a reason, once it is there.
    async fn event(&self, name: &str, reason: &str) -> Event {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "shop");
        let params = ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}"));
        let found = async {
            loop {
                if let Some(event) = api.list(&params).await.expect("API").items.into_iter().next() {
                    return event;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, found).await;
        found.unwrap_or_else(|_| panic!("no event {reason} of {name}"))
    }

    /// A self-signed root in the secret `root`, and the issuer `ca` that signs with it.
    async fn with_ca(&self) {
        self.cert_manager("Issuer", "self", json!({"selfSigned": {}})).await;
        let spec = json!({"secretName": "root", "commonName": "shop root", "isCA": true, "issuerRef": {"name": "self"},
            "privateKey": {"algorithm": "ECDSA"}});
        self.cert_manager("Certificate", "root", spec).await;
        self.cert_manager("Issuer", "ca", json!({"ca": {"secretName": "root"}})).await;
        self.ready("Issuer", "ca", "True").await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn value(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    Some(secret.data.as_ref()?.get(key)?.0.clone())
}

fn leaf(duration: &str) -> Value {
    json!({"secretName": "web-tls", "dnsNames": ["web.example"], "duration": duration, "issuerRef": {"name": "ca"},
        "privateKey": {"algorithm": "ECDSA"}, "secretTemplate": {"labels": {"app": "web"}},
        "usages": ["server auth", "digital signature"]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_wish_to_a_secret() {
    let world = World::start().await;
    world.with_ca().await;
    world.cert_manager("Certificate", "web", leaf("2160h")).await;
    world.ready("Certificate", "web", "True").await;
    let (info, secret) = world.certificate("web-tls", |_| true).await;
    assert_eq!(info.dns, ["web.example"]);
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(secret.metadata.labels.as_ref().unwrap()["app"], "web");
    assert_eq!(secret.metadata.annotations.as_ref().unwrap()["cert-manager.io/issuer-name"], "ca");
    let key = PrivateKey::from_pem(&value(&secret, "tls.key").unwrap()).unwrap();
    assert_eq!(key.spki_sha256(), Some(info.spki_sha256));
    let root = world.secrets().get("root").await.unwrap();
    assert_eq!(value(&secret, "ca.crt"), value(&root, "tls.crt"));
    // The key that waited is gone, and the status says when it goes on.
    let names: Vec<String> =
        world.secrets().list(&Default::default()).await.unwrap().into_iter().filter_map(|s| s.metadata.name).collect();
    assert!(!names.iter().any(|name| name.ends_with("-key")), "{names:?}");
    let object = world.api("cert-manager.io", "v1", "Certificate").get("web").await.unwrap();
    assert_eq!(object.data["status"]["revision"], 1);
    assert!(object.data["status"]["renewalTime"].is_string(), "{}", object.data["status"]);
    // What was done is told on the objects, as `kubectl describe` shows it.
    for reason in ["Issuing", "Generated", "Requested"] {
        let event = world.event("web", reason).await;
        assert_eq!(
            (event.type_.as_deref(), event.involved_object.kind.as_deref()),
            (Some("Normal"), Some("Certificate"))
        );
    }
    assert_eq!(
        world.event("web-1", "CertificateIssued").await.involved_object.kind.as_deref(),
        Some("CertificateRequest")
    );
    assert_eq!(world.event("ca", "KeyPairVerified").await.message.as_deref(), Some("Signing CA verified"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_lives_are_renewed_before_they_end() {
    let world = World::start().await;
    world.with_ca().await;
    world.cert_manager("Certificate", "web", leaf("9s")).await;
    let (mut info, mut secret) = world.certificate("web-tls", |_| true).await;
    for _ in 0..2 {
        let before = info.clone();
        let key = value(&secret, "tls.key");
        (info, secret) = world.certificate("web-tls", |info| info.serial != before.serial).await;
        assert!(SystemTime::now() < before.not_after, "renewed after its end");
        assert_ne!(value(&secret, "tls.key"), key, "each has a key of its own");
    }
    world.ready("Certificate", "web", "True").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_said_and_made_up_for() {
    let world = World::start().await;
    world.cert_manager("Certificate", "web", leaf("2160h")).await;
    let message = world.ready("Certificate", "web", "False").await;
    assert!(message.contains("Secret does not exist"), "{message}");
    world.ready("CertificateRequest", "web-1", "False").await;
    world.with_ca().await;
    world.ready("Certificate", "web", "True").await;
    // A secret that somebody deletes comes back, with a certificate for a new key.
    let (before, _) = world.certificate("web-tls", |_| true).await;
    world.secrets().delete("web-tls", &DeleteParams::default()).await.unwrap();
    world.certificate("web-tls", |info| info.serial != before.serial).await;
    // A name that is added is in the next certificate, at once.
    let patch = json!({"spec": {"dnsNames": ["web.example", "shop.example"]}});
    let api = world.api("cert-manager.io", "v1", "Certificate");
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.certificate("web-tls", |info| info.dns.iter().any(|name| name == "shop.example")).await;
    // What nobody signs is refused in words, and told of.
    let odd = json!({"secretName": "odd", "dnsNames": ["a.b"], "issuerRef": {"name": "ca"}, "signatureAlgorithm": "SHA256WithRSA"});
    world.cert_manager("Certificate", "odd", odd).await;
    let message = world.ready("Certificate", "odd", "False").await;
    assert_eq!(message, "spec.signatureAlgorithm: is not supported");
    world.event("odd", "InvalidSpec").await;
}
