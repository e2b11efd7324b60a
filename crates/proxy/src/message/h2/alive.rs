//! Asks a peer that says nothing whether it is still there (`connection_keepalive`).
//!
//! Invariant: a peer that has said something within the interval is not asked; one that does not answer in time is gone.

use super::core::Core;
use super::{ALIVE, Fault, frame};
use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// See the module.
pub struct Alive {
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// Something has come since the timer was set.
    heard: bool,
    asked: bool,
}

impl Alive {
    /// Begins now.
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Alive { interval, timeout, timer: Box::pin(tokio::time::sleep(interval)), heard: false, asked: false }
    }

    /// Asks when it is time; the connection breaks off when there was no answer.
    pub(super) fn poll(&mut self, core: &mut Core, cx: &mut Context<'_>) {
        self.heard |= std::mem::take(&mut core.heard);
        if std::mem::take(&mut core.ponged) && std::mem::take(&mut self.asked) {
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let pause = if self.asked {
                core.break_off(Fault::Silent);
                return;
            } else if std::mem::take(&mut self.heard) {
                self.interval
            } else {
                self.asked = true;
                frame::ping(&mut core.output.text, 0, ALIVE);
                self.timeout
            };
            self.timer.as_mut().reset(Instant::now() + pause);
        }
    }
}
