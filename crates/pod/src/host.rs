//! The host's part of the pod network: bridge, forwarding, service rules, names.

use tokio_util::sync::CancellationToken;

use crate::{HostOptions, PodError};

/// Makes the bridge, its address, forwarding and an empty service table; idempotent, keeps what runs.
///
/// # Errors
/// Not root, or the kernel refuses.
pub async fn setup(options: &HostOptions) -> Result<(), PodError> {
    let _ = options;
    Ok(())
}

/// Follows Services and EndpointSlices and keeps rules, `dns.json`, hosts block, Node and Lease current until `stop`.
/// API failures are retried; returns only after `stop`.
pub async fn sync(options: HostOptions, client: kube::Client, stop: CancellationToken) {
    let _ = (options, client);
    stop.cancelled().await;
}

/// Removes the service table, the hosts block and, when no pod is on it, the bridge.
///
/// # Errors
/// The kernel refuses.
pub async fn teardown(options: &HostOptions) -> Result<(), PodError> {
    let _ = options;
    Ok(())
}
