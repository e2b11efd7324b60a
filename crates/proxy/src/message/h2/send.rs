//! Messages that go out: their heads, and their bodies as far as windows and room allow.
//!
//! Invariant: a body is asked for more only when what it gave last is on its way, so that a peer that takes nothing holds up its own stream
//! and no memory; none takes more than its turn.

use super::core::{Core, Link};
use super::fault::{Fault, Reason};
use super::{frame, limits, message};
use crate::alarm::Alarm;
use crate::message::h1::date;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, request, response};
use http_body::Body;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// What a stream sends before it is another's turn, bytes.
const TURN: usize = 64 * 1024;

/// A body that is sent.
pub trait Outgoing: Body<Data = Bytes> + Unpin {
    /// Moves on what else hangs on it while the peer takes nothing. Ready when it has taken nothing for too long.
    fn drive(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Core {
    /// Whether bodies may be asked for more.
    pub fn has_room(&self) -> bool {
        self.output.len() < limits::GATHERED
    }

    fn block(&mut self, id: u32, ends: bool) {
        frame::block(&mut self.output.text, &self.scratch, self.peer.frame, ends, id);
    }

    fn fields(&mut self, headers: &HeaderMap) {
        for (name, value) in headers {
            if !message::is_of_connection(name) && (*name != header::TE || value == "trailers") {
                self.encoder.field(&mut self.scratch, name, value);
            }
        }
    }

    fn length(&mut self, headers: &HeaderMap, size: Option<u64>) {
        if let Some(size) = size.filter(|_| !headers.contains_key(header::CONTENT_LENGTH)) {
            self.encoder.field(&mut self.scratch, &header::CONTENT_LENGTH, &HeaderValue::from(size));
        }
    }

    /// The head of a response. `size`: of the body that follows, if there is one and it is known.
    pub(super) fn respond(&mut self, id: u32, parts: &response::Parts, ends: bool, size: Option<u64>) {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| !s.sent) else { return };
        stream.answered = true;
        self.scratch.clear();
        self.encoder.begin(&mut self.scratch);
        self.encoder.status(&mut self.scratch, parts.status);
        self.fields(&parts.headers);
        self.length(&parts.headers, size);
        if !parts.headers.contains_key(header::DATE) {
            self.encoder.field(&mut self.scratch, &header::DATE, &date::value());
        }
        self.block(id, ends);
    }

    /// The head of a request.
    pub(super) fn ask(&mut self, id: u32, parts: &request::Parts, ends: bool, size: Option<u64>) {
        let protocol = parts.extensions.get::<message::Protocol>();
        self.scratch.clear();
        self.encoder.begin(&mut self.scratch);
        self.encoder.method(&mut self.scratch, &parts.method);
        let plain = parts.method == Method::CONNECT && protocol.is_none();
        if !plain {
            self.encoder.scheme(&mut self.scratch, parts.uri.scheme_str().unwrap_or("http"));
        }
        if let Some(authority) = parts.uri.authority() {
            self.encoder.authority(&mut self.scratch, authority.as_str());
        }
        if !plain {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            self.encoder.path(&mut self.scratch, path);
        }
        if let Some(protocol) = protocol {
            self.encoder.protocol(&mut self.scratch, protocol.as_str());
        }
        self.fields(&parts.headers);
        self.length(&parts.headers, size);
        self.block(id, ends);
    }

    fn trailers(&mut self, id: u32, trailers: &HeaderMap) {
        self.scratch.clear();
        self.encoder.begin(&mut self.scratch);
        self.fields(trailers);
        self.block(id, true);
    }

    fn data(&mut self, id: u32, data: Bytes, ends: bool) {
        let flags = if ends { frame::END_STREAM } else { 0 };
        frame::head(&mut self.output.text, data.len(), frame::DATA, flags, id);
        self.output.data(data);
        self.conduct.data = self.conduct.data.saturating_add(1);
    }

    /// How much of `wanted` may be sent now; windows are reckoned with.
    fn grant(&mut self, id: u32, wanted: usize) -> Grant {
        if !self.has_room() {
            return Grant::NoRoom;
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|s| !s.sent) else { return Grant::Gone };
        let window = stream.send_window.min(self.send_window);
        let most = usize::try_from(window).unwrap_or(0).min(self.peer.frame).min(wanted);
        if most == 0 {
            if stream.send_window <= 0 {
                stream.blocked = true;
            } else if let Some(job) = stream.job
                && !self.starved.contains(&job)
            {
                self.starved.push(job);
            }
            return Grant::NoWindow;
        }
        let by = i64::try_from(most).unwrap_or(0);
        stream.send_window = stream.send_window.saturating_sub(by);
        self.send_window = self.send_window.saturating_sub(by);
        Grant::Bytes(most)
    }
}

enum Grant {
    Bytes(usize),
    NoWindow,
    NoRoom,
    /// The stream is over.
    Gone,
}

/// How far a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All is sent, or the stream is over.
    Over,
    /// It is woken when it can go on.
    Waiting,
    /// It waits until what is there has been written.
    NoRoom,
    /// It is others' turn.
    More,
}

