//! A data plane that stands still: its processes are stopped, its connections stay.
//!
//! Invariant: a frozen sidecar is always let go on again.

use anyhow::{Result, ensure};
use nix::{sys::signal, unistd::Pid};

use crate::process;

/// Stopped processes; they go on when this is dropped.
pub struct Frozen(Vec<u32>);

impl Frozen {
    /// The data plane of a pod or machine.
    ///
    /// # Errors
    /// When it has none.
    pub fn sidecar_of(pod: &str) -> Result<Self> {
        let all = process::sidecars_of(pod)?;
        let is_envoy = |pid: &u32| process::program(*pid).as_deref() == Some("envoy");
        // Of Envoy and its agent only the one that carries traffic: what the agent says has to be about that.
        let envoy: Vec<u32> = all.iter().copied().filter(is_envoy).collect();
        let frozen = Self(if envoy.is_empty() { all } else { envoy });
        ensure!(!frozen.0.is_empty(), "{pod} has no sidecar");
        frozen.send(signal::Signal::SIGSTOP);
        Ok(frozen)
    }

    fn send(&self, signal: signal::Signal) {
        for pid in self.0.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            let _ = signal::kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.send(signal::Signal::SIGCONT);
    }
}
