//! One stream of a connection, as its frames see it: what has come of a message and nobody has taken yet, and what may still be sent.
//!
//! Invariant: what is kept of a body is bounded by the window that its peer was given.

use super::fault::Fault;
use super::message::Head;
use bytes::Bytes;
use http::HeaderMap;
use std::collections::VecDeque;
use std::task::Waker;

/// See the module.
#[derive(Debug, Default)]
pub struct Stream {
    /// A response's head that has come.
    pub head: Option<Box<Head>>,
    /// The head has come; what follows are trailers.
    pub begun: bool,
    /// Pieces of the body.
    pub chunks: Chunks,
    /// What comes behind the body.
    pub trailers: Option<HeaderMap>,
    /// The peer has ended its side.
    pub ended: bool,
    /// It has broken off.
    pub fault: Option<Fault>,
    /// What is left of the body by its content-length.
    pub left: Option<u64>,
    /// Who waits for any of these.
    pub reader: Option<Waker>,
    /// Somebody wants what comes.
    pub held: bool,
    /// The peer waits to be told to go on.
    pub expects: bool,
    /// What the peer may still send.
    pub receive_window: i64,
    /// What was taken and not given back to the peer's window.
    pub taken: u32,
    /// What we may still send.
    pub send_window: i64,
    /// Our answer has begun.
    pub answered: bool,
    /// We have ended our side.
    pub sent: bool,
    /// Bytes, not messages, go both ways: either may end first.
    pub tunnel: bool,
    /// It waits for a window.
    pub blocked: bool,
    /// Where its sender stands among the connection's jobs.
    pub job: Option<usize>,
    /// How much had been put out before it.
    pub position: u64,
    /// The method was HEAD: the answer's length is not that of a body.
    pub bodiless: bool,
    /// Interim answers so far.
    pub interim: u32,
}

impl Stream {
    /// Wakes who waits.
    pub fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether nothing more will be read from it.
    pub fn is_over(&self) -> bool {
        self.ended && self.fault.is_none() && self.chunks.is_empty() && self.trailers.is_none()
    }
}

/// Pieces in their order; one, most of the time.
#[derive(Debug, Default)]
pub struct Chunks {
    first: Bytes,
    rest: VecDeque<Bytes>,
}

impl Chunks {
    /// One more.
    pub fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = chunk;
        } else {
            self.rest.push_back(chunk);
        }
    }

    /// The next.
    pub fn pop(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        self.rest.pop_front()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.rest.iter().map(Bytes::len).fold(self.first.len(), usize::saturating_add)
    }
}
