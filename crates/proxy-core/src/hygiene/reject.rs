//! Requests that are refused before routing.
//!
//! Invariant: framing is unambiguous after this: at most one of content-length and transfer-encoding, one content-length value, and
//! `chunked` the only coding. Statuses and detail texts are Envoy's.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING};

use super::LocalReply;
use crate::model::hcm::{HttpConnectionManager, Underscores};

/// HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 1.0
    Http10,
    /// 1.1
    Http11,
    /// 2
    Http2,
}

/// Checks framing headers of an HTTP/1 message before any byte of body is read.
///
/// # Errors
/// The reply to send; the connection must be closed after it.
pub fn framing(headers: &HeaderMap, version: Version, allow_chunked_length: bool) -> Result<(), LocalReply> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next() {
        let digits = |v: &[u8]| !v.is_empty() && v.iter().all(u8::is_ascii_digit);
        if !digits(first.as_bytes()) || lengths.any(|other| other != first) {
            return Err(LocalReply::Status(400, "http1.invalid_content_length"));
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if version == Version::Http10 {
            return Err(LocalReply::Status(400, "http1.transfer_encoding_not_allowed"));
        }
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(LocalReply::Status(501, "http1.invalid_transfer_encoding"));
        }
        if headers.contains_key(CONTENT_LENGTH) && !allow_chunked_length {
            return Err(LocalReply::Status(400, "http1.content_length_and_chunked_not_allowed"));
        }
    }
    Ok(())
}

/// Checks a request's head against its connection manager. `authority` is the Host header or `:authority`, `None` if missing.
///
/// # Errors
/// The reply to send.
pub fn head(
    hcm: &HttpConnectionManager,
    version: Version,
    method: &str,
    path: &str,
    authority: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), LocalReply> {
    if version == Version::Http10 && !hcm.http1.accept_http_10 {
        return Err(LocalReply::Status(426, "low_version"));
    }
    if headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(LocalReply::Status(400, "http1.multiple_host_headers"));
    }
    let authority = authority.filter(|a| !a.is_empty());
    let has_default = version == Version::Http10 && !hcm.http1.default_host_for_http_10.is_empty();
    match authority {
        None if !has_default => return Err(LocalReply::Status(400, "missing_host_header")),
        Some(authority) if !authority_is_valid(authority) => return Err(LocalReply::Status(400, "invalid_authority")),
        _ => {}
    }
    let connect = method == "CONNECT";
    if path.is_empty() && !connect {
        return Err(LocalReply::Status(404, "missing_path_rejected"));
    }
    // `OPTIONS *` too: no policy would know what it is about.
    if !(path.is_empty() || path.starts_with('/')) {
        return Err(LocalReply::Status(404, "absolute_path_rejected"));
    }
    if headers.len() > usize::try_from(hcm.max_headers_count).unwrap_or(usize::MAX) {
        return Err(LocalReply::Status(431, "too_many_headers"));
    }
    if hcm.underscores == Underscores::Reject && headers.keys().any(|name| name.as_str().contains('_')) {
        return Err(LocalReply::Status(400, "unexpected_underscore"));
    }
    Ok(())
}

/// Characters of RFC 3986 authority; user information is refused.
#[must_use]
pub fn authority_is_valid(authority: &str) -> bool {
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';'
            )
            || matches!(b, b'=' | b':' | b'[' | b']' | b'%')
    };
    !authority.is_empty() && authority.bytes().all(allowed)
}

/// The authority after the connection manager's host options. `listener_port` serves `strip_matching_host_port`.
#[must_use]
pub fn clean_authority(hcm: &HttpConnectionManager, authority: &str, listener_port: u16) -> Option<String> {
    let options = &hcm.host;
    let (host, port) = crate::routing::split_port(authority);
    let strip = options.strip_any_port
        || (options.strip_matching_port && port.and_then(|p| p.parse::<u16>().ok()) == Some(listener_port));
    let dotless = if options.strip_trailing_dot { host.strip_suffix('.') } else { None };
    if dotless.is_none() && (!strip || port.is_none()) {
        return None;
    }
    let host = dotless.unwrap_or(host);
    Some(port.filter(|_| !strip).map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}
