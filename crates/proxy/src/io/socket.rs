//! A TCP socket with a prefix: bytes read for inspection are given again to whoever reads next.
//!
//! Invariant: no byte is lost or doubled; once the prefix is used up its memory is gone, and reads go straight to the kernel.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    prefix: Bytes,
}

impl Socket {
    /// A socket of which nothing has been read.
    pub fn new(tcp: TcpStream) -> Self {
        Socket { tcp, prefix: Bytes::new() }
    }

    /// The kernel's socket, for options and addresses.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads until `decide` gives an answer for the bytes so far; the bytes stay readable afterwards.
    /// `None` when the peer ended the connection first, or sent more than `limit` bytes without a decision.
    ///
    /// # Errors
    /// What reading the socket gives. Cancel safe only in so far as the socket is then dropped: bytes may be lost.
    pub async fn inspect<T>(
        &mut self,
        limit: usize,
        seen: &mut BytesMut,
        mut decide: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            if !seen.is_empty() {
                if let Some(t) = decide(seen) {
                    return Ok(Some(t));
                }
                if seen.len() >= limit {
                    return Ok(None);
                }
            }
            if seen.capacity() - seen.len() < 512 {
                seen.reserve(4096);
            }
            if self.tcp.read_buf(seen).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Ready when reading may give something.
    ///
    /// # Errors
    /// The runtime is ending.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() { Poll::Ready(Ok(())) } else { self.tcp.poll_read_ready(cx) }
    }

    /// Puts bytes that were read back to the front.
    pub fn replay(&mut self, seen: Bytes) {
        debug_assert!(self.prefix.is_empty());
        self.prefix = seen;
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
            if self.prefix.is_empty() {
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One record is most of the time all there is, and `send` costs the kernel less than a list of one.
        match bufs {
            [only] => Pin::new(&mut self.tcp).poll_write(cx, only),
            more => Pin::new(&mut self.tcp).poll_write_vectored(cx, more),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}
