//! Certificates that somebody else signs: Vault's PKI API (a stand-in that answers as Vault is documented to; no Vault can be had
//! on the machines that run these tests), and a signer of the cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use carrick_pki::issue::{self, Profile, Signer};
use carrick_pki::{KeyAlgorithm, PrivateKey};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{LIMIT, World, value};

const HOUR: Duration = Duration::from_secs(3600);

/// An authority, and its certificate.
fn authority() -> (Signer, String) {
    let (now, key) = (SystemTime::now(), PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap());
    let profile = Profile { common_name: "outside".into(), is_ca: true, ..Profile::default() };
    let own = issue::self_signed(&key, &profile, now, now + 10 * HOUR, None).unwrap();
    (Signer::read(own.chain.as_bytes(), key.to_pem().as_bytes()).unwrap(), own.chain)
}

fn sign(signer: &Signer, csr: &str, life: Duration) -> String {
    let now = SystemTime::now();
    let (profile, _) = issue::asked(csr).unwrap();
    signer.sign(csr, &profile, now, now + life).unwrap().chain
}

/// What Vault says to a request.
fn vault_says(signer: &Signer, root: &str, path: &str, headers: &HeaderMap, body: &Value) -> (StatusCode, Value) {
    let refused = |status, why: &str| (status, json!({"errors": [why]}));
    let token = headers.get("x-vault-token").and_then(|token| token.to_str().ok()).unwrap_or_default();
    match path {
        "/v1/sys/health" => (StatusCode::OK, json!({"initialized": true, "sealed": false})),
        "/v1/auth/shops/login" if body["role_id"] == "shop" && body["secret_id"] == "geheim" => {
            (StatusCode::OK, json!({"auth": {"client_token": "by-role"}}))
        }
        // The token review that Vault makes is the cluster's affair; its form is looked at.
        "/v1/auth/kubernetes/login"
            if body["role"] == "shop" && body["jwt"].as_str().unwrap().split('.').count() == 3 =>
        {
            (StatusCode::OK, json!({"auth": {"client_token": "by-account"}}))
        }
        "/v1/pki/sign/web" if !["root-token", "by-role", "by-account"].contains(&token) => {
            refused(StatusCode::FORBIDDEN, "permission denied")
        }
        "/v1/pki/sign/web" => {
            let names = body["alt_names"].as_str().unwrap();
            if let Some(name) = names.split(',').find(|name| !name.ends_with(".example")) {
                let why = format!("subject alternate name {name} not allowed by this role");
                return refused(StatusCode::BAD_REQUEST, &why);
            }
            let life = body["ttl"].as_str().unwrap().trim_end_matches('s').parse().map(Duration::from_secs).unwrap();
            let leaf = sign(signer, body["csr"].as_str().unwrap(), life);
            (StatusCode::OK, json!({"data": {"certificate": leaf, "issuing_ca": root, "ca_chain": [root]}}))
        }
        _ => refused(StatusCode::BAD_REQUEST, "invalid role or secret ID"),
    }
}

async fn vault(signer: Signer, root: String) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let known = Arc::new((signer, root));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let known = Arc::clone(&known);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let known = Arc::clone(&known);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = serde_json::from_slice(&body.collect().await?.to_bytes()).unwrap_or(Value::Null);
                    let (status, said) = vault_says(&known.0, &known.1, parts.uri.path(), &parts.headers, &body);
                    let mut answer = Response::new(Full::new(Bytes::from(said.to_string())));
                    *answer.status_mut() = status;
                    Ok::<_, hyper::Error>(answer)
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

