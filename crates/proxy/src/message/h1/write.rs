//! Heads as they go.
//!
//! Invariant: how a body is framed is decided here and nowhere else, by what is known of it; a message tells its length once or not
//! at all.

use super::body::Encoder;
use super::date;
use super::names::Case;
use super::read;
use crate::message::incoming::Broken;
use carrick_proxy_core::model::hcm::HeaderCase;
use http::header;
use http::{Method, StatusCode, Version, request, response};

/// Writes a request's head. `body`: its length, as far as that is known, if there is a body.
///
/// # Errors
/// Its own headers tell a length that is none.
pub fn request(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    case: HeaderCase,
    body: Option<Option<u64>>,
) -> Result<Encoder, Broken> {
    let case = Case::new(case, &parts.extensions);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let target = match parts.uri.authority() {
        Some(authority) if parts.method == Method::CONNECT => authority.as_str(),
        _ => parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
    };
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let told = read::length(&parts.headers)?;
    // Without a body nothing else is its length; a body that knows its own is believed before its head.
    let length = match body {
        None => told.filter(|told| *told == 0),
        Some(known) => known.or(told),
    };
    let mut measured = length.is_none();
    for (name, value) in case.all(&parts.headers) {
        match *name.name {
            header::CONTENT_LENGTH => {
                if let Some(length) = length.filter(|_| !std::mem::replace(&mut measured, true)) {
                    write_length(out, case, length);
                }
            }
            header::TRANSFER_ENCODING => {}
            _ => case.field(out, name.name, name.nth, value),
        }
    }
    let encoder = match (length, body) {
        (Some(length), _) => {
            if !measured {
                write_length(out, case, length);
            }
            Encoder::Length(length)
        }
        (None, None) => Encoder::Length(0),
        (None, Some(_)) => {
            case.field(out, &header::TRANSFER_ENCODING, 0, b"chunked");
            Encoder::chunked(&parts.headers)
        }
    };
    out.extend_from_slice(b"\r\n");
    Ok(encoder)
}

/// To whom a response goes.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    /// Method of the request.
    pub method: &'a Method,
    /// Version of the request.
    pub version: Version,
    /// Its connection may carry another one.
    pub keep_alive: bool,
}

