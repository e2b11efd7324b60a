//! A real Envoy beside the relay and the secret service an agent has, against the real control plane.
//!
//! Envoy runs in a network namespace of its own, since its listeners have fixed ports, and speaks to us over Unix sockets.
//! Needs root, and Envoy by `CARRICK_ENVOY` or in `PATH`; fails without.

use crate::fixture::{World, authority, node};
use carrick_control::source::Kind;
use carrick_pki::Identity;
use carrick_runtime::drain;
use carrick_xds::relay::relay_service;
use carrick_xds::server::{Hello, ListenOptions, Opened, Source, sds_service, serve_unix};
use carrick_xds::{Resource, ResourceSet, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use envoy_types::util::pack_any;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::service::Routes;

/// The workload's certificate and roots, as an agent serves them.
struct Secrets(watch::Sender<ResourceSet>);

impl Secrets {
    fn new(identity: &Identity, roots: &str) -> Self {
        let inline =
            |text: String| Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..Default::default() });
        let certificate = TlsCertificate {
            certificate_chain: inline(identity.chain_pem()),
            private_key: inline(identity.key.to_pem().to_string()),
            ..Default::default()
        };
        let context = CertificateValidationContext { trusted_ca: inline(roots.to_owned()), ..Default::default() };
        let secret = |name: &str, kind| {
            let body = pack_any(Secret { name: name.to_owned(), r#type: Some(kind) });
            (TypeUrl::Secret, Resource::new(name, body))
        };
        let set = ResourceSet::from_resources(
            1,
            "1",
            [
                secret("default", secret::Type::TlsCertificate(certificate)),
                secret("ROOTCA", secret::Type::ValidationContext(context)),
            ],
        );
        Self(watch::channel(set).0)
    }
}

impl Source for Secrets {
    async fn open(&self, _: Hello) -> Result<Opened, tonic::Status> {
        Ok(Opened { sets: self.0.subscribe(), observer: Box::new(()), turns: None })
    }
}

struct Envoy {
    child: Child,
    dir: PathBuf,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pipe(name: &str, path: &Path) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint":
            {"address": {"pipe": {"path": path}}}}]}]}})
}

impl Envoy {
    fn start(dir: &Path, node: &carrick_xds::Node) -> Self {
        let metadata = json!({"NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.30.0"});
        let bootstrap = json!({
            "node": {"id": node.id, "cluster": node.cluster, "metadata": metadata},
            "admin": {"address": {"pipe": {"path": dir.join("admin.sock")}}},
            "dynamic_resources": {
                "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
                "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
                "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}},
            "static_resources": {"clusters": [pipe("xds-grpc", &dir.join("xds.sock")), pipe("sds-grpc", &dir.join("sds.sock"))]},
        });
        let config = dir.join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string()).expect("write bootstrap");
        let envoy = std::env::var("CARRICK_ENVOY").unwrap_or_else(|_| "envoy".into());
        let child = Command::new("unshare")
            .args(["--net", "--kill-child", "sh", "-c", r#"ip link set lo up && exec "$@""#, "sh", &envoy])
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "info", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("envoy.log")).expect("log file"))
            .spawn()
            .expect("unshare");
        Self { child, dir: dir.to_owned() }
    }

