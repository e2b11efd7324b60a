//! Taking a pod apart, and doing so for runners that died without saying good-bye.
//!
//! Invariant: a pod is swept only by whoever holds its lock, and a Pod object is deleted only if it is the one the runner made. A folder stays
//! until everything it records is gone.

use std::path::Path;
use std::time::Duration;

use carrick_capture::netns::NetNs;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Netlink;
use crate::output;
use crate::state::{self, PodState};
use crate::{Network, PodError, api, template};

/// Removes every dead runner's processes, namespace, link, address and Pod object; returns how many pods were swept.
/// Without a client, or while the API is away, pods with an object keep their folder for the next sweep.
///
/// # Errors
/// The state folder cannot be read.
pub async fn sweep(data_dir: &Path, network: &Network, client: Option<&Client>) -> Result<usize, PodError> {
    let mut swept = 0usize;
    for folder in state::dead(data_dir)? {
        let state = &folder.state;
        // A folder written by nobody's version of this program names nothing that could be removed safely.
        let ours = |name: &str, prefix: &str| name.is_empty() || name.starts_with(prefix);
        if !ours(&state.netns, &network.netns_prefix) || !ours(&state.link, &network.link_prefix) {
            tracing::warn!(folder = %folder.path().display(), "not a pod of this network; left alone");
            continue;
        }
        if let Err(error) = dismantle(state).await {
            tracing::warn!(%error, pod = %state.name, "dead pod not swept");
            continue;
        }
        let forgotten = match client {
            _ if state.name.is_empty() => true,
            Some(client) => match delete_object(client, state).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%error, pod = %state.name, "object of a dead pod not deleted");
                    false
                }
            },
            None => false,
        };
        if forgotten {
            for container in [template::PROXY, state.container.as_str()] {
                output::remove(&output::path(data_dir, &state.namespace, &state.name, container));
            }
            folder.remove()?;
            swept = swept.saturating_add(1);
        }
    }
    Ok(swept)
}

/// Ends the pod's processes and removes its link and namespace.
pub(crate) async fn dismantle(state: &PodState) -> Result<(), PodError> {
    if state.netns.is_empty() {
        return Ok(());
    }
    if let Ok(namespace) = NetNs::open(&state.netns) {
        // New ones may be born while the old ones are counted.
        for _ in 0..50 {
            let left = namespace.processes()?;
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        namespace.delete()?;
    }
    Netlink::open()?.remove(&state.link).await
}

/// Deletes the Pod object, if there still is that one.
pub(crate) async fn delete_object(client: &Client, state: &PodState) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &state.namespace);
    let uid = if state.uid.is_empty() {
        // Killed between creating it and writing that down: ours if it never got further.
        let Some(pod) = pods.get_opt(&state.name).await? else { return Ok(()) };
        let untouched = pod.status.and_then(|status| status.pod_ip).is_none();
        if !untouched {
            return Ok(());
        }
        pod.metadata.uid
    } else {
        Some(state.uid.clone())
    };
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid, resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(&state.name, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if api::not_found(&error) => Ok(()),
        // Another pod has that name by now.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
