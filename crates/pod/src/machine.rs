//! The sidecar of a machine: no pod, no namespace, the machine's own network, and rules that take only what was named.
//!
//! Invariant: the rules are there while the sidecar is to run, and gone when this ends, however it is told to; whoever is killed hard leaves
//! them, so that what was captured is refused and not sent in the clear, until [`clean`] or the next [`run`]. The machine is made part of the
//! mesh by what lies in its folder alone, so that it comes back after a restart without anybody's help.

mod place;
mod settings;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carrick_capture::host::{self, HostCapture};
use carrick_capture::nft::{self, Table};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::PodError;
use crate::object::ContainerView;
use crate::options::Engine;
use crate::run::sidecar::Sidecar;
use crate::signals::Signals;

pub use place::Folder;
pub use settings::{Captured, Machine};

/// How often the machine's name servers are looked up.
const LOOK: Duration = Duration::from_secs(3);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How the sidecar of a machine is run.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Where everything of the machine is.
    pub folder: PathBuf,
    /// The sidecar's program.
    pub program: PathBuf,
    /// Envoy's, for a machine whose data plane it is.
    pub envoy: Option<PathBuf>,
    /// Where it writes; `None` for `proxy.log` in the folder.
    pub log: Option<PathBuf>,
}

/// Runs until `SIGTERM` or `SIGINT`; `ready` is called when the sidecar serves for the first time.
///
/// # Errors
/// Not root, no machine in the folder, or rules that the kernel refuses.
pub async fn run(options: &MachineOptions, mut ready: impl FnMut(&Machine)) -> Result<(), PodError> {
    crate::run::require_root("carrick vm run")?;
    let mut signals = Signals::listen()?;
    let folder = Folder::open(&options.folder)?;
    let _lock = folder.lock()?;
    let machine = folder.machine()?;
    let engine: Engine = machine.engine.parse().map_err(PodError::Request)?;
    let envoy = match (engine, &options.envoy) {
        (Engine::Native, _) => None,
        (Engine::Envoy, Some(envoy)) => Some(folder.reachable(envoy, machine.captured.proxy_id)?),
        (Engine::Envoy, None) => {
            return Err(PodError::Request("there is no program envoy: give --envoy-binary".into()));
        }
    };
    let program = folder.reachable(&options.program, machine.captured.proxy_id)?;
    let sidecar = Sidecar {
        role: "sidecar",
        user: machine.captured.proxy_id,
        borrows_addresses: false,
        env: settings::environment(&machine, &folder, envoy.as_deref())?,
        program,
        folder: folder.prepare(&machine)?,
        log: options.log.clone().unwrap_or_else(|| folder.path("proxy.log")),
        bounded: options.log.is_none(),
    };
    // Rules first: connections older than connection tracking would be taken for new ones by it, and be redirected in mid-stream.
    let mut rules = Rules::apply(capture(&machine)?).await?;
    let view = watch::Sender::new(ContainerView::default());
    let (mut changes, stop) = (view.subscribe(), CancellationToken::new());
    let supervised = sidecar.supervise(view, stop.clone());
    tokio::pin!(supervised);
    let mut told = false;
    loop {
        tokio::select! {
            () = &mut supervised => break,
            _ = signals.next_stop() => stop.cancel(),
            Ok(()) = changes.changed() => {
                let now = changes.borrow_and_update().ready;
                tracing::info!(ready = now, "sidecar");
                if now && !told {
                    told = true;
                    ready(&machine);
                }
            }
            () = tokio::time::sleep(LOOK), if machine.captured.names => rules.follow(&machine).await,
        }
    }
    rules.remove().await
}

/// A program, in the search path if it is a name alone.
///
/// # Errors
/// There is none.
pub fn program(name: &Path) -> Result<PathBuf, PodError> {
    crate::run::find(name).ok_or_else(|| PodError::Request(format!("there is no program {}", name.display())))
}

/// Removes the rules that a run which was killed has left.
///
/// # Errors
/// Not root, or the kernel refuses.
pub fn clean() -> Result<(), PodError> {
    crate::run::require_root("carrick vm clean")?;
    Ok(nft::remove(table())?)
}

fn table() -> Table<'static> {
    Table { family: "inet", name: host::TABLE }
}

/// The rules of a machine, with the name servers that it has now.
fn capture(machine: &Machine) -> Result<HostCapture, PodError> {
    let servers = if machine.captured.names { name_servers(Path::new(RESOLV_CONF)) } else { BTreeSet::new() };
    machine.capture(servers)
}

/// Servers of a resolver configuration; with none the resolver asks loopback.
fn name_servers(path: &Path) -> BTreeSet<IpAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let servers: BTreeSet<IpAddr> = carrick_dns::nameservers(&text).collect();
    if servers.is_empty() { BTreeSet::from([IpAddr::from([127, 0, 0, 1])]) } else { servers }
}

/// The rules in force.
struct Rules {
    capture: HostCapture,
    removed: bool,
}

impl Rules {
    async fn apply(capture: HostCapture) -> Result<Self, PodError> {
        let text = host::ruleset(&capture);
        blocking(move || nft::apply(table(), &text)).await?;
        Ok(Self { capture, removed: false })
    }

    /// Writes them anew when the machine has other name servers.
    async fn follow(&mut self, machine: &Machine) {
        let Ok(now) = capture(machine) else { return };
        if now == self.capture {
            return;
        }
        let text = host::ruleset(&now);
        match blocking(move || nft::apply(table(), &text)).await {
            Ok(()) => self.capture = now,
            Err(error) => tracing::warn!(%error, "the rules do not follow the machine's name servers"),
        }
    }

    async fn remove(mut self) -> Result<(), PodError> {
        self.removed = true;
        blocking(|| nft::remove(table())).await
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = nft::remove(table())
        {
            tracing::error!(%error, "the machine's packet rules remain; `carrick vm clean` removes them");
        }
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), carrick_capture::CaptureError> + Send + 'static,
) -> Result<(), PodError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| PodError::Request(error.to_string()))?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_servers_asks_itself() {
        let missing = name_servers(Path::new("/nonexistent/resolv.conf"));
        assert_eq!(missing, BTreeSet::from([IpAddr::from([127, 0, 0, 1])]));
    }
}
