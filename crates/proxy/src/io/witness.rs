//! A stream that bears witness after its end: whether the peer can have seen anything of what was sent last.
//!
//! Invariant: "unseen" is said only if the peer had ended its side before, its kernel then refused our bytes, and acknowledged
//! none of them: whoever listened there had closed the socket, so no program has read them. Anything less is "perhaps".

use super::stream::Stream;
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
