//! Whether this pod may be given traffic, and if not, why (spec §18.3).
//!
//! Invariant: ready means that an identity is there, configuration has been taken over and the capture ports listen; a
//! gateway has no capture ports, and is ready with whatever listeners it was given, none included.

use std::sync::Mutex;
use std::sync::PoisonError;

use crate::config::Role;

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    pub identity: bool,
    pub clusters: bool,
    pub listeners: bool,
    pub outbound: bool,
    pub inbound: bool,
    pub draining: bool,
}

/// Shared by those who report and those who ask.
#[derive(Debug)]
pub struct Readiness {
    /// Whether captured packets must have a place to arrive at.
    capture: bool,
    state: Mutex<State>,
}

impl Readiness {
    /// Nothing has happened yet.
    pub fn new(role: Role) -> Self {
        Self { capture: role == Role::Sidecar, state: Mutex::default() }
    }

    /// Changes the state.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The state now.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is missing; empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let state = self.state();
        [
            (state.draining, "shutting down"),
            (!state.identity, "no certificate yet"),
            (!state.clusters, "no clusters (CDS) received yet"),
            (!state.listeners, "no listeners (LDS) received yet"),
            (self.capture && !state.outbound, "port 15001 does not listen yet"),
            (self.capture && !state.inbound, "port 15006 does not listen yet"),
        ]
        .into_iter()
        .filter_map(|(missing, reason)| missing.then_some(reason))
        .collect()
    }
}
