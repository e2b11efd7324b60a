//! Bodies on the wire: taken out of what was read, and put into what is written.
//!
//! Invariant: a body ends where its framing says and nowhere else. Data passes as slices of what was read; small pieces are gathered so
//! that a head and the beginning of its body are one write.

use super::PIECE;
use crate::message::incoming::Broken;
use crate::message::output::Output;
use bytes::{Buf, Bytes, BytesMut};
use carrick_proxy_core::hygiene::wire::{Chunks, Refusal};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

/// Most bytes of sizes' extensions and trailers together.
const MOST_BESIDES: usize = 16 * 1024;
/// Most trailers.
const MOST_TRAILERS: usize = 100;

/// A body that is being read.
#[derive(Debug)]
pub enum Decoder {
    /// Nothing more comes.
    Over,
    /// So much is left.
    Length(u64),
    /// In chunks.
    Chunked(Box<Chunked>),
    /// To the end of the connection.
    UntilEnd,
}

/// Where a chunked body stands.
#[derive(Debug, Default)]
pub struct Chunked {
    at: Chunks,
    besides: usize,
    trailers: Vec<u8>,
}

impl Decoder {
    /// Of a length.
    pub fn length(length: u64) -> Self {
        if length == 0 { Decoder::Over } else { Decoder::Length(length) }
    }

    /// In chunks.
    pub fn chunked() -> Self {
        Decoder::Chunked(Box::default())
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        matches!(self, Decoder::Over)
    }

    /// What is known of the rest.
    pub fn size(&self) -> SizeHint {
        match self {
            Decoder::Over => SizeHint::with_exact(0),
            Decoder::Length(left) => SizeHint::with_exact(*left),
            Decoder::Chunked(_) | Decoder::UntilEnd => SizeHint::default(),
        }
    }

    /// How much may well be read at once.
    pub fn appetite(&self) -> usize {
        match self {
            Decoder::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).clamp(super::FIRST, 4 * PIECE),
            Decoder::Over => super::FIRST,
            Decoder::Chunked(_) | Decoder::UntilEnd => PIECE,
        }
    }

    /// The next piece of what was read; `None` if there is none yet, or the body is over.
    ///
    /// # Errors
    /// It is framed wrongly; nothing behind it may be believed.
    pub fn next(&mut self, read: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Refusal> {
        match self {
            Decoder::Over => Ok(None),
            Decoder::Length(_) | Decoder::UntilEnd if read.is_empty() => Ok(None),
            Decoder::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left = left.saturating_sub(take as u64);
                if *left == 0 {
                    *self = Decoder::Over;
                }
                Ok(Some(Frame::data(read.split_to(take).freeze())))
            }
            Decoder::UntilEnd => Ok(Some(Frame::data(read.split().freeze()))),
            Decoder::Chunked(chunked) => {
                let frame = match chunked.frame(read)? {
                    None => None,
                    Some(data) => {
                        // The end may have come with it, and is then told with it.
                        chunked.skip(read)?;
                        Some(Frame::data(data))
                    }
                };
                if chunked.at != Chunks::Done {
                    return Ok(frame);
                }
                if chunked.trailers.is_empty() {
                    *self = Decoder::Over;
                    return Ok(frame);
                }
                // Trailers are a frame of their own.
                if frame.is_some() {
                    return Ok(frame);
                }
                let trailers = trailers(&chunked.trailers)?;
                *self = Decoder::Over;
                Ok(Some(Frame::trailers(trailers)))
            }
        }
    }
}

impl Chunked {
    /// Data of one chunk.
    fn frame(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
        self.skip(read)?;
        let Chunks::Data(left) = self.at else { return Ok(None) };
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
        if take == 0 {
            return Ok(None);
        }
        self.at.data(take as u64);
        Ok(Some(read.split_to(take).freeze()))
    }

