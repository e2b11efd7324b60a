//! Envoy's process: started, watched, started again, ended.
//!
//! Invariant: there is at most one, and none is left behind: it is told to end when the agent ends, killed when it does
//! not, and killed by the kernel when the agent is killed.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tracing::{error, info};

use crate::metrics::AgentMetrics;

/// First and longest pause before it is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// After this long alive, the pauses start over.
const STABLE: Duration = Duration::from_secs(30);
/// Time it gets to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// How Envoy is started.
#[derive(Debug)]
pub struct Supervisor {
    pub binary: PathBuf,
    pub log_level: String,
    pub bootstrap: PathBuf,
    pub concurrency: usize,
    pub metrics: Arc<AgentMetrics>,
}

impl Supervisor {
    /// Keeps it running until drained.
    pub async fn run(self, drain: Drain) {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let started = Instant::now();
            AgentMetrics::add(&self.metrics.engine_starts);
            match self.command().spawn() {
                Ok(mut child) => {
                    info!(pid = child.id(), "Envoy started");
                    tokio::select! {
                        () = drain.graceful() => return end(child).await,
                        status = child.wait() => match status {
                            Ok(status) => error!(%status, "Envoy ended"),
                            Err(error) => error!(%error, "Envoy cannot be watched"),
                        }
                    }
                }
                Err(error) => error!(binary = %self.binary.display(), %error, "Envoy cannot be started"),
            }
            if started.elapsed() > STABLE {
                backoff.reset();
            }
            tokio::select! {
                () = drain.graceful() => return,
                () = backoff.wait() => {}
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--config-path")
            .arg(&self.bootstrap)
            .args(["--disable-hot-restart", "--drain-strategy", "immediate", "--drain-time-s", "45"])
            .args(["--local-address-ip-version", "v4", "--file-flush-interval-msec", "1000"])
            .args(["--log-level", &self.log_level])
            .args(["--concurrency", &self.concurrency.to_string()])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        die_with_parent(&mut command);
        command
    }
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    info!("Envoy ended");
}

/// Asks the kernel to kill the child when the thread that started it dies.
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are plain system calls
    // and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The agent may have died before the call.
            if libc::getppid() == 1 {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
