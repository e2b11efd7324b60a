//! Fields as HTTP/2 writes them (RFC 7541), both ways.
//!
//! Invariant: what a field's bytes mean is found out once, when it is first sent; from then on its place in the table stands for it. A
//! field that no message may have keeps its place in the table, but has no meaning.

pub mod decode;
pub mod encode;
mod huffman;
mod integer;
mod statics;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};

/// What a field costs besides its text (RFC 7541 §4.1), bytes.
const OVERHEAD: usize = 32;

/// A header block that is none: the connection is of no use any more (`COMPRESSION_ERROR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbled;

/// A field, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// `:method`
    Method(Method),
    /// `:scheme`
    Scheme(Scheme),
    /// `:authority`
    Authority(Authority),
    /// `:path`
    Path(PathAndQuery),
    /// `:protocol` (RFC 8441)
    Protocol(Bytes),
    /// `:status`
    Status(StatusCode),
    /// Any other.
    Other(HeaderName, HeaderValue),
    /// No message may have it; its name, if that is one.
    Malformed(Option<HeaderName>),
}

/// The name of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
    Other(HeaderName),
    Malformed,
}

impl Name {
    /// A name in full. Names in upper case are none.
    fn new(text: &[u8]) -> Self {
        match text {
            b":method" => Name::Method,
            b":scheme" => Name::Scheme,
            b":authority" => Name::Authority,
            b":path" => Name::Path,
            b":protocol" => Name::Protocol,
            b":status" => Name::Status,
            _ => HeaderName::from_lowercase(text).map_or(Name::Malformed, Name::Other),
        }
    }

    /// With a value.
    fn with(self, value: &[u8]) -> Field {
        let field = match self {
            Name::Method => Method::from_bytes(value).ok().map(Field::Method),
            Name::Scheme => Scheme::try_from(value).ok().map(Field::Scheme),
            Name::Authority => Authority::try_from(value).ok().map(Field::Authority),
            Name::Path if value.is_empty() => None,
            Name::Path => PathAndQuery::try_from(value).ok().map(Field::Path),
            Name::Protocol if std::str::from_utf8(value).is_err() => None,
            Name::Protocol => Some(Field::Protocol(Bytes::copy_from_slice(value))),
            Name::Status => StatusCode::from_bytes(value).ok().map(Field::Status),
            Name::Other(name) => match HeaderValue::from_bytes(value) {
                Ok(value) => Some(Field::Other(name, value)),
                Err(_) => Some(Field::Malformed(Some(name))),
            },
            Name::Malformed => None,
        };
        field.unwrap_or(Field::Malformed(None))
    }
}

impl Field {
    fn name(&self) -> Name {
        match self {
            Field::Method(_) => Name::Method,
            Field::Scheme(_) => Name::Scheme,
            Field::Authority(_) => Name::Authority,
            Field::Path(_) => Name::Path,
            Field::Protocol(_) => Name::Protocol,
            Field::Status(_) => Name::Status,
            Field::Other(name, _) | Field::Malformed(Some(name)) => Name::Other(name.clone()),
            Field::Malformed(None) => Name::Malformed,
        }
    }
}
