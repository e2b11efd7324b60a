//! Heads as they come: requests by `proxy-core`'s own reading, responses by `httparse`.
//!
//! Invariant: values are slices of what was read. A request that is refused is told as a [`Refusal`]; a response that is none as
//! [`Broken::NotHttp`].

use super::body::Decoder;
use super::input::Input;
use super::maps;
use super::names::{Names, Written};
use crate::message::incoming::Broken;
use bytes::Bytes;
use carrick_proxy_core::hygiene::wire::{self, Framing, Refusal};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use std::mem::MaybeUninit;

/// Room for fields that are added on the way.
const MORE: usize = 8;
/// Most fields of a response, and most bytes of its head.
const RESPONSE_FIELDS: usize = 100;
const RESPONSE_BYTES: usize = 64 * 1024;

/// What a connection is told besides the message itself.
#[derive(Debug)]
pub struct Head<M> {
    /// The message.
    pub message: M,
    /// Its body.
    pub body: Decoder,
    /// The connection may carry another one.
    pub keep_alive: bool,
    /// A request: its sender waits for `100 Continue`. A response: another protocol follows.
    pub special: bool,
}

/// What of a request's head the codec is to know.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a head.
    pub bytes: usize,
    /// Fields of a head.
    pub fields: usize,
    /// HTTP/1.0 is spoken.
    pub accept_http_10: bool,
    /// Names are kept as they were written.
    pub keep_case: bool,
}

/// Why a request is refused, and what of its head decides how that is answered.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// It was a HEAD.
    pub is_head: bool,
    /// Its `content-type`.
    pub kind: Option<HeaderValue>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Refused { refusal, is_head: false, kind: None }
    }
}

/// Takes the next request's head off what was read, if it is there.
///
/// # Errors
/// It is refused, and with it everything behind it.
pub fn request(input: &mut Input, limits: &Limits, names: &mut Names) -> Result<Option<Head<Request<()>>>, Refused> {
    if input.bytes.is_empty() {
        return Ok(None);
    }
    let Some(end) = wire::head_end(&input.bytes, input.searched) else {
        input.searched = input.bytes.len();
        if input.bytes.len() > limits.bytes {
            return Err(Refusal::TooLarge.into());
        }
        return if wire::may_begin(&input.bytes) { Ok(None) } else { Err(Refusal::Malformed.into()) };
    };
    input.searched = 0;
    let head = input.bytes.split_to(end).freeze();
    if end > limits.bytes {
        return Err(Refusal::TooLarge.into());
    }
    whole(&head, limits, names).map(Some).map_err(|refusal| {
        // Where nothing of the head is believed this does not count either.
        let believed = refusal.is_of_a_request();
        let kind = wire::field(&head, b"content-type").filter(|_| believed);
        let kind = kind.and_then(|k| HeaderValue::from_bytes(k).ok());
        Refused { refusal, is_head: believed && head.starts_with(b"HEAD "), kind }
    })
}

