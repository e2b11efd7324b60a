//! How connections learn that they are to end: a phase per filter chain, watched by every connection it serves.
//!
//! Invariant: phases only move forward; a connection holds a `Lease`, and the number of leases is the number of open
//! connections. Single-threaded: each worker has its own. When to move a phase on is the worker's decision.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What is expected of the connections of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serve.
    Serving,
    /// Tell clients to leave: `connection: close` on the next HTTP/1 response, GOAWAY on HTTP/2. Idle ones may stay.
    Draining,
    /// Close as soon as nothing is under way.
    Closing,
    /// Close now.
    Cut,
}

/// The life of what serves connections: a filter chain's on one worker.
#[derive(Debug)]
pub struct Life {
    phase: Cell<Phase>,
    wakers: RefCell<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
    open: usize,
}

impl Life {
    /// A new one, serving.
    pub fn new() -> Rc<Life> {
        Rc::new(Life { phase: Cell::new(Phase::Serving), wakers: RefCell::default() })
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves on to `phase` and wakes every connection. Going back is ignored.
    pub fn advance(&self, phase: Phase) {
        if phase <= self.phase.get() {
            return;
        }
        self.phase.set(phase);
        let wakers: Vec<Waker> = self.wakers.borrow_mut().slots.iter_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.wakers.borrow().open
    }

    /// Joins a connection.
    pub fn lease(self: &Rc<Self>) -> Lease {
        let mut w = self.wakers.borrow_mut();
        w.open += 1;
        let slot = w.free.pop().unwrap_or_else(|| {
            w.slots.push(None);
            w.slots.len() - 1
        });
        Lease { life: Rc::clone(self), slot }
    }
}

/// A connection's part in a [`Life`]; dropping it is how the connection ends its part.
#[derive(Debug)]
pub struct Lease {
    life: Rc<Life>,
    slot: usize,
}

impl Lease {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// Ready when the phase is past `seen`.
    pub fn poll_past(&self, cx: &mut Context<'_>, seen: Phase) -> Poll<Phase> {
        let now = self.life.phase();
        if now > seen {
            return Poll::Ready(now);
        }
        if let Some(slot) = self.life.wakers.borrow_mut().slots.get_mut(self.slot) {
            match slot {
                Some(w) if w.will_wake(cx.waker()) => {}
                other => *other = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }

    /// Waits until the phase is at least `phase`.
    pub async fn reached(&self, phase: Phase) {
        loop {
            let seen = self.phase();
            if seen >= phase {
                return;
            }
            std::future::poll_fn(|cx| self.poll_past(cx, seen)).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut w = self.life.wakers.borrow_mut();
        w.open = w.open.saturating_sub(1);
        if let Some(slot) = w.slots.get_mut(self.slot) {
            *slot = None;
        }
        w.free.push(self.slot);
        if w.open == 0 {
            w.slots = Vec::new();
            w.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::LocalOptions;

    #[test]
    fn leases_see_phases_and_are_counted() {
        let rt = tokio::runtime::Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        rt.block_on(async {
            let life = Life::new();
            let lease = life.lease();
            let other = life.lease();
            assert_eq!(life.open(), 2);
            let waiting = tokio::task::spawn_local(async move {
                lease.reached(Phase::Closing).await;
                lease.phase()
            });
            tokio::task::yield_now().await;
            life.advance(Phase::Draining);
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            life.advance(Phase::Cut);
            life.advance(Phase::Serving);
            assert_eq!(waiting.await.unwrap(), Phase::Cut);
            assert_eq!(life.open(), 1);
            drop(other);
            assert_eq!(life.open(), 0);
        });
    }
}
