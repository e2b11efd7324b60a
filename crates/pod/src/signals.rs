//! Signals that reach the runner, and signals it sends on.
//!
//! Invariant: once listening, no passed-on signal ends the runner itself.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::PodError;

/// The signals that are passed on.
const PASSED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// The incoming ones.
pub(crate) struct Signals {
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    /// Starts listening.
    pub(crate) fn listen() -> Result<Signals, PodError> {
        let streams = PASSED
            .iter()
            .map(|kind| {
                Ok((*kind, signal(SignalKind::from_raw(*kind as i32)).map_err(PodError::io("listen to signals"))?))
            })
            .collect::<Result<_, PodError>>()?;
        Ok(Signals { streams })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (kind, stream) in &mut self.streams {
                if let std::task::Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return std::task::Poll::Ready(*kind);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// The next one that asks to stop. Cancel safe.
    pub(crate) async fn next_stop(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT) {
                return signal;
            }
        }
    }
}

/// To a child and everything in its process group. `None`, as of a child that was waited for, reaches nobody.
pub(crate) fn to_group(leader: Option<u32>, signal: Signal) {
    let Some(pid) = leader.and_then(|pid| i32::try_from(pid).ok()) else { return };
    // Gone already is fine.
    let _ = killpg(Pid::from_raw(pid), signal);
}

/// The exit code that a shell would show.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| signal.saturating_add(128))).unwrap_or(1)
}
