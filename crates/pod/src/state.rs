//! What this machine knows of its pods: a folder per pod under `<data>/run/pods`, with a lock that lives as long as its runner.
//!
//! Invariant: an address belongs to at most one folder, and a folder whose lock can be taken has no runner any more. Folders are made,
//! and looked at for sweeping, under one lock for the whole machine; so a new folder is never taken for a dead one.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::options::run_dir;
use crate::{Network, PodError};

/// What a pod's folder says.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct PodState {
    /// Eight hexadecimal digits; part of the names of the namespace and the link.
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The Pod object's uid; empty until it is created.
    pub(crate) uid: String,
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) netns: String,
    pub(crate) link: String,
    /// Process and thread of the runner; the thread is inside the pod's namespaces. 0 until there is one.
    pub(crate) pid: i32,
    pub(crate) thread: i32,
    /// Environment and working folder of the app.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
    /// Sidecar's engine; `None` without a sidecar.
    pub(crate) engine: Option<String>,
    /// The app's container; empty in a gateway.
    pub(crate) container: String,
    /// Where the sidecar logs.
    pub(crate) sidecar_log: PathBuf,
}

/// A pod's folder, held.
#[derive(Debug)]
pub(crate) struct PodFolder {
    path: PathBuf,
    pub(crate) state: PodState,
    _lock: Flock<File>,
}

impl PodFolder {
    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the state for others to read.
    pub(crate) fn save(&self) -> Result<(), PodError> {
        let path = self.path.join("state.json");
        let text = serde_json::to_vec_pretty(&self.state).map_err(io::Error::other);
        text.and_then(|text| write_atomic(&path, &text, 0o600))
            .map_err(PodError::io(format!("write {}", path.display())))
    }