fn whole(head: &Bytes, limits: &Limits, names: &mut Names) -> Result<Head<Request<()>>, Refusal> {
    let mut headers = maps::take(names.len().saturating_add(MORE));
    let mut written = Vec::new();
    let (mut at, mut close, mut keep, mut expects, mut bad) = (0_usize, false, false, false, false);
    let start = wire::read(head, limits.accept_http_10, |name, value| {
        let place = at;
        at = at.saturating_add(1);
        if at > limits.fields {
            return;
        }
        let (Some(known), Some(kept)) = (names.get(place, name), names.value(head, value)) else {
            bad = true;
            return;
        };
        if limits.keep_case {
            written.push((known.clone(), head.slice_ref(name)));
        }
        match known {
            header::CONNECTION => note(value, &mut close, &mut keep),
            header::EXPECT => expects = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        headers.append(known, kept);
    })?;
    names.truncate(at);
    if at > limits.fields {
        return Err(Refusal::TooMany);
    }
    let method = Method::from_bytes(start.method).map_err(|_| Refusal::Malformed)?;
    let uri = Uri::from_maybe_shared(head.slice_ref(start.target)).map_err(|_| Refusal::Malformed)?;
    if bad || (method == Method::CONNECT && uri.authority().is_none()) {
        return Err(Refusal::Malformed);
    }
    let mut message = Request::new(());
    *message.method_mut() = method;
    *message.uri_mut() = uri;
    *message.version_mut() = if start.http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *message.headers_mut() = headers;
    if limits.keep_case {
        message.extensions_mut().insert(Written::new(written));
    }
    let body = match start.framing {
        // What follows CONNECT is the other protocol.
        _ if message.method() == Method::CONNECT => Decoder::Over,
        Framing::Length(length) => Decoder::length(length),
        Framing::Chunked => Decoder::chunked(),
    };
    let keep_alive = !close && (!start.http_10 || keep);
    Ok(Head { message, body, keep_alive, special: expects && !start.http_10 })
}

/// What `connection` says of the connection itself.
fn note(value: &[u8], close: &mut bool, keep: &mut bool) {
    for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
        *close |= token.eq_ignore_ascii_case(b"close");
        *keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
}

/// Takes the next response's head off what was read, if it is there. `method`: of the request.
///
/// # Errors
/// It is none, or too large.
pub fn response(
    input: &mut Input,
    method: &Method,
    keep_case: bool,
    names: &mut Names,
) -> Result<Option<Head<Response<()>>>, Broken> {
    if input.bytes.is_empty() {
        return Ok(None);
    }
    let Some(end) = wire::head_end(&input.bytes, input.searched) else {
        input.searched = input.bytes.len();
        let begins = b"HTTP/1.".starts_with(input.bytes.get(..7).unwrap_or(&input.bytes));
        return match begins || input.bytes.first().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
            true if input.bytes.len() <= RESPONSE_BYTES => Ok(None),
            true => Err(Broken::NotHttp("head too large")),
            false => Err(Broken::NotHttp("no response")),
        };
    };
    input.searched = 0;
    if end > RESPONSE_BYTES {
        return Err(Broken::NotHttp("head too large"));
    }
    let head = input.bytes.split_to(end).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; RESPONSE_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let outcome = config.parse_response_with_uninit_headers(&mut parsed, &head, &mut fields);
    if !matches!(outcome, Ok(httparse::Status::Complete(_))) {
        return Err(Broken::NotHttp("head"));
    }
    let bad = || Broken::NotHttp("field");
    let mut headers = maps::take(parsed.headers.len().saturating_add(MORE));
    let mut written = Vec::new();
    let (mut close, mut keep) = (false, false);
    for (at, field) in parsed.headers.iter().enumerate() {
        let name = names.get(at, field.name.as_bytes()).ok_or_else(bad)?;
        let value = names.value(&head, field.value).ok_or_else(bad)?;
        if keep_case {
            written.push((name.clone(), head.slice_ref(field.name.as_bytes())));
        }
        if name == header::CONNECTION {
            note(field.value, &mut close, &mut keep);
        }
        headers.append(name, value);
    }
    names.truncate(parsed.headers.len());
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(bad)?;
    let http_10 = parsed.version == Some(0);
    let mut message = Response::new(());
    *message.status_mut() = status;
    *message.version_mut() = if http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *message.headers_mut() = headers;
    if keep_case {
        message.extensions_mut().insert(Written::new(written));
    }
    let switches = status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success());
    let body = body_of(&mut message, method, switches)?;
    let keep_alive = !close && (!http_10 || keep) && !matches!(body, Decoder::UntilEnd);
    Ok(Some(Head { message, body, keep_alive, special: switches }))
}

/// How a response's body is framed (RFC 9112 §6.3).
fn body_of(message: &mut Response<()>, method: &Method, switches: bool) -> Result<Decoder, Broken> {
    let status = message.status();
    let none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if switches || none || status.is_informational() || *method == Method::HEAD {
        return Ok(Decoder::Over);
    }
    let version = message.version();
    let headers = message.headers_mut();
    if let Some(last) = headers.get_all(header::TRANSFER_ENCODING).iter().next_back() {
        if version == Version::HTTP_10 {
            return Err(Broken::NotHttp("coding in HTTP/1.0"));
        }
        let last = last.as_bytes().rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii();
        let chunked = last.eq_ignore_ascii_case(b"chunked");
        // The coding goes before a length, which is not to be passed on then.
        headers.remove(header::CONTENT_LENGTH);
        return Ok(if chunked { Decoder::chunked() } else { Decoder::UntilEnd });
    }
    match length(headers)? {
        Some(length) => Ok(Decoder::length(length)),
        None => Ok(Decoder::UntilEnd),
    }
}

