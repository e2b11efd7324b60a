//! The task of a connection, whichever side of it we are: it reads, works for the streams, and writes.
//!
//! Invariant: what is there is read and acted on before anything is written, and the others of this worker that are ready have had their turn
//! by then, so that what they have to say goes out with it.

use super::alive::Alive;
use super::core::{Core, Link, Side};
use super::fault::{Fault, Reason};
use super::jobs::Jobs;
use super::limits::{self, Patience};
use super::send::Step;
use crate::alarm::Alarm;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// How long a peer may take to hear why the connection ends.
const LINGER: Duration = Duration::from_secs(1);

/// What differs between the sides.
pub trait Part {
    /// What is done for one stream.
    type Job;

    /// Makes jobs of what is new.
    fn begin(&mut self, link: &Link, jobs: &mut Jobs<Self::Job>);

    /// Goes on with one; nothing when it is over.
    fn step(&mut self, link: &Link, id: u32, job: Self::Job, cx: &mut Context<'_>) -> Option<(Self::Job, Step)>;
}

/// See the module.
pub struct Driver<P: Part> {
    link: Link,
    part: P,
    jobs: Jobs<P::Job>,
    run: Vec<usize>,
    /// Jobs that wait for room.
    crowded: Vec<usize>,
    alive: Option<Alive>,
    /// How long our settings may go without an answer; from when the peer has told us its own.
    settling: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    stalled: Option<Alarm>,
    has_given_way: bool,
    ending: Option<Pin<Box<Sleep>>>,
}

impl<P: Part> Driver<P> {
    /// Of a connection of which nothing has been read.
    pub fn new(link: Link, part: P, alive: Option<Alive>, patience: Patience) -> Self {
        Driver {
            link,
            part,
            jobs: Jobs::new(),
            run: Vec::new(),
            crowded: Vec::new(),
            alive,
            settling: None,
            patience,
            stalled: None,
            has_given_way: false,
            ending: None,
        }
    }

    /// The connection's state.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Goes on until the connection has ended.
    ///
    /// # Errors
    /// The peer's fault for which we ended it.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.link.borrow_mut().begin_turn(cx);
        self.jobs.begin(cx);
        let done = self.turn(cx);
        self.link.borrow_mut().busy = false;
        done
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            if self.ending.is_some() {
                return self.poll_end(cx);
            }
            let more = {
                let mut core = self.link.borrow_mut();
                let more = core.read(cx);
                if let Some(alive) = &mut self.alive {
                    alive.poll(&mut core, cx);
                }
                settle(&mut core, &mut self.settling, self.patience.settled, cx);
                more
            };
            let mut again = false;
            self.work();
            if self.is_over() {
                // A moment for the last words.
                self.ending = Some(Box::pin(tokio::time::sleep(LINGER)));
                continue;
            }
            if !self.link.borrow().output.is_empty() {
                if !std::mem::replace(&mut self.has_given_way, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let mut core = self.link.borrow_mut();
                let before = core.output.written();
                let written = core.poll_write(cx);
                if core.output.written() > before {
                    self.stalled = None;
                }
                match written {
                    Poll::Ready(Ok(())) => {
                        self.has_given_way = false;
                        again = !self.crowded.is_empty();
                        self.run.append(&mut self.crowded);
                    }
                    Poll::Ready(Err(_)) => {
                        core.break_off(Fault::Ended);
                        again = true;
                    }
                    Poll::Pending => again = is_stuck(&mut core, &mut self.stalled, self.patience.stalled, cx),
                }
            }
            if again {
                continue;
            }
            self.jobs.woken(&mut self.run, !more);
            if more || !self.run.is_empty() {
                // The others first: who gives way in a job gives way to them.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Goes on with all that can go on.
    fn work(&mut self) {
        self.events();
        self.jobs.woken(&mut self.run, false);
        let mut run = std::mem::take(&mut self.run);
        for at in run.drain(..) {
            self.step(at);
        }
        run.append(&mut self.run);
        self.run = run;
        self.events();
    }

    fn step(&mut self, at: usize) {
        let Some((job, id, waker)) = self.jobs.take(at) else { return };
        match self.part.step(&self.link, id, job, &mut Context::from_waker(&waker)) {
            None => self.jobs.over(at),
            Some((job, step)) => {
                self.jobs.put_back(at, job);
                match step {
                    Step::NoRoom => self.crowded.push(at),
                    Step::More => self.run.push(at),
                    Step::Waiting | Step::Over => {}
                }
            }
        }
    }

    /// What the last frames and steps have brought.
    fn events(&mut self) {
        self.part.begin(&self.link, &mut self.jobs);
        loop {
            let (mut cancelled, mut stirred) = {
                let mut core = self.link.borrow_mut();
                (std::mem::take(&mut core.cancelled), std::mem::take(&mut core.stirred))
            };
            self.run.append(&mut stirred);
            if cancelled.is_empty() {
                return;
            }
            for (at, stream) in cancelled.drain(..) {
                // What is dropped with it may change the connection again.
                drop(self.jobs.remove(at, stream));
            }
        }
    }

    fn is_over(&self) -> bool {
        let mut core = self.link.borrow_mut();
        if core.streams.is_empty()
            && self.jobs.is_empty()
            && (core.unused || (core.refuses && core.side == Side::Client))
        {
            core.leave_now();
        }
        core.fault.is_some() || (core.has_left() && self.jobs.is_empty())
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.events();
        let mut core = self.link.borrow_mut();
        let fault = core.fault;
        let speaks = !matches!(fault, Some(Fault::Ended | Fault::Unsent | Fault::Silent));
        let over = self.ending.as_mut().is_none_or(|end| end.as_mut().poll(cx).is_ready());
        if speaks && !over {
            // Whoever cannot be written to hears nothing.
            if let Ok(()) = ready!(core.poll_write(cx)) {
                ready!(core.poll_end(cx));
            }
        }
        core.close();
        drop(core);
        self.events();
        Poll::Ready(match fault {
            Some(fault @ Fault::Ours(..)) => Err(fault),
            _ => Ok(()),
        })
    }
}

/// Waits for the peer to say that our settings hold (RFC 9113 §6.5.3). One that has said nothing at all yet may be slow to begin.
fn settle(core: &mut Core, timer: &mut Option<Pin<Box<Sleep>>>, limit: Duration, cx: &mut Context<'_>) {
    if core.peer.acknowledged {
        *timer = None;
    } else if core.peer.settled
        && timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx).is_ready()
    {
        core.break_off(Fault::Ours(Reason::SETTINGS, "SETTINGS without an acknowledgement"));
    }
}

/// Whether a peer that reads nothing has been waited for long enough.
fn is_stuck(core: &mut Core, stalled: &mut Option<Alarm>, patience: Option<Duration>, cx: &mut Context<'_>) -> bool {
    let late = match patience {
        Some(limit) => stalled.get_or_insert_with(|| Alarm::new(limit, None)).poll(cx).is_ready(),
        None => false,
    };
    if late || core.owed > limits::OWED {
        core.break_off(Fault::Ended);
        return true;
    }
    false
}

impl<P: Part> Drop for Driver<P> {
    fn drop(&mut self) {
        self.link.borrow_mut().close();
        self.events();
    }
}

#[cfg(test)]
mod tests;
