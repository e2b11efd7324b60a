//! A connection as the rest of the engine sees it: plain, or TLS.
//!
//! Invariant: one concrete type, so that nothing above needs generics or boxes per read; `Send`, so that HTTP upgrades
//! can hand it over.

use super::socket::Socket;
use super::sys;
use super::ties::{End, Quarantined, Tie, Ties};
use super::tls::TlsStream;
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// See the module.
#[derive(Debug)]
pub struct Stream {
    /// Before the socket, because fields are dropped in this order.
    tie: Option<Tie>,
    kind: Kind,
    /// Bytes read ahead, given again first.
    prefix: Bytes,
    /// What the other side showed of itself, where we are the client of TLS.
    pub shown: Option<Arc<Shown>>,
}

/// Names of both ends of a connection on which we are the client.
#[derive(Debug, Default)]
pub struct Shown {
    /// The server's URI name, if its certificate was verified.
    pub peer: Option<Arc<str>>,
    /// Our own.
    pub local: Option<Arc<str>>,
    /// Version as Envoy writes it.
    pub version: &'static str,
}

/// Plain, or TLS.
#[derive(Debug)]
pub enum Kind {
    /// No TLS.
    Plain(Socket),
    /// TLS, whichever end we are.
    Tls(Box<TlsStream>),
}

macro_rules! inner {
    ($self:expr, $s:ident => $e:expr) => {
        match &mut $self.get_mut().kind {
            Kind::Plain($s) => {
                let $s = Pin::new($s);
                $e
            }
            Kind::Tls($s) => {
                let $s = Pin::new($s.as_mut());
                $e
            }
        }
    };
}

impl From<Kind> for Stream {
    fn from(kind: Kind) -> Self {
        Stream { tie: None, kind, prefix: Bytes::new(), shown: None }
    }
}

impl Stream {
    /// This stream, tied into its worker's registry for as long as it is open.
    ///
    /// # Errors
    /// One of its ends is quarantined.
    pub fn tied(mut self, ties: &Ties, ends: [End; 2]) -> Result<Self, Quarantined> {
        self.tie = Some(ties.tie(self.raw_fd(), ends)?);
        Ok(self)
    }

    /// Reads until `decide` gives an answer for the bytes so far, or the peer ends; the bytes stay readable.
    ///
    /// # Errors
    /// What reading gives. Not cancel safe: the stream is to be dropped then.
    pub async fn inspect<T>(
        &mut self,
        limit: usize,
        mut decide: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut seen = BytesMut::with_capacity(1024);
        let decided = loop {
            if self.read_buf(&mut seen).await? == 0 {
                break None;
            }
            match decide(&seen) {
                None if seen.len() < limit => {}
                other => break other,
            }
        };
        self.prefix = seen.freeze();
        Ok(decided)
    }

    /// Puts bytes that were read back to the front.
    pub fn replay(&mut self, seen: Bytes) {
        debug_assert!(self.prefix.is_empty() || seen.is_empty());
        if !seen.is_empty() {
            self.prefix = seen;
        }
    }

    /// Plain or not.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether its handshake took a session up again.
    pub fn resumed(&self) -> bool {
        matches!(&self.kind, Kind::Tls(tls) if tls.resumed())
    }

    /// The socket underneath.
    pub fn socket(&self) -> &Socket {
        match &self.kind {
            Kind::Plain(s) => s,
            Kind::Tls(s) => s.socket(),
        }
    }

    /// Descriptor number, for [`sys::idle_state`].
    pub fn raw_fd(&self) -> RawFd {
        self.socket().tcp().as_raw_fd()
    }

    /// Ends the connection by a reset when it is dropped.
    pub fn reset_on_drop(&self) {
        sys::reset_on_close(self.socket().tcp());
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
            if self.prefix.is_empty() {
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        inner!(self, s => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inner!(self, s => s.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, s => s.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, s => s.poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self, s => s.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(s) => s.is_write_vectored(),
            Kind::Tls(s) => s.is_write_vectored(),
        }
    }
}