/// The length that headers tell: the same in all of them.
///
/// # Errors
/// It is no number, or several.
pub fn length(headers: &HeaderMap) -> Result<Option<u64>, Broken> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for part in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let digits = !part.is_empty() && part.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(part).ok().filter(|_| digits).and_then(|text| text.parse::<u64>().ok());
            if number.is_none() || found.is_some_and(|found| Some(found) != number) {
                return Err(Broken::NotHttp("length"));
            }
            found = number;
        }
    }
    Ok(found)
}

/// Reads bytes as both kinds of message, whatever they are, and their bodies. For fuzzing.
pub fn anything(data: &[u8]) {
    let limits = Limits { bytes: 8192, fields: 100, accept_http_10: true, keep_case: true };
    let mut names = Names::default();
    let mut input = Input { bytes: data.into(), ..Input::default() };
    while let Ok(Some(mut head)) = request(&mut input, &limits, &mut names) {
        while let Ok(Some(_)) = head.body.next(&mut input.bytes) {}
        if !head.body.is_over() {
            break;
        }
    }
    for method in [Method::GET, Method::HEAD, Method::CONNECT] {
        let mut input = Input { bytes: data.into(), ..Input::default() };
        while let Ok(Some(mut head)) = response(&mut input, &method, true, &mut names) {
            while let Ok(Some(_)) = head.body.next(&mut input.bytes) {}
            if !head.body.is_over() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Input {
        Input { bytes: text.as_bytes().into(), ..Input::default() }
    }

    #[test]
    fn requests_are_taken_one_by_one() {
        let limits = Limits { bytes: 100, fields: 3, accept_http_10: true, keep_case: false };
        let mut names = Names::default();
        let mut all = input("POST /a HTTP/1.1\r\nHost: a\r\ncontent-length: 2\r\n\r\nxyGET / HTTP/1.0\r\n\r\nGE");
        let mut first = request(&mut all, &limits, &mut names).unwrap().unwrap();
        assert_eq!((first.message.uri().path(), first.keep_alive, first.special), ("/a", true, false));
        assert_eq!(first.message.headers()["host"], "a");
        assert_eq!(first.body.next(&mut all.bytes).unwrap().unwrap().into_data().unwrap(), "xy");
        let second = request(&mut all, &limits, &mut names).unwrap().unwrap();
        assert_eq!((second.message.version(), second.keep_alive), (Version::HTTP_10, false));
        assert!(request(&mut all, &limits, &mut names).unwrap().is_none());
        for (text, refusal) in [
            ("GET / HTTP/1.1\r\na: b\r\na: b\r\na: b\r\na: b\r\n\r\n".to_owned(), Refusal::TooMany),
            (format!("GET /{} HTTP/1.1\r\n", "a".repeat(100)), Refusal::TooLarge),
            ("what".to_owned(), Refusal::Malformed),
        ] {
            assert_eq!(request(&mut input(&text), &limits, &mut names).unwrap_err().refusal, refusal, "{text}");
        }
    }

    #[test]
    fn responses_are_framed_as_the_protocol_says() {
        for (text, method, wanted) in [
            ("200 OK\r\ncontent-length: 3", Method::GET, "Length(3) true"),
            ("200 OK\r\ncontent-length: 3, 3", Method::GET, "Length(3) true"),
            ("200 OK\r\ncontent-length: 3", Method::HEAD, "Over true"),
            ("204 No\r\nconnection: close", Method::GET, "Over false"),
            ("304 No\r\ncontent-length: 3", Method::GET, "Over true"),
            ("200 OK", Method::GET, "UntilEnd false"),
            ("200 OK\r\ntransfer-encoding: gzip", Method::GET, "UntilEnd false"),
            ("101 Go", Method::GET, "Over true"),
            ("200 OK", Method::CONNECT, "Over true"),
        ] {
            let mut all = input(&format!("HTTP/1.1 {text}\r\n\r\n"));
            let head = response(&mut all, &method, false, &mut Names::default()).unwrap().unwrap();
            assert_eq!(format!("{:?} {}", head.body, head.keep_alive), wanted, "{text}");
        }
        let both = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let head = response(&mut input(both), &Method::GET, false, &mut Names::default()).unwrap().unwrap();
        assert!(matches!(head.body, Decoder::Chunked(_)) && !head.message.headers().contains_key("content-length"));
        for text in ["-ERR what\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "HTTP/2"] {
            assert!(response(&mut input(text), &Method::GET, false, &mut Names::default()).is_err(), "{text}");
        }
    }
}
