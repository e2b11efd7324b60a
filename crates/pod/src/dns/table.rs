//! The names of the cluster as a file: written as a whole by `up`, read by every pod's responder.
//!
//! Invariant: a reader has one complete table, the newest at the time of its question; with no file it has none, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// All services, by `name.namespace`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct DnsTable {
    pub(crate) services: BTreeMap<String, DnsService>,
    /// Hosts of ServiceEntries by name, lower-case; one that begins with `*.` stands for all names below. Those of one name are in the
    /// order in which they count.
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, Vec<DnsHost>>,
}

/// What a ServiceEntry's host stands for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct DnsHost {
    /// The entry's namespace.
    pub(crate) namespace: String,
    /// Namespaces that see it; absent is all.
    pub(crate) visible_in: Option<BTreeSet<String>>,
    pub(crate) ips: Vec<Ipv4Addr>,
}

impl DnsTable {
    /// What a name stands for in a namespace, as a host of a ServiceEntry: the namespace's own entry first.
    pub(crate) fn host(&self, name: &str, namespace: &str) -> Option<&DnsHost> {
        let below = name.match_indices('.').filter_map(|(at, _)| name.get(at..)).map(|suffix| format!("*{suffix}"));
        std::iter::once(name.to_owned()).chain(below).find_map(|name| {
            let seen = |host: &&DnsHost| host.visible_in.as_ref().is_none_or(|all| all.contains(namespace));
            let all = self.hosts.get(&name)?;
            all.iter().filter(seen).find(|h| h.namespace == namespace).or_else(|| all.iter().find(seen))
        })
    }
}

/// What one service's names stand for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct DnsService {
    /// Cluster IPs; empty for a headless service.
    pub(crate) ips: Vec<Ipv4Addr>,
    /// The other name that an ExternalName service stands for.
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<DnsPort>,
    /// Ready endpoints of a headless service.
    pub(crate) endpoints: Vec<DnsEndpoint>,
}

/// A port, for SRV.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct DnsPort {
    pub(crate) name: String,
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

/// An endpoint of a headless service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct DnsEndpoint {
    pub(crate) ip: Ipv4Addr,
    pub(crate) host_name: Option<String>,
    /// Target port by port name.
    pub(crate) ports: BTreeMap<String, u16>,
}

impl DnsEndpoint {
    /// The label under the service's name.
    pub(crate) fn label(&self) -> String {
        self.host_name.clone().unwrap_or_else(|| self.ip.to_string().replace('.', "-"))
    }
}

/// Where the table is, under a data folder.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    crate::options::run_dir(data_dir).join("dns.json")
}

/// The table file, read again when it has been replaced.
#[derive(Debug)]
pub(crate) struct TableFile {
    path: PathBuf,
    known: Mutex<Option<(Stamp, Arc<DnsTable>)>>,
}

/// A replaced file has another inode, or another time if the number was used again.
type Stamp = (u64, i64, i64, u64);

impl TableFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        TableFile { path, known: Mutex::new(None) }
    }

    /// The newest table; `None` while there is no readable one.
    pub(crate) fn current(&self) -> Option<Arc<DnsTable>> {
        let meta = std::fs::metadata(&self.path).ok()?;
        let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, table)) = known.as_ref()
            && *seen == stamp
        {
            return Some(Arc::clone(table));
        }
        let table: Arc<DnsTable> = Arc::new(serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()?);
        *known = Some((stamp, Arc::clone(&table)));
        Some(table)
    }
}