/// A body on its way.
pub struct Sending<B> {
    body: Option<B>,
    /// What it gave and could not be sent yet.
    rest: Bytes,
    /// How long the peer may take nothing of the last of it.
    patience: Option<Duration>,
    alarm: Option<Alarm>,
}

impl<B: Outgoing> Sending<B> {
    /// A body of which nothing has been asked for. `patience`: how long a peer may take nothing once all of it is here.
    pub fn new(body: B, patience: Option<Duration>) -> Self {
        Sending { body: Some(body), rest: Bytes::new(), patience, alarm: None }
    }

    /// Sends what can be sent.
    pub fn step(&mut self, link: &Link, id: u32, cx: &mut Context<'_>) -> Step {
        let mut sent = 0_usize;
        loop {
            if !self.rest.is_empty() {
                let mut core = link.borrow_mut();
                match core.grant(id, self.rest.len()) {
                    Grant::Bytes(bytes) => {
                        let piece = if bytes == self.rest.len() {
                            std::mem::take(&mut self.rest)
                        } else {
                            self.rest.split_to(bytes)
                        };
                        let last = self.rest.is_empty() && self.body.is_none();
                        core.data(id, piece, last);
                        if last {
                            core.sent(id);
                            return Step::Over;
                        }
                        self.alarm = None;
                        sent = sent.saturating_add(bytes);
                        if sent >= TURN {
                            return Step::More;
                        }
                        continue;
                    }
                    Grant::Gone => return Step::Over,
                    Grant::NoRoom => return Step::NoRoom,
                    Grant::NoWindow => drop(core),
                }
                if self.is_late(cx) {
                    link.borrow_mut().reset(id, Reason::INTERNAL, Fault::Ended);
                    return Step::Over;
                }
                return Step::Waiting;
            }
            let Some(body) = &mut self.body else { return Step::Over };
            if !link.borrow().has_room() {
                return Step::NoRoom;
            }
            let frame = match body.is_end_stream() {
                true => Poll::Ready(None),
                false => Pin::new(&mut *body).poll_frame(cx),
            };
            match frame {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.rest = data;
                        if body.is_end_stream() {
                            // What is recorded of a message is recorded before its end can be known.
                            self.body = None;
                            if self.rest.is_empty() {
                                return end(link, id, None);
                            }
                        }
                    }
                    Err(frame) => {
                        self.body = None;
                        return end(link, id, frame.into_trailers().ok());
                    }
                },
                Poll::Ready(None) => {
                    self.body = None;
                    return end(link, id, None);
                }
                Poll::Ready(Some(Err(_))) => {
                    self.body = None;
                    link.borrow_mut().reset(id, Reason::INTERNAL, Fault::Ended);
                    return Step::Over;
                }
            }
        }
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.body {
            Some(body) => body.drive(cx).is_ready(),
            None => match self.patience {
                Some(limit) => self.alarm.get_or_insert_with(|| Alarm::new(limit, None)).poll(cx).is_ready(),
                None => false,
            },
        }
    }
}

fn end(link: &Link, id: u32, trailers: Option<HeaderMap>) -> Step {
    let mut core = link.borrow_mut();
    if core.streams.get(&id).is_some_and(|s| !s.sent) {
        match trailers {
            Some(trailers) => core.trailers(id, &trailers),
            None => core.data(id, Bytes::new(), true),
        }
        core.sent(id);
    }
    Step::Over
}