fn wish(name: &str, issuer: &str, dns: &str) -> Value {
    json!({"secretName": name, "dnsNames": [dns], "duration": "1h", "issuerRef": {"name": issuer},
        "privateKey": {"algorithm": "ECDSA"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vault_signs_for_whoever_it_lets_in() {
    let (signer, root) = authority();
    let server = vault(signer, root.clone()).await;
    let world = World::start().await;
    world
        .create(
            "",
            "v1",
            "Secret",
            json!({"metadata": {"name": "vault"}, "stringData": {"token": "root-token\n", "id": "geheim", "bad": "x"}}),
        )
        .await;
    world.create("", "v1", "ServiceAccount", json!({"metadata": {"name": "issuer"}})).await;
    let issuer =
        |auth: Value| json!({"vault": {"server": format!("http://{server}"), "path": "pki/sign/web", "auth": auth}});
    let ways = [
        ("token", json!({"tokenSecretRef": {"name": "vault"}})),
        ("role", json!({"appRole": {"path": "shops", "roleId": "shop", "secretRef": {"name": "vault", "key": "id"}}})),
        ("account", json!({"kubernetes": {"role": "shop", "serviceAccountRef": {"name": "issuer"}}})),
    ];
    for (name, auth) in ways {
        world.cert_manager("Issuer", name, issuer(auth)).await;
        assert_eq!(world.ready("Issuer", name, "True").await, "Vault verified");
        world.cert_manager("Certificate", name, wish(name, name, "web.example")).await;
        world.ready("Certificate", name, "True").await;
        let (info, secret) = world.certificate(name, |_| true).await;
        assert_eq!((info.dns, info.issuer.as_str()), (vec!["web.example".to_owned()], "CN=outside"));
        assert_eq!(value(&secret, "ca.crt").unwrap(), root.as_bytes());
        let life = info.not_after.duration_since(info.not_before).unwrap();
        assert_eq!(life, HOUR, "the life that was asked for");
    }
    // A name that the role does not allow fails in Vault's words.
    world.cert_manager("Certificate", "other", wish("other", "token", "web.elsewhere")).await;
    let event = world.event("other", "Failed").await;
    assert!(event.message.as_deref().unwrap().contains("web.elsewhere not allowed by this role"), "{event:?}");
    // Who is not let in waits, and is let in once the secret is right.
    let wrong = json!({"appRole": {"path": "shops", "roleId": "shop", "secretRef": {"name": "vault", "key": "bad"}}});
    world.cert_manager("Issuer", "wrong", issuer(wrong)).await;
    let why = world.ready("Issuer", "wrong", "False").await;
    assert!(why.contains("invalid role or secret ID"), "{why}");
    let right = json!({"stringData": {"bad": "geheim"}});
    world.secrets().patch("vault", &PatchParams::default(), &Patch::Merge(right)).await.unwrap();
    world.ready("Issuer", "wrong", "True").await;
}

/// The signing request of the cluster whose condition is still to come.
async fn pending(api: &Api<DynamicObject>) -> DynamicObject {
    let found = async {
        loop {
            let all = api.list(&ListParams::default()).await.unwrap().items;
            if let Some(request) = all.into_iter().find(|request| request.data.pointer("/status/conditions").is_none())
            {
                return request;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("a CertificateSigningRequest")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_of_the_cluster_signs_what_somebody_approved() {
    let (signer, _) = authority();
    let world = World::start().await;
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1", "CertificateSigningRequest");
    let api: Api<DynamicObject> = Api::all_with(world.client.clone(), &ApiResource::from_gvk(&kind));
    world.cert_manager("Issuer", "cluster", json!({"kubernetes": {"signerName": "shop.example/web"}})).await;
    world.ready("Issuer", "cluster", "True").await;
    world.cert_manager("Certificate", "web", wish("web", "cluster", "web.example")).await;
    let mut request = pending(&api).await;
    assert_eq!(request.data["spec"]["signerName"], "shop.example/web");
    assert_eq!(request.data["spec"]["expirationSeconds"], 3600);
    assert!(request.data["spec"]["username"].is_string(), "who asks is told by the API: {}", request.data["spec"]);
    assert!(world.ready("CertificateRequest", "web-1", "False").await.contains("to be approved and signed"));
    let own = world.api("cert-manager.io", "v1", "CertificateRequest").get("web-1").await.unwrap();
    assert_eq!(own.data["spec"]["username"], request.data["spec"]["username"]);
    // As `kubectl certificate approve` and a signer do. The approver's say reaches nothing but the conditions.
    request.data["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": ""}],
        "certificate": "bm9uZQ=="});
    let name = request.metadata.name.clone().unwrap();
    let approved = api.replace_subresource("approval", &name, &PostParams::default(), &request).await.unwrap();
    assert!(approved.data["status"].get("certificate").is_none(), "{}", approved.data);
    let csr = STANDARD.decode(request.data["spec"]["request"].as_str().unwrap()).unwrap();
    let chain = sign(&signer, std::str::from_utf8(&csr).unwrap(), HOUR);
    let status = json!({"status": {"certificate": STANDARD.encode(chain)}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    world.ready("Certificate", "web", "True").await;
    assert_eq!(world.certificate("web", |_| true).await.0.issuer, "CN=outside");
    // What was denied fails, and nothing is left of either.
    world.cert_manager("Certificate", "no", wish("no", "cluster", "no.example")).await;
    let mut request = pending(&api).await;
    request.data["status"] =
        json!({"conditions": [{"type": "Denied", "status": "True", "reason": "Test", "message": "not you"}]});
    let name = request.metadata.name.clone().unwrap();
    api.replace_subresource("approval", &name, &PostParams::default(), &request).await.unwrap();
    let event = world.event("no", "Failed").await;
    assert!(event.message.as_deref().unwrap().contains("Denied: not you"), "{event:?}");
    assert!(api.get_opt(&name).await.unwrap().is_none());
}
