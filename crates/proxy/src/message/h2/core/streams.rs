//! How streams end, and how what they took of a window is given back.
//!
//! Invariant: a stream is forgotten once both sides have ended it and nobody holds it; bytes that are dropped unread go back to the connection's
//! window like those that are read.

use super::{Core, Side, WINDOW};
use crate::message::h2::fault::{Fault, Reason};
use crate::message::h2::{frame, limits};

impl Core {
    /// Whether a stream's number was never used.
    pub fn is_idle(&self, stream: u32) -> bool {
        match (self.side, stream % 2 == 1) {
            (Side::Server, true) => stream > self.highest,
            (Side::Client, true) => stream >= self.next,
            (_, false) => true,
        }
    }

    /// What is known of a stream that is there no more: whether we have reset it.
    pub fn was_closed(&self, stream: u32) -> Option<bool> {
        self.closed.iter().rev().find(|(id, _)| *id == stream).map(|(_, by_us)| *by_us)
    }

    fn forget(&mut self, id: u32, by_us: bool) {
        self.streams.remove(&id);
        self.note_closed(id, by_us);
    }

    /// Notes that a stream was there.
    pub fn note_closed(&mut self, id: u32, by_us: bool) {
        if self.closed.len() >= limits::REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back((id, by_us));
    }

    /// Resets a stream.
    pub fn reset(&mut self, id: u32, reason: Reason, fault: Fault) {
        if self.fault.is_none() {
            frame::number(&mut self.output.text, frame::RST_STREAM, id, reason.0);
            self.owed = self.owed.saturating_add(1);
        }
        self.end_stream(id, fault, true);
        self.wake();
    }

    /// Ends a stream out of order. What has come whole stays readable.
    pub fn end_stream(&mut self, id: u32, fault: Fault, by_us: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.cancelled.extend(stream.job.take().map(|job| (job, id)));
        stream.sent = true;
        let mut lost = 0;
        if !stream.ended {
            stream.fault.get_or_insert(fault);
            lost = std::mem::take(&mut stream.chunks).bytes();
        }
        stream.wake();
        if !stream.held {
            self.forget(id, by_us);
        }
        self.give_back(lost);
    }

    /// We have sent the last of a stream.
    pub fn sent(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        (stream.sent, stream.job) = (true, None);
        let (ended, held) = (stream.ended, stream.held);
        if ended && !held {
            self.forget(id, false);
        } else if !ended && !held && self.side == Side::Server {
            // The rest of the request is not wanted (§8.1).
            self.reset(id, Reason::NONE, Fault::Ended);
        }
    }

    /// Nobody wants any more of what comes on a stream.
    pub fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        (stream.held, stream.reader, stream.trailers) = (false, None, None);
        let left = std::mem::take(&mut stream.chunks).bytes();
        let (ended, sent, broken) = (stream.ended, stream.sent, stream.fault.is_some());
        let goes_on = match self.side {
            Side::Server => !sent,
            Side::Client => stream.tunnel && ended,
        };
        self.give_back(left);
        if broken || (ended && sent) {
            self.forget(id, false);
            if self.streams.is_empty() {
                self.wake();
            }
        } else if !goes_on {
            let reason = if ended || self.side == Side::Server { Reason::NONE } else { Reason::CANCEL };
            self.reset(id, reason, Fault::Ended);
        }
    }

    /// Lets a stream go that has ended in order on both sides and is wanted by nobody.
    pub fn settle(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|s| s.ended && s.sent && !s.held) {
            self.forget(id, false);
        }
    }

    /// So many bytes that have come take no room any more.
    pub fn give_back(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken >= self.own.connection.max(WINDOW) / 2 && self.fault.is_none() {
            let by = std::mem::take(&mut self.taken);
            self.receive_window = self.receive_window.saturating_add(i64::from(by));
            frame::number(&mut self.output.text, frame::WINDOW_UPDATE, 0, by);
            self.owed = self.owed.saturating_add(1);
            self.wake();
        }
    }

    /// The same, of a stream's body.
    pub fn consume(&mut self, id: u32, bytes: usize) {
        let half = self.own.window / 2;
        if let Some(stream) = self.streams.get_mut(&id).filter(|s| !s.ended) {
            stream.taken = stream.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            if stream.taken >= half {
                let by = std::mem::take(&mut stream.taken);
                stream.receive_window = stream.receive_window.saturating_add(i64::from(by));
                frame::number(&mut self.output.text, frame::WINDOW_UPDATE, id, by);
                self.owed = self.owed.saturating_add(1);
                self.wake();
            }
        }
        self.give_back(bytes);
    }
}
