//! A connection on which we are asked: its bytes, as its own task and the bodies of its requests see them.
//!
//! Invariant: the body of a request is read by whoever wants it, and only as fast as that; nobody else reads meanwhile. Once it is over
//! the connection's task watches for the client's end, and what the client sends ahead waits. A refused request is the last one.

use super::body::Decoder;
use super::input::Input;
use super::names::Names;
use super::read::{self, Head, Limits, Refused};
use crate::io::stream::Stream;
use crate::message::incoming::Broken;
use crate::message::output::Output;
use bytes::{Bytes, BytesMut};
use carrick_proxy_core::hygiene::wire::Refusal;
use http::Request;
use http_body::{Frame, SizeHint};
use std::cell::{OnceCell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::AsyncWrite as _;

/// What a client may send ahead while an answer is on its way, bytes.
const AHEAD: usize = 16 * 1024;
/// What is read of a body that nobody wanted, so that the connection can go on.
const UNWANTED: usize = 64 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// See the module.
pub struct Line {
    inner: RefCell<Inner>,
    /// What the client's bytes were refused for.
    refusal: OnceCell<Refusal>,
}

struct Inner {
    /// Gone once the connection has ended or another protocol has taken it over.
    stream: Option<Stream>,
    limits: Limits,
    input: Input,
    output: Output,
    names: Names,
    body: Decoder,
    /// Which request the body is of: who holds that of an earlier one gets nothing more.
    number: u32,
    /// How much of [`CONTINUE`] is still to be said before the body comes.
    interim: &'static [u8],
    /// It has ended in the middle of a body.
    gone: bool,
    /// The connection's task, where it waits for somebody else to have read the body.
    task: Option<Waker>,
    /// Who waits for more of the body.
    reader: Option<Waker>,
}

impl Inner {
    /// The body is over, or will never be: the connection's task is to know.
    fn over(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl Line {
    /// A connection of which nothing has been read.
    pub fn new(stream: Stream, limits: Limits) -> Self {
        let inner = Inner {
            stream: Some(stream),
            limits,
            input: Input::default(),
            output: Output::default(),
            names: Names::default(),
            body: Decoder::Over,
            number: 0,
            interim: b"",
            gone: false,
            task: None,
            reader: None,
        };
        Line { inner: RefCell::new(inner), refusal: OnceCell::new() }
    }

    /// What the client's bytes were refused for, if they were.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.get().copied()
    }

    /// Whether a request has begun to come.
    pub fn has_begun(&self) -> bool {
        !self.inner.borrow().input.bytes.is_empty()
    }

    /// The next request's head. `None` when the client has ended.
    ///
    /// # Errors
    /// It is refused; the refusal is kept.
    pub fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Head<Request<()>>>, Refused>> {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        loop {
            match read::request(&mut i.input, &i.limits, &mut i.names) {
                Ok(None) => {}
                Ok(Some(mut head)) => {
                    i.number = i.number.wrapping_add(1);
                    i.body = std::mem::replace(&mut head.body, Decoder::Over);
                    i.interim = if head.special && !i.body.is_over() { CONTINUE } else { b"" };
                    return Poll::Ready(Ok(Some(head)));
                }
                Err(refused) => {
                    let _ = self.refusal.set(refused.refusal);
                    return Poll::Ready(Err(refused));
                }
            }
            let Some(stream) = &mut i.stream else { return Poll::Ready(Ok(None)) };
            i.input.rest();
            match ready!(i.input.poll_read(stream, super::FIRST, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Which request was read last.
    pub fn number(&self) -> u32 {
        self.inner.borrow().number
    }

    /// The next piece of a request's body. From a client that has gone nothing comes, not even an end: its connection ends the request.
    pub fn poll_body(&self, number: u32, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        if i.number != number {
            return Poll::Ready(Some(Err(Broken::Incomplete)));
        }
        loop {
            match i.body.next(&mut i.input.bytes) {
                Ok(None) if i.body.is_over() => {
                    i.over();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Ok(Some(frame)) => {
                    if i.body.is_over() {
                        i.over();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Err(refusal) => {
                    let _ = self.refusal.set(refusal);
                    return Poll::Ready(Some(Err(Broken::NotHttp("request body"))));
                }
            }
            let Some(stream) = &mut i.stream else { return Poll::Ready(Some(Err(Broken::Incomplete))) };
            while !i.interim.is_empty() {
                let said = ready!(Pin::new(&mut *stream).poll_write(cx, i.interim))?;
                i.interim = i.interim.get(said..).unwrap_or_default();
                if i.interim.is_empty() {
                    let _ = Pin::new(&mut *stream).poll_flush(cx)?;
                }
            }
            let appetite = i.body.appetite();
            match i.input.poll_read(stream, appetite, cx) {
                Poll::Ready(Ok(1..)) => {
                    while i.input.bytes.len() < appetite
                        && let Poll::Ready(Ok(1..)) = i.input.poll_read(stream, super::PIECE, cx)
                    {}
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    i.gone = true;
                    i.over();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    i.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    /// Whether a request's body has been read to its end.
    pub fn body_is_over(&self, number: u32) -> bool {
        let i = self.inner.borrow();
        i.number == number && i.body.is_over()
    }

    /// What is known of the rest of a request's body.
    pub fn body_size(&self, number: u32) -> SizeHint {
        let i = self.inner.borrow();
        if i.number == number { i.body.size() } else { SizeHint::default() }
    }

    /// Ready when the client has gone while it waits for an answer.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        if i.gone {
            return Poll::Ready(());
        }
        if !i.body.is_over() {
            // Whoever reads the body finds out.
            match &mut i.task {
                Some(task) => task.clone_from(cx.waker()),
                None => i.task = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let Some(stream) = &mut i.stream else { return Poll::Pending };
        while i.input.bytes.len() < AHEAD {
            match ready!(i.input.poll_read(stream, super::FIRST, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Puts something into what is to be written. From now on no interim answer is given.
    pub fn put<R>(&self, f: impl FnOnce(&mut Output) -> R) -> R {
        let mut i = self.inner.borrow_mut();
        i.interim = b"";
        f(&mut i.output)
    }

    /// Writes what there is.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        match &mut i.stream {
            Some(stream) => i.output.poll_write(Pin::new(stream), cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Reads what is there of a body that nobody wanted; whether that was all.
    pub fn skip_body(&self, cx: &mut Context<'_>) -> bool {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        if !i.body.is_over() {
            // Who has not read it to its end does not take a part of it for all.
            i.number = i.number.wrapping_add(1);
            if let Some(reader) = i.reader.take() {
                reader.wake();
            }
        }
        let mut skipped = 0_usize;
        while self.refusal.get().is_none() && skipped < UNWANTED {
            match i.body.next(&mut i.input.bytes) {
                _ if i.body.is_over() => return true,
                Ok(Some(frame)) => skipped = skipped.saturating_add(frame.data_ref().map_or(0, Bytes::len)),
                Ok(None) => {
                    // Who waits to be told to go on has sent nothing.
                    let Some(stream) = &mut i.stream else { return false };
                    if !matches!(i.input.poll_read(stream, super::PIECE, cx), Poll::Ready(Ok(1..))) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        false
    }

    /// Ends our side, and reads on to the client's end, so that what it still sends does not cut our answer off.
    pub fn poll_end(&self, cx: &mut Context<'_>, lingers: bool) -> Poll<()> {
        let mut guard = self.inner.borrow_mut();
        let i = &mut *guard;
        let Some(stream) = &mut i.stream else { return Poll::Ready(()) };
        let ended = ready!(Pin::new(&mut *stream).poll_shutdown(cx));
        if ended.is_err() || !lingers {
            return Poll::Ready(());
        }
        loop {
            i.input.bytes.clear();
            match ready!(i.input.poll_read(stream, super::PIECE, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Ends the connection by a reset.
    pub fn reset(&self) {
        if let Some(stream) = &self.inner.borrow().stream {
            stream.reset_on_drop();
        }
    }

    /// The connection itself, with what the client has sent ahead, for another protocol; or to be dropped.
    pub fn take(&self) -> Option<(Stream, BytesMut)> {
        let mut i = self.inner.borrow_mut();
        if let Some(reader) = i.reader.take() {
            reader.wake();
        }
        Some((i.stream.take()?, std::mem::take(&mut i.input.bytes)))
    }
}
