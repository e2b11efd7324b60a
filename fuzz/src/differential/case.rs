//! A case: objects, and what is asked of the proxies that they make.
//!
//! Invariant: everything that varies is in here, so that a case can be printed, made smaller and run again.

use serde_json::Value;

/// A case.
#[derive(Debug, Clone)]
pub struct Case {
    /// `MeshConfig`.
    pub mesh: Value,
    /// Objects besides those of [`super::world`].
    pub objects: Vec<Value>,
    /// What is asked.
    pub asks: Vec<Ask>,
}

/// One connection with one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Last part of the caller's address.
    pub from: u8,
    /// Last part of the address that is called, and the port.
    pub to: (u8, u16),
    /// TLS of the caller's own.
    pub tls: Option<Tls>,
    /// What is said.
    pub says: Says,
}

/// TLS of a caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    pub sni: Option<String>,
    pub alpn: Vec<String>,
    /// A name of [`super::keys::Keys`].
    pub identity: Option<String>,
}

/// What is said.
#[derive(Debug, Clone, PartialEq)]
pub enum Says {
    Http(Request),
    Bytes(String),
}

/// A request; what its parts contain is sent as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// `host` among them. A value may hold tokens: see [`Token`].
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Tokens by their place in values and in the target: `{0}`, `{1}`, …
    pub tokens: Vec<Token>,
}

impl Request {
    /// A text of it with its tokens, which were signed before.
    pub fn filled(&self, text: &str, tokens: &[String]) -> String {
        let each = tokens.iter().enumerate();
        each.fold(text.to_owned(), |text, (i, token)| text.replace(&format!("{{{i}}}"), token))
    }
}

/// A token to be signed when it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// `alg` of its header; `none` leaves the signature out, and a name with `!` at its end spoils it. All are made with the
    /// issuer's EC key: where a key names no algorithm Envoy believes whatever the header says, and we do not.
    pub alg: String,
    /// `kid` of its header.
    pub kid: Option<String>,
    /// Claims; `exp` and `nbf` are seconds from now.
    pub claims: Value,
}
