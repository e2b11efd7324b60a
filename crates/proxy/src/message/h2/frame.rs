//! Frames (RFC 9113 §4.1, §6): their heads, and those that we write.
//!
//! Invariant: it knows how frames look, not what they mean.

/// Bytes before a frame's payload.
pub const HEAD: usize = 9;
/// Largest payload that we take: nobody is told of another (§4.2).
pub const LARGEST: usize = 16 * 1024;

/// DATA
pub const DATA: u8 = 0;
/// HEADERS
pub const HEADERS: u8 = 1;
/// PRIORITY
pub const PRIORITY: u8 = 2;
/// RST_STREAM
pub const RST_STREAM: u8 = 3;
/// SETTINGS
pub const SETTINGS: u8 = 4;
/// PUSH_PROMISE
pub const PUSH_PROMISE: u8 = 5;
/// PING
pub const PING: u8 = 6;
/// GOAWAY
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION
pub const CONTINUATION: u8 = 9;

/// The stream ends; of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;
/// The block ends; of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// Of DATA and HEADERS.
pub const PADDED: u8 = 8;
/// Of HEADERS.
pub const WITH_PRIORITY: u8 = 0x20;

/// Settings (§6.5.2, RFC 8441 §3).
pub mod setting {
    /// HEADER_TABLE_SIZE
    pub const TABLE: u16 = 1;
    /// ENABLE_PUSH
    pub const PUSH: u16 = 2;
    /// MAX_CONCURRENT_STREAMS
    pub const STREAMS: u16 = 3;
    /// INITIAL_WINDOW_SIZE
    pub const WINDOW: u16 = 4;
    /// MAX_FRAME_SIZE
    pub const FRAME: u16 = 5;
    /// MAX_HEADER_LIST_SIZE
    pub const LIST: u16 = 6;
    /// ENABLE_CONNECT_PROTOCOL
    pub const CONNECT: u16 = 8;
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Of the payload, bytes.
    pub length: usize,
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0: the connection.
    pub stream: u32,
}

impl Head {
    /// Reads the head of the next frame, once it is there.
    pub fn read(bytes: &[u8]) -> Option<Head> {
        let [a, b, c, kind, flags, d, e, f, g] = *bytes.first_chunk::<HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        Some(Head { length, kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]) })
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame's head.
pub fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// Writes a header block, in as many frames as it needs.
pub fn block(out: &mut Vec<u8>, block: &[u8], largest: usize, ends: bool, stream: u32) {
    let end_stream = if ends { END_STREAM } else { 0 };
    if block.len() <= largest {
        head(out, block.len(), HEADERS, END_HEADERS | end_stream, stream);
        out.extend_from_slice(block);
        return;
    }
    let mut kind = HEADERS;
    let mut parts = block.chunks(largest.max(1)).peekable();
    while let Some(part) = parts.next() {
        let mut flags = if kind == HEADERS { end_stream } else { 0 };
        if parts.peek().is_none() {
            flags |= END_HEADERS;
        }
        head(out, part.len(), kind, flags, stream);
        out.extend_from_slice(part);
        kind = CONTINUATION;
    }
}

/// Writes SETTINGS.
pub fn settings(out: &mut Vec<u8>, all: &[(u16, u32)]) {
    head(out, all.len().saturating_mul(6), SETTINGS, 0, 0);
    for (id, value) in all {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes RST_STREAM or WINDOW_UPDATE: what has one number.
pub fn number(out: &mut Vec<u8>, kind: u8, stream: u32, value: u32) {
    head(out, 4, kind, 0, stream);
    out.extend_from_slice(&value.to_be_bytes());
}

/// Writes PING.
pub fn ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    head(out, 8, PING, flags, 0);
    out.extend_from_slice(&payload);
}

/// Writes GOAWAY.
pub fn goaway(out: &mut Vec<u8>, last: u32, code: u32) {
    head(out, 8, GOAWAY, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
}

/// The payload without its padding; `None` if there is more padding than payload (§6.1).
pub fn unpadded<'a>(head: &Head, payload: &'a [u8]) -> Option<&'a [u8]> {
    if !head.has(PADDED) {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    let length = rest.len().checked_sub(usize::from(*padding))?;
    rest.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back() {
        let mut out = Vec::new();
        head(&mut out, 0x01_02_03, DATA, END_STREAM | PADDED, 0x8000_0005);
        assert_eq!(Head::read(&out[..8]), None);
        let read = Head::read(&out).unwrap();
        assert_eq!(read, Head { length: 0x01_02_03, kind: DATA, flags: 9, stream: 5 });
        assert!(read.has(PADDED) && !read.has(END_HEADERS));
    }

    #[test]
    fn long_blocks_are_cut() {
        let mut out = Vec::new();
        block(&mut out, b"abcdefg", 3, true, 1);
        let mut seen = Vec::new();
        let mut rest = &out[..];
        while let Some(head) = Head::read(rest) {
            seen.push((head.kind, head.flags, rest[HEAD..HEAD + head.length].to_vec()));
            rest = &rest[HEAD + head.length..];
        }
        let wanted =
            [(HEADERS, 1, b"abc".to_vec()), (CONTINUATION, 0, b"def".to_vec()), (CONTINUATION, 4, b"g".to_vec())];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn padding_is_taken_off() {
        let head = Head { length: 0, kind: DATA, flags: PADDED, stream: 1 };
        for (payload, wanted) in
            [(&[1, 7, 0][..], Some(&[7][..])), (&[2, 0, 0], Some(&[])), (&[2, 0], None), (&[], None)]
        {
            assert_eq!(unpadded(&head, payload), wanted);
        }
    }
}
