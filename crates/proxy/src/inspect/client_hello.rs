//! A bounded reader of the TLS ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2): server name and ALPN, nothing else.
//!
//! Invariant: every length is checked before it is used, so arbitrary bytes give `No`, `NeedMore` or `TooLarge`,
//! never a panic; a ClientHello split over several records is put together. Whether the hello is acceptable is left
//! to the TLS library.

use super::{MAX_INSPECT, Verdict};
use std::borrow::Cow;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;
/// Largest record that a peer may send (RFC 8446 §5.1), with what old stacks add.
const MAX_RECORD: usize = 16 * 1024 + 2048;
/// Largest record before anything is encrypted (RFC 8446 §5.1).
const MAX_PLAIN: usize = 16 * 1024;

/// Longest ClientHello: what Envoy's TLS library reads. Real ones, with keys of post-quantum groups, take two to three thousand bytes.
const MAX_HELLO: usize = 16 * 1024;

/// Bytes that [`refusal`] wants: the head of a record, of a handshake message, and the version in it.
pub const HEADS: usize = 11;

/// The alert for a ClientHello that the TLS library would take and must not: one that names SSL 3.0 or older as its version (RFC 8446
/// D.5), is longer than [`MAX_HELLO`], or comes in a record longer than [`MAX_PLAIN`]. What is no ClientHello, or is cut into records shorter than these bytes, is the library's.
pub fn refusal(begin: &[u8]) -> Option<u8> {
    const PROTOCOL_VERSION: u8 = 70;
    const RECORD_OVERFLOW: u8 = 22;
    const ILLEGAL_PARAMETER: u8 = 47;
    let [RECORD_HANDSHAKE, 3, _, a, b, HANDSHAKE_CLIENT_HELLO, size @ .., major, minor] = begin.get(..HEADS)? else {
        return None;
    };
    let record = usize::from(u16::from_be_bytes([*a, *b]));
    if record < 6 {
        return None;
    }
    if record > MAX_PLAIN {
        return Some(RECORD_OVERFLOW);
    }
    let size = size.iter().fold(0usize, |n, b| (n << 8) | usize::from(*b));
    if (*major, *minor) <= (3, 0) { Some(PROTOCOL_VERSION) } else { (size > MAX_HELLO).then_some(ILLEGAL_PARAMETER) }
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Host name of the server_name extension, lower-cased, without validation beyond ASCII.
    pub server_name: Option<String>,
    /// Protocol names in the client's order.
    pub alpn: Vec<String>,
}

/// Reads as much of a ClientHello as `seen` holds.
pub fn parse(seen: &[u8]) -> Verdict<ClientHello> {
    match handshake_message(seen) {
        Ok(message) => match hello(&message) {
            Some(h) => Verdict::Yes(h),
            None => Verdict::No,
        },
        Err(v) => v,
    }
}

/// The body of the first handshake message, across records.
fn handshake_message(seen: &[u8]) -> Result<Cow<'_, [u8]>, Verdict<ClientHello>> {
    let mut rest = Reader(seen);
    let mut joined: Vec<u8> = Vec::new();
    loop {
        // Decide on the first bytes already, so that a server-first or plain protocol is not held back.
        match rest.0.first() {
            None => return Err(Verdict::NeedMore),
            Some(&RECORD_HANDSHAKE) => {}
            Some(_) => return Err(Verdict::No),
        }
        match rest.0.get(1) {
            None => return Err(Verdict::NeedMore),
            Some(3) => {}
            Some(_) => return Err(Verdict::No),
        }
        let (Some(_), Some(length)) = (rest.take(3), rest.u16()) else { return Err(Verdict::NeedMore) };
        let length = usize::from(length);
        if length == 0 || length > MAX_RECORD {
            return Err(Verdict::No);
        }
        if length > MAX_PLAIN {
            return Err(Verdict::TooLarge);
        }
        let complete = rest.0.len() >= length;
        let part = rest.0.get(..length).unwrap_or(rest.0);
        rest.0 = rest.0.get(part.len()..).unwrap_or_default();
        let message: Cow<'_, [u8]> = if joined.is_empty() {
            Cow::Borrowed(part)
        } else {
            joined.extend_from_slice(part);
            Cow::Borrowed(&joined)
        };
        match message.first() {
            Some(&HANDSHAKE_CLIENT_HELLO) | None => {}
            Some(_) => return Err(Verdict::No),
        }
        if let Some(size) = message.get(1..4) {
            let size = size.iter().fold(0usize, |n, b| (n << 8) | usize::from(*b));
            if size > MAX_HELLO {
                return Err(Verdict::TooLarge);
            }
            if message.len() >= size.saturating_add(4) {
                let end = size.saturating_add(4);
                let body = message.get(4..end).unwrap_or_default();
                return Ok(if joined.is_empty() {
                    Cow::Borrowed(part.get(4..end).unwrap_or_default())
                } else {
                    Cow::Owned(body.to_vec())
                });
            }
        }
        if !complete {
            return Err(if seen.len() > MAX_INSPECT { Verdict::TooLarge } else { Verdict::NeedMore });
        }
        if joined.is_empty() {
            joined.extend_from_slice(part);
        }
        if joined.len() > MAX_INSPECT || seen.len() > 2 * MAX_INSPECT {
            return Err(Verdict::TooLarge);
        }
    }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    if r.take(2)?.first() != Some(&3) {
        return None;
    }
    r.take(32)?;
    r.vec8()?;
    r.vec16()?;
    r.vec8()?;
    let mut out = ClientHello::default();
    if r.0.is_empty() {
        return Some(out);
    }
    let mut extensions = Reader(r.vec16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            EXT_SERVER_NAME => out.server_name = server_name(data)?,
            EXT_ALPN => out.alpn = alpn(data)?,
            _ => {}
        }
    }
    Some(out)
}

fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vec16()?;
        if kind == 0 {
            let name = std::str::from_utf8(name).ok().filter(|n| n.is_ascii() && !n.is_empty())?;
            return Some(Some(name.trim_end_matches('.').to_ascii_lowercase()));
        }
    }
    Some(None)
}

fn alpn(data: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    let mut out = Vec::new();
    while !list.0.is_empty() {
        let name = list.vec8()?;
        out.push(String::from_utf8_lossy(name).into_owned());
    }
    Some(out)
}

/// A cursor that can only move forward inside its slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    fn u16(&mut self) -> Option<u16> {
        <[u8; 2]>::try_from(self.take(2)?).ok().map(u16::from_be_bytes)
    }
    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(usize::from(n))
    }
    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v16(b: &[u8]) -> Vec<u8> {
        let mut o = (b.len() as u16).to_be_bytes().to_vec();
        o.extend_from_slice(b);
        o
    }

    /// A ClientHello message with SNI, ALPN and padding, as handshake bytes.
    fn message(sni: Option<&str>, alpn: &[&str], padding: usize) -> Vec<u8> {
        let mut ext = Vec::new();
        if let Some(s) = sni {
            let mut name = vec![0];
            name.extend(v16(s.as_bytes()));
            ext.extend([0, 0]);
            ext.extend(v16(&v16(&name)));
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn.iter().flat_map(|p| std::iter::once(p.len() as u8).chain(p.bytes())).collect();
            ext.extend([0, 16]);
            ext.extend(v16(&v16(&list)));
        }
        ext.extend([0, 21]);
        ext.extend(v16(&vec![0; padding]));
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(v16(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(v16(&ext));
        let mut m = vec![1];
        m.extend(&(body.len() as u32).to_be_bytes()[1..]);
        m.extend(body);
        m
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|c| {
                let mut r = vec![22, 3, 1];
                r.extend(v16(c));
                r
            })
            .collect()
    }

    #[test]
    fn reads_name_and_protocols_in_order() {
        let got = parse(&records(&message(Some("A.Example."), &["istio", "h2"], 10), 16384));
        let want = ClientHello { server_name: Some("a.example".into()), alpn: vec!["istio".into(), "h2".into()] };
        assert_eq!(got, Verdict::Yes(want));
        assert_eq!(parse(&records(&message(None, &[], 0), 16384)), Verdict::Yes(ClientHello::default()));
    }

    #[test]
    fn every_prefix_asks_for_more_whatever_the_record_size() {
        let m = message(Some("svc.ns.svc.cluster.local"), &["istio-http/1.1", "istio"], 3000);
        for size in [1usize, 7, 300, 16384] {
            let bytes = records(&m, size);
            for cut in (0..bytes.len()).step_by(if size == 1 { 97 } else { 11 }) {
                assert_eq!(parse(&bytes[..cut]), Verdict::NeedMore, "record size {size}, {cut} bytes");
            }
            assert!(matches!(parse(&bytes), Verdict::Yes(h) if h.alpn.len() == 2), "record size {size}");
        }
    }

    #[test]
    fn other_protocols_are_told_apart_at_once() {
        for other in
            [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"SSH-2.0-x", b"\0", b"\x16\x02", b"\x16\x03\x01\0\x05\x02"]
        {
            assert_eq!(parse(other), Verdict::No, "{other:?}");
        }
        assert_eq!(parse(b""), Verdict::NeedMore);
    }

    #[test]
    fn announced_giants_are_refused() {
        assert_eq!(parse(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"), Verdict::TooLarge);
        assert_eq!(parse(b"\x16\x03\x01\x40\x00\x01\x00\x40\x01"), Verdict::TooLarge);
        assert_eq!(parse(b"\x16\x03\x01\x40\x00\x01\x00\x40\x00"), Verdict::NeedMore);
        assert_eq!(parse(b"\x16\x03\x01\x40\x01\x01\x00\x01\x00"), Verdict::TooLarge);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }
        #[test]
        fn damaged_hellos_never_panic(at in 0usize..400, with: u8, size in 1usize..500) {
            let mut bytes = records(&message(Some("a.b"), &["h2", "http/1.1"], 200), size);
            let n = bytes.len();
            if let Some(b) = bytes.get_mut(at % n) { *b = with; }
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn hellos_of_old_versions_and_of_great_length_are_refused() {
        let hello = |version: [u8; 2], size: [u8; 3]| {
            let heads = [&[22, 3, 1, 0x40, 0, 1][..], &size, &version].concat();
            super::refusal(&heads)
        };
        for version in [[3, 0], [2, 0], [0, 0], [1, 2], [0, 2]] {
            assert_eq!(hello(version, [0, 1, 0]), Some(70), "{version:?}");
        }
        for version in [[3, 1], [3, 3], [3, 4], [4, 0]] {
            assert_eq!(hello(version, [0, 0x40, 0]), None, "{version:?}");
        }
        assert_eq!(hello([3, 3], [0, 0x40, 1]), Some(47));
        // A record of one byte too many.
        assert_eq!(super::refusal(&[22, 3, 1, 0x40, 1, 1, 0, 1, 0, 3, 3]), Some(22));
        assert_eq!(super::refusal(b"GET / HTTP/1.1"), None);
        assert_eq!(super::refusal(&[22, 3, 1]), None);
    }
}
