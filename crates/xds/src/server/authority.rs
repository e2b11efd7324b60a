//! Lets in clients whose `:authority` is a path: gRPC's C core (Python, C++, Ruby …) names a Unix socket `tmp%2Fsocket`, which the HTTP/2
//! library refuses as a host.
//!
//! Invariant: each `%` of an `:authority` that is sent as it is becomes `-`; every other byte passes as it came, and lengths stay as they
//! are, so that both sides' header tables agree. What is no HTTP/2, or is cut in an odd place, passes unchanged: the library judges it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// Longer heads are no frames that we allow (RFC 9113 §4.2).
const LARGEST: usize = 16 * 1024;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// A server's side of a connection, its input mended.
#[derive(Debug)]
pub(super) struct PathAuthority<IO> {
    io: IO,
    mender: Mender,
    /// Mended, and not yet taken.
    ready: Vec<u8>,
    taken: usize,
}

impl<IO> PathAuthority<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, mender: Mender::default(), ready: Vec::new(), taken: 0 }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for PathAuthority<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let rest = this.ready.get(this.taken..).unwrap_or_default();
            if !rest.is_empty() {
                let some = rest.get(..into.remaining()).unwrap_or(rest);
                into.put_slice(some);
                this.taken = this.taken.saturating_add(some.len());
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.io).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    this.mender.finish(&mut this.ready);
                    if this.ready.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(Ok(())) => this.mender.feed(read.filled(), &mut this.ready),
                other => return other,
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for PathAuthority<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What becomes of the bytes of one direction that come in these pieces; for the fuzzer.
pub fn mended(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut mender, mut out) = (Mender::default(), Vec::new());
    pieces.iter().for_each(|piece| mender.feed(piece, &mut out));
    mender.finish(&mut out);
    out
}

/// Follows the frames of one direction.
#[derive(Debug)]
struct Mender {
    /// Bytes that pass as they are.
    passing: usize,
    /// A frame's header, or a whole frame with headers, as far as it has come.
    held: Vec<u8>,
}

impl Default for Mender {
    fn default() -> Self {
        Self { passing: PREFACE, held: Vec::new() }
    }
}

impl Mender {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (now, later) = bytes.split_at(self.passing.min(bytes.len()));
                out.extend_from_slice(now);
                self.passing = self.passing.saturating_sub(now.len());
                bytes = later;
                continue;
            }
            let wanted = self.wanted().saturating_sub(self.held.len());
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() < FRAME_HEADER {
                continue;
            }
            match self.headers() {
                None => {
                    self.passing = self.length();
                    out.append(&mut self.held);
                }
                Some(whole) if self.held.len() == whole => {
                    mend_frame(&mut self.held);
                    out.append(&mut self.held);
                }
                Some(_) => {}
            }
        }
    }

    /// What was held is part of a frame that never came to its end.
    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// How much must be held before something can be said about it.
    fn wanted(&self) -> usize {
        if self.held.len() < FRAME_HEADER { FRAME_HEADER } else { self.headers().unwrap_or(FRAME_HEADER) }
    }

    /// The length of the payload.
    fn length(&self) -> usize {
        let Some([a, b, c]) = self.held.first_chunk() else { return 0 };
        usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)
    }

    /// The whole frame's length, if it is one to look into.
    fn headers(&self) -> Option<usize> {
        let length = self.length();
        (self.held.get(3) == Some(&HEADERS) && length <= LARGEST).then(|| length.saturating_add(FRAME_HEADER))
    }
}

/// Looks into a frame with headers (RFC 9113 §6.2).
fn mend_frame(frame: &mut [u8]) {
    let flags = frame.get(4).copied().unwrap_or_default();
    let mut start = FRAME_HEADER;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.saturating_sub(frame.get(start).copied().unwrap_or_default().into());
        start = start.saturating_add(1);
    }
    if flags & PRIORITY != 0 {
        start = start.saturating_add(5);
    }
    if let Some(block) = frame.get_mut(start..end) {
        let _ = mend_block(block);
    }
}

