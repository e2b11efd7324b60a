//! Byte streams through an HTTP/1.1 proxy: CONNECT to the upstream, then bytes (`tunneling_config`).
//!
//! Invariant: not a byte of the client's goes out before the proxy has agreed, and not a byte of the target's is lost that came with
//! its answer.

use crate::info::Info;
use crate::io::stream::Stream;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::listener::Tunnel;
use carrick_proxy_core::mutate::Side;
use std::fmt::Write as _;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest head of the proxy's answer, bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NoTunnel {
    /// The connection.
    #[error("tunnel: {0}")]
    Io(#[from] io::Error),
    /// The proxy refused.
    #[error("tunnel refused with status {0}")]
    Refused(u16),
    /// The answer is no HTTP.
    #[error("tunnel: not an HTTP answer")]
    NotHttp,
    /// No answer in time.
    #[error("tunnel: no answer in time")]
    Timeout,
}

/// Opens a tunnel on a new connection.
///
/// # Errors
/// See [`NoTunnel`]; the connection is of no use then. Not cancel safe.
pub async fn open(stream: &mut Stream, tunnel: &Tunnel, info: &Info) -> Result<(), NoTunnel> {
    let facts = Facts {
        local: Some(info.local),
        remote: Some(info.peer),
        direct_remote: Some(info.peer),
        server_name: info.server_name.as_deref(),
        ..Facts::default()
    };
    let host = tunnel.hostname.text(&facts);
    let mut headers = http::HeaderMap::new();
    tunnel.headers.apply(Side::Request, &mut headers, &facts);
    let mut head = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in &headers {
        if let Ok(value) = value.to_str() {
            let _ = write!(head, "{name}: {value}\r\n");
        }
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let end = |seen: &[u8]| seen.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at.saturating_add(4));
    let len = stream.inspect(MAX_HEAD, end).await?.ok_or(NoTunnel::NotHttp)?;
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).ok_or(NoTunnel::NotHttp)?;
    let status: u16 = std::str::from_utf8(status).ok().and_then(|s| s.parse().ok()).ok_or(NoTunnel::NotHttp)?;
    if (200..300).contains(&status) { Ok(()) } else { Err(NoTunnel::Refused(status)) }
}
