//! One process as a pod, from its address to its removal.

use crate::{PodError, RunOptions};

/// Runs `options.command` as a pod and returns its exit code (128+n after signal n, 127 when the program is not found).
/// Signals that reach this process are passed on. Needs a multi-thread runtime.
///
/// # Errors
/// Whatever kept the command from starting; once it has started, its exit code is the answer.
pub async fn run(options: RunOptions) -> Result<i32, PodError> {
    let _ = options;
    Err(PodError::Request("not built yet".into()))
}
