//! Tells HTTP/1.x and prior-knowledge HTTP/2 from other plaintext, as Envoy's `http_inspector` does.
//!
//! Invariant: only a request line with a known method and a version, or the HTTP/2 preface, counts as HTTP; the first
//! byte that rules it out ends the wait. The codec, not this module, judges the rest of the request.

use carrick_proxy_core::hygiene::wire::METHODS;

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
    // A client may send one empty line before the request line (RFC 9112 §2.2).
    let line = seen.strip_prefix(b"\r\n").or_else(|| seen.strip_prefix(b"\n")).unwrap_or(seen);
    if line.is_empty() || line == b"\r" {
        return Verdict::NeedMore;
    }
    let Some(space) = line.iter().position(|b| *b == b' ') else {
        let open = METHODS.iter().any(|m| m.starts_with(line));
        return if open { Verdict::NeedMore } else { Verdict::No };
    };
    let (method, rest) = line.split_at(space);
    if !METHODS.contains(&method) {
        return Verdict::No;
    }
    let rest = rest.get(1..).unwrap_or_default();
    let Some(end) = rest.iter().position(|b| *b == b'\r' || *b == b'\n') else {
        // Control bytes cannot be part of a request target.
        return if rest.iter().any(|b| *b < 0x20 || *b == 0x7f) {
            Verdict::No
        } else if seen.len() > MAX_INSPECT {
            Verdict::TooLarge
        } else {
            Verdict::NeedMore
        };
    };
    let target = rest.get(..end).unwrap_or_default();
    match target.rsplit(|b| *b == b' ').next() {
        Some(v) if v.len() == target.len() => Verdict::No,
        Some(b"HTTP/1.1") => Verdict::Yes(HttpVersion::Http11),
        Some(b"HTTP/1.0") => Verdict::Yes(HttpVersion::Http10),
        _ => Verdict::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], Verdict::Yes(HttpVersion::Http11)),
            (b"\r\nPOST /a b HTTP/1.0\r\n", Verdict::Yes(HttpVersion::Http10)),
            (b"GET / HTTP/1.1\n", Verdict::Yes(HttpVersion::Http11)),
            (PREFACE, Verdict::Yes(HttpVersion::H2c)),
            (b"PRI * HT", Verdict::NeedMore),
            (b"", Verdict::NeedMore),
            (b"P", Verdict::NeedMore),
            (b"GET /some/long", Verdict::NeedMore),
            (b"GET /\r\n", Verdict::No),
            (b"GET / HTTP/3.1\r\n", Verdict::No),
            (b"HELLO there", Verdict::No),
            (b"GETX", Verdict::No),
            (b"\x00\x01", Verdict::No),
            (b"GET \x01", Verdict::No),
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
