//! A connection on which we are asked: each request is answered beside the others, in the connection's own task.
//!
//! Invariant: a request whose client has given it up is dropped at once, with all that it holds.

use super::alive::Alive;
use super::core::{Core, Link, Own, Side};
use super::driver::{Driver, Part};
use super::fault::Fault;
use super::jobs::Jobs;
use super::limits::Patience;
use super::recv::Recv;
use super::send::{Outgoing, Sending, Step};
use crate::io::stream::Stream as Io;
use crate::message::h1::maps;
use crate::message::incoming::Incoming;
use http::{Request, Response};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// What one request has come to.
pub enum Job<F, B> {
    /// It is being answered.
    Answering(Pin<Box<F>>),
    /// The answer's body is on its way.
    Sending(Sending<B>),
}

/// What makes answers.
pub struct Answers<S> {
    service: S,
    patience: Patience,
}

/// See the module.
pub struct Server<S, F, B>(Driver<Answers<S>>)
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Outgoing;

impl<S, F, B> Server<S, F, B>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Outgoing,
{
    /// A connection of which nothing has been read.
    pub fn new(io: Io, own: Own, alive: Option<Alive>, patience: Patience, service: S) -> Self {
        let link = Rc::new(RefCell::new(Core::new(Side::Server, own, Some(io))));
        Server(Driver::new(link, Answers { service, patience }, alive, patience))
    }

    /// Says goodbye; what is under way goes on, and what was on its way is still answered.
    pub fn leave(&self) {
        self.0.link().borrow_mut().leave();
    }

    /// Serves until the connection has ended.
    ///
    /// # Errors
    /// The client's fault for which we ended it.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.0.poll(cx)
    }
}

impl<S, F, B> Part for Answers<S>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Outgoing,
{
    type Job = Job<F, B>;

    fn begin(&mut self, link: &Link, jobs: &mut Jobs<Self::Job>) {
        loop {
            let (id, request, held) = {
                let mut core = link.borrow_mut();
                let Some((id, request)) = core.arrived.pop_front() else { return };
                let Some(stream) = core.streams.get(&id) else { continue };
                (id, request, stream.held)
            };
            let body = if held { Incoming::Http2(Recv::new(Rc::clone(link), id)) } else { Incoming::Empty };
            let request = request.map(|()| body);
            if link.borrow().streams.get(&id).is_none_or(|s| s.sent) {
                // Given up already.
                continue;
            }
            let at = jobs.insert(id, Job::Answering(Box::pin((self.service)(request))));
            if let Some(stream) = link.borrow_mut().streams.get_mut(&id) {
                stream.job = Some(at);
            }
        }
    }

    fn step(&mut self, link: &Link, id: u32, job: Self::Job, cx: &mut Context<'_>) -> Option<(Self::Job, Step)> {
        let mut sending = match job {
            Job::Sending(sending) => sending,
            Job::Answering(mut answer) => {
                let Poll::Ready(response) = answer.as_mut().poll(cx) else {
                    return Some((Job::Answering(answer), Step::Waiting));
                };
                let (parts, body) = response.into_parts();
                let ends = body.is_end_stream();
                let size = body.size_hint().exact().filter(|_| !ends);
                // What is recorded of a request is recorded before its client can know that it is over.
                let body = (!ends).then_some(body);
                {
                    let mut core = link.borrow_mut();
                    core.respond(id, &parts, ends, size);
                    if ends {
                        core.sent(id);
                    }
                }
                maps::give_back(parts.headers);
                Sending::new(body?, self.patience.stalled)
            }
        };
        match sending.step(link, id, cx) {
            Step::Over => None,
            step => Some((Job::Sending(sending), step)),
        }
    }
}
