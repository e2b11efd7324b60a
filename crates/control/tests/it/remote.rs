//! Two clusters, each with an embedded API: what one control plane knows of the other's.

use crate::fixture::{World, authority, local};
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::{Control, ControlOptions};
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest};
use carrick_pki::{Identity, KeyAlgorithm, csr};
use carrick_xds::client::open_channel;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const ROOT: &str = "istio-system";

struct Cluster {
    server: ApiServer,
    client: kube::Client,
    kubeconfig: String,
}

impl Cluster {
    async fn start(dir: &Path, port: u16) -> Self {
        let server = ApiServer::start(ApiOptions::new(dir, port)).await.expect("API");
        let kubeconfig = std::fs::read_to_string(server.kubeconfig()).expect("kubeconfig");
        let config = Kubeconfig::from_yaml(&kubeconfig).expect("kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("config");
        Self { server, client: kube::Client::try_from(config).expect("client"), kubeconfig }
    }

    async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &serde_json::from_value(object).expect("an object")).await.expect("created")
    }

    async fn namespace(&self, object: Value) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let object: Namespace = serde_json::from_value(object).expect("a namespace");
        if let Err(kube::Error::Api(status)) = api.create(&PostParams::default(), &object).await {
            assert_eq!(status.code, 409, "{status:?}");
            let name = object.metadata.name.clone().expect("a name");
            let patch = json!({"metadata": {"labels": object.metadata.labels}});
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
        }
    }

    /// A service with one pod of that address.
    async fn service(&self, name: &str, ip: &str) {
        self.create::<Service>(
            "shop",
            json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        )
        .await;
        let pod = json!({"metadata": {"name": name, "labels": {"security.istio.io/tlsMode": "istio"}},
            "spec": {"containers": [{"name": "app", "image": "app"}]}});
        self.create::<Pod>("shop", pod).await;
        self.address(name, ip).await;
        let slice = json!({"metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [ip], "targetRef": {"kind": "Pod", "name": name, "namespace": "shop"}}]});
        self.create::<EndpointSlice>("shop", slice).await;
    }

    async fn address(&self, name: &str, ip: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "shop");
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.expect("a status");
    }

    async fn secret(&self, name: &str, clusters: &[(&str, &str)]) {
        let data = clusters.iter().map(|(id, text)| ((*id).to_owned(), ByteString(text.as_bytes().to_vec())));
        let data: BTreeMap<String, ByteString> = data.collect();
        let secret = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "labels": {"istio/multiCluster": "true"}}, "data": data});
        let api: Api<Secret> = Api::namespaced(self.client.clone(), ROOT);
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(secret)).await.expect("a secret");
    }
}

