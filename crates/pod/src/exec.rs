//! A second process inside a running pod.

use crate::{ExecOptions, PodError};

/// Runs a command in the pod's namespaces and environment with this process's stdin, stdout, stderr; returns its exit code.
///
/// # Errors
/// No such running pod on this machine, or the namespaces cannot be entered.
pub async fn exec(options: ExecOptions) -> Result<i32, PodError> {
    let _ = options;
    Err(PodError::Request("not built yet".into()))
}
