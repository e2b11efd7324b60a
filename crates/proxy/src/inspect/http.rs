//! Tells HTTP/1.x and prior-knowledge HTTP/2 from other plaintext, as Envoy's `http_inspector` does.
//!
//! Invariant: a request line with any token as its method, or the HTTP/2 preface, counts as HTTP (measured with Envoy 1.40); the first
//! byte that rules it out ends the wait. The codec, not this module, judges the request: what begins like one and is none is refused
//! there, and does not pass as bytes of another protocol.

use super::{MAX_INSPECT, Verdict};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The HTTP version that the first bytes speak, under the name that chain matching uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// `http/1.0`
    Http10,
    /// `http/1.1`
    Http11,
    /// `h2c`
    H2c,
}

impl HttpVersion {
    /// The application protocol name for filter chain matching.
    pub fn alpn(self) -> &'static str {
        match self {
            HttpVersion::Http10 => "http/1.0",
            HttpVersion::Http11 => "http/1.1",
            HttpVersion::H2c => "h2c",
        }
    }
}

/// Looks at the first bytes of a plaintext connection.
pub fn sniff(seen: &[u8]) -> Verdict<HttpVersion> {
    if seen.starts_with(PREFACE) {
        return Verdict::Yes(HttpVersion::H2c);
    }
    if PREFACE.starts_with(seen) {
        return Verdict::NeedMore;
    }
    let line = match seen.iter().position(|b| *b == b'\r' || *b == b'\n') {
        None => return open(seen),
        Some(end) => match (seen.get(end), seen.get(end.saturating_add(1))) {
            (Some(b'\r'), None) => return open(seen),
            // A CR alone ends no line.
            (Some(b'\r'), Some(next)) if *next != b'\n' => return Verdict::No,
            _ => seen.get(..end).unwrap_or_default(),
        },
    };
    version(line).map_or(Verdict::No, Verdict::Yes)
}

/// A line without its end: whether it can still become a request's.
fn open(line: &[u8]) -> Verdict<HttpVersion> {
    let method = line.split(|b| is_blank(*b)).next().unwrap_or_default();
    if method.is_empty() || !method.iter().all(|b| *b == b'\r' || is_token(*b)) || !line.is_ascii() {
        Verdict::No
    } else if line.len() > MAX_INSPECT {
        Verdict::TooLarge
    } else {
        Verdict::NeedMore
    }
}

/// The version of a request line: any token as method, a target in one of the forms that are known, and `HTTP/x.y` or nothing.
fn version(line: &[u8]) -> Option<HttpVersion> {
    let (method, rest) = line.split_at_checked(line.iter().position(|b| is_blank(*b))?)?;
    let mut words = rest.split(|b| is_blank(*b)).filter(|word| !word.is_empty());
    let target = words.next()?;
    let version = words.next().unwrap_or_default();
    let absolute = || target.windows(3).any(|w| w == b"://");
    let known = method == b"CONNECT" || matches!(target.first(), Some(b'/' | b'*')) || absolute();
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) || !known || words.next().is_some() || !line.is_ascii()
    {
        return None;
    }
    match version {
        b"HTTP/1.1" => Some(HttpVersion::Http11),
        // HTTP/0.9, and whatever else calls itself a version.
        b"" => Some(HttpVersion::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Some(HttpVersion::Http10)
        }
        _ => None,
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], Verdict::Yes(HttpVersion::Http11)),
            (b"POST /a HTTP/1.0\r\n", Verdict::Yes(HttpVersion::Http10)),
            (b"POST /a b HTTP/1.0\r\n", Verdict::No),
            (b"\r\nGET / HTTP/1.1\r\n", Verdict::No),
            (b"get /admin HTTP/1.1\r\n", Verdict::Yes(HttpVersion::Http11)),
            (b"foo * HTTP/1.1\r\n", Verdict::Yes(HttpVersion::Http11)),
            (b"GET ftp://a HTTP/1.1\r\n", Verdict::Yes(HttpVersion::Http11)),
            (b"CONNECT a:80 HTTP/1.1\r\n", Verdict::Yes(HttpVersion::Http11)),
            (b"connect a:80 HTTP/1.1\r\n", Verdict::No),
            (b"GET foo HTTP/1.1\r\n", Verdict::No),
            (b"GET\t/  HTTP/1.1 \r\n", Verdict::Yes(HttpVersion::Http11)),
            (b"GET / HTTP/1.1\rX", Verdict::No),
            (b"GET / HTTP/1.1\r", Verdict::NeedMore),
            (b"GET / HTTP/1.1x\r\n", Verdict::No),
            (b"G(T / HTTP/1.1\r\n", Verdict::No),
            (b"GET /\xff HTTP/1.1\r\n", Verdict::No),
            (b"GET / HTTP/1.1\n", Verdict::Yes(HttpVersion::Http11)),
            (PREFACE, Verdict::Yes(HttpVersion::H2c)),
            (b"PRI * HT", Verdict::NeedMore),
            (b"", Verdict::NeedMore),
            (b"P", Verdict::NeedMore),
            (b"GET /some/long", Verdict::NeedMore),
            (b"GET /\r\n", Verdict::Yes(HttpVersion::Http10)),
            (b"GET / HTTP/3.1\r\n", Verdict::Yes(HttpVersion::Http10)),
            (b"HELLO there", Verdict::NeedMore),
            (b"HELLO there\r\n", Verdict::No),
            (b"GETX", Verdict::NeedMore),
            (b"GETX\r\n", Verdict::No),
            (b"{\"a\"", Verdict::No),
            (b"\x00\x01", Verdict::No),
            (b"GET \x01\r\n", Verdict::No),
            (b"EHLO x\r\n", Verdict::No),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn a_decision_never_changes_with_more_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..80) {
            let cut = cut.min(bytes.len());
            match sniff(&bytes[..cut]) {
                Verdict::NeedMore => {}
                decided => prop_assert_eq!(decided, sniff(&bytes)),
            }
        }
    }
}
