//! One stream of a connection, as its frames see it: what has come of a message and nobody has taken yet, and what may still be sent.
//!
//! Invariant: what is kept of a body is bounded by the window that its peer was given.

use super::fault::Fault;
use super::message::Head;
use bytes::{Bytes, BytesMut};
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

/// Data up to this size is copied, so that it does not keep all that was read with it, bytes.
pub const SMALL: usize = 512;

/// Pieces in their order; one, most of the time. Small ones that wait lie in one buffer, so that many of a byte each take little more room
/// than their bytes.
#[derive(Debug, Default)]
pub struct Chunks {
    first: Bytes,
    rest: VecDeque<Bytes>,
    /// Behind `rest`.
    small: BytesMut,
}

impl Chunks {
    /// One more.
    pub fn push(&mut self, chunk: Bytes) {
        if self.is_empty() {
            self.first = chunk;
        } else if chunk.len() <= SMALL {
            self.small.extend_from_slice(&chunk);
        } else {
            if !self.small.is_empty() {
                self.rest.push_back(self.small.split().freeze());
            }
            self.rest.push_back(chunk);
        }
    }

    /// The next.
    pub fn pop(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        if let Some(chunk) = self.rest.pop_front() {
            return Some(chunk);
        }
        (!self.small.is_empty()).then(|| std::mem::take(&mut self.small).freeze())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty() && self.small.is_empty()
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        let some = self.first.len().saturating_add(self.small.len());
        self.rest.iter().map(Bytes::len).fold(some, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_order_and_small_ones_lie_together() {
        let mut chunks = Chunks::default();
        let mut wanted = Vec::new();
        for n in 0..10_000_usize {
            let length = if n % 2500 == 2499 { SMALL + 1 } else { 1 };
            let piece = vec![u8::try_from(n % 251).unwrap(); length];
            wanted.extend_from_slice(&piece);
            chunks.push(piece.into());
            if n == 5000 {
                assert_eq!(chunks.pop().unwrap(), wanted[..1]);
            }
        }
        assert_eq!(chunks.bytes(), wanted.len() - 1);
        assert!(chunks.rest.len() < 10, "{} pieces", chunks.rest.len());
        let mut got = wanted[..1].to_vec();
        while let Some(piece) = chunks.pop() {
            assert!(!piece.is_empty());
            got.extend_from_slice(&piece);
        }
        assert!(got == wanted && chunks.is_empty() && chunks.bytes() == 0);
    }
}
