//! What is answered: whether the call gets through, and each step on its way.
//!
//! Invariant: steps are in the order in which they happen; the last one of a call that does not get through says why.

use std::fmt;

use serde::Serialize;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Whether the call reaches the workload.
    pub allowed: bool,
    /// How it ends, in a sentence.
    pub end: String,
    /// What happens on the way.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Where it happens.
    pub side: Side,
    /// What is decided: `listener`, `filter chain`, `route`, `cluster`, `endpoint`, `TLS`, …
    pub what: &'static str,
    /// What it is.
    pub value: String,
    /// The object that decided it, as `Kind name.namespace`; none when it is a default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// Where a step happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// At the caller.
    Client,
    /// At a gateway on the way.
    Gateway,
    /// At the workload that is called.
    Server,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Server => "server",
        })
    }
}

impl Answer {
    pub(crate) fn step(&mut self, side: Side, what: &'static str, value: impl Into<String>, because: Option<String>) {
        self.steps.push(Step { side, what, value: value.into(), because });
    }

    /// Ends the answer with a refusal.
    pub(crate) fn refused(mut self, end: impl Into<String>) -> Self {
        self.end = end.into();
        self
    }

    /// Ends the answer with success.
    pub(crate) fn reached(mut self, end: impl Into<String>) -> Self {
        self.allowed = true;
        self.end = end.into();
        self
    }
}
