//! Frames of SPDY/3.1: bytes to frames and frames to bytes.
//!
//! Invariant: data is handed on as it comes, whatever length its frame says; only control frames are waited for, and those are bounded.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest control frame, without its eight bytes of head.
pub(crate) const CONTROL: usize = 64 << 10;
/// Head of every frame.
const HEAD: usize = 8;
/// Version 3, with the bit that marks control frames.
const VERSION: u16 = 0x8003;
/// The flag that ends a stream's direction.
const FIN: u8 = 1;
/// Stream numbers have 31 bits.
const STREAM: u32 = 0x7fff_ffff;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A piece of a stream; `fin` only with the last piece of the last frame.
    Data { stream: u32, fin: bool, bytes: Bytes },
    /// A new stream.
    SynStream { stream: u32, fin: bool, block: Bytes },
    /// A stream's end, in both directions.
    Reset { stream: u32 },
    /// To be answered.
    Ping { id: u32 },
    /// No more streams come.
    GoAway,
    /// Late headers, or those of an answer.
    Headers { stream: u32, fin: bool, block: Bytes },
    /// SETTINGS, WINDOW_UPDATE and what else is not needed.
    Other,
}

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("not version 3 of SPDY")]
    Version,
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    #[error("a control frame is too short for what it is")]
    TooShort,
}

/// Takes frames off a buffer.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The data frame that is being read: stream, end, bytes left.
    open: Option<(u32, bool, usize)>,
}

impl Parser {
    /// The next frame that is whole, or the next piece of a data frame; `None` when more bytes are needed.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some((stream, fin, left)) = self.open.take() {
            return Ok(self.piece(buffer, stream, fin, left));
        }
        let Some(mut head) = buffer.get(..HEAD) else { return Ok(None) };
        let first = head.get_u32();
        let second = head.get_u32();
        let [flags, ..] = second.to_be_bytes();
        let length = usize::try_from(second & 0x00ff_ffff).unwrap_or(usize::MAX);
        let fin = flags & FIN != 0;
        if first & !STREAM == 0 {
            buffer.advance(HEAD);
            return Ok(self.piece(buffer, first, fin, length));
        }
        let (version, kind) = ((first >> 16) as u16, first as u16);
        if version != VERSION {
            return Err(FrameError::Version);
        }
        if length > CONTROL {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEAD.saturating_add(length) {
            return Ok(None);
        }
        buffer.advance(HEAD);
        let mut body = buffer.split_to(length).freeze();
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| FrameError::TooShort);
        Ok(Some(match kind {
            1 => {
                let stream = number(&mut body)? & STREAM;
                // The stream it belongs to, priority and slot: of no meaning here.
                number(&mut body)?;
                body.try_get_u16().map_err(|_| FrameError::TooShort)?;
                Frame::SynStream { stream, fin, block: body }
            }
            2 | 8 => Frame::Headers { stream: number(&mut body)? & STREAM, fin, block: body },
            3 => Frame::Reset { stream: number(&mut body)? & STREAM },
            6 => Frame::Ping { id: number(&mut body)? },
            7 => Frame::GoAway,
            _ => Frame::Other,
        }))
    }

    fn piece(&mut self, buffer: &mut BytesMut, stream: u32, fin: bool, left: usize) -> Option<Frame> {
        let bytes = buffer.split_to(left.min(buffer.len())).freeze();
        let left = left.saturating_sub(bytes.len());
        if left > 0 {
            self.open = Some((stream, fin, left));
            if bytes.is_empty() {
                return None;
            }
        }
        Some(Frame::Data { stream, fin: fin && left == 0, bytes })
    }
}

fn control(kind: u16, flags: u8, length: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEAD.saturating_add(length));
    out.put_u16(VERSION);
    out.put_u16(kind);
    // Control frames that are written here have a few bytes.
    out.put_u32(u32::from(flags) << 24 | (u32::try_from(length).unwrap_or(0) & 0x00ff_ffff));
    out
}

/// The head of a data frame; `length` is less than 16 MiB.
pub(crate) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    let mut out = [0; HEAD];
    let flags = if fin { u32::from(FIN) << 24 } else { 0 };
    let second = flags | (u32::try_from(length).unwrap_or(0) & 0x00ff_ffff);
    let (one, two) = out.split_at_mut(4);
    one.copy_from_slice(&(stream & STREAM).to_be_bytes());
    two.copy_from_slice(&second.to_be_bytes());
    out
}

/// The answer to a new stream; `block` are its compressed headers.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    let mut out = control(2, 0, block.len().saturating_add(4));
    out.put_u32(stream & STREAM);
    out.put_slice(block);
    out.freeze()
}

/// A stream is refused or given up; `status` as SPDY counts them.
pub(crate) fn reset(stream: u32, status: u32) -> Bytes {
    let mut out = control(3, 0, 8);
    out.put_u32(stream & STREAM);
    out.put_u32(status);
    out.freeze()
}

/// A question whether the peer lives, or the answer.
pub(crate) fn ping(id: u32) -> Bytes {
    let mut out = control(6, 0, 4);
    out.put_u32(id);
    out.freeze()
}

/// The connection ends well.
pub(crate) fn go_away(last: u32) -> Bytes {
    let mut out = control(7, 0, 8);
    out.put_u32(last & STREAM);
    out.put_u32(0);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut Parser, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut buffer = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = parser.next(&mut buffer)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut wire = Vec::new();
        wire.extend(ping(7));
        wire.extend(data_head(3, false, 5));
        wire.extend(b"hello");
        wire.extend(data_head(3, true, 0));
        wire.extend(reset(5, 1));
        wire.extend(syn_reply(9, b"xy"));
        wire.extend(go_away(9));
        let frames = all(&mut Parser::default(), &wire).unwrap();
        let block = Bytes::from_static(b"xy");
        assert_eq!(
            frames,
            [
                Frame::Ping { id: 7 },
                Frame::Data { stream: 3, fin: false, bytes: Bytes::from_static(b"hello") },
                Frame::Data { stream: 3, fin: true, bytes: Bytes::new() },
                Frame::Reset { stream: 5 },
                Frame::Headers { stream: 9, fin: false, block },
                Frame::GoAway,
            ]
        );
    }

    #[test]
    fn data_comes_in_pieces_and_ends_once() {
        let mut parser = Parser::default();
        let mut buffer = BytesMut::from(&data_head(1, true, 16_000_000)[..]);
        assert_eq!(parser.next(&mut buffer), Ok(None));
        for round in 0..1000 {
            buffer.extend_from_slice(&[0; 16_000]);
            let fin = round == 999;
            assert_eq!(
                parser.next(&mut buffer),
                Ok(Some(Frame::Data { stream: 1, fin, bytes: vec![0; 16_000].into() }))
            );
            assert_eq!(buffer.len(), 0);
        }
        assert_eq!(parser.next(&mut buffer), Ok(None));
    }

    #[test]
    fn what_is_hostile_is_refused() {
        let long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
        assert_eq!(all(&mut Parser::default(), &long), Err(FrameError::TooLong(0x00ff_ffff)));
        let old = [0x80, 2, 0, 1, 0, 0, 0, 0];
        assert_eq!(all(&mut Parser::default(), &old), Err(FrameError::Version));
        let short = [0x80, 3, 0, 6, 0, 0, 0, 2, 1, 1];
        assert_eq!(all(&mut Parser::default(), &short), Err(FrameError::TooShort));
    }
}
