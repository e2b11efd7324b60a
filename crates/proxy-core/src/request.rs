//! A request's head as the decisions see it.
//!
//! Invariant: a view only; whoever holds the request keeps it.

use http::{HeaderMap, HeaderName};

use crate::model::matcher::MatchKey;

/// Method, target and headers of a request. For HTTP/1, `authority` is the Host header and `headers` may still hold it.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a str,
    /// Path with query, empty for CONNECT without path.
    pub path: &'a str,
    /// Host as the client sent it (with port if sent).
    pub authority: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// All other headers.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestHead<'a> {
    /// Path without query and fragment.
    #[must_use]
    pub fn path_only(&self) -> &'a str {
        split_path(self.path).0
    }

    /// Query without `?`, if there is one.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        split_path(self.path).1
    }

    /// Whether it is a gRPC request (content-type `application/grpc` or `application/grpc+…`).
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        is_grpc(self.headers)
    }

    /// Runs `f` on the header's text, several values joined by `,`; `None` if it is missing.
    pub fn with_header<R>(&self, key: &MatchKey, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match key {
            MatchKey::Method => Some(f(self.method.as_bytes())),
            MatchKey::Path => (!self.path.is_empty()).then(|| f(self.path.as_bytes())),
            MatchKey::Authority => (!self.authority.is_empty()).then(|| f(self.authority.as_bytes())),
            MatchKey::Scheme => Some(f(self.scheme.as_bytes())),
            MatchKey::Status => None,
            MatchKey::Name(name) => joined(self.headers, name, f),
        }
    }
}

/// Runs `f` on all values of a header joined by `,`; `None` if it is missing.
pub fn joined<R>(headers: &HeaderMap, name: &HeaderName, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(f(first.as_bytes())) };
    let mut all = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(f(&all))
}

/// Whether headers say gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// Path and query; the fragment is dropped.
#[must_use]
pub fn split_path(path: &str) -> (&str, Option<&str>) {
    let path = path.split_once('#').map_or(path, |(p, _)| p);
    match path.split_once('?') {
        Some((p, q)) => (p, Some(q)),
        None => (path, None),
    }
}
