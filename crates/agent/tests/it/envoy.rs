//! Envoy itself as the engine: bootstrap, relay, SDS, rotation, supervision. Needs `CARRICK_ENVOY` or `envoy` in PATH.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_agent::config::{EngineKind, Process, Surroundings as _};
use carrick_agent::{Running, start};
use carrick_envoy_json::from_json;
use carrick_pki::tls::{self, PeerPolicy, SanMatch, ServerAuth, TlsOptions, VerifiedPeer};
use carrick_runtime::clock::TestClock;
use carrick_xds::{Any, Resource, TypeUrl};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Plane, free_port, http, until, workload};

fn envoy() -> EngineKind {
    let name = std::env::var("CARRICK_ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    let binary: PathBuf = Process.find_program(&name).expect("these tests need Envoy: set CARRICK_ENVOY");
    EngineKind::Envoy { binary, log_level: "warning".into() }
}

/// A listener as the mesh has them: mutual TLS by SDS, then a fixed answer.
pub fn listener(port: u16, body: &str) -> (TypeUrl, Resource) {
    let sds = |name: &str| {
        json!({"name": name, "sds_config": {
            "initial_fetch_timeout": "0s", "resource_api_version": "V3",
            "api_config_source": {
                "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
            },
        }})
    };
    let value: Value = json!({
        "name": "mtls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [sds("default")],
                    "combined_validation_context": {
                        "default_validation_context": {"match_typed_subject_alt_names": [
                            {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}},
                        ]},
                        "validation_context_sds_secret_config": sds("ROOTCA"),
                    },
                    "alpn_protocols": ["http/1.1"],
                },
            }},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "test",
                "route_config": {"name": "fixed", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": body}}},
                ]}]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                }}],
            }}],
        }],
    });
    let listener: Listener = from_json(&value).unwrap();
    let body = Any { type_url: TypeUrl::Listener.as_str().to_owned(), value: listener.encode_to_vec() };
    (TypeUrl::Listener, Resource::new("mtls", body))
}

/// A request as another workload; the server's serial number and the answer.
pub async fn mesh_request(plane: &Plane, port: u16) -> Result<(String, String), String> {
    let roots = plane.ca.authority.roots();
    let auth = ServerAuth::Spiffe(PeerPolicy::new(roots, vec![SanMatch::Exact(workload().to_string())]));
    let config =
        tls::client_config(Some(&plane.other("client")), auth.clone(), &["http/1.1"], &TlsOptions::default()).unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    let name = "outbound_.80_._.shop.basic.svc.cluster.local".try_into().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
    let peer = VerifiedPeer::of_server(stream.get_ref().1, &auth).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await.map_err(|e| e.to_string())?;
    // By length: Envoy keeps the connection open for a second after its answer.
    let mut answer = String::new();
    loop {
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).and_then(|l| l.parse().ok());
            if length.is_none_or(|length: usize| body.len() >= length) {
                break;
            }
        }
        let mut part = [0u8; 4096];
        match stream.read(&mut part).await.map_err(|e| e.to_string())? {
            0 => return Err(format!("the answer ends early: {answer:?}")),
            n => answer.push_str(&String::from_utf8_lossy(&part[..n])),
        }
    }
    let body = answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned();
    Ok((peer.certificate().serial.clone(), body))
}

async fn ready(running: &Running) {
    until("ready", async || running.not_ready().await.is_empty()).await;
}

/// Process ids of Envoys that this test process started with `bootstrap`.
fn children(bootstrap: &std::path::Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&*bootstrap.to_string_lossy()) {
            found.push(pid);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_lives_with_the_agent() {
    let mut plane = Plane::start().await;
    let port = free_port();
    plane.publish(1, vec![listener(port, "one")]);
    let config = plane.config(envoy());
    let bootstrap = config.state_dir.join("envoy.json");
    let admin: SocketAddr = ([127, 0, 0, 1], config.ports.admin).into();
    let clock = TestClock::new(SystemTime::now());
    let running = start(config.clone(), Arc::new(clock.clone()), None).await.unwrap();
    let [status, health, prometheus] = running.addresses();
    ready(&running).await;
    assert_eq!(http(health, "GET", "/healthz/ready").await.unwrap().0, 200);

    // The bootstrap holds no secret, the sockets are ours alone.
    let text = std::fs::read_to_string(&bootstrap).unwrap();
    assert!(!text.contains("PRIVATE") && text.contains("sidecar~127.0.0.1~shop-1.basic~basic.svc.cluster.local"));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(config.state_dir.clone()), mode(config.sds_socket())), (0o700, 0o600));

    // Configuration by the relay with the pod's identity, certificate by SDS.
    until("its workers listen", async || mesh_request(&plane, port).await.is_ok()).await;
    let (serial, body) = mesh_request(&plane, port).await.unwrap();
    assert_eq!(body, "one");
    assert!(plane.xds.streams_are_of(&workload()));
    assert!(http(prometheus, "GET", "/stats/prometheus").await.unwrap().1.contains("envoy_server_live"));
    let merged = http(status, "GET", "/stats/prometheus").await.unwrap().1;
    assert!(merged.contains("envoy_server_live") && merged.contains("istio_agent_cert_expiry_seconds"), "{merged}");

    // Rotation reaches new handshakes.
    until("a new certificate in use", async || {
        clock.advance(Duration::from_secs(60));
        mesh_request(&plane, port).await.is_ok_and(|(now, _)| now != serial)
    })
    .await;

    // A change is passed on; the control plane may go away and come back.
    plane.publish(2, vec![listener(port, "two")]);
    until("the change", async || mesh_request(&plane, port).await.is_ok_and(|(_, body)| body == "two")).await;
    plane.stop().await;
    assert_eq!(mesh_request(&plane, port).await.unwrap().1, "two");
    plane.publish(3, vec![listener(port, "three")]);
    plane.listen().await;
    until("the change after the outage", async || {
        mesh_request(&plane, port).await.is_ok_and(|(_, body)| body == "three")
    })
    .await;

    // Killed, it is started again.
    let [pid] = children(&bootstrap)[..] else { panic!("one Envoy expected") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("another Envoy", async || matches!(children(&bootstrap)[..], [other] if other != pid)).await;
    until("serving again", async || mesh_request(&plane, port).await.is_ok_and(|(_, body)| body == "three")).await;

    // The end leaves nothing behind.
    running.shut_down().await;
    assert!(children(&bootstrap).is_empty());
    assert!(http(admin, "GET", "/ready").await.is_none());
}

#[tokio::test]
async fn envoy_waits_for_an_identity() {
    let plane = Plane::start().await;
    *plane.ca.accepts_tokens.lock().unwrap() = false;
    let config = plane.config(envoy());
    let bootstrap = config.state_dir.join("envoy.json");
    let running = start(config, Arc::new(TestClock::new(SystemTime::now())), None).await.unwrap();
    until("a refusal", async || !plane.ca.asked.lock().unwrap().is_empty()).await;
    assert_eq!(running.not_ready().await, ["no certificate yet"]);
    assert!(children(&bootstrap).is_empty());
    let [_, health, _] = running.addresses();
    assert_eq!(http(health, "GET", "/healthz/ready").await.unwrap().0, 503);
    running.shut_down().await;
}
