//! Request bodies on their way upstream: streamed, and where a request may be retried, with a bounded memory.
//!
//! Invariant: only the latest attempt reads on; an attempt that was given up never sees an end that is not the body's.

use crate::message::h2::pipe::Piped;
use crate::message::incoming::{Broken, Incoming};
use crate::metrics::GrpcFrames;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::sync::mpsc;

/// Most bytes of a request body that are kept so that the request can be sent again.
pub const REPLAY_LIMIT: usize = 64 * 1024;

/// A request body on its way upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// Straight from the client.
    Streamed(Source),
    /// From the client with a memory, for requests that may be retried.
    Replayable(Replay),
    /// A copy of what passes elsewhere.
    Tapped(mpsc::Receiver<Tapped>),
    /// Our own.
    Whole(Option<Bytes>),
    /// Bytes of a tunnel.
    Piped(Piped),
}

impl RequestBody {
    /// A body of our own.
    pub fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(bytes)) }
    }
}

/// What has come of a request's body.
#[derive(Debug, Default)]
pub struct Intake {
    bytes: Cell<u64>,
    /// Messages, of a gRPC request.
    messages: Cell<GrpcFrames>,
    /// Messages are counted.
    pub grpc: Cell<bool>,
    /// When the last of it came.
    pub ended: Cell<Option<Instant>>,
}

impl Intake {
    /// Bytes.
    pub fn get(&self) -> u64 {
        self.bytes.get()
    }

    /// So many bytes in all.
    pub fn set(&self, bytes: u64) {
        self.bytes.set(bytes);
    }

    /// Messages of a gRPC request.
    pub fn messages(&self) -> u64 {
        self.messages.get().count
    }

    fn pass(&self, data: &[u8]) {
        if self.grpc.get() {
            let mut frames = self.messages.get();
            frames.pass(data);
            self.messages.set(frames);
        }
    }
}

/// What a copy gets.
#[derive(Debug)]
pub enum Tapped {
    /// A piece.
    Data(Bytes),
    /// The trailers.
    Trailers(http::HeaderMap),
    /// The body's end. Without it the copy never ends: a body that broke off must not look whole.
    End,
}

/// Pieces that may wait in a copy; a slower reader gets no more.
pub const TAP_DEPTH: usize = 64;

/// The client's body with its byte count.
#[derive(Debug)]
pub struct Source {
    /// Read before the rest.
    first: Option<Bytes>,
    body: Incoming,
    intake: Rc<Intake>,
    taps: Vec<mpsc::Sender<Tapped>>,
}

impl Source {
    /// Counts what passes into `intake`, and copies it into `taps`.
    pub fn new(body: Incoming, intake: Rc<Intake>, taps: Vec<mpsc::Sender<Tapped>>) -> Self {
        Source { first: None, body, intake, taps }
    }

    fn tap(&mut self, frame: &Option<Result<Frame<Bytes>, Broken>>, last: bool) {
        self.taps.retain(|tap| match frame {
            Some(Ok(f)) => {
                let piece = match (f.data_ref(), f.trailers_ref()) {
                    (Some(d), _) => Tapped::Data(d.clone()),
                    (_, Some(t)) => Tapped::Trailers(t.clone()),
                    _ => return true,
                };
                tap.try_send(piece).is_ok() && (!last || tap.try_send(Tapped::End).is_ok())
            }
            Some(Err(_)) => false,
            None => tap.try_send(Tapped::End).is_ok(),
        });
    }

