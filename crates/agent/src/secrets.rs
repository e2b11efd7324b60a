//! All secrets of this pod by SDS name, as one value that changes.
//!
//! Invariant: a name without a usable secret is absent, which makes the engine refuse; a file that becomes unreadable
//! leaves the last good content in force, and so does a pair of which only one half has been replaced. Secrets of the
//! control plane are kept here and nowhere else. Asking the authority is `identity`'s work, handing out is `sds`'s and
//! the engine's.

mod files;
pub mod held;
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carrick_pki::trust::Domains;
use carrick_pki::{Identity, Quarantine, TrustBundle};
use carrick_proxy::{Secret, Secrets};
use carrick_runtime::drain::Drain;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::names::{DEFAULT_SECRET, ROOT_SECRET};
use files::Mark;
pub use files::{FileSecret, FileSecretError};
use held::Held;
pub use remote::{RemoteSecretError, read as read_remote};

/// How often watched files are looked at; a change is in force within a second.
const POLL: Duration = Duration::from_millis(400);

/// The secrets of one pod.
#[derive(Debug)]
pub struct SecretStore {
    published: watch::Sender<Arc<Secrets>>,
    root_file: PathBuf,
    inner: Mutex<Inner>,
    wanted_more: Notify,
    renewal: Notify,
    held: Arc<Held>,
}

/// What the engine verifies peers with, and what it shows them.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The mesh roots.
    pub roots: TrustBundle,
    /// The certificate.
    pub identity: Option<Arc<Identity>>,
}

#[derive(Debug, Default)]
struct Inner {
    identity: Option<Arc<Identity>>,
    /// Roots the authority told: with the last certificate, or while it is followed.
    told: TrustBundle,
    /// The authority is being followed: what it tells is newer than what comes with a certificate.
    followed: bool,
    /// What the root file held when the authority told its roots while it was followed; that much of the file is outdated.
    outdated: Option<TrustBundle>,
    /// Roots of the mesh root file, as last readable.
    filed: TrustBundle,
    wanted: BTreeSet<String>,
    files: BTreeMap<String, Secret>,
    /// What the files looked like when they were last read.
    marks: BTreeMap<String, Vec<Mark>>,
    /// Given by the control plane.
    remote: BTreeMap<String, Secret>,
    complaints: BTreeMap<String, String>,
    quarantine: Arc<Quarantine>,
    /// What the mesh's roots have revoked; holds no roots.
    lists: TrustBundle,
    /// Other trust domains, with their roots.
    domains: Domains,
    /// The identity is another authority's: so are the roots, and the root file is the control plane's alone.
    outside: bool,
}

impl SecretStore {
    /// A store without secrets; the mesh roots of `root_file` are read at once.
    pub fn new(root_file: PathBuf) -> Arc<Self> {
        let store = Self {
            published: watch::Sender::new(Arc::new(Secrets::default())),
            root_file,
            inner: Mutex::default(),
            wanted_more: Notify::new(),
            renewal: Notify::new(),
            held: Arc::default(),
        };
        store.reload();
        Arc::new(store)
    }