/// Waits until the debug page says so.
async fn until(world: &World, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..400 {
        let (status, body) = world.get(path).await;
        last = serde_json::from_str(&body).unwrap_or_default();
        if status == 200 && good(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: {last:#}");
}

/// Cluster, network and address of the endpoints of a service.
fn endpoints(page: &Value, host: &str) -> Vec<String> {
    let service = page.as_array().into_iter().flatten().find(|s| s["service"] == host);
    let all = service.and_then(|s| s["endpoints"].as_array()).into_iter().flatten();
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_owned();
    all.map(|e| format!("{} {} {}", text(e, "cluster"), text(e, "network"), text(e, "address"))).collect()
}

fn state(page: &Value, id: &str) -> String {
    let cluster = page.as_array().into_iter().flatten().find(|c| c["id"] == id);
    cluster.map(|c| c["syncStatus"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_followed_by_its_secret() {
    const WEB: &str = "web.shop.svc.cluster.local";
    const ONLY: &str = "only.shop.svc.cluster.local";
    let dir = tempfile::tempdir().expect("tempdir");
    let (east, west) =
        (Cluster::start(&dir.path().join("east"), 0).await, Cluster::start(&dir.path().join("west"), 0).await);
    for (cluster, network) in [(&east, "east"), (&west, "west")] {
        cluster.namespace(json!({"metadata": {"name": "shop"}})).await;
        let labels = json!({"topology.istio.io/network": network});
        cluster.namespace(json!({"metadata": {"name": ROOT, "labels": labels}})).await;
    }
    // The same address on both sides is somebody else's on each.
    east.service("web", "10.244.0.2").await;
    west.service("web", "10.244.0.2").await;
    west.service("only", "10.244.0.3").await;
    east.secret("good", &[("west", &west.kubeconfig)]).await;

    let authority = authority(&dir.path().join("ca"));
    let mut options = ControlOptions::new(east.client.clone(), authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    options.cluster_id = "east".into();
    let control = Control::start(options).await.expect("starts");
    tokio::time::timeout(Duration::from_secs(10), control.ready()).await.expect("everything is listed");
    let world = World::of(control, authority);

    // The first snapshot has it already.
    let page = until(&world, "/debug/endpointz", "a snapshot", |_| true).await;
    assert_eq!(endpoints(&page, WEB), ["east east 10.244.0.2:8080", "west west 10.244.0.2:8080"]);
    assert_eq!(endpoints(&page, ONLY), ["west west 10.244.0.3:8080"]);
    let page = world.json("/debug/clusterz").await;
    assert_eq!((state(&page, "east").as_str(), state(&page, "west").as_str()), ("synced", "synced"), "{page}");

    // Changes come live.
    west.service("later", "10.244.0.4").await;
    let later = "later.shop.svc.cluster.local";
    until(&world, "/debug/endpointz", "a new service", |p| endpoints(p, later) == ["west west 10.244.0.4:8080"]).await;

    // Nothing that is wrong with one touches another: a plugin that would be run, no kubeconfig, the own name, one twice.
    let exec = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
        clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {exec: {command: touch, args: [/nowhere], \
        apiVersion: client.authentication.k8s.io/v1}}}]\n";
    let bad = [("exec", exec), ("junk", "{"), ("east", west.kubeconfig.as_str()), ("west", west.kubeconfig.as_str())];
    east.secret("worse", &bad).await;
    let findings = until(&world, "/debug/findings", "four findings", |p| {
        p.as_array().into_iter().flatten().filter(|f| f["code"] == "CRK0123").count() == 4
    })
    .await;
    for part in ["exec is not allowed", "cannot be read", "own cluster is called", "named by the Secret good too"] {
        assert!(findings.to_string().contains(part), "{part}: {findings:#}");
    }
    let page = world.json("/debug/clusterz").await;
    assert_eq!((state(&page, "exec").as_str(), state(&page, "west").as_str()), ("refused", "synced"), "{page}");
    let events: Api<Event> = Api::namespaced(east.client.clone(), ROOT);
    let told = async {
        while !events.list(&Default::default()).await.expect("events").items.iter().any(|e| {
            e.involved_object.name.as_deref() == Some("worse")
                && e.message.as_deref().is_some_and(|m| m.contains("exec is not allowed"))
        }) {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("an event on the Secret");
    assert_eq!(endpoints(&world.json("/debug/endpointz").await, ONLY).len(), 1);

    // Its tokens are believed by its own API, and by no other.
    let accounts: Api<ServiceAccount> = Api::namespaced(west.client.clone(), "shop");
    let account = serde_json::from_value(json!({"metadata": {"name": "seller"}})).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let asked = serde_json::from_value(json!({"spec": {"audiences": ["istio-ca"]}})).expect("a request");
    let token = accounts.create_token_request("seller", &PostParams::default(), &asked).await.expect("a token");
    let token = token.status.expect("a token").token;
    let signed = |cluster: &'static str| {
        let (key, csr) = csr::new(KeyAlgorithm::default()).expect("key and request");
        let mut request = tonic::Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        request.metadata_mut().insert("clusterid", cluster.parse().expect("a header"));
        let connector = world.connector(None);
        async move {
            let channel = open_channel(&connector).await.expect("connects");
            let answer = CertificateClient::new(channel).create_certificate(request).await?.into_inner();
            let identity = Identity::from_pem(answer.cert_chain[0].as_bytes(), key.to_pem().as_bytes()).expect("fits");
            Ok::<_, tonic::Status>(identity.spiffe.expect("a name").to_string())
        }
    };
    assert_eq!(signed("west").await.expect("signed"), "spiffe://cluster.local/ns/shop/sa/seller");
    for other in ["east", "nowhere"] {
        assert_eq!(signed(other).await.unwrap_err().code(), tonic::Code::Unauthenticated, "{other}");
    }

    // One that is away keeps what was seen, and goes on where it was.
    let port = west.server.address().port();
    west.server.drain(Duration::from_millis(200)).await;
    east.service("here", "10.244.0.9").await;
    let here = "here.shop.svc.cluster.local";
    let page = until(&world, "/debug/endpointz", "an own service", |p| endpoints(p, here).len() == 1).await;
    assert_eq!(endpoints(&page, ONLY), ["west west 10.244.0.3:8080"]);
    let west = Cluster::start(&dir.path().join("west"), port).await;
    west.service("back", "10.244.0.5").await;
    let back = "back.shop.svc.cluster.local";
    until(&world, "/debug/endpointz", "a service after the absence", |p| endpoints(p, back).len() == 1).await;

    // And without its Secrets it is gone.
    let secrets: Api<Secret> = Api::namespaced(east.client.clone(), ROOT);
    for name in ["good", "worse"] {
        secrets.delete(name, &Default::default()).await.expect("deleted");
    }
    let page = until(&world, "/debug/endpointz", "nothing of west", |p| endpoints(p, ONLY).is_empty()).await;
    assert_eq!(endpoints(&page, WEB), ["east east 10.244.0.2:8080"]);
    until(&world, "/debug/clusterz", "one cluster", |p| p.as_array().is_some_and(|all| all.len() == 1)).await;

    world.control.drain(Duration::from_secs(2)).await;
    for server in [east.server, west.server] {
        server.drain(Duration::from_secs(2)).await;
    }
}
