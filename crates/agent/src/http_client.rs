//! One HTTP/1 request to a neighbour on loopback: Envoy's admin, the workload's metrics.
//!
//! Invariant: time and size of an answer are bounded. There is no connection kept and no redirect followed.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer.
const MAX: usize = 64 << 20;
/// Longest time for the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("{0}: {1}")]
    Http(SocketAddr, String),
    #[error("{0}: no answer in time")]
    Timeout(SocketAddr),
}

/// Sends a request without body and reads the whole answer.
pub async fn send(address: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, Bytes), HttpError> {
    tokio::time::timeout(TIMEOUT, exchange(address, method, path)).await.map_err(|_| HttpError::Timeout(address))?
}

/// `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), HttpError> {
    send(address, Method::GET, path).await
}

async fn exchange(address: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, Bytes), HttpError> {
    let http = |e: &dyn std::fmt::Display| HttpError::Http(address, e.to_string());
    let stream = TcpStream::connect(address).await.map_err(|e| HttpError::Connect(address, e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| http(&e))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| http(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| http(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX).collect().await.map_err(|e| http(&e))?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    // The connection is driven here instead of in a task of its own: it ends with the answer.
    let mut ended = false;
    loop {
        tokio::select! {
            result = &mut answer => return result,
            result = &mut connection, if !ended => {
                ended = true;
                result.map_err(|e| http(&e))?;
            }
        }
    }
}