    /// Takes what is no data.
    fn skip(&mut self, read: &mut BytesMut) -> Result<(), Refusal> {
        let mut taken = 0_usize;
        for byte in read.iter() {
            match self.at {
                Chunks::Data(_) | Chunks::Done => break,
                Chunks::Trailers { .. } => {
                    self.besides = self.besides.saturating_add(1);
                    self.trailers.push(*byte);
                }
                Chunks::Size { extension: true, .. } => self.besides = self.besides.saturating_add(1),
                _ => {}
            }
            if self.besides > MOST_BESIDES {
                return Err(Refusal::TooLarge);
            }
            self.at.frame(*byte)?;
            taken = taken.saturating_add(1);
        }
        if self.at == Chunks::Done && self.trailers == b"\r\n" {
            self.trailers.clear();
        }
        read.advance(taken);
        Ok(())
    }
}

fn trailers(text: &[u8]) -> Result<HeaderMap, Refusal> {
    let mut out = HeaderMap::new();
    let lines = text.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_at(line.iter().position(|b| *b == b':').ok_or(Refusal::Malformed)?);
        let name = HeaderName::from_bytes(name).map_err(|_| Refusal::Malformed)?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        out.append(name, HeaderValue::from_bytes(value).map_err(|_| Refusal::Malformed)?);
        if out.len() > MOST_TRAILERS {
            return Err(Refusal::TooMany);
        }
    }
    Ok(out)
}

/// A body that is being written.
#[derive(Debug)]
pub enum Encoder {
    /// So much is left.
    Length(u64),
    /// In chunks.
    Chunked {
        /// Trailers that its head tells of.
        told: Vec<HeaderName>,
        /// Those of them that came.
        trailers: Vec<(HeaderName, HeaderValue)>,
    },
    /// To the end of the connection.
    UntilEnd,
}

/// Fields that no trailer may be (RFC 9110 §6.5.1).
const NO_TRAILERS: [HeaderName; 13] = [
    http::header::AUTHORIZATION,
    http::header::CACHE_CONTROL,
    http::header::CONTENT_ENCODING,
    http::header::CONTENT_LENGTH,
    http::header::CONTENT_RANGE,
    http::header::CONTENT_TYPE,
    http::header::HOST,
    http::header::MAX_FORWARDS,
    http::header::SET_COOKIE,
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::CONNECTION,
];

