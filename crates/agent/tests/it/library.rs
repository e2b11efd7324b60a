//! No engine: what a gRPC library of the application is given, and that it is new after a renewal.

use std::os::unix::fs::PermissionsExt as _;

use carrick_agent::config::EngineKind;
use carrick_agent::start;
use carrick_pki::Identity;
use carrick_runtime::clock::SystemClock;
use serde_json::{Value, json};

use crate::lab::{Plane, until};

#[tokio::test]
async fn a_library_is_told_where_and_who() {
    let plane = Plane::start().await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut config =
        plane.config(EngineKind::Library { bootstrap: at("grpc.json"), certificates: Some(at("certificates")) });
    config.node.metadata.insert("GENERATOR".to_owned(), "grpc".into());
    let running = start(config.clone(), SystemClock::shared(), None).await.unwrap();
    until("ready", async || running.not_ready().await.is_empty()).await;

    let told: Value = serde_json::from_slice(&std::fs::read(at("grpc.json")).unwrap()).unwrap();
    let socket = config.xds_socket();
    let server = json!({"server_uri": format!("unix://{}", socket.display()), "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]});
    assert_eq!(told["xds_servers"], json!([server]));
    assert_eq!(told["node"]["id"], "sidecar~127.0.0.1~shop-1.basic~basic.svc.cluster.local");
    assert_eq!(told["node"]["metadata"]["GENERATOR"], "grpc");
    let provider = &told["certificate_providers"]["default"];
    assert_eq!(provider["plugin_name"], "file_watcher");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(&at("certificates/key.pem"))), (0o666, 0o640));
    let read = |field: &str| std::fs::read(provider["config"][field].as_str().unwrap()).unwrap();
    let identity = Identity::from_pem(&read("certificate_file"), &read("private_key_file")).unwrap();
    assert_eq!(identity.spiffe.unwrap().as_str(), crate::lab::workload().to_string());
    assert_eq!(
        String::from_utf8(read("ca_certificate_file")).unwrap().trim(),
        plane.ca.authority.roots().to_pem().trim()
    );
    running.shut_down().await;
}

#[tokio::test]
async fn without_a_folder_nothing_is_written_and_nothing_is_waited_for() {
    let plane = Plane::start().await;
    let folder = tempfile::tempdir().unwrap();
    let bootstrap = folder.path().join("grpc.json");
    let config = plane.config(EngineKind::Library { bootstrap: bootstrap.clone(), certificates: None });
    let running = start(config, SystemClock::shared(), None).await.unwrap();
    until("ready", async || running.not_ready().await.is_empty()).await;
    let told: Value = serde_json::from_slice(&std::fs::read(bootstrap).unwrap()).unwrap();
    assert_eq!(told.get("certificate_providers"), None);
    running.shut_down().await;
}
