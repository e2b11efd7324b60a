//! `matchConditions` of webhooks.
//!
//! Invariant: a hook is asked only when all its conditions hold; one that is false decides before one that fails.
//! What it leaves to others: what a failure means (`failurePolicy`).

use super::{Chosen, Request};
use serde_json::Value;

/// Whether an expression can be used.
///
/// # Errors
/// Why not.
pub fn compile(_expression: &str) -> Result<(), String> {
    Err("match conditions are not served".into())
}

/// Whether all conditions hold.
///
/// # Errors
/// The first failure, when no condition was false.
pub fn hold(_: &Request<'_>, chosen: &Chosen, _: Option<&Value>, _: Option<&Value>) -> Result<bool, String> {
    let list = chosen.hook.entry.get("matchConditions").and_then(Value::as_array);
    if list.is_none_or(Vec::is_empty) { Ok(true) } else { Err("match conditions are not served".into()) }
}
