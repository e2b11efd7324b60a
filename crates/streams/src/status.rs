//! The last word of a session: a `v1.Status` that tells how the process ended.
//!
//! Invariant: an exit code other than 0 is a `Failure` with the cause `ExitCode`, as clients read it.

use crate::pods::{Ended, PodsError};
use bytes::Bytes;
use serde_json::{Value, json};

/// The status of a guest that ended.
pub(crate) fn of_end(ended: &Ended) -> Bytes {
    match ended {
        Ended::Code(0) => text(&json!({"metadata": {}, "status": "Success"})),
        Ended::Code(code) => text(&json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })),
        Ended::Unknown(why) => internal(why),
    }
}

/// The status of a guest that never was.
pub(crate) fn of_error(error: &PodsError) -> Bytes {
    internal(&error.to_string())
}

fn internal(why: &str) -> Bytes {
    text(&json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: error executing command in container: {why}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": format!("error executing command in container: {why}")}]},
        "code": 500,
    }))
}

fn text(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}
