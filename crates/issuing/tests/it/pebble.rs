//! Certificates from an ACME server: pebble, with its own name server.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as Std};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use carrick_issuing::ChallengeListeners;
use carrick_pki::issue::{self, Profile};
use carrick_pki::{KeyAlgorithm, PrivateKey};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{LIMIT, World, value};

/// The key by which pebble knows us already.
const EXTERNAL: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
/// A name that pebble never signs.
const BLOCKED: &str = "blocked.example";

struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tool(program: &str, args: &[&str], environment: &[(&str, &str)]) -> Tool {
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Tool(command.spawn().unwrap_or_else(|e| panic!("{program} is needed here (tools/install test): {e}")))
}

struct Pebble {
    directory: String,
    /// Base64 of what its certificate is verified by.
    bundle: String,
    records: SocketAddr,
    http_port: u16,
    listeners: Option<(TcpListener, TcpListener)>,
    _tools: [Tool; 2],
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Pebble {
    async fn start(folder: &Path) -> Self {
        let any = || Std::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free: Vec<Std> = (0..4).map(|_| any()).collect();
        let ports: Vec<u16> = free.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(free);
        let [api, management, dns, records] = ports[..] else { panic!() };
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tls = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let now = SystemTime::now();
        let profile =
            Profile { common_name: "pebble".into(), ips: vec![Ipv4Addr::LOCALHOST.into()], ..Profile::default() };
        let own = issue::self_signed(&key, &profile, now, now + Duration::from_secs(3600), None).unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let config = json!({"pebble": {
            "listenAddress": local(api), "managementListenAddress": local(management),
            "certificate": file("pebble.pem", &own.chain), "privateKey": file("pebble.key", &key.to_pkcs8_pem().unwrap()),
            "httpPort": http.local_addr().unwrap().port(), "tlsPort": tls.local_addr().unwrap().port(),
            "ocspResponderURL": "", "domainBlocklist": [BLOCKED],
            "externalAccountBindingRequired": true, "externalAccountMACKeys": {"shop-1": EXTERNAL},
        }});
        let config = file("pebble.json", &config.to_string());
        let (dns, management) = (local(dns), local(records));
        let names = tool(
            "pebble-challtestsrv",
            &[
                "-dns01",
                &dns,
                "-management",
                &management,
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-defaultIPv6",
                "",
            ],
            &[],
        );
        let server = tool(
            "pebble",
            &["-config", &config, "-dnsserver", &dns],
            &[("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")],
        );
        for port in [api, records] {
            let up = async {
                while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(LIMIT, up).await.expect("pebble listens");
        }
        Self {
            directory: format!("https://{}/dir", local(api)),
            bundle: base64::engine::general_purpose::STANDARD.encode(&own.chain),
            records: (Ipv4Addr::LOCALHOST, records).into(),
            http_port: http.local_addr().unwrap().port(),
            listeners: Some((http, tls)),
            _tools: [names, server],
        }
    }

    fn issuer(&self, solver: Value) -> Value {
        json!({"acme": {"server": self.directory, "caBundle": self.bundle, "email": "shop@example.com",
            "privateKeySecretRef": {"name": "account"}, "solvers": [solver],
            "externalAccountBinding": {"keyID": "shop-1", "keySecretRef": {"name": "external", "key": "key"}}}})
    }
}

/// A webhook that has the name server know what it is told, and answers as cert-manager's do.
async fn webhook(records: SocketAddr, told: tokio::sync::mpsc::UnboundedSender<Value>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let told = told.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let asked = serde_json::from_slice::<Value>(&body).unwrap()["request"].clone();
                    let (path, record) = match asked["action"].as_str() {
                        Some("Present") => ("set-txt", json!({"host": asked["resolvedFQDN"], "value": asked["key"]})),
                        _ => ("clear-txt", json!({"host": asked["resolvedFQDN"]})),
                    };
                    post(records, path, &record).await;
                    let answer = json!({"response": {"uid": asked["uid"], "success": true}});
                    told.send(asked).unwrap();
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer.to_string()))))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn post(server: SocketAddr, path: &str, body: &Value) {
    let stream = TcpStream::connect(server).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("/{path}")).header("host", "x").body(Full::new(Bytes::from(body.to_string())));
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
}

async fn world(pebble: &mut Pebble) -> World {
    let (http, tls) = pebble.listeners.take().unwrap();
    let reached_at = Some("192.0.2.7:8402".parse().unwrap());
    let listeners = ChallengeListeners { http: Some(http), tls: Some(tls), reached_at };
    let world = World::with(|_, issuing| issuing.with_challenges(listeners)).await;
    world.create("", "v1", "Secret", json!({"metadata": {"name": "external"}, "stringData": {"key": EXTERNAL}})).await;
    world
}

