//! The application behind everything: HTTP/1, HTTP/2, TLS and bytes on every address of loopback, answering with what it saw.
//!
//! Invariant: who is asked is known by the address that was connected to; HTTP/1 is read byte for byte, so that header names and paths are
//! told as they came.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use carrick_pki::tls::{self, ClientAuth, PeerPolicy, TlsOptions};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::keys::Keys;
use super::{wire, world};

/// Starts all three.
///
/// # Errors
/// When a port is taken.
pub async fn start(keys: &Keys) -> Result<()> {
    let identity = keys.identity("dns").ok_or_else(|| anyhow::anyhow!("no identity"))?;
    let policy = PeerPolicy::new(keys.shop.clone(), Vec::new());
    let config = tls::server_config(
        identity,
        ClientAuth::OptionalChain(policy),
        &["h2", "http/1.1", "istio"],
        &TlsOptions::default(),
    )?;
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let plain = TcpListener::bind(("0.0.0.0", world::ECHO_HTTP)).await?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = plain.accept().await {
            let at = tcp.local_addr();
            tokio::spawn(async move {
                if let Ok(at) = at {
                    let _ = http(tcp, at, String::new()).await;
                }
            });
        }
    });
    let secure = TcpListener::bind(("0.0.0.0", world::ECHO_TLS)).await?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = secure.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(at) = tcp.local_addr() else { return };
                // Who comes without TLS is told so.
                let mut first = [0; 1];
                if tcp.peek(&mut first).await.is_ok_and(|n| n > 0) && first != [22] {
                    let _ = http(tcp, at, "no tls\n".to_owned()).await;
                    return;
                }
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let session = stream.get_ref().1;
                let alpn = session.alpn_protocol().map(|a| String::from_utf8_lossy(a).into_owned());
                let certificate = session.peer_certificates().and_then(|c| c.first());
                let name = certificate.and_then(|c| carrick_pki::CertificateInfo::read(c).ok());
                let shown = format!(
                    "tls sni={} alpn={} client={}\n",
                    session.server_name().unwrap_or("-"),
                    alpn.unwrap_or_else(|| "-".to_owned()),
                    name.map_or_else(|| "-".to_owned(), |i| i.uris.join(","))
                );
                let _ = http(stream, at, shown).await;
            });
        }
    });
    let raw = TcpListener::bind(("0.0.0.0", world::ECHO_TCP)).await?;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = raw.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::with_capacity(65536);
                if let Ok(at) = tcp.local_addr()
                    && tcp.read_buf(&mut seen).await.is_ok()
                {
                    let _ = bytes(&mut tcp, at, &seen).await;
                }
            });
        }
    });
    Ok(())
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut io: S,
    at: SocketAddr,
    tls: String,
) -> Result<()> {
    let mut seen = Vec::with_capacity(65536);
    let mut first = true;
    loop {
        while seen.len() < 4 && io.read_buf(&mut seen).await? > 0 {}
        if first && !seen.is_empty() && !looks_like_http(&seen) {
            return bytes(&mut io, at, &seen).await;
        }
        let Some(head) = wire::head(&mut io, &mut seen).await? else { return Ok(()) };
        if first && head.starts_with("PRI * HTTP/2.0") {
            seen.splice(..0, head.bytes());
            return h2(wire::Replayed { seen: seen.into(), io }, at, tls).await;
        }
        first = false;
        let (line, fields) = wire::fields(&head);
        let body = wire::body(&mut io, &mut seen, &fields, false).await?;
        let (status, text) = answer(at, &tls, line, &fields, &String::from_utf8_lossy(&body));
        let bodiless = status == 204 || status == 304;
        let text = if bodiless || line.starts_with("HEAD ") { String::new() } else { text };
        let length = if bodiless { String::new() } else { format!("content-length: {}\r\n", text.len()) };
        let reply = format!("HTTP/1.1 {status} Said\r\nserver: echo\r\nx-echo: {at}\r\n{length}\r\n{text}");
        io.write_all(reply.as_bytes()).await?;
        io.flush().await?;
    }
}

/// A method, or the preface of HTTP/2.
fn looks_like_http(seen: &[u8]) -> bool {
    let line = seen.split(|b| *b == b'\n').next().unwrap_or_default();
    let is_first = seen.iter().take(3).all(u8::is_ascii_alphabetic);
    is_first
        && (line.ends_with(b" HTTP/1.1\r")
            || line.starts_with(b"PRI * HTTP/2.0")
            || !seen.contains(&b'\n') && seen.len() > 100)
}

/// Says who was asked, and closes.
async fn bytes<S: AsyncWrite + AsyncRead + Unpin>(io: &mut S, at: SocketAddr, seen: &[u8]) -> Result<()> {
    let first = seen.split(|b| *b == b'\n').next().unwrap_or_default();
    let first = first.get(..first.len().min(20)).unwrap_or_default();
    // A handshake begins with other numbers each time.
    let shown = if seen.first() == Some(&22) { "a handshake".into() } else { String::from_utf8_lossy(first) };
    io.write_all(format!("by {at} bytes: {}\n", shown.trim_end()).as_bytes()).await?;
    io.shutdown().await?;
    Ok(())
}

async fn h2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: S, at: SocketAddr, tls: String) -> Result<()> {
    let tls = Arc::new(tls);
    let serve = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let tls = Arc::clone(&tls);
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("*", |p| p.as_str()).to_owned();
            let line = format!("{} {path} HTTP/2", parts.method);
            let mut fields: Vec<(String, String)> =
                parts.uri.authority().map(|a| ("host".to_owned(), a.to_string())).into_iter().collect();
            for (name, value) in &parts.headers {
                fields.push((name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            }
            let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let (status, text) = answer(at, &tls, &line, &fields, &String::from_utf8_lossy(&body));
            let reply =
                hyper::Response::builder().status(status).header("server", "echo").header("x-echo", at.to_string());
            Ok::<_, Infallible>(reply.body(Full::new(Bytes::from(text))).unwrap_or_default())
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::time::timeout(Duration::from_secs(60), builder.serve_connection(TokioIo::new(io), serve)).await??;
    Ok(())
}

fn answer(at: SocketAddr, tls: &str, line: &str, fields: &[(String, String)], body: &str) -> (u16, String) {
    let by_name: HashMap<String, &str> = fields.iter().map(|(n, v)| (n.to_ascii_lowercase(), &**v)).collect();
    let status =
        by_name.get("x-echo-status").and_then(|s| s.parse().ok()).filter(|s| (200..600).contains(s)).unwrap_or(200);
    let mut lines: Vec<String> = fields.iter().map(|(n, v)| format!("{n}: {v}")).collect();
    lines.sort_by_key(|l| l.split(':').next().unwrap_or_default().to_ascii_lowercase());
    (status, format!("by {at}\n{tls}{line}\n{}\n\n{body}", lines.join("\n")))
}
