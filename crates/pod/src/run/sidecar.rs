//! The sidecar's process: started inside the pod (or on the machine) as the proxy's user, watched, started again when it ends.
//!
//! Invariant: the app is reported as reachable only while the sidecar says that it is ready; a dead sidecar means no traffic, never
//! uncaptured traffic.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use carrick_runtime::backoff::Backoff;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::readiness::http_status;
use super::status::now;
use crate::object::ContainerView;
use crate::signals;
use crate::{PodError, child, output};

const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);
const HEALTH_PATH: &str = "/healthz/ready";
/// Between two looks while it starts, and while it runs.
const STARTING: Duration = Duration::from_millis(25);
const RUNNING: Duration = Duration::from_secs(1);
/// Failed looks in a row before a running sidecar counts as not ready.
const FAILURES: u32 = 3;
/// From the stop signal to the kill.
const GOODBYE: Duration = Duration::from_secs(5);

/// How to start it.
#[derive(Clone, Debug)]
pub(crate) struct Sidecar {
    /// `sidecar` or `gateway`.
    pub(crate) role: &'static str,
    /// User and group it runs as.
    pub(crate) user: u32,
    /// Whether it may bind addresses that are not the pod's (TPROXY): `CAP_NET_ADMIN`, and nothing else.
    pub(crate) borrows_addresses: bool,
    pub(crate) program: PathBuf,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
    /// Whether the log is cut when it is long.
    pub(crate) bounded: bool,
}

impl Sidecar {
    fn start(&self) -> Result<Child, PodError> {
        let doing = || format!("open {}", self.log.display());
        let log =
            OpenOptions::new().create(true).append(true).mode(0o640).open(&self.log).map_err(PodError::io(doing()))?;
        // Envoy opens its standard output anew (an access log to /dev/stdout), as the user that it is.
        std::os::unix::fs::fchown(&log, Some(self.user), Some(self.user)).map_err(PodError::io(doing()))?;
        let error = log.try_clone().map_err(PodError::io(doing()))?;
        let mut command = Command::new(&self.program);
        command.arg(self.role).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(log).stderr(error);
        child::as_sidecar(&mut command, self.user, self.borrows_addresses);
        command.spawn().map_err(PodError::io(format!("start the sidecar ({})", self.program.display())))
    }

    /// Runs it until `stop`; what it looks like goes to `view`. Must run inside the pod.
    pub(crate) async fn supervise(self, view: watch::Sender<ContainerView>, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match self.start() {
                Ok(child) => {
                    view.send_modify(|view| {
                        view.started_at = Some(now());
                        view.running = true;
                    });
                    let log = self.bounded.then_some(self.log.as_path());
                    if live(child, log, &view, &stop).await {
                        backoff.reset();
                    }
                }
                Err(error) => tracing::error!(%error, "sidecar not started"),
            }
            view.send_modify(|view| {
                view.running = false;
                view.ready = false;
            });
            if stop.is_cancelled() {
                return;
            }
            tracing::warn!(log = %self.log.display(), "sidecar ended; starting it again");
            tokio::select! {
                () = backoff.wait() => {}
                () = stop.cancelled() => return,
            }
            view.send_modify(|view| view.restarts = view.restarts.saturating_add(1));
        }
    }
}

/// One life of the process; whether it ever was ready.
async fn live(
    mut child: Child,
    log: Option<&Path>,
    view: &watch::Sender<ContainerView>,
    stop: &CancellationToken,
) -> bool {
    let mut ready = false;
    let mut ever = false;
    let mut failures = 0u32;
    loop {
        tokio::select! {
            _ = child.wait() => return ever,
            () = stop.cancelled() => {
                signals::to_group(child.id(), Signal::SIGTERM);
                if timeout(GOODBYE, child.wait()).await.is_err() {
                    signals::to_group(child.id(), Signal::SIGKILL);
                    let _ = child.wait().await;
                }
                return ever;
            }
            healthy = look(if ready { RUNNING } else { STARTING }) => {
                // A log that cannot be cut is no reason to end what writes it.
                if let Some(Err(error)) = log.map(|log| output::cut(log, output::FILE)) {
                    tracing::debug!(%error, "the sidecar's log is not cut");
                }
                failures = if healthy { 0 } else { failures.saturating_add(1) };
                let now_ready = healthy || (ready && failures < FAILURES);
                if now_ready != ready {
                    ready = now_ready;
                    ever |= ready;
                    view.send_modify(|view| view.ready = ready);
                }
            }
        }
    }
}

async fn look(pause: Duration) -> bool {
    sleep(pause).await;
    matches!(timeout(Duration::from_secs(3), http_status(HEALTH, HEALTH_PATH)).await, Ok(Some(200)))
}

/// The end of a log, for the person who has to find out.
pub(crate) fn tail(path: &Path) -> String {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}
