//! `carrick version`: this program, the control plane, the proxies.
//!
//! Invariant: without a control plane the client's own line is still printed, and the command succeeds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::{
    output::{self, Format},
    proxy_status,
};

/// This program's version.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// What the control plane calls itself.
async fn control_plane_version(debug_port: Option<u16>) -> String {
    let Some(port) = debug_port else { return "unknown".to_owned() };
    let answer = proxy_status::get(port, "/version").await;
    answer
        .ok()
        .and_then(|(_, body)| serde_json::from_slice::<Value>(&body).ok())
        .and_then(|value| Some(value.get("version")?.as_str()?.to_owned()))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// What a cluster says of the control planes that are installed in it: their versions, once each.
async fn installed(client: &kube::Client, namespace: &str) -> Vec<String> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let Ok(all) = api.list(&ListParams::default().labels("app=istiod")).await else { return Vec::new() };
    let label = |d: &Deployment| d.labels().get("app.kubernetes.io/version").cloned();
    let versions: BTreeSet<String> = all.iter().filter_map(label).collect();
    versions.into_iter().collect()
}

/// The versions; the control plane on this machine is asked when a debug port is given, and where none answers, the cluster.
///
/// # Errors
/// When the output cannot be written in that format.
pub async fn show(debug_port: Option<u16>, format: Format, cluster: Option<(kube::Client, &str)>) -> Result<String> {
    let remote = match debug_port {
        Some(port) => Some(proxy_status::fetch(port).await),
        None => None,
    };
    let mut data_plane: BTreeMap<String, usize> = BTreeMap::new();
    let mut control_plane = None;
    let mut lines = vec![format!("client version: {OWN}")];
    match &remote {
        None => {}
        Some(Err(_)) => {
            let found = match &cluster {
                Some((client, namespace)) => installed(client, namespace).await.join(", "),
                None => String::new(),
            };
            if found.is_empty() {
                lines.push("no control plane answers on this machine".to_owned());
            } else {
                lines.push(format!("control plane version: {found}"));
                control_plane = Some(found);
            }
        }
        Some(Ok(answer)) => {
            let version = control_plane_version(debug_port).await;
            lines.push(format!("control plane version: {version}"));
            control_plane = Some(version);
            for proxy in answer.get("proxies").and_then(Value::as_array).into_iter().flatten() {
                let version = proxy.get("version").and_then(Value::as_str).unwrap_or("unknown");
                *data_plane.entry(version.to_owned()).or_default() += 1;
            }
            let parts: Vec<String> = data_plane
                .iter()
                .map(|(version, count)| {
                    format!("{version} ({count} {})", if *count == 1 { "proxy" } else { "proxies" })
                })
                .collect();
            let parts = if parts.is_empty() { "none".to_owned() } else { parts.join(", ") };
            lines.push(format!("data plane version: {parts}"));
        }
    }
    let value = json!({"clientVersion": OWN, "controlPlaneVersion": control_plane, "dataPlaneVersions": data_plane});
    Ok(match output::machine(&value, format)? {
        Some(text) => text,
        None => lines.join("\n") + "\n",
    })
}
