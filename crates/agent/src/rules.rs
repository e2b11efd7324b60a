//! `carrick-proxy istio-iptables`: what an injected pod's init container runs, in the pod's own network namespace.
//!
//! Invariant: it succeeds only when the pod's traffic is captured as asked; the application does not start otherwise.

use std::time::Duration;

use carrick_capture::arguments::parse;
use carrick_capture::{check, sidecar};

/// How long a plugin may take to put the rules in place.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the rules are not in place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// An argument that cannot be obeyed, or rules that cannot be set.
    #[error("{0}")]
    Refused(String),
    /// Whoever was to set them did not. [`NO_RULES`] is what the process ends with then, as Istio's does.
    #[error("{0}")]
    Missing(String),
}

/// What the process ends with when rules that others were to set are missing: the CNI plugin's installer looks for it.
pub const NO_RULES: u8 = 126;

/// Does what the arguments ask for; gives what is printed.
///
/// # Errors
/// See [`RulesError`].
pub fn run(arguments: &[String]) -> Result<String, RulesError> {
    let refused = |error: &dyn std::fmt::Display| RulesError::Refused(error.to_string());
    let plan = parse(arguments).map_err(|error| refused(&error))?;
    if plan.dry_run {
        return Ok(sidecar::ruleset(&plan.capture));
    }
    let mut told = "nothing to do";
    if plan.apply {
        sidecar::apply(&plan.capture).map_err(|error| refused(&error))?;
        told = "the rules are in place";
    }
    if plan.validate {
        check::in_place(&plan.capture, PATIENCE).map_err(|error| {
            RulesError::Missing(format!("{error}: connections do not reach the proxy; on the node, is the CNI plugin installed and did it run for this pod?"))
        })?;
        told = "the rules are in place and turn connections";
    }
    Ok(told.to_owned())
}
