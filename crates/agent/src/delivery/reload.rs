//! Runs the command by which a consumer takes new files over.
//!
//! Invariant: no shell, no input; it and what it started are ended after its time; what it says is logged, at most [`MAX_OUTPUT`] of it.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tracing::info;

use super::config::Reload;

/// Bytes that are kept of each of its outputs.
const MAX_OUTPUT: u64 = 4096;

/// How long its outputs are read after its end.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// Why a reload failed. A retry is safe as far as the command is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It cannot be started.
    #[error("{program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{program} did not end within {seconds} s")]
    Timeout {
        /// The program.
        program: String,
        /// Its time.
        seconds: u64,
    },
    /// It said no.
    #[error("{program}: {status}{}{output}", if output.is_empty() { "" } else { ": " })]
    Failed {
        /// The program.
        program: String,
        /// `exit status: 1`, or the signal.
        status: String,
        /// What it printed.
        output: String,
    },
}

/// Runs it to its end.
///
/// # Errors
/// See [`ReloadError`].
pub async fn reload(name: &str, reload: &Reload) -> Result<(), ReloadError> {
    let (program, arguments) = reload.command.split_first().map(|(p, a)| (p.clone(), a)).unwrap_or_default();
    let start = |source| ReloadError::Start { program: program.clone(), source };
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let whole = async {
        let mut said = std::pin::pin!(async { tokio::join!(text(out), text(err)) });
        let (status, said) = tokio::select! {
            said = &mut said => (child.wait().await, said),
            // A daemon that it left behind may hold the outputs open; it is not waited for.
            status = child.wait() => (status, tokio::time::timeout(AFTERWARDS, said).await.unwrap_or_default()),
        };
        (status, [said.0, said.1].join("\n").trim().replace('\n', "; "))
    };
    let Ok((status, output)) = tokio::time::timeout(reload.timeout, whole).await else {
        if let Some(group) = group {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        return Err(ReloadError::Timeout { program, seconds: reload.timeout.as_secs() });
    };
    let status = status.map_err(start)?;
    if !status.success() {
        return Err(ReloadError::Failed { program, status: status.to_string(), output });
    }
    info!(consumer = name, command = %reload.command.join(" "), output, "reloaded");
    Ok(())
}

async fn text(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let mut kept = (&mut from).take(MAX_OUTPUT);
        let _ = kept.read_to_end(&mut bytes).await;
        // The rest is read and forgotten, so that the command is not stuck on a full pipe.
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str, millis: u64) -> Reload {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        Reload { command, timeout: Duration::from_millis(millis) }
    }

    #[tokio::test]
    async fn how_it_ends_is_told() {
        assert!(reload("a", &command("echo fine", 5000)).await.is_ok());
        let told = reload("a", &command("echo out; echo err >&2; exit 3", 5000)).await.unwrap_err().to_string();
        assert_eq!(told, "sh: exit status: 3: out; err");
        let told = reload("a", &command("sleep 30 & wait", 100)).await.unwrap_err().to_string();
        assert_eq!(told, "sh did not end within 0 s");
        let none = Reload { command: vec!["/no/such/program".to_owned()], timeout: Duration::from_secs(1) };
        assert!(reload("a", &none).await.unwrap_err().to_string().starts_with("/no/such/program: No such file"));
    }

    #[tokio::test]
    async fn a_daemon_it_leaves_behind_is_not_waited_for() {
        let start = std::time::Instant::now();
        assert!(reload("a", &command("sleep 3 & exit 0", 10_000)).await.is_ok());
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn much_output_does_not_block_it() {
        assert!(reload("a", &command("head -c 300000 /dev/zero", 5000)).await.is_ok());
    }
}