impl Encoder {
    /// In chunks, for a message with these headers.
    pub fn chunked(headers: &HeaderMap) -> Self {
        let all = headers.get_all(http::header::TRAILER).iter().filter_map(|v| v.to_str().ok());
        let names =
            all.flat_map(|v| v.split(',')).filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok());
        let told = names.filter(|name| !NO_TRAILERS.contains(name)).collect();
        Encoder::Chunked { told, trailers: Vec::new() }
    }

    /// Puts a piece into `output`, which has room.
    ///
    /// # Errors
    /// The body is longer than its head says.
    pub fn put(&mut self, frame: Frame<Bytes>, output: &mut Output) -> Result<(), Broken> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Encoder::Chunked { told, trailers }, Ok(all)) = (self, frame.into_trailers()) {
                    let told = all.iter().filter(|(name, _)| told.contains(name));
                    *trailers = told.map(|(name, value)| (name.clone(), value.clone())).collect();
                }
                return Ok(());
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Encoder::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Broken::NotHttp("body longer than its length"))?;
                output.data(data);
            }
            Encoder::UntilEnd => output.data(data),
            Encoder::Chunked { .. } => {
                hex(&mut output.text, data.len());
                output.text.extend_from_slice(b"\r\n");
                output.data(data);
                output.text.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// It is shorter than its head says.
    pub fn end(&mut self, output: &mut Output) -> Result<(), Broken> {
        match self {
            Encoder::Length(0) | Encoder::UntilEnd => Ok(()),
            Encoder::Length(_) => Err(Broken::Incomplete),
            Encoder::Chunked { trailers, .. } => {
                let end = &mut output.text;
                end.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
                    end.extend_from_slice(name.as_str().as_bytes());
                    end.extend_from_slice(b": ");
                    end.extend_from_slice(value.as_bytes());
                    end.extend_from_slice(b"\r\n");
                }
                end.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn hex(out: &mut Vec<u8>, number: usize) {
    let mut shift = (usize::BITS.saturating_sub(number.leading_zeros())).div_ceil(4).max(1);
    while shift > 0 {
        shift = shift.saturating_sub(1);
        let digit = number.checked_shr(shift.saturating_mul(4)).unwrap_or(0) & 0xf;
        out.push(b"0123456789abcdef".get(digit).copied().unwrap_or(b'0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::output::COPIED;
    use std::pin::Pin;

    fn decoded(mut decoder: Decoder, text: &[u8], cut: usize) -> Result<(Vec<u8>, String, usize), Refusal> {
        let (mut data, mut trailers, mut read) = (Vec::new(), String::new(), BytesMut::new());
        for piece in text.chunks(cut) {
            read.extend_from_slice(piece);
            while let Some(frame) = decoder.next(&mut read)? {
                match frame.into_data() {
                    Ok(d) => data.extend_from_slice(&d),
                    Err(f) => trailers = format!("{:?}", f.into_trailers().unwrap()),
                }
            }
        }
        assert!(decoder.is_over(), "{text:?}");
        Ok((data, trailers, read.len()))
    }

    #[test]
    fn bodies_are_the_same_however_they_are_cut() {
        let chunked = b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\nGET";
        let trailed = b"1\r\nx\r\n0\r\nA: 1\r\nb:  2 \r\n\r\nGE";
        for cut in 1..trailed.len() {
            assert_eq!(decoded(Decoder::length(3), b"abcrest", cut).unwrap(), (b"abc".to_vec(), String::new(), 4));
            let (data, trailers, left) = decoded(Decoder::chunked(), chunked, cut).unwrap();
            assert_eq!((&*data, &*trailers, left), (&b"hello world"[..], "", 3), "{cut}");
            let (data, trailers, left) = decoded(Decoder::chunked(), trailed, cut).unwrap();
            assert_eq!((&*data, &*trailers, left), (&b"x"[..], r#"{"a": "1", "b": "2"}"#, 2), "{cut}");
        }
    }

    #[test]
    fn what_frames_a_body_is_bounded() {
        let long = [&b"1;"[..], &vec![b'a'; 20_000], b"\r\nx\r\n0\r\n\r\n"].concat();
        assert_eq!(Decoder::chunked().next(&mut BytesMut::from(&long[..])).unwrap_err(), Refusal::TooLarge);
        let many: String = (0..200).map(|i| format!("a{i}: b\r\n")).collect();
        let many = format!("0\r\n{many}\r\n");
        assert_eq!(Decoder::chunked().next(&mut BytesMut::from(many.as_bytes())).unwrap_err(), Refusal::TooMany);
    }

    #[tokio::test]
    async fn what_is_put_is_written_in_its_order() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::TRAILER, HeaderValue::from_static("x-a, host"));
        let mut trailers = HeaderMap::new();
        for name in ["x-a", "host", "x-b"] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        let large = Bytes::from(vec![b'x'; COPIED + 1]);
        let (mut encoder, mut output) = (Encoder::chunked(&headers), Output::default());
        let mut out: Vec<u8> = Vec::new();
        for frame in [Frame::data("ab".into()), Frame::data(large.clone()), Frame::trailers(trailers)] {
            assert!(output.has_room());
            encoder.put(frame, &mut output).unwrap();
            if !output.has_room() {
                std::future::poll_fn(|cx| output.poll_write(Pin::new(&mut out), cx)).await.unwrap();
            }
        }
        encoder.end(&mut output).unwrap();
        std::future::poll_fn(|cx| output.poll_write(Pin::new(&mut out), cx)).await.unwrap();
        let wanted = [b"2\r\nab\r\n2001\r\n", &large[..], b"\r\n0\r\nx-a: 1\r\n\r\n"].concat();
        assert!(out == wanted && output.is_empty());
        assert!(matches!(Encoder::Length(1).end(&mut output), Err(Broken::Incomplete)));
        assert!(Encoder::Length(1).put(Frame::data("ab".into()), &mut output).is_err());
    }

    #[test]
    fn sizes_are_hexadecimal() {
        for number in [0_usize, 1, 15, 16, 255, 256, 0xdead_beef] {
            let mut out = Vec::new();
            hex(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{number:x}"));
        }
    }
}
