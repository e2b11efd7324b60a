//! A connection on which we ask: many requests at once, each by whoever asks; the connection's task sends their bodies.
//!
//! Invariant: a request that is given back was not begun, or nothing of it was written. Whoever gives a request up tells the peer so.

use super::alive::Alive;
use super::core::{Core, Goodbye, Link, Own, Side};
use super::driver::{Driver, Part};
use super::fault::{Fault, Reason};
use super::jobs::Jobs;
use super::limits::Patience;
use super::message::Protocol;
use super::recv::Recv;
use super::send::{Outgoing, Sending, Step};
use super::stream::Stream;
use crate::io::stream::Stream as Io;
use crate::message::h1::client::SendError;
use crate::message::incoming::{Broken, Incoming};
use crate::message::request_body::RequestBody;
use http::{Method, Response, request};
use http_body::Body as _;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The last number that a stream can have.
const LAST: u32 = 0x7fff_ffff;

/// Bodies that nobody has begun to send.
type Begun = Rc<RefCell<Vec<(u32, RequestBody)>>>;

impl Outgoing for RequestBody {}

/// Sends requests. The connection ends when it is dropped and nothing is under way.
pub struct Sender {
    link: Link,
    begun: Begun,
}

/// A connection of which nothing has been used, and the task that has to run for it.
pub fn connect(io: Io, own: Own, alive: Option<Alive>, patience: Patience) -> (Sender, impl Future<Output = ()>) {
    let link = Rc::new(RefCell::new(Core::new(Side::Client, own, Some(io))));
    let begun = Begun::default();
    let mut driver = Driver::new(Rc::clone(&link), Bodies(Rc::clone(&begun)), alive, patience);
    let task = async move {
        let _ = poll_fn(|cx| driver.poll(cx)).await;
    };
    (Sender { link, begun }, task)
}

impl Sender {
    /// Whether no further request can be sent.
    pub fn is_closed(&self) -> bool {
        let core = self.link.borrow();
        core.fault.is_some() || core.refuses || core.goodbye != Goodbye::Unsaid || core.next > LAST
    }

    /// How many requests the peer takes at once.
    pub fn limit(&self) -> u32 {
        self.link.borrow().peer.streams
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// See [`SendError`]. If it is given up, the peer is told so.
    pub async fn send(&self, request: &request::Parts, body: RequestBody) -> Result<Response<Incoming>, SendError> {
        if self.is_closed() {
            return Err(SendError::Unsent(Box::new(body)));
        }
        if request.extensions.get::<Protocol>().is_some()
            && let Err(fault) = poll_fn(|cx| self.poll_connect(cx)).await
        {
            return Err(SendError::Broken(Broken::Http2(fault)));
        }
        let (recv, id) = self.begin(request, body);
        let fault = match poll_fn(|cx| recv.poll_head(cx)).await {
            Ok((response, true)) => return Ok(response.map(|()| Incoming::Empty)),
            Ok((response, false)) => return Ok(response.map(|()| Incoming::Http2(recv))),
            Err(fault) => fault,
        };
        if fault == Fault::Unsent {
            let mut begun = self.begun.borrow_mut();
            if let Some(at) = begun.iter().position(|(of, _)| *of == id) {
                return Err(SendError::Unsent(Box::new(begun.swap_remove(at).1)));
            }
        }
        Err(SendError::Broken(Broken::Http2(fault)))
    }

    /// Whether the peer takes CONNECT for other protocols, which only its settings tell (RFC 8441 §3).
    fn poll_connect(&self, cx: &Context<'_>) -> Poll<Result<(), Fault>> {
        let mut core = self.link.borrow_mut();
        if let Some(fault) = core.fault {
            return Poll::Ready(Err(fault));
        }
        if core.peer.settled {
            let offered = core.peer.connect;
            return Poll::Ready(offered.then_some(()).ok_or(Fault::Ours(Reason::PROTOCOL, "CONNECT is not for this")));
        }
        if !core.unsettled.iter().any(|waker| waker.will_wake(cx.waker())) {
            core.unsettled.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn begin(&self, request: &request::Parts, body: RequestBody) -> (Recv, u32) {
        let mut core = self.link.borrow_mut();
        let core = &mut *core;
        let id = core.next;
        core.next = id.saturating_add(2);
        core.conduct.streams = core.conduct.streams.saturating_add(1);
        let ends = body.is_end_stream();
        let stream = Stream {
            held: true,
            sent: ends,
            receive_window: i64::from(core.own.window),
            send_window: core.peer.window,
            tunnel: request.method == Method::CONNECT,
            bodiless: request.method == Method::HEAD,
            position: core.output.total(),
            ..Stream::default()
        };
        core.streams.insert(id, stream);
        core.ask(id, request, ends, body.size_hint().exact().filter(|_| !ends));
        // Also one without a body, so that it can be given back.
        self.begun.borrow_mut().push((id, body));
        core.wake();
        (Recv::new(Rc::clone(&self.link), id), id)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut core = self.link.borrow_mut();
        core.unused = true;
        core.wake();
    }
}

/// What sends bodies.
struct Bodies(Begun);

impl Part for Bodies {
    type Job = Sending<RequestBody>;

    fn begin(&mut self, link: &Link, jobs: &mut Jobs<Self::Job>) {
        if link.borrow().fault.is_some() {
            // Whoever asks takes them back.
            return;
        }
        let mut dropped = Vec::new();
        for (id, body) in self.0.borrow_mut().drain(..) {
            let mut core = link.borrow_mut();
            match core.streams.get_mut(&id).filter(|s| !s.sent) {
                Some(stream) => stream.job = Some(jobs.insert(id, Sending::new(body, None))),
                None => dropped.push(body),
            }
        }
        // They may hold streams of other connections.
        drop(dropped);
    }

    fn step(&mut self, link: &Link, id: u32, mut job: Self::Job, cx: &mut Context<'_>) -> Option<(Self::Job, Step)> {
        match job.step(link, id, cx) {
            Step::Over => None,
            step => Some((job, step)),
        }
    }
}
