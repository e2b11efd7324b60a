//! What a header block says: a request, a response, trailers (RFC 9113 §8).
//!
//! Invariant: what leaves here is a message that HTTP/1 could carry too: no field of a connection, no pseudo-header out of place, no
//! length that disagrees with itself.

use super::hpack::Field;
use crate::message::h1::{maps, read};
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

/// The protocol that an extended CONNECT asks for (RFC 8441); among a request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol(Bytes);

impl Protocol {
    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<&str> for Protocol {
    fn from(text: &str) -> Self {
        Protocol(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// A response's head, with the length that it tells.
#[derive(Debug)]
pub struct Head {
    /// The head.
    pub response: Response<()>,
    /// What it says of its body.
    pub length: Option<u64>,
}

/// A message that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoMessage {
    /// It breaks the rules.
    Malformed,
    /// Its fields are more than we allow.
    TooLarge,
}

/// What fields have come to so far.
#[derive(Debug)]
pub struct Collected {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    protocol: Option<Bytes>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    pseudo: bool,
    has_length: bool,
    malformed: bool,
    size: usize,
    most: usize,
}

impl Collected {
    /// Of a list of at most so many bytes.
    pub fn new(most: usize) -> Self {
        Collected {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            protocol: None,
            status: None,
            headers: maps::take(16),
            pseudo: true,
            has_length: false,
            malformed: false,
            size: 0,
            most,
        }
    }

    /// The next field.
    pub fn take(&mut self, field: Field, size: usize) {
        self.size = self.size.saturating_add(size);
        if self.size > self.most {
            return;
        }
        let fits = match field {
            Field::Other(name, value) => {
                self.pseudo = false;
                if is_of_connection(&name) || (name == header::TE && value != "trailers") {
                    self.malformed = true;
                    return;
                }
                self.has_length |= name == header::CONTENT_LENGTH;
                if self.headers.try_append(name, value).is_err() {
                    self.size = usize::MAX;
                }
                return;
            }
            Field::Method(method) => self.method.replace(method).is_none(),
            Field::Scheme(scheme) => self.scheme.replace(scheme).is_none(),
            Field::Authority(authority) => self.authority.replace(authority).is_none(),
            Field::Path(path) => self.path.replace(path).is_none(),
            Field::Protocol(protocol) => self.protocol.replace(protocol).is_none(),
            Field::Status(status) => self.status.replace(status).is_none(),
            Field::Malformed(_) => false,
        };
        // Each once, and before all others.
        self.malformed |= !fits || !self.pseudo;
    }

    fn check(&self) -> Result<(), NoMessage> {
        // Too much is said first: it may be why the rest is wrong.
        if self.size > self.most {
            return Err(NoMessage::TooLarge);
        }
        if self.malformed { Err(NoMessage::Malformed) } else { Ok(()) }
    }

    fn length(&self) -> Result<Option<u64>, NoMessage> {
        if !self.has_length {
            return Ok(None);
        }
        read::length(&self.headers).map_err(|_| NoMessage::Malformed)
    }

    /// A request, with what it says of its body's length. `extended`: we offer CONNECT for other protocols.
    ///
    /// # Errors
    /// It is none.
    pub fn request(mut self, extended: bool) -> Result<(Request<()>, Option<u64>), NoMessage> {
        self.check()?;
        let length = self.length()?;
        let method = self.method.take().ok_or(NoMessage::Malformed)?;
        let connects = method == Method::CONNECT && self.protocol.is_none();
        let whole = match (&self.scheme, &self.path) {
            (None, None) => connects && self.authority.is_some(),
            (Some(_), Some(_)) => !connects,
            _ => false,
        };
        let fits = self.protocol.is_none() || (extended && method == Method::CONNECT);
        if !whole || !fits || self.status.is_some() {
            return Err(NoMessage::Malformed);
        }
        let mut parts = http::uri::Parts::default();
        // There is no way to write a scheme without a host.
        parts.scheme = self.scheme.take().filter(|_| self.authority.is_some());
        parts.authority = self.authority.take();
        parts.path_and_query = self.path.take();
        let uri = Uri::from_parts(parts).map_err(|_| NoMessage::Malformed)?;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        if let Some(protocol) = self.protocol {
            request.extensions_mut().insert(Protocol(protocol));
        }
        Ok((request, length))
    }

    /// A response.
    ///
    /// # Errors
    /// It is none.
    pub fn response(self) -> Result<Head, NoMessage> {
        self.check()?;
        let length = self.length()?;
        let others = self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some();
        let status = self.status.filter(|_| !others).ok_or(NoMessage::Malformed)?;
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_2;
        *response.headers_mut() = self.headers;
        Ok(Head { response, length })
    }

    /// Trailers.
    ///
    /// # Errors
    /// They are none.
    pub fn trailers(self) -> Result<HeaderMap, NoMessage> {
        self.check()?;
        let pseudo = self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some()
            || self.status.is_some();
        if pseudo { Err(NoMessage::Malformed) } else { Ok(self.headers) }
    }
}

/// Fields that speak of a connection, which HTTP/2 has no use for (§8.2.2). TE is looked at by itself.
pub fn is_of_connection(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    fn collected(fields: &[(&str, &str)]) -> Collected {
        let mut all = Collected::new(1000);
        for (name, value) in fields {
            let field = match *name {
                ":method" => Field::Method(value.parse().unwrap()),
                ":scheme" => Field::Scheme(value.parse().unwrap()),
                ":authority" => Field::Authority(value.parse().unwrap()),
                ":path" => Field::Path(value.parse().unwrap()),
                ":protocol" => Field::Protocol(Bytes::copy_from_slice(value.as_bytes())),
                ":status" => Field::Status(value.parse().unwrap()),
                name => Field::Other(name.parse().unwrap(), HeaderValue::from_str(value).unwrap()),
            };
            all.take(field, name.len() + value.len() + 32);
        }
        all
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b"), (":authority", "h")];

    #[test]
    fn requests_are_taken_or_not() {
        let (request, length) = collected(&GET).request(false).unwrap();
        assert_eq!((request.method(), request.uri().to_string(), length), (&Method::GET, "http://h/a?b".into(), None));
        let connect = [(":method", "CONNECT"), (":authority", "h:1")];
        assert_eq!(collected(&connect).request(false).unwrap().0.uri(), "h:1");
        let extended = [&[(":method", "CONNECT"), (":protocol", "websocket")][..], &GET[1..]].concat();
        let (request, _) = collected(&extended).request(true).unwrap();
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        let host = [&GET[..3], &[("host", "x")]].concat();
        assert_eq!(collected(&host).request(false).unwrap().0.uri(), "/a?b");
        let sized = [&GET[..], &[("content-length", "7"), ("te", "trailers")]].concat();
        assert_eq!(collected(&sized).request(false).unwrap().1, Some(7));
        let long = "x".repeat(1000);
        let malformed = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
        for (fields, wanted) in [
            (extended.clone(), NoMessage::Malformed),
            (GET[1..].to_vec(), NoMessage::Malformed),
            (GET[..2].to_vec(), NoMessage::Malformed),
            (malformed(&[(":status", "200")]), NoMessage::Malformed),
            (malformed(&[(":path", "/")]), NoMessage::Malformed),
            (malformed(&[(":protocol", "x")]), NoMessage::Malformed),
            (malformed(&[("te", "gzip")]), NoMessage::Malformed),
            (malformed(&[("upgrade", "x")]), NoMessage::Malformed),
            (malformed(&[("content-length", "1"), ("content-length", "2")]), NoMessage::Malformed),
            ([&[("a", "b")][..], &GET].concat(), NoMessage::Malformed),
            ([&connect[..], &GET[2..3]].concat(), NoMessage::Malformed),
            ([&GET[..], &[("x", &long)]].concat(), NoMessage::TooLarge),
        ] {
            assert_eq!(collected(&fields).request(false).unwrap_err(), wanted, "{fields:?}");
        }
    }

    #[test]
    fn responses_and_trailers() {
        let head = collected(&[(":status", "204"), ("a", "b")]).response().unwrap();
        assert_eq!((head.response.status().as_u16(), head.length), (204, None));
        assert!(collected(&[("a", "b")]).response().is_err());
        assert!(collected(&[(":status", "200"), (":path", "/")]).response().is_err());
        assert_eq!(collected(&[("a", "b")]).trailers().unwrap().len(), 1);
        assert!(collected(&[(":status", "200")]).trailers().is_err());
    }
}
