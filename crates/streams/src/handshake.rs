//! What an upgrade asks for, and what answers it.
//!
//! Invariant: pure; a request is answered with exactly one of the protocols that it offered, or refused with the reason.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

/// The header by which SPDY callers offer protocols.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What every WebSocket key is hashed with (RFC 6455 §1.3).
const WEBSOCKET_SALT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `exec` and `attach`.
    Remote,
    /// `port-forward`.
    Forward,
}

/// What is spoken inside a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Channels, and an end of each (`v5.channel.k8s.io`).
    V5,
    /// Channels (`v4.channel.k8s.io`).
    V4,
    /// A SPDY connection in binary messages.
    Tunnel,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::Tunnel => "SPDY/3.1+portforward.k8s.io",
        }
    }
}

/// What was agreed upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handshake {
    /// A WebSocket.
    WebSocket {
        /// Inside it.
        protocol: Protocol,
        /// The answer to the caller's key.
        accept: String,
    },
    /// SPDY/3.1 on the connection itself.
    Spdy {
        /// On top of it.
        protocol: &'static str,
    },
}

/// Why an upgrade is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none.
    #[error("Upgrade request required")]
    NoUpgrade,
    /// Nothing that it offers is spoken here.
    #[error(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}"
    )]
    NoProtocol {
        /// The caller's.
        offered: Vec<String>,
        /// Ours.
        accepted: Vec<&'static str>,
    },
    /// No valid WebSocket handshake.
    #[error("unable to upgrade: {0}")]
    Handshake(&'static str),
}

impl Refusal {
    /// The HTTP status, as API servers answer it.
    pub fn code(&self) -> u16 {
        match self {
            Self::NoUpgrade | Self::Handshake(_) => 400,
            Self::NoProtocol { .. } => 403,
        }
    }
}

/// Whether a request wants to become a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    upgrades_to(headers, "websocket")
}

fn upgrades_to(headers: &HeaderMap, protocol: &str) -> bool {
    let connection = words(headers, &CONNECTION).any(|w| w.eq_ignore_ascii_case("upgrade"));
    connection && words(headers, &UPGRADE).any(|w| w.eq_ignore_ascii_case(protocol))
}

/// Comma-separated words of all headers of a name.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|w| !w.is_empty())
}

/// Agrees with a request.
///
/// # Errors
/// [`Refusal`].
pub fn negotiate(kind: Kind, headers: &HeaderMap) -> Result<Handshake, Refusal> {
    if is_websocket(headers) {
        return websocket(kind, headers);
    }
    if !upgrades_to(headers, "SPDY/3.1") {
        return Err(Refusal::NoUpgrade);
    }
    let ours = match kind {
        Kind::Remote => "v4.channel.k8s.io",
        Kind::Forward => "portforward.k8s.io",
    };
    let offered: Vec<String> = words(headers, &STREAM_PROTOCOL).take(16).map(str::to_owned).collect();
    if offered.iter().any(|o| o == ours) {
        return Ok(Handshake::Spdy { protocol: ours });
    }
    Err(Refusal::NoProtocol { offered, accepted: vec![ours] })
}

fn websocket(kind: Kind, headers: &HeaderMap) -> Result<Handshake, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").trim();
    if text("sec-websocket-version") != "13" {
        return Err(Refusal::Handshake("only version 13 of WebSocket is spoken"));
    }
    let key = text("sec-websocket-key");
    if STANDARD.decode(key).map_or(0, |k| k.len()) != 16 {
        return Err(Refusal::Handshake("the WebSocket key is not 16 bytes of base64"));
    }
    let ours: &[Protocol] = match kind {
        Kind::Remote => &[Protocol::V5, Protocol::V4],
        Kind::Forward => &[Protocol::Tunnel, Protocol::V4],
    };
    let offered: Vec<String> = words(headers, &SEC_WEBSOCKET_PROTOCOL).take(16).map(str::to_owned).collect();
    // The caller's first choice that is spoken here.
    let agreed = offered.iter().find_map(|o| ours.iter().find(|p| p.name() == o));
    match agreed {
        Some(protocol) => Ok(Handshake::WebSocket { protocol: *protocol, accept: accept(key) }),
        None => Err(Refusal::NoProtocol { offered, accepted: ours.iter().map(|p| p.name()).collect() }),
    }
}

fn accept(key: &str) -> String {
    // The protocol's own choice; nothing is kept secret or proven by it.
    let salted = format!("{key}{WEBSOCKET_SALT}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, salted.as_bytes());
    STANDARD.encode(digest)
}

impl Handshake {
    /// Headers of the answer `101 Switching Protocols`.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let upgrade =
            |to| vec![(CONNECTION, HeaderValue::from_static("Upgrade")), (UPGRADE, HeaderValue::from_static(to))];
        match self {
            Self::WebSocket { protocol, accept } => {
                let mut headers = upgrade("websocket");
                headers.extend(HeaderValue::from_str(accept).map(|value| (SEC_WEBSOCKET_ACCEPT, value)));
                headers.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name())));
                headers
            }
            Self::Spdy { protocol } => {
                let mut headers = upgrade("SPDY/3.1");
                headers.push((STREAM_PROTOCOL, HeaderValue::from_static(protocol)));
                headers
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn a_websocket_gets_the_first_protocol_that_is_spoken() {
        let base = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), KEY, VERSION];
        let with = |offered: &'static str| {
            let mut headers = headers(&base);
            headers.append("sec-websocket-protocol", HeaderValue::from_static(offered));
            headers
        };
        let agreed = negotiate(Kind::Remote, &with("v9.channel.k8s.io, v5.channel.k8s.io,v4.channel.k8s.io")).unwrap();
        // The key and its answer of RFC 6455.
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(agreed, Handshake::WebSocket { protocol: Protocol::V5, accept });
        let told = agreed.headers();
        assert!(told.contains(&(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io"))), "{told:?}");
        let refused = negotiate(Kind::Forward, &with("v5.channel.k8s.io")).unwrap_err();
        assert_eq!(refused.code(), 403);
        assert!(refused.to_string().contains("SPDY/3.1+portforward.k8s.io"), "{refused}");
        for broken in [
            [("connection", "Upgrade"), ("upgrade", "websocket"), VERSION],
            [("connection", "Upgrade"), ("upgrade", "websocket"), KEY],
        ] {
            assert_eq!(negotiate(Kind::Remote, &headers(&broken)).unwrap_err().code(), 400);
        }
    }

    #[test]
    fn spdy_and_nothing() {
        let spdy = [
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ];
        let agreed = negotiate(Kind::Remote, &headers(&spdy)).unwrap();
        assert_eq!(agreed, Handshake::Spdy { protocol: "v4.channel.k8s.io" });
        assert_eq!(negotiate(Kind::Forward, &headers(&spdy)).unwrap_err().code(), 403);
        assert_eq!(negotiate(Kind::Remote, &headers(&[])).unwrap_err(), Refusal::NoUpgrade);
        assert_eq!(negotiate(Kind::Remote, &headers(&[("upgrade", "SPDY/3.1")])).unwrap_err(), Refusal::NoUpgrade);
    }
}
