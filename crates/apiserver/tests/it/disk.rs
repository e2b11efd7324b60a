//! A real disk that is full, grows again, or may not be written: who writes is told, what was acknowledged stays.

use crate::http::{Access, config_map};
use carrick_apiserver::{ApiOptions, ApiServer};
use http::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// A small file system in memory; unmounted in the end.
struct Tmpfs {
    folder: tempfile::TempDir,
}

fn mount(arguments: &[&str], folder: &Path) {
    let status = Command::new("mount").args(arguments).arg("tmpfs").arg(folder).status().unwrap();
    assert!(status.success(), "mounting needs root");
}

impl Tmpfs {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}")], folder.path());
        Self { folder }
    }

    fn again(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}")], self.folder.path());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.folder.path()).status());
    }
}

fn big(name: &str) -> Value {
    let mut object = config_map(name, 7);
    object["data"]["ballast"] = json!("x".repeat(200_000));
    object
}

async fn names(access: &Access) -> Vec<String> {
    let (code, list) = access.admin().await.unwrap().get(PATH).await;
    assert_eq!(code, 200, "{list}");
    let name = |o: &Value| o["metadata"]["name"].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(name).filter(|n| n.starts_with("full-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let disk = Tmpfs::new("8m");
    let server = ApiServer::start(ApiOptions::new(disk.folder.path(), 0)).await.unwrap();
    let access = Access::of(server.kubeconfig());
    let mut client = access.admin().await.unwrap();
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 0..80 {
        let name = format!("full-{number:03}");
        let (code, answer) = client.post(PATH, &big(&name)).await;
        if code == 201 {
            acknowledged.push(name);
            continue;
        }
        assert_eq!(
            (code, &answer["kind"], &answer["reason"]),
            (500, &json!("Status"), &json!("InternalError")),
            "{answer}"
        );
        assert!(answer["message"].as_str().unwrap().contains("No space left on device"), "{answer}");
        refused += 1;
        if refused == 5 {
            break;
        }
    }
    assert!(refused == 5 && acknowledged.len() > 5, "{} acknowledged", acknowledged.len());
    assert_eq!(names(&access).await, acknowledged, "reads go on");
    assert_eq!(client.get("/readyz").await.0, 500);
    assert_eq!(client.get("/livez").await.0, 200);

    // There is room again: no restart is needed.
    disk.again("size=64m");
    assert_eq!(client.post(PATH, &big("full-after")).await.0, 201);
    acknowledged.push("full-after".into());
    assert_eq!(client.get("/readyz").await.0, 200);
    assert_eq!(names(&access).await, acknowledged);
    let (code, _) = client.call(Method::DELETE, &format!("{PATH}/full-after"), None).await.unwrap();
    assert_eq!((code, acknowledged.pop().as_deref()), (200, Some("full-after")));
    server.drain(Duration::from_secs(5)).await;

    let server = ApiServer::start(ApiOptions::new(disk.folder.path(), 0)).await.unwrap();
    assert_eq!(names(&Access::of(server.kubeconfig())).await, acknowledged);
    server.drain(Duration::from_secs(5)).await;

    // Not to be written at all: a clear refusal to start, and nothing is changed.
    disk.again("ro");
    let error = ApiServer::start(ApiOptions::new(disk.folder.path(), 0)).await.err().unwrap().to_string();
    assert!(error.contains("Read-only file system") && error.contains("api.lock"), "{error}");
    disk.again("rw");
    let server = ApiServer::start(ApiOptions::new(disk.folder.path(), 0)).await.unwrap();
    assert_eq!(names(&Access::of(server.kubeconfig())).await, acknowledged);
    server.drain(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(ApiOptions::new(folder.path(), 0)).await.unwrap();
    server.drain(Duration::from_secs(5)).await;
    let file = folder.path().join("api.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    // A part of what the default roles say.
    let at = bytes.windows(13).position(|w| w == b"cluster-admin").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = ApiServer::start(ApiOptions::new(folder.path(), 0)).await.err().unwrap().to_string();
    assert!(error.contains("api.redb") && error.contains("carrick restore"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "a damaged file is evidence");
}
