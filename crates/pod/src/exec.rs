//! A second process inside a running pod.
//!
//! Invariant: the guest sees what the pod's command sees (network, mounts, host name, environment), and ends when its caller ends.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use tokio::process::Command;

use crate::run::require_root;
use crate::signals::{Signals, exit_code, to_group};
use crate::{ExecOptions, PodError, child, guests, state};

/// Runs a command in the pod's namespaces and environment with this process's stdin, stdout, stderr; returns its exit code (128+n after
/// signal n). Must not be called on a thread that ends before the command does.
///
/// # Errors
/// No such running pod on this machine, or the command cannot be started; see [`PodError::exit_code`].
pub async fn exec(options: ExecOptions) -> Result<i32, PodError> {
    require_root("carrick exec")?;
    let (program, arguments) = options
        .command
        .split_first()
        .ok_or_else(|| PodError::Request("nothing to run: give a command after --".into()))?;
    let pod = state::find(&options.data_dir, &options.namespace, &options.pod)?;
    let mut signals = Signals::listen()?;
    let namespaces = guests::namespaces(&pod)?;
    let cwd = CString::new(pod.cwd.as_os_str().as_bytes()).unwrap_or_else(|_| c"/".into());
    let terminal = child::has_terminal();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(pod.env).envs(options.env).kill_on_drop(true);
    // The terminal is the caller's, not the pod's.
    command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
    child::as_guest(&mut command, namespaces, cwd, terminal);
    let spawned = command.spawn();
    let mut guest =
        spawned.map_err(|source| PodError::Command { program: program.to_string_lossy().into_owned(), source })?;
    let leader = guest.id();
    let ended = loop {
        tokio::select! {
            ended = guest.wait() => break ended,
            signal = signals.next() => to_group(leader, signal),
        }
    };
    if terminal {
        child::take_terminal_back(child::stdin_fd());
    }
    ended.map(exit_code).map_err(PodError::io("wait for the command"))
}
