//! The native engine, its admin port and its readiness, against an xDS server on loopback.

use std::sync::Arc;
use std::time::SystemTime;

use carrick_agent::config::EngineKind;
use carrick_agent::start;
use carrick_runtime::clock::TestClock;
use carrick_xds::{Any, Resource};
use serde_json::Value;

use crate::envoy::{listener, mesh_request};
use crate::lab::{Plane, free_port, http, until, workload};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_the_control_plane() {
    let plane = Plane::start().await;
    let port = free_port();
    plane.publish(1, vec![listener(port, "one")]);
    let mut config = plane.config(EngineKind::Native);
    config.ports.admin = free_port();
    let admin = ([127, 0, 0, 1], config.ports.admin).into();
    let clock = TestClock::new(SystemTime::now());
    let running = start(config, Arc::new(clock), None).await.unwrap();
    let [status, health, _] = running.addresses();
    until("an answer over mutual TLS", async || mesh_request(&plane, port).await.is_ok_and(|(_, b)| b == "one")).await;
    assert!(plane.xds.streams_are_of(&workload()));

    // There is no 15001 here, so it is not ready and says so.
    let (code, text) = http(health, "GET", "/healthz/ready").await.unwrap();
    assert!(code == 503 && text.contains("15001"), "{text}");

    // The dump is Envoy's, without the key.
    let (_, dump) = http(admin, "GET", "/config_dump?include_eds").await.unwrap();
    assert!(!dump.contains("PRIVATE KEY") && !dump.contains("UFJJVkFURSBLRVk"), "a key is dumped");
    let dump: Value = serde_json::from_str(&dump).unwrap();
    let kinds: Vec<&str> =
        dump["configs"].as_array().unwrap().iter().filter_map(|c| c["@type"].as_str()?.rsplit('.').next()).collect();
    assert_eq!(
        kinds,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "EndpointsConfigDump",
            "ListenersConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let section = |kind: &str| &dump["configs"][kinds.iter().position(|k| *k == kind).unwrap()];
    let shown = &section("ListenersConfigDump")["dynamic_listeners"][0];
    assert_eq!((&shown["name"], &shown["active_state"]["listener"]["name"]), (&"mtls".into(), &"mtls".into()));
    let routes = &section("RoutesConfigDump")["static_route_configs"][0]["route_config"];
    assert_eq!(routes["name"], "fixed");
    let secrets = section("SecretsConfigDump")["dynamic_active_secrets"].as_array().unwrap();
    assert_eq!(secrets.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["ROOTCA", "default"]);
    assert_eq!(secrets[1]["secret"]["tls_certificate"]["private_key"]["inline_bytes"], "W3JlZGFjdGVkXQ==");
    for path in ["/certs", "/clusters?format=json", "/server_info", "/listeners?format=json", "/stats?format=json"] {
        let (code, body) = http(admin, "GET", path).await.unwrap();
        assert!(code == 200 && serde_json::from_str::<Value>(&body).is_ok(), "{path}: {code} {body}");
    }
    assert!(http(admin, "GET", "/certs").await.unwrap().1.contains(&workload().to_string()));

    // What is not supported is refused by name and field, and the rest stays in force.
    let (kind, good) = listener(port, "two");
    let broken = Any { type_url: kind.as_str().to_owned(), value: vec![0xff, 0xff] };
    plane.publish(2, vec![(kind.clone(), good), (kind, Resource::new("broken", broken))]);
    until("a refusal", async || plane.xds.status.lock().unwrap().refused().is_some()).await;
    let refusal = format!("{:?}", plane.xds.status.lock().unwrap().refused());
    assert!(refusal.contains("broken"), "{refusal}");
    until("the good one", async || mesh_request(&plane, port).await.is_ok_and(|(_, b)| b == "two")).await;
    let (_, dump) = http(admin, "GET", "/config_dump?resource=dynamic_listeners").await.unwrap();
    assert!(dump.contains("error_state"), "{dump}");

    // The end, asked for from within the pod.
    let mut running = running;
    assert_eq!(http(status, "POST", "/quitquitquit").await.unwrap().0, 200);
    running.ended().await.unwrap();
    running.shut_down().await;
    assert!(http(health, "GET", "/healthz/ready").await.is_none());
    assert!(mesh_request(&plane, port).await.is_err());
}
