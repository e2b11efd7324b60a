//! A TCP socket with a prefix: bytes read for inspection are given again to whoever reads next.
//!
//! Invariant: no byte is lost or doubled; once the prefix is used up its memory is gone. Under TLS, whose library asks for 4 KiB at a
//! time, one read takes what the kernel has, up to [`AHEAD`], into a buffer that goes back to its thread when it is used up: a
//! connection that waits holds none. Otherwise reads go straight to the kernel.

use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Most bytes read at once under TLS: four records of the greatest size.
const AHEAD: usize = 64 * 1024;
/// Buffers that a thread keeps for the next reads.
const SPARE: usize = 2;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    prefix: Bytes,
    /// What TLS has not asked for yet; `None` where reads go straight to the kernel.
    ahead: Option<Ahead>,
}

/// Bytes read ahead: those of `buffer` from `at` to `end`. No buffer, no bytes.
#[derive(Default)]
struct Ahead {
    buffer: Option<Box<[u8]>>,
    at: usize,
    end: usize,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ahead({} bytes)", self.end.saturating_sub(self.at))
    }
}

impl Ahead {
    /// Gives what is there, at most what fits. Whether there was anything.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(rest) = self.buffer.as_deref().and_then(|b| b.get(self.at..self.end)) else { return false };
        let some = rest.get(..buf.remaining()).unwrap_or(rest);
        buf.put_slice(some);
        self.at = self.at.saturating_add(some.len());
        if self.at == self.end
            && let Some(buffer) = self.buffer.take()
        {
            put_back(buffer);
        }
        true
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            put_back(buffer);
        }
    }
}

fn take_buffer() -> Box<[u8]> {
    let spare = BUFFERS.try_with(|all| all.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice())
}

fn put_back(buffer: Box<[u8]>) {
    // A thread that is ending has no use for it.
    let _ = BUFFERS.try_with(|all| {
        let mut all = all.borrow_mut();
        if all.len() < SPARE {
            all.push(buffer);
        }
    });
}

impl Socket {
    /// A socket of which nothing has been read.
    pub fn new(tcp: TcpStream) -> Self {
        Socket { tcp, prefix: Bytes::new(), ahead: None }
    }

    /// From now on reads take what there is, for a reader that asks for little at a time.
    pub fn read_ahead(&mut self) {
        self.ahead.get_or_insert_default();
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
                seen.reserve(if seen.is_empty() { 2048 } else { 4096 });
            }
            if self.tcp.read_buf(seen).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The first bytes, at least this many unless the peer ends; they stay readable.
    ///
    /// # Errors
    /// What reading the socket gives. Cancel safe as [`Self::inspect`] is.
    pub async fn beginning(&mut self, least: usize) -> io::Result<&[u8]> {
        if self.prefix.len() < least {
            let mut seen = BytesMut::from(&*self.prefix);
            seen.reserve(2048);
            while seen.len() < least && self.tcp.read_buf(&mut seen).await? > 0 {}
            self.prefix = seen.freeze();
        }
        Ok(&self.prefix)
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
        let Socket { tcp, ahead, .. } = &mut *self;
        let Some(ahead) = ahead else { return Pin::new(tcp).poll_read(cx, buf) };
        if ahead.give(buf) {
            return Poll::Ready(Ok(()));
        }
        let mut buffer = take_buffer();
        let mut read = ReadBuf::new(&mut buffer);
        let done = Pin::new(tcp).poll_read(cx, &mut read);
        let end = read.filled().len();
        if end == 0 {
            put_back(buffer);
            return done;
        }
        *ahead = Ahead { buffer: Some(buffer), at: 0, end };
        ahead.give(buf);
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_read_ahead_is_given_in_order_and_holds_nothing_afterwards() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut socket = Socket::new(tcp);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let all = sent.clone();
        let writer = tokio::spawn(async move {
            peer.write_all(&all).await.unwrap();
            peer
        });
        // Inspection first, which has its own memory.
        assert_eq!(socket.beginning(5).await.unwrap()[..5], sent[..5]);
        socket.read_ahead();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut some = [0; 4096];
            let n = socket.read(&mut some).await.unwrap();
            got.extend_from_slice(&some[..n]);
        }
        assert_eq!(got, sent);
        assert!(socket.ahead.as_ref().is_some_and(|ahead| ahead.buffer.is_none()), "{:?}", socket.ahead);
        assert!(BUFFERS.with_borrow(|all| (1..=SPARE).contains(&all.len())), "it went back to its thread");
        drop(writer.await.unwrap());
        assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 0, "and the end is the end");
    }
}