/// Walks the fields of a header block (RFC 7541 §6); `None` where it is cut or is none.
fn mend_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let prefix = match first {
            0x80.. => 7,
            0x40..0x80 => 6,
            0x20..0x40 => 5,
            _ => 4,
        };
        let name = integer(block, &mut at, prefix)?;
        if prefix == 7 || prefix == 5 {
            continue;
        }
        let mut authority = name == AUTHORITY;
        if name == 0 {
            let (text, plain) = string(block, &mut at)?;
            authority = plain && text == b":authority";
        }
        let (text, plain) = string(block, &mut at)?;
        if authority && plain {
            text.iter_mut().filter(|byte| **byte == b'%').for_each(|byte| *byte = b'-');
        }
    }
    Some(())
}

/// An integer whose first byte has `prefix` bits for it (§5.1).
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let mut next = || {
        let byte = block.get(*at).copied();
        *at = at.saturating_add(1);
        byte
    };
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(next()?) & most;
    if value < most {
        return Some(value);
    }
    for shift in [0_u32, 7, 14, 21] {
        let byte = next()?;
        value = value.checked_add(usize::from(byte & 0x7f) << shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string, and whether it is there as it is, without Huffman's code (§5.2).
fn string<'a>(block: &'a mut [u8], at: &mut usize) -> Option<(&'a mut [u8], bool)> {
    let plain = block.get(*at)? & 0x80 == 0;
    let length = integer(block, at, 7)?;
    let start = *at;
    *at = start.checked_add(length)?;
    Some((block.get_mut(start..*at)?, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Everything at once, and in every pair of pieces, gives the same.
    fn judged(bytes: &[u8]) -> Vec<u8> {
        let whole = mended(&[bytes]);
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(mended(&[a, b]), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn a_path_as_authority_becomes_a_host() {
        let block = b"\x83\x41\x0dtmp%2Fx%2Fapi\x00\x03a%b\x03c%d\x00\x0a:authority\x03x%y\x44\x04/%41";
        let wanted = b"\x83\x41\x0dtmp-2Fx-2Fapi\x00\x03a%b\x03c%d\x00\x0a:authority\x03x-y\x44\x04/%41";
        let data = frame(0, 0, b"tmp%2F");
        for (flags, before, after) in
            [(4, &b""[..], &b""[..]), (4 | PADDED, b"\x02", b"%%"), (4 | PADDED | PRIORITY, b"\x01\0\0\0\0\x05", b"%")]
        {
            let bytes = |block: &[u8]| {
                [HELLO, &frame(4, 0, b""), &frame(1, flags, &[before, block, after].concat()), &data].concat()
            };
            assert_eq!(judged(&bytes(block)), bytes(wanted), "{flags}");
        }
    }

    #[test]
    fn what_is_odd_passes_as_it_came() {
        let long = [b"\x41\x7f\xff\xff\xff\xff\xff", &b"%"[..]].concat();
        let cut = b"\x41\x20tmp%2F".to_vec();
        let coded = b"\x41\x84%%%%".to_vec();
        for block in [long, cut, coded, vec![0xff; 40]] {
            let bytes = [HELLO, &frame(1, 4, &block)].concat();
            assert_eq!(judged(&bytes), bytes);
        }
        for bytes in
            [&b"GET /%2F HTTP/1.1\r\n\r\n"[..], HELLO, b"", &[HELLO, &frame(1, 4, b"\x41\x03%%%")[..10]].concat()]
        {
            assert_eq!(judged(bytes), bytes);
        }
        let large = [HELLO, &frame(1, 4, &[&b"\x41\x02%%"[..], &[0x83; LARGEST]].concat())].concat();
        assert_eq!(mended(&[&large]), large);
    }
}