/// Writes a response's head; gives how its body is written, and whether the connection may carry another one. `size`: of its body, if that
/// is known.
pub fn response(
    out: &mut Vec<u8>,
    parts: &response::Parts,
    to: To<'_>,
    case: HeaderCase,
    size: Option<u64>,
) -> (Encoder, bool) {
    let case = Case::new(case, &parts.extensions);
    let status = parts.status;
    out.extend_from_slice(if to.version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
    let switches = status == StatusCode::SWITCHING_PROTOCOLS || (*to.method == Method::CONNECT && status.is_success());
    let empty = status == StatusCode::NO_CONTENT;
    // Envoy tells the length of a text of its own even where it cannot be sent.
    let silent = status.is_informational() || switches || (empty && size.is_none_or(|size| size == 0));
    let bodiless = silent || empty || status == StatusCode::NOT_MODIFIED || *to.method == Method::HEAD;
    let told = || read::length(&parts.headers).ok().flatten();
    // What a HEAD would have got is told; nothing is told of what cannot be.
    let length = if bodiless { told().filter(|_| !silent) } else { size.or_else(told) };
    let (mut close, mut dated, mut measured) = (!to.keep_alive, false, length.is_none());
    for (name, value) in case.all(&parts.headers) {
        match *name.name {
            header::CONTENT_LENGTH => {
                // In its place, once.
                if let Some(length) = length.filter(|_| !std::mem::replace(&mut measured, true)) {
                    write_length(out, case, length);
                }
            }
            header::TRANSFER_ENCODING => {}
            header::CONNECTION if !switches => {
                close |= value.split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"close"));
            }
            _ => {
                dated |= *name.name == header::DATE;
                case.field(out, name.name, name.nth, value);
            }
        }
    }
    if let Some(length) = length.filter(|_| !measured) {
        write_length(out, case, length);
    }
    let encoder = match length {
        _ if bodiless => Encoder::Length(0),
        Some(length) => Encoder::Length(length),
        None if to.version == Version::HTTP_10 => {
            close = true;
            Encoder::UntilEnd
        }
        None => {
            case.field(out, &header::TRANSFER_ENCODING, 0, b"chunked");
            Encoder::chunked(&parts.headers)
        }
    };
    if !switches && close {
        case.field(out, &header::CONNECTION, 0, b"close");
    } else if !switches && to.version == Version::HTTP_10 {
        case.field(out, &header::CONNECTION, 0, b"keep-alive");
    }
    if !dated {
        case.name(out, &header::DATE, 0);
        out.extend_from_slice(b": ");
        date::write(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (encoder, !close)
}

fn write_length(out: &mut Vec<u8>, case: Case<'_>, length: u64) {
    let mut digits = [0_u8; 20];
    let (mut at, mut left) = (digits.len(), length);
    loop {
        at = at.saturating_sub(1);
        if let Some(place) = digits.get_mut(at) {
            *place = b'0'.saturating_add(u8::try_from(left % 10).unwrap_or(0));
        }
        left /= 10;
        if left == 0 {
            break;
        }
    }
    case.field(out, &header::CONTENT_LENGTH, 0, digits.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Request, Response};

    fn answer(status: u16, fields: &[(&'static str, &'static str)], to: To<'_>, size: Option<u64>) -> String {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in [("date", "d")].iter().chain(fields) {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        let (encoder, keep) = super::response(&mut out, &response.into_parts().0, to, HeaderCase::Lower, size);
        let text = String::from_utf8(out).unwrap();
        let head = text.strip_prefix("HTTP/1.").unwrap().strip_suffix("\r\n\r\n").unwrap().replace("\r\n", "|");
        format!("{head} {encoder:?} {keep}")
    }

    #[test]
    fn responses_tell_their_body_once() {
        let get = To { method: &Method::GET, version: Version::HTTP_11, keep_alive: true };
        let old = To { version: Version::HTTP_10, ..get };
        let head = To { method: &Method::HEAD, ..get };
        let length = ("content-length", "5");
        let chunked = ("transfer-encoding", "chunked");
        let close = ("connection", "close");
        for (got, wanted) in [
            (answer(200, &[length], get, Some(5)), "1 200 OK|date: d|content-length: 5 Length(5) true"),
            (answer(200, &[length], get, None), "1 200 OK|date: d|content-length: 5 Length(5) true"),
            (answer(200, &[], get, Some(0)), "1 200 OK|date: d|content-length: 0 Length(0) true"),
            (
                answer(200, &[chunked], get, None),
                "1 200 OK|date: d|transfer-encoding: chunked Chunked { told: [], trailers: [] } true",
            ),
            (
                answer(200, &[close], get, Some(0)),
                "1 200 OK|date: d|content-length: 0|connection: close Length(0) false",
            ),
            (answer(200, &[], old, None), "0 200 OK|date: d|connection: close UntilEnd false"),
            (
                answer(200, &[], old, Some(1)),
                "0 200 OK|date: d|content-length: 1|connection: keep-alive Length(1) true",
            ),
            (answer(200, &[length], head, Some(0)), "1 200 OK|date: d|content-length: 5 Length(0) true"),
            (answer(200, &[], head, Some(0)), "1 200 OK|date: d Length(0) true"),
            (answer(204, &[length], get, Some(0)), "1 204 No Content|date: d Length(0) true"),
            (answer(204, &[length], get, Some(5)), "1 204 No Content|date: d|content-length: 5 Length(0) true"),
            (answer(200, &[length, ("x", "y")], get, None), "1 200 OK|date: d|content-length: 5|x: y Length(5) true"),
            (answer(304, &[length], get, Some(0)), "1 304 Not Modified|date: d|content-length: 5 Length(0) true"),
            (
                answer(101, &[("connection", "upgrade")], get, None),
                "1 101 Switching Protocols|date: d|connection: upgrade Length(0) true",
            ),
        ] {
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn requests_tell_their_body_once() {
        let text = |request: http::request::Builder, body| {
            let mut out = Vec::new();
            let parts = request.body(()).unwrap().into_parts().0;
            let encoder = super::request(&mut out, &parts, HeaderCase::Lower, body).unwrap();
            format!("{} {encoder:?}", String::from_utf8(out).unwrap().trim_end().replace("\r\n", "|"))
        };
        assert_eq!(text(Request::get("/a?b"), None), "GET /a?b HTTP/1.1 Length(0)");
        assert_eq!(text(Request::post("http://h/a"), Some(Some(3))), "POST /a HTTP/1.1|content-length: 3 Length(3)");
        let long = || Request::post("/").header("content-length", "12345678901");
        assert_eq!(text(long(), Some(None)), "POST / HTTP/1.1|content-length: 12345678901 Length(12345678901)");
        assert_eq!(text(long(), None), "POST / HTTP/1.1 Length(0)");
        assert_eq!(
            text(Request::post("/"), Some(None)),
            "POST / HTTP/1.1|transfer-encoding: chunked Chunked { told: [], trailers: [] }"
        );
        let connect = Request::connect("h:1").header("host", "h:1");
        assert_eq!(text(connect, None), "CONNECT h:1 HTTP/1.1|host: h:1 Length(0)");
    }
}
