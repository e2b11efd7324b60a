//! Conditions of the Gateway API, as JSON without times.

use serde_json::{Value, json};

/// One condition.
pub(super) fn condition(kind: &str, status: bool, reason: &str, message: &str, generation: i64) -> Value {
    json!({
        "type": kind,
        "status": if status { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
    })
}

/// A reason with its words; `Ok` is the good case.
pub(super) type Outcome = Result<(), (&'static str, String)>;

/// A condition that holds unless there is a reason why not.
pub(super) fn of(kind: &str, good: &str, outcome: &Outcome, generation: i64) -> Value {
    match outcome {
        Ok(()) => condition(kind, true, good, "", generation),
        Err((reason, message)) => condition(kind, false, reason, message, generation),
    }
}
