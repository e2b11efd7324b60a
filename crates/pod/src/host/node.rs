//! This machine as a Node: registered once, ready while `up` runs, with a Lease that says so.
//!
//! Invariant: only the object of our own name is written.

use std::time::Duration;

use carrick_api::timestamp::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::HostOptions;

/// Between two renewals; a Lease holds four times as long.
const PERIOD: Duration = Duration::from_secs(10);
/// The namespace of all nodes' Leases; an API may or may not come with it.
const LEASES: &str = "kube-node-lease";
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the Node and its Lease; never returns when there is one to keep.
pub(crate) async fn register(options: &HostOptions, client: &Client) {
    let Some(name) = &options.node_name else { return };
    let mut known = false;
    loop {
        let done = async {
            if !known {
                node(options, client, name).await?;
            }
            lease(client, name).await
        }
        .await;
        if let Err(error) = &done {
            tracing::debug!(%error, node = %name, "node not registered");
        }
        // A node that somebody deleted comes back with the next failure to renew, as a kubelet's would with its next heartbeat.
        known = done.is_ok();
        tokio::time::sleep(if known { PERIOD } else { AGAIN }).await;
    }
}

async fn node(options: &HostOptions, client: &Client, name: &str) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let network =
        ipnet::Ipv4Net::new(options.network.gateway, options.network.prefix).map(|net| net.trunc().to_string());
    let network = network.unwrap_or_default();
    let labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture(),
    });
    let object = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": network, "podCIDRs": [network]},
    }))
    .map_err(kube::Error::SerdeError)?;
    match nodes.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let now = now().to_string();
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "CarrickUp", "message": "carrick up is running",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let capacity = json!({
        "cpu": std::thread::available_parallelism().map_or(1, usize::from).to_string(),
        "memory": format!("{}Ki", memory()), "pods": "65000", "ephemeral-storage": "0",
    });
    let status = json!({"status": {
        "capacity": capacity, "allocatable": capacity,
        "conditions": [condition],
        "addresses": [
            {"type": "InternalIP", "address": options.network.gateway.to_string()},
            {"type": "Hostname", "address": name},
        ],
        "nodeInfo": {
            "machineID": "", "systemUUID": "", "bootID": "",
            "kernelVersion": kernel(), "osImage": "Linux", "operatingSystem": "linux", "architecture": architecture(),
            "containerRuntimeVersion": format!("carrick://{}", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v", env!("CARGO_PKG_VERSION"), "-carrick"), "kubeProxyVersion": "",
        },
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.map(drop)
}

async fn lease(client: &Client, name: &str) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": PERIOD.as_secs().saturating_mul(4),
        "renewTime": now().micro_string(),
    });
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(&json!({"spec": spec}))).await {
        Err(error) if crate::api::not_found(&error) => {
            let namespace =
                serde_json::from_value(json!({"metadata": {"name": LEASES}})).map_err(kube::Error::SerdeError)?;
            match Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            let lease = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}));
            leases.create(&PostParams::default(), &lease.map_err(kube::Error::SerdeError)?).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Memory of the machine in KiB.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
