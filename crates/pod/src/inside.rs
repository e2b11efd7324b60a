//! Reaching a running pod's loopback from the host: connections made inside its network namespace.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::PodError;

/// What an HTTP server inside a pod said.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

/// A TCP connection to `address` as seen from inside pod `namespace/pod`, for example its `127.0.0.1:15000`.
///
/// # Errors
/// No such running pod on this machine, or nobody listens.
pub async fn connect_in_pod(
    data_dir: &Path,
    namespace: &str,
    pod: &str,
    address: SocketAddr,
    timeout: Duration,
) -> Result<tokio::net::TcpStream, PodError> {
    let _ = (data_dir, namespace, pod, address, timeout);
    Err(PodError::Request("not built yet".into()))
}

/// `GET path` on `127.0.0.1:port` inside the pod.
///
/// # Errors
/// As [`connect_in_pod`], or the answer is not HTTP.
pub async fn http_get_in_pod(
    data_dir: &Path,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<HttpAnswer, PodError> {
    let _ = (data_dir, namespace, pod, port, path);
    Err(PodError::Request("not built yet".into()))
}
