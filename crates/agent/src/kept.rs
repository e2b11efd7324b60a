//! What a machine was configured with last, beside its certificate: it comes back by itself also while the control plane is away.
//!
//! Invariant: a file of the agent's user alone, replaced as a whole; what was refused is not in it, nor is any secret. It counts as long as the
//! certificate that was kept with it: without one nothing starts. A file that cannot be read is none, with a word in the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrick_runtime::drain::Drain;
use carrick_xds::client::Update;
use carrick_xds::kept::Kept;
use carrick_xds::relay::Keep;
use carrick_xds::{ResourceSet, TypeUrl};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::identity::Folder;

/// What follows within this time is written together.
const TOGETHER: Duration = Duration::from_millis(500);

/// One kind of configuration in the machine's folder.
#[derive(Debug)]
pub struct Keeper {
    folder: Folder,
    name: &'static str,
    /// Whether what comes as a secret is kept; keys never are.
    secrets: bool,
    kept: Mutex<Kept>,
    changed: Notify,
}

impl Keeper {
    /// What the engine is configured with, without secrets.
    pub fn configuration(folder: Folder) -> Arc<Self> {
        Self::open(folder, "configuration.binpb", false)
    }

    /// Who is not to be talked with, which comes as a secret and is none.
    pub fn quarantine(folder: Folder) -> Arc<Self> {
        Self::open(folder, "quarantine.binpb", true)
    }

    fn open(folder: Folder, name: &'static str, secrets: bool) -> Arc<Self> {
        let read = folder.kept(name).map_err(|error| error.to_string());
        let read = read.and_then(|bytes| Kept::decode(&bytes.unwrap_or_default()).map_err(|error| error.to_string()));
        let kept = read.unwrap_or_else(|error| {
            warn!(name, error, "what this machine kept cannot be read");
            Kept::default()
        });
        Arc::new(Self { folder, name, secrets, kept: Mutex::new(kept), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was told before this process started.
    pub fn updates(&self) -> Vec<Update> {
        self.lock().updates()
    }

    /// Keeps what was taken over.
    pub fn take(&self, update: &Update) {
        if self.secrets || update.type_url != TypeUrl::Secret {
            self.lock().take(update);
            self.changed.notify_one();
        }
    }

    /// Keeps nothing else of a type.
    pub fn retain(&self, type_url: &TypeUrl, wanted: impl Fn(&str) -> bool) {
        self.lock().retain(type_url, wanted);
    }

    /// Writes now.
    pub fn write(&self) {
        let bytes = self.lock().encode();
        if let Err(error) = self.folder.keep(self.name, &bytes) {
            error!(%error, "what this machine is configured with is not kept");
        }
    }

    /// Writes what changes until drained.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.graceful() => return,
                () = self.changed.notified() => {}
            }
            tokio::time::sleep(TOGETHER).await;
            let keeper = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || keeper.write()).await.is_err() {
                return;
            }
        }
    }
}

impl Keep for Keeper {
    fn passed(&self, response: &DeltaDiscoveryResponse) {
        if self.secrets || TypeUrl::parse(&response.type_url) != TypeUrl::Secret {
            self.lock().take_response(response);
            self.changed.notify_one();
        }
    }

    fn asked(&self, request: &DeltaDiscoveryRequest) {
        if !request.resource_names_unsubscribe.is_empty() {
            let gone = &request.resource_names_unsubscribe;
            self.retain(&TypeUrl::parse(&request.type_url), |name| !gone.iter().any(|other| other == name));
        }
    }

    fn set(&self) -> Option<ResourceSet> {
        let kept = self.lock();
        (!kept.is_empty()).then(|| {
            info!("nobody answers: Envoy gets what this machine was configured with last");
            kept.set()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_xds::{Any, Resource};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_was_taken_comes_back_and_no_key_does() {
        let path = std::env::temp_dir().join(format!("carrick-kept-{}", std::process::id()));
        let update = |type_url: TypeUrl, name: &str| {
            let body = Any { type_url: type_url.as_str().to_owned(), value: name.as_bytes().to_vec() };
            Update { type_url, upserts: vec![Resource::new(name, body)], removed: Vec::new() }
        };
        let names = |keeper: &Keeper| {
            let all = keeper.updates().into_iter().flat_map(|update| update.upserts);
            all.map(|resource| resource.name.to_string()).collect::<Vec<_>>()
        };
        let keeper = Keeper::configuration(Folder::new(&path));
        assert!(keeper.updates().is_empty() && keeper.set().is_none());
        keeper.take(&update(TypeUrl::Listener, "in"));
        keeper.take(&update(TypeUrl::Cluster, "a"));
        keeper.take(&update(TypeUrl::Secret, "key"));
        keeper.write();
        assert_eq!(names(&Keeper::configuration(Folder::new(&path))), ["a", "in"]);
        let bans = Keeper::quarantine(Folder::new(&path));
        bans.take(&update(TypeUrl::Secret, "carrick-quarantine"));
        bans.write();
        assert_eq!(names(&Keeper::quarantine(Folder::new(&path))), ["carrick-quarantine"]);
        let file = path.join("configuration.binpb");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        std::fs::write(&file, "half of it").unwrap();
        assert!(Keeper::configuration(Folder::new(&path)).updates().is_empty(), "unreadable is none");
        std::fs::remove_dir_all(path).unwrap();
    }
}
