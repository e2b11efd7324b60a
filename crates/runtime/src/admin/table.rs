//! The table of an admin server, and the requests and responses its handlers see.
//!
//! Invariant: exact paths win over prefixes, longer prefixes over shorter; a known path with another method is 405.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::Full;

/// What serves one path.
pub type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// A request whose body has been read.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// The header fields.
    pub headers: HeaderMap,
    /// Who asks.
    pub peer: SocketAddr,
    /// At most 1 MiB.
    pub body: Bytes,
}

impl Request {
    pub(super) fn new(parts: http::request::Parts, peer: SocketAddr, body: Bytes) -> Self {
        Self { method: parts.method, uri: parts.uri, headers: parts.headers, peer, body }
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The first value of a query parameter; `Some("")` for one without a value.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.uri.query()?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
    }

    /// Whether a query parameter is there, with or without a value, and not `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|v| v != "false")
    }
}

/// Percent and plus decoding; bytes that are not UTF-8 are replaced.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let mut rest = bytes.clone();
                let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                if let (Some(high), Some(low)) = (hex(rest.next()), hex(rest.next())) {
                    // Two hexadecimal digits always fit a byte.
                    out.push(u8::try_from(high.saturating_mul(16).saturating_add(low)).unwrap_or(b'?'));
                    bytes = rest;
                } else {
                    out.push(b'%');
                }
            }
            other => out.push(other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Response {
    status: StatusCode,
    content_type: Cow<'static, str>,
    body: Bytes,
}

impl Response {
    /// Plain text.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::typed(status, "text/plain; charset=utf-8", body)
    }

    /// JSON that is already written.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::typed(StatusCode::OK, "application/json", body)
    }

    /// Any content type.
    pub fn typed(status: StatusCode, content_type: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: content_type.into(), body: body.into() }
    }

    pub(super) fn into_http(self) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        if let Ok(value) = HeaderValue::from_str(&self.content_type) {
            response.headers_mut().insert(http::header::CONTENT_TYPE, value);
        }
        response
    }
}

/// The table.
#[derive(Clone, Default)]
pub struct Router {
    exact: BTreeMap<String, Vec<(Method, Handler)>>,
    prefixes: BTreeMap<String, Vec<(Method, Handler)>>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.paths()).finish()
    }
}

fn boxed<F, R>(f: F) -> Handler
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    Arc::new(move |request| Box::pin(f(request)))
}

impl Router {
    /// An empty table: everything is 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `method` on exactly `path`.
    pub fn route<F, R>(&mut self, method: Method, path: &str, f: F) -> &mut Self
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        self.exact.entry(path.to_owned()).or_default().push((method, boxed(f)));
        self
    }

    /// Serves GET on exactly `path`.
    pub fn get<F, R>(&mut self, path: &str, f: F) -> &mut Self
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::GET, path, f)
    }

    /// Serves `method` on every path that begins with `prefix` and has no exact entry.
    pub fn prefix<F, R>(&mut self, method: Method, prefix: &str, f: F) -> &mut Self
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        self.prefixes.entry(prefix.to_owned()).or_default().push((method, boxed(f)));
        self
    }

    /// All paths and prefixes, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.exact.keys().chain(self.prefixes.keys()).map(String::as_str)
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Result<Handler, Response> {
        let entries = self.exact.get(path).or_else(|| {
            // Sorted order puts a longer prefix behind a shorter one.
            self.prefixes.iter().rev().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, e)| e)
        });
        let Some(entries) = entries else {
            return Err(Response::text(StatusCode::NOT_FOUND, "not found\n"));
        };
        let method = if method == Method::HEAD { &Method::GET } else { method };
        match entries.iter().find(|(m, _)| m == method) {
            Some((_, handler)) => Ok(Arc::clone(handler)),
            None => Err(Response::text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_browsers_send() {
        for (text, expect) in [("a", "a"), ("a+b", "a b"), ("%41%zz%4", "A%zz%4"), ("%ff", "\u{fffd}"), ("%C3%A4", "ä")]
        {
            assert_eq!(decode(text), expect, "{text}");
        }
    }
}
