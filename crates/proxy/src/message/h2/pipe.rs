//! A stream that carries bytes both ways, as the one duplex engine wants it: CONNECT, also for other protocols (RFC 8441).
//!
//! Invariant: what is written becomes a body that the connection sends as any other; one end that is dropped before it was ended resets the
//! stream.

use super::fault::Fault;
use crate::message::incoming::{Broken, Incoming};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is taken at once, bytes.
const PIECE: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Inner {
    data: Bytes,
    /// Nothing more is written.
    ended: bool,
    /// One end is gone.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Inner {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// The end that is written to.
#[derive(Debug)]
pub struct Writer(Rc<RefCell<Inner>>);

/// The end that is a body.
#[derive(Debug)]
pub struct Piped(Rc<RefCell<Inner>>);

/// Both ends.
pub fn pipe() -> (Writer, Piped) {
    let inner = Rc::<RefCell<Inner>>::default();
    (Writer(Rc::clone(&inner)), Piped(inner))
}

impl Writer {
    /// Nothing more is written, and that is in order.
    pub fn end(&mut self) {
        let mut inner = self.0.borrow_mut();
        inner.ended = true;
        inner.wake();
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.broken || inner.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !inner.data.is_empty() {
            inner.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        inner.data = Bytes::copy_from_slice(piece);
        inner.wake();
        Poll::Ready(Ok(piece.len()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut inner = self.0.borrow_mut();
        inner.broken |= !inner.ended;
        inner.wake();
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let mut inner = self.0.borrow_mut();
        inner.broken = true;
        inner.wake();
    }
}

impl Body for Piped {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut inner = self.0.borrow_mut();
        if !inner.data.is_empty() {
            let data = std::mem::take(&mut inner.data);
            inner.wake();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if inner.broken {
            return Poll::Ready(Some(Err(Broken::Incomplete)));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        inner.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.0.borrow();
        inner.ended && inner.data.is_empty() && !inner.broken
    }
}

/// See the module.
#[derive(Debug)]
pub struct Tunnel {
    from: Incoming,
    rest: Bytes,
    to: Writer,
}

impl Tunnel {
    /// What comes, and where to write to.
    pub fn new(from: Incoming, to: Writer) -> Self {
        Tunnel { from, rest: Bytes::new(), to }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.from).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                // Who ends it without an error has ended it (RFC 9113 §8.5).
                Some(Err(Broken::Http2(Fault::Reset(super::Reason::NONE)))) => return Poll::Ready(Ok(())),
                Some(Err(e)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, e.to_string()))),
            }
        }
        let some = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..some).unwrap_or_default());
        self.rest.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.to.poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.end();
        Poll::Ready(Ok(()))
    }
}
