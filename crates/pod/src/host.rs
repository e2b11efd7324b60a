//! The host's part of the pod network: bridge, forwarding, service rules, names.
//!
//! Invariant: what runs is never disturbed by starting or stopping this: rules and names stay as they are until newer ones replace them, and
//! only [`teardown`] takes them away. Nothing outside of our own table, bridge and marked block is changed, except `ip_forward`.

mod entries;
mod hosts_file;
mod node;
mod services;

use std::time::Duration;

use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::services::ServiceTable;
use tokio_util::sync::CancellationToken;

use crate::network::{Netlink, settings_of_host};
use crate::options::run_dir;
use crate::run::require_root;
use crate::{HostOptions, PodError, sweep};

/// How often dead pods are looked for.
const SWEEP: Duration = Duration::from_secs(2);

/// Makes the bridge, its address, forwarding and, if there is none yet, an empty service table; idempotent, keeps what runs.
///
/// # Errors
/// Not root, nft missing, or the kernel refuses.
pub async fn setup(options: &HostOptions) -> Result<(), PodError> {
    require_root("carrick up with a pod network")?;
    let run = run_dir(&options.data_dir);
    std::fs::create_dir_all(&run).map_err(PodError::io(format!("create {}", run.display())))?;
    Netlink::open()?.ensure_bridge(&options.network).await?;
    settings_of_host(&options.network.bridge)?;
    let empty = empty_table(options)?;
    let apply = move || {
        let table = Table { family: "ip", name: &empty.table };
        match nft::list(table)? {
            Some(_) => Ok(()),
            None => nft::apply(table, &carrick_capture::services::ruleset(&empty)),
        }
    };
    tokio::task::spawn_blocking(apply).await.map_err(|error| PodError::Request(error.to_string()))??;
    Ok(())
}

/// The service table of these options, without services.
pub(crate) fn empty_table(options: &HostOptions) -> Result<ServiceTable, PodError> {
    let network = &options.network;
    let range = |address, prefix| {
        ipnet::Ipv4Net::new(address, prefix).map_err(|_| PodError::Request(format!("{address}/{prefix} is no network")))
    };
    let pods = range(network.gateway, network.prefix)?;
    let services = range(network.services.0, network.services.1)?;
    let mut table = ServiceTable::new(&network.table, &network.bridge, pods, services);
    table.masquerade_egress = options.masquerade_egress;
    Ok(table)
}

/// Follows Services and EndpointSlices and keeps rules, `dns.json`, hosts block, Node and Lease current, and sweeps after dead runners, until
/// `stop`. API failures are retried; returns only after `stop`. What it wrote stays.
pub async fn sync(options: HostOptions, client: kube::Client, stop: CancellationToken) {
    let sweeping = async {
        loop {
            if let Err(error) = sweep(&options.data_dir, &options.network, Some(&client)).await {
                tracing::warn!(%error, "dead pods not swept");
            }
            tokio::time::sleep(SWEEP).await;
        }
    };
    let everything = async {
        tokio::join!(services::follow(&options, &client), node::register(&options, &client), sweeping);
    };
    tokio::select! {
        () = everything => {}
        () = stop.cancelled() => {}
    }
}

/// Removes the service table, the hosts block and, when no pod is on it, the bridge.
///
/// # Errors
/// The kernel refuses, or the hosts file cannot be written.
pub async fn teardown(options: &HostOptions) -> Result<(), PodError> {
    require_root("removing the pod network")?;
    let table = options.network.table.clone();
    let remove = move || nft::remove(Table { family: "ip", name: &table });
    tokio::task::spawn_blocking(remove).await.map_err(|error| PodError::Request(error.to_string()))??;
    if let Some(path) = &options.hosts_file {
        hosts_file::write(path, &[]).map_err(PodError::io(format!("write {}", path.display())))?;
    }
    let netlink = Netlink::open()?;
    let namespaces = NetNs::names()?;
    let in_use = namespaces.iter().any(|name| name.starts_with(&format!("{}-", options.network.netns_prefix)))
        || netlink.links().await?.iter().any(|name| name.starts_with(&options.network.link_prefix));
    if in_use { Ok(()) } else { netlink.remove(&options.network.bridge).await }
}