    /// Removes the folder and with it the claim on the address.
    pub(crate) fn remove(self) -> Result<(), PodError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PodError::io(format!("remove {}", self.path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

fn pods_dir(data_dir: &Path) -> PathBuf {
    run_dir(data_dir).join("pods")
}

/// The folder of the pod that has this id.
pub(crate) fn folder(data_dir: &Path, id: &str) -> PathBuf {
    pods_dir(data_dir).join(id)
}

/// The lock of the whole machine.
fn machine_lock(data_dir: &Path) -> Result<Flock<File>, PodError> {
    let pods = pods_dir(data_dir);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&pods)
        .map_err(PodError::io(format!("create {}", pods.display())))?;
    let path = run_dir(data_dir).join("pods.lock");
    let file = open_lock(&path).map_err(PodError::io(format!("open {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| PodError::sys(format!("lock {}", path.display()))(errno))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes the next free address and makes a folder for it.
pub(crate) fn allocate(data_dir: &Path, network: &Network) -> Result<PodFolder, PodError> {
    let _machine = machine_lock(data_dir)?;
    let pods = pods_dir(data_dir);
    let mut taken = BTreeSet::from([network.gateway]);
    for path in folders(&pods)? {
        taken.extend(read_state(&path).and_then(|state| state.ip));
    }
    let cursor = run_dir(data_dir).join("pods.next");
    let last = std::fs::read_to_string(&cursor).ok().and_then(|text| text.trim().parse().ok());
    let ip = next_free(network, last, &taken)
        .ok_or_else(|| PodError::Request(format!("no free address in {}/{}", network.gateway, network.prefix)))?;
    write_atomic(&cursor, ip.to_string().as_bytes(), 0o644)
        .map_err(PodError::io(format!("write {}", cursor.display())))?;
    let id = format!("{:08x}", rand::random::<u32>());
    let path = pods.join(&id);
    std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(PodError::io(format!("create {}", path.display())))?;
    let lock_path = path.join("lock");
    let file = open_lock(&lock_path).map_err(PodError::io(format!("open {}", lock_path.display())))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| PodError::sys(format!("lock {}", lock_path.display()))(errno))?;
    let state = PodState {
        ip: Some(ip),
        netns: format!("{}-{id}", network.netns_prefix),
        link: format!("{}{id}", network.link_prefix),
        pid: std::process::id() as i32,
        id,
        ..PodState::default()
    };
    let folder = PodFolder { path, state, _lock: lock };
    folder.save()?;
    Ok(folder)
}

/// The address after `last` that nobody has, round the network: a freed one is used again as late as possible, since others may still
/// know its former owner under it.
fn next_free(network: &Network, last: Option<Ipv4Addr>, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let size = 1u32.checked_shl(32u32.checked_sub(network.prefix.into())?)?;
    let base = u32::from(network.gateway) & !(size.checked_sub(1)?);
    let start = last.map_or(0, |last| u32::from(last).wrapping_sub(base) % size);
    (1..=size)
        .map(|step| start.wrapping_add(step) % size)
        .filter(|offset| *offset != 0 && *offset != size.wrapping_sub(1))
        .map(|offset| Ipv4Addr::from(base.wrapping_add(offset)))
        .find(|ip| !taken.contains(ip))
}

/// Folders whose runner is gone, held so that nobody else sweeps them too.
pub(crate) fn dead(data_dir: &Path) -> Result<Vec<PodFolder>, PodError> {
    let _machine = machine_lock(data_dir)?;
    let mut found = Vec::new();
    for path in folders(&pods_dir(data_dir))? {
        let Ok(file) = open_lock(&path.join("lock")) else { continue };
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let state = read_state(&path).unwrap_or_default();
            found.push(PodFolder { path, state, _lock: lock });
        }
    }
    Ok(found)
}

/// States of all folders, those of the dead included.
pub(crate) fn all(data_dir: &Path) -> Result<Vec<PodState>, PodError> {
    let pods = pods_dir(data_dir);
    if !pods.exists() {
        return Ok(Vec::new());
    }
    Ok(folders(&pods)?.iter().filter_map(|path| read_state(path)).collect())
}

/// The running pod of that name.
pub(crate) fn find(data_dir: &Path, namespace: &str, name: &str) -> Result<PodState, PodError> {
    all(data_dir)?
        .into_iter()
        .find(|state| state.namespace == namespace && state.name == name && in_place(state))
        .ok_or_else(|| PodError::Request(format!("no pod {name:?} of namespace {namespace:?} runs on this machine")))
}

/// Whether the runner's thread inside the pod still exists.
pub(crate) fn in_place(state: &PodState) -> bool {
    state.thread != 0 && Path::new(&format!("/proc/{}/task/{}/ns/net", state.pid, state.thread)).exists()
}

fn folders(pods: &Path) -> Result<Vec<PathBuf>, PodError> {
    let entries = std::fs::read_dir(pods).map_err(PodError::io(format!("read {}", pods.display())))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect())
}

fn read_state(path: &Path) -> Option<PodState> {
    serde_json::from_slice(&std::fs::read(path.join("state.json")).ok()?).ok()
}

/// Replaces a file as a whole: readers see the old content or the new.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:08x}", rand::random::<u32>()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        io::Write::write_all(&mut file, content)?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(gateway: [u8; 4], prefix: u8) -> Network {
        Network { gateway: gateway.into(), prefix, ..Network::default() }
    }

    #[test]
    fn addresses_go_round_and_skip_the_taken() {
        let network = network([10, 9, 0, 1], 29);
        let mut taken = BTreeSet::from([network.gateway]);
        let mut last = None;
        let mut got = Vec::new();
        while let Some(ip) = next_free(&network, last, &taken) {
            got.push(ip.octets()[3]);
            taken.insert(ip);
            last = Some(ip);
        }
        assert_eq!(got, [2, 3, 4, 5, 6], "neither network, gateway nor broadcast");
        taken.remove(&Ipv4Addr::new(10, 9, 0, 3));
        taken.remove(&Ipv4Addr::new(10, 9, 0, 5));
        let next = next_free(&network, Some(Ipv4Addr::new(10, 9, 0, 3)), &taken);
        assert_eq!(next, Some(Ipv4Addr::new(10, 9, 0, 5)), "the one freed last comes last");
    }

    #[test]
    fn a_held_folder_is_not_dead_and_a_dropped_one_is() {
        let data = std::env::temp_dir().join(format!("carrick-state-{}", std::process::id()));
        let network = Network::default();
        let first = allocate(&data, &network).unwrap();
        let second = allocate(&data, &network).unwrap();
        assert_ne!(first.state.ip, second.state.ip);
        assert!(dead(&data).unwrap().is_empty());
        let ip = first.state.ip;
        drop(first);
        let swept = dead(&data).unwrap();
        assert_eq!(swept.len(), 1);
        assert_eq!(swept[0].state.ip, ip);
        assert!(dead(&data).unwrap().is_empty(), "held by the sweep above");
        for folder in swept {
            folder.remove().unwrap();
        }
        second.remove().unwrap();
        assert!(all(&data).unwrap().is_empty());
        std::fs::remove_dir_all(&data).unwrap();
    }
}
