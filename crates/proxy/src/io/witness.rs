//! A stream that bears witness after its end: whether the peer can have seen anything of what was sent last.
//!
//! Invariant: "unseen" is said only if the peer had ended its side before, its kernel then refused our bytes, and acknowledged
//! none of them: whoever listened there had closed the socket, so no program has read them. Anything less is "perhaps".

use super::stream::{Kind, Stream};
use super::sys::{self, TcpState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long a peer's refusal may take.
const PATIENCE: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What outlives the stream.
#[derive(Debug, Default)]
pub struct Fate {
    armed: AtomicBool,
    remains: Mutex<Option<OwnedFd>>,
}

/// See the module.
#[derive(Debug)]
pub struct Witness {
    stream: Stream,
    fate: Arc<Fate>,
}

/// Where the connection stood before something was sent.
#[derive(Debug, Clone, Copy)]
pub struct Before(TcpState);

impl Witness {
    /// Watches a stream.
    pub fn new(stream: Stream) -> (Self, Arc<Fate>) {
        let fate = Arc::new(Fate::default());
        (Witness { stream, fate: Arc::clone(&fate) }, fate)
    }

    /// Puts bytes that were read back to the front.
    pub fn replay(&mut self, seen: bytes::Bytes) {
        self.stream.replay(seen);
    }

    /// What the stream is.
    pub fn kind(&self) -> &Kind {
        self.stream.kind()
    }
}

impl Fate {
    /// Notes where the connection stands; from now on its end is kept. `None` if nothing could be proved later.
    pub fn arm(&self, fd: std::os::fd::RawFd) -> Option<Before> {
        let before = sys::tcp_state(fd).filter(|s| !s.closed && s.unacked == 0)?;
        self.armed.store(true, Ordering::Relaxed);
        Some(Before(before))
    }

    /// The connection is well: its end need not be kept.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Whether the peer has provably seen nothing since `before`. `ended_first`: its end of the connection came before any refusal.
    pub async fn unseen(&self, before: Before, ended_first: bool) -> bool {
        if !ended_first {
            return false;
        }
        // The stream's owner may not have let go of it yet.
        tokio::task::yield_now().await;
        let kept = self.remains.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(fd) = kept else { return false };
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let Some(now) = sys::tcp_state(fd.as_raw_fd()) else { return false };
            if now.acked > before.0.acked {
                return false;
            }
            if now.closed {
                return true;
            }
            if tokio::time::Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.fate.armed.load(Ordering::Relaxed) {
            *self.fate.remains.lock().unwrap_or_else(PoisonError::into_inner) =
                sys::duplicate(self.stream.socket().tcp());
        }
    }
}

impl AsyncRead for Witness {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Witness {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An end of our own would be acknowledged like a byte; what is kept must tell of bytes only.
        if self.fate.armed.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::socket::Socket;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// What is said of bytes sent to a peer that closes, before they come or after it has read them.
    async fn verdict(reads: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let fd = own.as_raw_fd();
        let (mut witness, fate) = Witness::new(Kind::Plain(Socket::new(own)).into());
        let before = fate.arm(fd).unwrap();
        if reads {
            witness.write_all(b"request").await.unwrap();
            peer.read_exact(&mut [0; 7]).await.unwrap();
            drop(peer);
        } else {
            drop(peer);
            while !sys::tcp_state(fd).unwrap().closed && sys::idle_state(fd) != sys::Idle::Stirred {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            witness.write_all(b"request").await.unwrap();
        }
        drop(witness);
        fate.unseen(before, true).await
    }

    #[tokio::test]
    async fn only_what_came_after_the_end_is_unseen() {
        assert!(verdict(false).await, "it had closed before");
        assert!(!verdict(true).await, "it had read everything");
    }
}