    /// All secrets now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Secrets>> {
        self.published.subscribe()
    }

    /// The workload's identity, once there is one.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.lock().identity.clone()
    }

    /// The mesh roots: those the authority told, and those of the file unless the authority has told its own since.
    pub fn roots(&self) -> TrustBundle {
        self.lock().roots()
    }

    /// From now on the identity and the roots that come with it are another authority's.
    pub fn set_outside(&self) {
        self.lock().outside = true;
    }

    /// What the control plane is verified with.
    pub fn authority_roots(&self) -> TrustBundle {
        let inner = self.lock();
        if inner.outside && !inner.filed.is_empty() { inner.filed.clone() } else { inner.roots() }
    }

    /// The identity as far as the control plane knows it: one of another authority only below a root of the root file.
    pub fn shown_to_authority(&self) -> Option<Arc<Identity>> {
        let inner = self.lock();
        let known = |identity: &&Arc<Identity>| !inner.outside || !inner.filed.led_to(&identity.chain).is_empty();
        inner.identity.as_ref().filter(known).cloned()
    }

    /// The roots that were heard of last: those of the file if it has changed since the authority told its own.
    pub fn newest_roots(&self) -> TrustBundle {
        let inner = self.lock();
        if inner.outdated.as_ref() == Some(&inner.filed) { inner.told.clone() } else { inner.filed.clone() }
    }

    /// What the engine really holds; for Envoy that is what it has acknowledged.
    pub fn in_force(&self) -> InForce {
        let (roots, identity) = {
            let inner = self.lock();
            (inner.trust(), inner.identity.clone())
        };
        let same_roots = |secret: &Secret| matches!(secret, Secret::Trust(held) if **held == roots);
        let roots = match self.held.behind(ROOT_SECRET, same_roots) {
            Some(Secret::Trust(held)) => TrustBundle::clone(&held),
            _ => roots,
        };
        let serial = identity.as_ref().map(|identity| identity.serial.clone());
        let same = |secret: &Secret| matches!(secret, Secret::Identity(held) if Some(&held.serial) == serial.as_ref());
        let identity = match self.held.behind(DEFAULT_SECRET, same) {
            Some(Secret::Identity(held)) => Some(held),
            _ => identity,
        };
        InForce { roots, identity }
    }

    /// What the engine has acknowledged.
    pub fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// Takes the roots that the authority tells while it is followed, or notes that it is not followed any more.
    pub fn follow_roots(&self, roots: Option<TrustBundle>) {
        let mut inner = self.lock();
        inner.followed = roots.is_some();
        let Some(roots) = roots else { return };
        inner.outdated = Some(inner.filed.clone());
        if inner.told != roots {
            inner.told = roots;
        }
        self.publish(&inner);
    }

    /// Asks for another certificate before its time.
    pub fn ask_renewal(&self) {
        self.renewal.notify_one();
    }

    /// Returns when another certificate was asked for. Cancel safe.
    pub async fn renewal_asked(&self) {
        self.renewal.notified().await;
    }

    /// Takes a new certificate and the roots that came with it.
    pub fn set_identity(&self, identity: Arc<Identity>, roots: TrustBundle) {
        let mut inner = self.lock();
        inner.identity = Some(identity);
        if !inner.followed {
            inner.told = roots;
        }
        self.publish(&inner);
    }

    /// Asks for secrets in files by their SDS names; other names are not provided here.
    pub fn want<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut fresh = false;
        {
            let mut inner = self.lock();
            for name in names {
                if FileSecret::parse(name).is_some() {
                    fresh |= inner.wanted.insert(name.to_owned());
                }
            }
        }
        if fresh {
            self.wanted_more.notify_one();
        }
    }

    /// Takes over what the control plane says of its secrets; those without a value are gone.
    pub fn set_remote(&self, changes: impl IntoIterator<Item = (String, Option<Secret>)>) {
        let mut inner = self.lock();
        for (name, secret) in changes {
            match secret {
                Some(secret) => inner.remote.insert(name, secret),
                None => inner.remote.remove(&name),
            };
        }
        self.publish(&inner);
    }

    /// Takes over who is not to be talked with.
    pub fn set_quarantine(&self, list: Quarantine) {
        let mut inner = self.lock();
        if *inner.quarantine != list {
            inner.quarantine = Arc::new(list);
            self.publish(&inner);
        }
    }

    /// Takes over what the mesh's roots have revoked.
    pub fn set_lists(&self, lists: TrustBundle) {
        let mut inner = self.lock();
        if inner.lists != lists {
            inner.lists = lists;
            self.publish(&inner);
        }
    }

    /// Takes over which other trust domains there are.
    pub fn set_domains(&self, domains: Domains) {
        let mut inner = self.lock();
        if inner.domains != domains {
            info!(others = ?domains.others.keys().map(ToString::to_string).collect::<Vec<_>>(), "other trust domains");
            inner.domains = domains;
            self.publish(&inner);
        }
    }

    /// Whether a name is provided in this pod, and not by the control plane.
    pub fn is_local(name: &str) -> bool {
        name == DEFAULT_SECRET || name == ROOT_SECRET || FileSecret::parse(name).is_some()
    }

    /// Reads the watched files again whenever they may have changed, until drained.
    pub async fn watch_files(self: Arc<Self>, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.graceful() => return,
                () = self.wanted_more.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
            self.reload();
        }
    }

    /// Reads the watched files now.
    pub fn reload(&self) {
        let (wanted, marks) = {
            let inner = self.lock();
            (inner.wanted.clone(), inner.marks.clone())
        };
        let root = std::fs::read(&self.root_file)
            .map_err(|e| e.to_string())
            .and_then(|text| TrustBundle::from_pem(&text).map_err(|e| e.to_string()));
        // The lock is not held while files are read.
        let read: Vec<(String, Vec<Mark>, Result<Secret, FileSecretError>)> = wanted
            .into_iter()
            .filter_map(|name| {
                let file = FileSecret::parse(&name)?;
                // Looked at before it is read: what changes in between is seen the next time.
                let mark = file.mark();
                (marks.get(&name) != Some(&mark) || files::is_fresh(&mark)).then(|| (name, mark, file.read()))
            })
            .collect();
        let mut inner = self.lock();
        let mut changed = false;
        match root {
            Ok(roots) if roots != inner.filed => {
                inner.filed = roots;
                changed = true;
            }
            Ok(_) => {}
            Err(reason) => inner.complain(&self.root_file.display().to_string(), &reason),
        }
        for (name, mark, result) in read {
            inner.marks.insert(name.clone(), mark);
            match result {
                Ok(secret) => {
                    inner.complaints.remove(&name);
                    if !inner.files.get(&name).is_some_and(|old| same(old, &secret)) {
                        info!(secret = %name, "read from files");
                        inner.files.insert(name, secret);
                        changed = true;
                    }
                }
                Err(error) => inner.complain(&name, &error.to_string()),
            }
        }
        if changed {
            self.publish(&inner);
        }
    }

    fn publish(&self, inner: &Inner) {
        let mut by_name: std::collections::HashMap<String, Secret> =
            inner.remote.iter().chain(&inner.files).map(|(name, secret)| (name.clone(), secret.clone())).collect();
        if let Some(identity) = &inner.identity {
            by_name.insert(DEFAULT_SECRET.to_owned(), Secret::Identity(Arc::clone(identity)));
        }
        let roots = inner.trust();
        if !roots.is_empty() {
            by_name.insert(ROOT_SECRET.to_owned(), Secret::Trust(Arc::new(roots)));
        }
        self.published.send_replace(Arc::new(Secrets { by_name, quarantine: Arc::clone(&inner.quarantine) }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What peers are verified with.
    fn trust(&self) -> TrustBundle {
        self.roots().union(&self.lists).with_domains(self.domains.clone())
    }

    fn roots(&self) -> TrustBundle {
        if self.outside {
            return self.told.clone();
        }
        match &self.outdated {
            Some(outdated) if *outdated == self.filed && !self.told.is_empty() => self.told.clone(),
            _ => self.filed.union(&self.told),
        }
    }

    /// Says what is wrong once, not at every look.
    fn complain(&mut self, name: &str, reason: &str) {
        if self.complaints.get(name).map(String::as_str) != Some(reason) {
            warn!(secret = %name, reason, "not readable");
            self.complaints.insert(name.to_owned(), reason.to_owned());
        }
    }
}

fn same(a: &Secret, b: &Secret) -> bool {
    match (a, b) {
        (Secret::Identity(a), Secret::Identity(b)) => a.chain == b.chain && a.key == b.key,
        (Secret::Trust(a), Secret::Trust(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
