//! What comes on a stream, as whoever wants it holds it.
//!
//! Invariant: a stream lives on while it is held; letting go of it tells the peer that the rest is not wanted.

use super::core::{Core, Link};
use super::fault::Fault;
use super::frame;
use super::hpack::encode::Encoder;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use std::task::{Context, Poll};

/// See the module.
pub struct Recv {
    link: Link,
    id: u32,
}

impl Recv {
    /// Of a stream that is marked as held.
    pub(super) fn new(link: Link, id: u32) -> Self {
        Recv { link, id }
    }

    /// The head of a response, once it has come; whether it is all of it.
    pub(super) fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Result<(Response<()>, bool), Fault>> {
        let mut core = self.link.borrow_mut();
        let Some(stream) = core.streams.get_mut(&self.id) else { return Poll::Ready(Err(Fault::Ended)) };
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok((head.response, stream.is_over())));
        }
        if let Some(fault) = stream.fault {
            return Poll::Ready(Err(fault));
        }
        stream.wait(cx);
        Poll::Pending
    }

    /// The next piece.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let mut core = self.link.borrow_mut();
        let core = &mut *core;
        let Some(stream) = core.streams.get_mut(&self.id) else { return Poll::Ready(Some(Err(Fault::Ended))) };
        if let Some(data) = stream.chunks.pop() {
            core.consume(self.id, data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(fault) = stream.fault {
            return Poll::Ready(Some(Err(fault)));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if stream.ended {
            return Poll::Ready(None);
        }
        stream.wait(cx);
        if std::mem::take(&mut stream.expects) && !stream.answered {
            go_on(core, self.id);
        }
        Poll::Pending
    }

    /// Whether all has been read.
    pub fn is_over(&self) -> bool {
        self.link.borrow().streams.get(&self.id).is_none_or(super::stream::Stream::is_over)
    }

    /// What is known of the rest.
    pub fn size(&self) -> SizeHint {
        let core = self.link.borrow();
        // Where there is no body, the length of none is not that of one.
        let known = |s: &&super::stream::Stream| s.fault.is_none() && (!s.bodiless || s.ended);
        let Some(stream) = core.streams.get(&self.id).filter(known) else { return SizeHint::default() };
        let here = u64::try_from(stream.chunks.bytes()).unwrap_or(u64::MAX);
        match (stream.left, stream.ended) {
            (Some(left), _) => SizeHint::with_exact(left.saturating_add(here)),
            (None, true) if stream.trailers.is_none() => SizeHint::with_exact(here),
            (None, _) => SizeHint::default(),
        }
    }
}

/// Tells a client that waits for it that its body is wanted.
fn go_on(core: &mut Core, id: u32) {
    let Core { encoder, scratch, output, peer, .. } = core;
    scratch.clear();
    Encoder::begin(encoder, scratch);
    encoder.status(scratch, StatusCode::CONTINUE);
    frame::block(&mut output.text, scratch, peer.frame, false, id);
    core.wake();
}

impl super::stream::Stream {
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => self.reader = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Recv {
    fn drop(&mut self) {
        // Never from within a step of the connection: those let go of nothing that holds a stream.
        if let Ok(mut core) = self.link.try_borrow_mut() {
            core.release(self.id);
        }
    }
}
