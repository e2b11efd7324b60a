//! Callers: one connection, one request, and what came of it.
//!
//! Invariant: what is sent is what the case says, byte for byte; what varies from time to time is taken out of what comes back, and
//! addresses are written as those of home.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use carrick_pki::tls::{self, ServerAuth, TlsOptions};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::case::{Ask, Request, Says, Tls};
use super::keys::Keys;
use super::{wire, world};

/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(4);
/// What is different each time.
const UNSTABLE: [&str; 3] = ["date", "x-envoy-upstream-service-time", "x-request-id"];

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody listens.
    Refused,
    /// Closed before any answer; with an alert or without.
    Closed(Option<String>),
    /// An answer.
    Answer { status: u16, headers: BTreeMap<String, String>, body: String },
    /// Something that is no HTTP.
    Bytes(String),
    /// Nothing came within the time.
    Silence,
}

impl Outcome {
    /// Last part of the address of the application that saw it.
    pub fn by(&self) -> Option<u8> {
        let address = match self {
            Self::Answer { headers, .. } => headers.get("x-echo")?.as_str(),
            Self::Bytes(text) => text.strip_prefix("by ")?.split_whitespace().next()?,
            _ => return None,
        };
        address.strip_prefix(world::HOME)?.split(':').next()?.parse().ok()
    }
}

/// Asks, in the network of a case and an engine.
pub async fn ask(ask: &Ask, tokens: &[String], network: &str, keys: &Keys) -> Outcome {
    tokio::time::timeout(PATIENCE, one(ask, tokens, network, keys)).await.unwrap_or(Outcome::Silence)
}

async fn one(ask: &Ask, tokens: &[String], network: &str, keys: &Keys) -> Outcome {
    let parse = |last: u8, port: u16| format!("{network}{last}:{port}").parse::<SocketAddr>();
    let (Ok(from), Ok(to), Ok(socket)) = (parse(ask.from, 0), parse(ask.to.0, ask.to.1), TcpSocket::new_v4()) else {
        return Outcome::Refused;
    };
    if socket.bind(from).is_err() {
        return Outcome::Bytes("cannot bind".to_owned());
    }
    let Ok(tcp) = socket.connect(to).await else { return Outcome::Refused };
    let _ = tcp.set_nodelay(true);
    match &ask.tls {
        None => say(tcp, ask, tokens, network).await,
        Some(own) => {
            let Ok(config) = config(own, keys) else { return Outcome::Bytes("no such TLS".to_owned()) };
            let name = own.sni.clone().unwrap_or_else(|| "192.0.2.1".to_owned());
            let Ok(name) = ServerName::try_from(name) else { return Outcome::Bytes("no such name".to_owned()) };
            match tokio_rustls::TlsConnector::from(config).connect(name, tcp).await {
                Ok(stream) => say(stream, ask, tokens, network).await,
                Err(error) => Outcome::Closed(alert(&error)),
            }
        }
    }
}

fn config(own: &Tls, keys: &Keys) -> Result<std::sync::Arc<rustls::ClientConfig>, tls::TlsError> {
    let identity = own.identity.as_deref().and_then(|name| keys.identity(name));
    tls::client_config(identity.map(|i| &**i), ServerAuth::None, &own.alpn, &TlsOptions::default())
}

fn alert(error: &std::io::Error) -> Option<String> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match inner {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        other => Some(format!("{other}")),
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, ask: &Ask, tokens: &[String], network: &str) -> Outcome {
    let (text, head_only) = match &ask.says {
        Says::Bytes(text) => (format!("{text}\n"), false),
        Says::Http(request) => (spelled(request, tokens), request.method == "HEAD"),
    };
    let text = text.replace(world::HOME, network);
    if let Err(error) = async {
        io.write_all(text.as_bytes()).await?;
        io.flush().await
    }
    .await
    {
        return Outcome::Closed(alert(&error));
    }
    let mut seen = Vec::new();
    let home = |text: &str| text.replace(network, world::HOME);
    if matches!(ask.says, Says::Bytes(_)) {
        loop {
            match io.read_buf(&mut seen).await {
                Ok(0) => break,
                Ok(_) if seen.ends_with(b"\n") => break,
                Ok(_) => {}
                Err(error) if seen.is_empty() => return Outcome::Closed(alert(&error)),
                Err(_) => break,
            }
        }
        if seen.is_empty() {
            return Outcome::Closed(None);
        }
        let text = String::from_utf8_lossy(&seen).into_owned();
        // An answer in HTTP to what is none has a date.
        let stable = text.split("\r\n").filter(|l| !l.starts_with("date: ")).collect::<Vec<_>>().join("\r\n");
        return Outcome::Bytes(home(&stable));
    }
    let head = match wire::head(&mut io, &mut seen).await {
        Ok(Some(head)) => head,
        Ok(None) => return Outcome::Closed(None),
        Err(error) if seen.is_empty() => return Outcome::Closed(alert(&error)),
        Err(_) => return Outcome::Bytes(home(&String::from_utf8_lossy(&seen))),
    };
    let (line, fields) = wire::fields(&head);
    let Some(status) = line.strip_prefix("HTTP/1.1 ").and_then(|l| l.get(..3)?.parse().ok()) else {
        return Outcome::Bytes(home(&head));
    };
    let empty = head_only || status == 204 || status == 304;
    let body = match empty {
        true => Ok(Vec::new()),
        false => wire::body(&mut io, &mut seen, &fields, true).await,
    };
    let body = body.map_or_else(|_| "cut off".to_owned(), |b| String::from_utf8_lossy(&b).into_owned());
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in fields.iter().filter(|(n, _)| !UNSTABLE.contains(&&*n.to_ascii_lowercase())) {
        let value = home(value);
        headers.entry(name.clone()).and_modify(|v| *v += &format!(", {value}")).or_insert(value);
    }
    // Where engines frame differently the body says enough.
    if headers.remove("transfer-encoding").is_none() && !body.is_empty() {
        headers.remove("content-length");
    }
    Outcome::Answer { status, headers, body: stable(&home(&body)) }
}

/// A request as bytes. Hosts and lengths are in it only if the case has them; a body has its length.
fn spelled(request: &Request, tokens: &[String]) -> String {
    let fill = |text: &str| request.filled(text, tokens);
    let mut out = format!("{} {} HTTP/1.1\r\n", request.method, fill(&request.target));
    for (name, value) in &request.headers {
        out += &format!("{name}: {}\r\n", fill(value));
    }
    if !request.body.is_empty() {
        out += &format!("content-length: {}\r\n", request.body.len());
    }
    out + "\r\n" + &request.body
}

/// What the application saw, without ids and lengths that Envoy writes on some requests without a body.
fn stable(body: &str) -> String {
    let lines = body.lines().filter(|l| !l.starts_with("x-request-id: ") && *l != "content-length: 0");
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}
