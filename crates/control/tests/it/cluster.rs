//! Against a real API, the embedded one: watches, resource versions, tokens.

use crate::fixture::{Proxy, World, authority, count, local, node};
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::{Control, ControlOptions};
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest};
use carrick_pki::{KeyAlgorithm, csr};
use carrick_xds::TypeUrl;
use carrick_xds::client::open_channel;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;

pub async fn client(server: &ApiServer) -> kube::Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("config");
    kube::Client::try_from(config).expect("client")
}

pub fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("an object")
}

async fn token(client: &kube::Client, namespace: &str, audience: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec { audiences: vec![audience.to_owned()], ..Default::default() },
        ..Default::default()
    };
    let answer = accounts.create_token_request("default", &PostParams::default(), &request).await.expect("token");
    answer.status.expect("status").token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_kubernetes_api() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let create = PostParams::default();
    namespaces.create(&create, &object(json!({"metadata": {"name": "shop"}}))).await.expect("namespace");

    let authority = authority(&dir.path().join("ca"));
    let mut options = ControlOptions::new(client.clone(), authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    let control = Control::start(options).await.expect("starts");
    tokio::time::timeout(Duration::from_secs(10), control.ready()).await.expect("everything is listed");
    let world = World::of(control, authority);

    // A workload by its token: certificate, then configuration.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    let found = async {
        while accounts.get_opt("default").await.expect("API").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("the default account");
    for (audience, allowed) in [("istio-ca", true), ("vault", false)] {
        let token = token(&client, "shop", audience).await;
        let (_, csr) = csr::new(KeyAlgorithm::default()).expect("key and request");
        let channel = open_channel(&world.connector(None)).await.expect("connects");
        let mut request = tonic::Request::new(IstioCertificateRequest { csr, validity_duration: 60, metadata: None });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
        let answer = CertificateClient::new(channel).create_certificate(request).await;
        assert_eq!(answer.is_ok(), allowed, "{audience}: {answer:?}");
    }
    let ip = Ipv4Addr::new(10, 244, 0, 1).into();
    let token = token(&client, "shop", "istio-ca").await;
    let mut node = node("shop", "web", ip);
    node.metadata.get_or_insert_default().fields.remove("SERVICE_ACCOUNT");
    let mut proxy = Proxy::start(world.connector(None), node, Some(&token));
    proxy.until("listeners", |g| count(g, &TypeUrl::Listener) > 0).await;

    // A change of a watched kind: by its own version.
    let gvk = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let policies: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &ApiResource::from_gvk(&gvk));
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}}});
    let before = proxy.updates();
    let created = policies.create(&create, &object(policy)).await.expect("created");
    let wait = |version: &str| format!("/debug/distribution?resourceVersion={version}&wait=10");
    let version = created.metadata.resource_version.expect("a version");
    let answer = world.json(&wait(&version)).await;
    assert!(answer["elapsedSeconds"].as_f64().is_some_and(|s| s < 5.0), "{answer}");
    assert!(proxy.updates() > before, "the listener is another");

    // What became of it is written on it.
    let status = async {
        loop {
            let policy = policies.get("default").await.expect("API");
            let mut conditions = policy.data["status"]["conditions"].as_array().into_iter().flatten();
            if let Some(condition) = conditions.find(|c| c["type"] == "Programmed" && c["status"] == "True") {
                assert_eq!(condition["message"], "applied to 1 of 1 proxies");
                assert_eq!(condition["observedGeneration"], json!(policy.metadata.generation));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), status).await.expect("a status");

    // A change of a kind nobody watches: everything before it was seen.
    let before = proxy.updates();
    policies.delete("default", &Default::default()).await.expect("deleted");
    accounts.create(&create, &object(json!({"metadata": {"name": "x"}}))).await.expect("created");
    let list = namespaces.list(&ListParams::default().limit(1)).await.expect("list");
    let answer = world.json(&wait(&list.metadata.resource_version.expect("a version"))).await;
    assert_eq!(answer["complete"], json!(true), "{answer}");
    assert!(proxy.updates() > before, "the deletion has arrived");

    proxy.stop().await;
    world.control.drain(Duration::from_secs(2)).await;
    server.drain(Duration::from_secs(2)).await;
}
