//! Reaching a running pod's loopback from the host: connections made inside its network namespace.
//!
//! Invariant: a socket stays in the namespace it was made in, so only the connecting happens on a thread inside.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use carrick_capture::netns::NetNs;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{PodError, state};

/// For the whole of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an HTTP server inside a pod said.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Whether the pod runs on this machine.
pub fn is_here(data_dir: &Path, namespace: &str, pod: &str) -> bool {
    state::find(data_dir, namespace, pod).is_ok()
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
    let namespace = NetNs::open(&state::find(data_dir, namespace, pod)?.netns)?;
    let doing = format!("connect to {address} in pod {pod}");
    let connect = move || {
        namespace.run(|| {
            let stream = std::net::TcpStream::connect_timeout(&address, timeout)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
    };
    let joined = tokio::task::spawn_blocking(connect).await;
    let stream = joined.map_err(|error| PodError::Request(format!("{doing}: {error}")))??;
    stream.and_then(tokio::net::TcpStream::from_std).map_err(PodError::io(doing))
}

/// `GET path` on `127.0.0.1:port` inside the pod.
///
/// # Errors
/// As [`connect_in_pod`], or the answer is not HTTP, or takes longer than 30 s.
pub async fn http_get_in_pod(
    data_dir: &Path,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<HttpAnswer, PodError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = connect_in_pod(data_dir, namespace, pod, address, Duration::from_secs(5)).await?;
    http_get_over(stream, pod, port, path).await
}

/// One HTTP request over a connection to a port of a pod.
///
/// # Errors
/// No answer, or none that is HTTP.
pub async fn http_get_over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<HttpAnswer, PodError> {
    let failed = |reason: String| PodError::Request(format!("GET {path} on port {port} in pod {pod}: {reason}"));
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request =
            hyper::Request::get(path).header("host", format!("localhost:{port}")).body(Empty::<bytes::Bytes>::new());
        let ask = async {
            let answer = match request {
                Ok(request) => sender.send_request(request).await?,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes().to_vec();
            Ok::<_, hyper::Error>(Ok(HttpAnswer { status, body }))
        };
        // The connection does the reading and writing; it may end first, with the answer already taken in.
        tokio::pin!(connection, ask);
        tokio::select! {
            biased;
            answer = &mut ask => answer,
            _ = &mut connection => ask.await,
        }
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(reason))) => Err(failed(reason)),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer in {} s", PATIENCE.as_secs()))),
    }
}