    /// With a beginning that was read (and counted) before.
    pub fn after(mut self, first: Option<Bytes>) -> Self {
        self.first = first.filter(|f| !f.is_empty());
        self
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.size_hint();
        match (&self.first, rest.exact()) {
            (None, _) => rest,
            (Some(first), Some(n)) => SizeHint::with_exact(n.saturating_add(first.len() as u64)),
            (Some(_), None) => SizeHint::default(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(first) = self.first.take() {
            self.intake.pass(&first);
            let frame = Some(Ok(Frame::data(first)));
            let last = self.body.is_end_stream();
            self.tap(&frame, last);
            return Poll::Ready(frame);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(f)) = &frame
            && let Some(data) = f.data_ref()
        {
            self.intake.set(self.intake.get().saturating_add(data.len() as u64));
            self.intake.pass(data);
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.intake.ended.set(Some(Instant::now()));
        }
        if !self.taps.is_empty() {
            // Whoever sends a length does not ask again after the last piece.
            let last = self.body.is_end_stream();
            self.tap(&frame, last);
        }
        Poll::Ready(frame)
    }
}

/// A body that several attempts can read from the start, as long as what was read fits [`REPLAY_LIMIT`].
#[derive(Debug)]
pub struct Replay {
    shared: Rc<RefCell<Memory>>,
    next: usize,
    /// Which attempt this is for; only the latest may read on.
    attempt: u32,
}

#[derive(Debug)]
struct Memory {
    attempt: u32,
    source: Source,
    kept: Vec<Kept>,
    size: usize,
    overflow: bool,
    ended: bool,
}

#[derive(Debug, Clone)]
enum Kept {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

impl Replay {
    /// Remembers what it reads of `source`.
    pub fn new(source: Source) -> Self {
        let memory = Memory { attempt: 0, source, kept: Vec::new(), size: 0, overflow: false, ended: false };
        Replay { shared: Rc::new(RefCell::new(memory)), next: 0, attempt: 0 }
    }

    /// Whether another attempt can start from the beginning.
    pub fn can_restart(&self) -> bool {
        !self.shared.borrow().overflow
    }

    /// A body for another attempt, or none when too much has gone by. Earlier attempts get nothing more.
    pub fn again(&self) -> Option<Replay> {
        let mut m = self.shared.borrow_mut();
        if m.overflow {
            return None;
        }
        m.attempt = m.attempt.wrapping_add(1);
        Some(Replay { shared: Rc::clone(&self.shared), next: 0, attempt: m.attempt })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut m = self.shared.borrow_mut();
        if m.attempt != self.attempt {
            // Given up: an end here would look like a whole body to a peer that still listens.
            return Poll::Pending;
        }
        if let Some(kept) = m.kept.get(self.next) {
            let frame = match kept.clone() {
                Kept::Data(d) => Frame::data(d),
                Kept::Trailers(t) => Frame::trailers(t),
            };
            self.next = self.next.saturating_add(1);
            return Poll::Ready(Some(Ok(frame)));
        }
        if m.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(m.source.poll(cx));
        match &frame {
            None => m.ended = true,
            Some(Err(_)) => m.overflow = true,
            Some(Ok(f)) => {
                let kept = match (f.data_ref(), f.trailers_ref()) {
                    (Some(d), _) => {
                        m.size = m.size.saturating_add(d.len());
                        Some(Kept::Data(d.clone()))
                    }
                    (_, Some(t)) => Some(Kept::Trailers(t.clone())),
                    _ => None,
                };
                if m.size > REPLAY_LIMIT {
                    m.overflow = true;
                    m.kept = Vec::new();
                } else if !m.overflow
                    && let Some(k) = kept
                {
                    m.kept.push(k);
                    self.next = m.kept.len();
                }
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Streamed(s) => s.poll(cx),
            RequestBody::Replayable(r) => r.poll(cx),
            RequestBody::Tapped(copy) => match ready!(copy.poll_recv(cx)) {
                Some(Tapped::Data(d)) => Poll::Ready(Some(Ok(Frame::data(d)))),
                Some(Tapped::Trailers(t)) => Poll::Ready(Some(Ok(Frame::trailers(t)))),
                Some(Tapped::End) => Poll::Ready(None),
                None => Poll::Pending,
            },
            RequestBody::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            RequestBody::Piped(piped) => Pin::new(piped).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Streamed(s) => s.is_end_stream(),
            RequestBody::Whole(bytes) => bytes.is_none(),
            RequestBody::Replayable(r) => {
                let m = r.shared.borrow();
                r.next >= m.kept.len() && (m.ended || m.source.is_end_stream())
            }
            RequestBody::Tapped(_) => false,
            RequestBody::Piped(piped) => piped.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Streamed(s) => s.size_hint(),
            RequestBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            RequestBody::Tapped(_) | RequestBody::Piped(_) => SizeHint::default(),
            RequestBody::Replayable(r) if r.next == 0 && r.shared.borrow().kept.is_empty() => {
                r.shared.borrow().source.size_hint()
            }
            // What is kept plus what is left.
            RequestBody::Replayable(r) => {
                let m = r.shared.borrow();
                let kept: u64 = m
                    .kept
                    .iter()
                    .skip(r.next)
                    .map(|k| if let Kept::Data(d) = k { d.len() as u64 } else { 0 })
                    .fold(0, u64::saturating_add);
                match m.source.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(kept.saturating_add(rest)),
                    None => SizeHint::default(),
                }
            }
        }
    }
}