    async fn try_get(&self, path: &str) -> Option<Value> {
        let stream = tokio::net::UnixStream::connect(self.dir.join("admin.sock")).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "x").body(Empty::<&[u8]>::new()).ok()?;
        let body = sender.send_request(request).await.ok()?.into_body().collect().await.ok()?.to_bytes();
        driver.abort();
        serde_json::from_slice(&body).ok()
    }

    async fn wait(&self, world: &World, path: &str, what: &str, found: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let page = self.try_get(path).await;
            if page.as_ref().is_some_and(&found) {
                return;
            }
            if start.elapsed() > Duration::from_secs(20) {
                let log = std::fs::read_to_string(self.dir.join("envoy.log")).unwrap_or_default();
                let syncz = world.get("/debug/syncz").await.1;
                panic!("{what}: not so after 20 s; {path} is {page:#?}\n{log}\n{syncz}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_runs_what_it_is_given_and_follows_changes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(&dir.path().join("ca"))).await;
    world.service("shop", "web", 1);
    world.service("shop", "api", 2);
    world.list().await;

    let identity = world.identity("shop", "web");
    let secrets = Arc::new(Secrets::new(&identity, &world.authority.roots().to_pem()));
    let (trigger, drain) = drain::channel();
    let relay = relay_service(world.connector(Some(identity)), None, Arc::new(|_| {}), Default::default());
    let bind = |name: &str| UnixListener::bind(dir.path().join(name)).expect("bind");
    tokio::spawn(serve_unix(bind("xds.sock"), Routes::new(relay), ListenOptions::default(), drain.clone()));
    tokio::spawn(serve_unix(bind("sds.sock"), Routes::new(sds_service(secrets)), ListenOptions::default(), drain));
    let envoy = Envoy::start(dir.path(), &node("shop", "web", Ipv4Addr::new(10, 244, 0, 1).into()));

    let active = |name: &'static str| {
        move |page: &Value| {
            page["configs"]
                .as_array()
                .is_some_and(|all| all.iter().any(|l| l["name"] == json!(name) && !l["active_state"].is_null()))
        }
    };
    let listeners = "/config_dump?resource=dynamic_listeners";
    envoy.wait(&world, listeners, "the inbound listener", active("virtualInbound")).await;
    envoy.wait(&world, listeners, "the outbound listener", active("virtualOutbound")).await;
    envoy.wait(&world, "/server_info", "live", |page| page["state"] == json!("LIVE")).await;
    let settled = |version: u64| format!("/debug/distribution?resourceVersion={version}&wait=20");
    let answer = world.json(&settled(0)).await;
    assert!(answer["proxies"][0]["refused"].is_null(), "{answer}");

    let plaintext = |page: &Value| {
        let inbound =
            page["configs"].as_array().and_then(|all| all.iter().find(|l| l["name"] == json!("virtualInbound")));
        inbound.is_some_and(|l| l.to_string().contains("\"transport_protocol\":\"raw_buffer\""))
    };
    envoy.wait(&world, listeners, "PERMISSIVE takes plaintext", plaintext).await;
    let strict = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}}});
    let version = world.apply(Kind::PeerAuthentication, strict).await;
    let answer = world.json(&settled(version)).await;
    assert!(answer["proxies"][0]["refused"].is_null(), "{answer}");
    let before = envoy.try_get(listeners).await.expect("listeners");
    println!("STRICT after {} s", answer["elapsedSeconds"]);
    envoy.wait(&world, listeners, "STRICT in force", |page| !page.to_string().contains("warming_state")).await;

    // Both ways of the client side: the cluster is replaced, and does not stay in warming without its endpoints.
    for (mode, tls) in [("DISABLE", false), ("ISTIO_MUTUAL", true), ("DISABLE", false)] {
        let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "api", "namespace": "shop"},
            "spec": {"host": "api.shop.svc.cluster.local", "trafficPolicy": {"tls": {"mode": mode}}}});
        let version = world.apply(Kind::DestinationRule, rule).await;
        let answer = world.json(&settled(version)).await;
        println!("{mode} after {} s", answer["elapsedSeconds"]);
        envoy
            .wait(&world, "/config_dump?resource=dynamic_active_clusters", mode, |page| {
                let name = json!("outbound|80||api.shop.svc.cluster.local");
                let cluster =
                    page["configs"].as_array().and_then(|all| all.iter().find(|c| c["cluster"]["name"] == name));
                cluster.is_some_and(|c| c["cluster"]["transport_socket"].to_string().contains("ROOTCA") == tls)
            })
            .await;
    }
    world.delete(Kind::PeerAuthentication, "shop", "default").await;
    let version = world.delete(Kind::DestinationRule, "shop", "api").await;
    world.json(&settled(version)).await;
    let after = envoy.try_get(listeners).await.expect("listeners");
    assert_ne!(before["configs"], after["configs"], "STRICT is gone");
    envoy.wait(&world, listeners, "PERMISSIVE again", plaintext).await;
    drop(envoy);
    trigger.drain(Duration::from_secs(2)).await;
}
