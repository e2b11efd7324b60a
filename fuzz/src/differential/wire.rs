//! HTTP/1 as bytes: heads and bodies read without an opinion about what is allowed.
//!
//! Invariant: nothing is normalised on the way; what cannot be framed ends with the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// No head or body is larger.
const LIMIT: usize = 1 << 20;

/// Reads up to and with the empty line; `None` when nothing comes any more. What follows stays in `seen`.
///
/// # Errors
/// The connection's; also when the head is cut off.
pub async fn head<S: AsyncRead + Unpin>(io: &mut S, seen: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = seen.split_off(end + 4);
            let head = std::mem::replace(seen, rest);
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if more(io, seen).await? == 0 {
            return if seen.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// First line and fields of a head.
pub fn fields(head: &str) -> (&str, Vec<(String, String)>) {
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let first = lines.next().unwrap_or_default();
    let split = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_owned(), value.trim().to_owned())
    };
    (first, lines.map(split).collect())
}

/// Reads a body as its head frames it; `to_end` when what is not framed goes on to the end of the connection.
///
/// # Errors
/// The connection's; also when the body is cut off.
pub async fn body<S: AsyncRead + Unpin>(
    io: &mut S,
    seen: &mut Vec<u8>,
    fields: &[(String, String)],
    to_end: bool,
) -> io::Result<Vec<u8>> {
    let field = |name: &str| fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    if field("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked")) {
        let mut out = Vec::new();
        loop {
            let line = line(io, seen).await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if size == 0 {
                while !self::line(io, seen).await?.is_empty() {}
                return Ok(out);
            }
            out.extend(exactly(io, seen, size).await?);
            exactly(io, seen, 2).await?;
        }
    }
    if let Some(length) = field("content-length") {
        let length = length.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        return exactly(io, seen, length).await;
    }
    if to_end {
        while more(io, seen).await? > 0 {}
        return Ok(std::mem::take(seen));
    }
    Ok(Vec::new())
}

async fn more<S: AsyncRead + Unpin>(io: &mut S, seen: &mut Vec<u8>) -> io::Result<usize> {
    if seen.len() > LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    io.read_buf(seen).await
}

async fn line<S: AsyncRead + Unpin>(io: &mut S, seen: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(end) = seen.windows(2).position(|w| w == b"\r\n") {
            let rest = seen.split_off(end + 2);
            let line = std::mem::replace(seen, rest);
            return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        if more(io, seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn exactly<S: AsyncRead + Unpin>(io: &mut S, seen: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    while seen.len() < length {
        if more(io, seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let rest = seen.split_off(length);
    Ok(std::mem::replace(seen, rest))
}

/// A stream with bytes that were read already in front.
pub struct Replayed<S> {
    pub seen: Bytes,
    pub io: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.seen.len().min(buf.remaining());
        let piece = self.seen.split_to(length);
        buf.put_slice(piece.chunk());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
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