fn wish(name: &str, issuer: &str, dns: &[&str]) -> Value {
    json!({"secretName": name, "dnsNames": dns, "issuerRef": {"name": issuer}, "privateKey": {"algorithm": "ECDSA"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_proven_in_three_ways() {
    let folder = tempfile::tempdir().unwrap();
    let mut pebble = Pebble::start(folder.path()).await;
    let world = world(&mut pebble).await;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let hook = webhook(pebble.records, told).await;
    let solver = json!({"selector": {"dnsZones": ["example.com"]}, "dns01": {"webhook": {
        "groupName": "acme.example", "solverName": "records", "config": {"url": format!("http://{hook}/"), "ttl": 5}}}});
    let solvers = [("http", json!({"http01": {}})), ("alpn", json!({"tlsAlpn01": {}})), ("dns", solver)];
    for (name, solver) in solvers {
        world.cert_manager("Issuer", name, pebble.issuer(solver)).await;
        let said = world.ready("Issuer", name, "True").await;
        assert_eq!(said, "The ACME account was registered with the ACME server");
    }
    // One secret, one account, however many issuers name it.
    let uri = async |name: &str| {
        let issuer = world.api("cert-manager.io", "v1", "Issuer").get(name).await.unwrap();
        issuer.data["status"]["acme"]["uri"].as_str().unwrap().to_owned()
    };
    assert_eq!(uri("http").await, uri("dns").await);
    world.cert_manager("Certificate", "web", wish("web", "http", &["web.example.com", "shop.example.com"])).await;
    world.cert_manager("Certificate", "api", wish("api", "alpn", &["api.example.com"])).await;
    world.cert_manager("Certificate", "wild", wish("wild", "dns", &["*.example.com", "deep.example.com"])).await;
    for (name, dns) in [
        ("web", &["shop.example.com", "web.example.com"][..]),
        ("api", &["api.example.com"]),
        ("wild", &["*.example.com", "deep.example.com"]),
    ] {
        world.ready("Certificate", name, "True").await;
        let (info, secret) = world.certificate(name, |_| true).await;
        let mut names = info.dns.clone();
        names.sort();
        assert_eq!(names, dns);
        assert!(info.issuer.contains("Pebble Intermediate"), "{}", info.issuer);
        let chain = carrick_pki::pem::certificates(&value(&secret, "tls.crt").unwrap()).unwrap();
        assert!(chain.len() >= 2, "the intermediate is sent along");
    }
    // The webhook was told what to write and what to take away, in cert-manager's words.
    let mut actions = Vec::new();
    while let Ok(asked) = heard.try_recv() {
        assert_eq!(
            (&asked["type"], &asked["resolvedZone"], &asked["config"]["ttl"]),
            (&json!("dns-01"), &json!("example.com."), &json!(5))
        );
        actions.push(format!("{} {}", asked["action"].as_str().unwrap(), asked["resolvedFQDN"].as_str().unwrap()));
    }
    for name in ["example.com", "deep.example.com"] {
        for action in ["Present", "CleanUp"] {
            assert!(actions.contains(&format!("{action} _acme-challenge.{name}.")), "{actions:?}");
        }
    }
    // What the server never signs fails in its own words.
    world.cert_manager("Certificate", "no", wish("no", "http", &[BLOCKED])).await;
    let event = world.event("no", "Failed").await;
    assert!(event.message.as_deref().unwrap().contains("the ACME server refused"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_led_to_the_listener_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut pebble = Pebble::start(folder.path()).await;
    let world = world(&mut pebble).await;
    let solver = json!({"http01": {"gatewayHTTPRoute": {"parentRefs": [{"name": "edge"}], "labels": {"acme": "yes"}}}});
    world.cert_manager("Issuer", "edge", pebble.issuer(solver)).await;
    world.ready("Issuer", "edge", "True").await;
    let routes = world.api("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let seen = async {
        loop {
            if let Some(route) = routes.list(&ListParams::default().labels("acme=yes")).await.unwrap().items.pop() {
                return route;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    world.cert_manager("Certificate", "web", wish("web", "edge", &["web.example.com"])).await;
    let route = tokio::time::timeout(LIMIT, seen).await.expect("a route");
    let spec = &route.data["spec"];
    assert_eq!((&spec["hostnames"], &spec["parentRefs"][0]["name"]), (&json!(["web.example.com"]), &json!("edge")));
    let path = spec.pointer("/rules/0/matches/0/path").unwrap();
    assert!(path["value"].as_str().unwrap().starts_with("/.well-known/acme-challenge/"), "{path}");
    assert_eq!((&path["type"], &spec["rules"][0]["backendRefs"][0]["port"]), (&json!("Exact"), &json!(8402)));
    // The server is asked only once the gateway leads its question here.
    let waiting = async {
        loop {
            let said = world.ready("CertificateRequest", "web-1", "False").await;
            if said.ends_with("until the gateway edge leads to it") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("it waits");
    let listener = json!({"name": "http", "port": pebble.http_port, "protocol": "HTTP"});
    let gateway = json!({"metadata": {"name": "edge"}, "spec": {"gatewayClassName": "istio", "listeners": [listener]}});
    world.create("gateway.networking.k8s.io", "v1", "Gateway", gateway).await;
    let reached = json!({"status": {"addresses": [{"type": "IPAddress", "value": "127.0.0.1"}]}});
    let gateways = world.api("gateway.networking.k8s.io", "v1", "Gateway");
    gateways.patch_status("edge", &PatchParams::default(), &Patch::Merge(reached)).await.unwrap();
    world.ready("Certificate", "web", "True").await;
    // Nothing of it is left.
    let services: Api<Service> = Api::namespaced(world.client.clone(), "shop");
    let gone = async {
        while !services.list(&ListParams::default()).await.unwrap().items.is_empty()
            || !routes.list(&ListParams::default()).await.unwrap().items.is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_verified_is_not_talked_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut pebble = Pebble::start(folder.path()).await;
    let world = world(&mut pebble).await;
    let mut unknown = pebble.issuer(json!({"http01": {}}));
    unknown["acme"]["caBundle"] = Value::Null;
    world.cert_manager("Issuer", "unknown", unknown.clone()).await;
    let why = world.ready("Issuer", "unknown", "False").await;
    assert!(why.contains("UnknownIssuer"), "{why}");
    unknown["acme"]["skipTLSVerify"] = true.into();
    world.cert_manager("Issuer", "skip", unknown).await;
    let why = world.ready("Issuer", "skip", "False").await;
    assert!(why.contains("skipTLSVerify is not supported"), "{why}");
    assert!(world.secrets().get_opt("account").await.unwrap().is_none());
}
