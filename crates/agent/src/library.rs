//! No engine: a gRPC library that speaks xDS itself, in the application's own process (`DISABLE_ENVOY`). It is given what it starts with,
//! a way to the control plane, and its certificate as files.
//!
//! Invariant: the library reaches the control plane only through this agent's socket and identity; certificate, key and roots change all
//! at once, and are there before the agent is ready. Source of the bootstrap's form: gRFC A27 and A29.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carrick_envoy_json::{Names, to_json};
use carrick_pki::{Identity, TrustBundle};
use carrick_runtime::drain::Drain;
use carrick_runtime::tasks::TaskSet;
use carrick_xds::Node;
use carrick_xds::relay::relay_service;
use carrick_xds::server::{ListenOptions, serve_unix};
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::service::Routes;
use tracing::warn;
use zeroize::Zeroizing;

use crate::config::{AgentConfig, EngineKind};
use crate::delivery::{File, Place, PlaceError, write};
use crate::envoy::{Feed, observer, socket};
use crate::names::DEFAULT_SECRET;
use crate::readiness::Readiness;
use crate::secrets::SecretStore;

/// How the library names the listeners of its own servers; `%s` is where one listens.
const SERVERS: &str = "xds.istio.io/grpc/lds/inbound/%s";
/// How often it looks at the files.
const REFRESH: &str = "900s";
/// Names of the files, as Istio's agent has them.
const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";

/// A library, as far as the agent sees it.
#[derive(Debug)]
pub struct Library {
    readiness: Arc<Readiness>,
    /// Whether the files are in place.
    written: watch::Receiver<bool>,
}

impl Library {
    /// Starts the socket, writes the bootstrap, and keeps the files as the identity is. Runs in `tasks` until `drain`.
    pub fn start(
        config: &AgentConfig,
        feed: Feed,
        readiness: &Arc<Readiness>,
        tasks: &mut TaskSet,
        drain: &Drain,
    ) -> io::Result<Arc<Self>> {
        let Feed { node, connector, token, store, metrics, own } = feed;
        let EngineKind::Library { bootstrap: path, certificates } = &config.engine else {
            return Err(io::Error::other("the engine is no library"));
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&config.state_dir)?;
        let xds = socket(&config.xds_socket())?;
        // The application is another user, in another container.
        std::fs::set_permissions(config.xds_socket(), std::fs::Permissions::from_mode(0o666))?;
        let relay = relay_service(connector, Some(token), observer(metrics), own);
        tasks.spawn("ads-relay", serve_unix(xds, Routes::new(relay), ListenOptions::default(), drain.clone()));

        let text = serde_json::to_vec_pretty(&bootstrap(&node, &config.xds_socket(), certificates.as_deref())?)?;
        put(None, vec![file(Place::Alone(path.clone()), text, 0o644)]).map_err(io::Error::other)?;
        let (told, written) = watch::channel(certificates.is_none());
        if let Some(folder) = certificates.clone() {
            tasks.spawn("certificate files", keep(folder, store, told, drain.clone()));
        }
        Ok(Arc::new(Self { readiness: Arc::clone(readiness), written }))
    }

    /// What keeps the application from starting.
    pub fn not_ready(&self) -> Vec<String> {
        let state = self.readiness.state();
        let missing = [
            (state.draining, "shutting down"),
            (!state.identity, "no certificate yet"),
            (!*self.written.borrow(), "the certificate's files are not written yet"),
        ];
        missing.into_iter().filter(|(missing, _)| *missing).map(|(_, reason)| reason.to_owned()).collect()
    }
}

/// What the library reads when it starts.
fn bootstrap(node: &Node, xds: &Path, certificates: Option<&Path>) -> io::Result<Value> {
    let mut all = json!({
        "xds_servers": [{
            "server_uri": format!("unix://{}", std::path::absolute(xds)?.display()),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": to_json(node, Names::Proto).map_err(io::Error::other)?,
        "server_listener_resource_name_template": SERVERS,
    });
    if let (Some(folder), Some(all)) = (certificates, all.as_object_mut()) {
        let folder = std::path::absolute(folder)?;
        let path = |name: &str| folder.join(name).display().to_string();
        let config = json!({
            "certificate_file": path(CHAIN),
            "private_key_file": path(KEY),
            "ca_certificate_file": path(ROOTS),
            "refresh_interval": REFRESH,
        });
        let provider = json!({ "default": { "plugin_name": "file_watcher", "config": config } });
        all.insert("certificate_providers".to_owned(), provider);
    }
    Ok(all)
}

/// Writes the files whenever identity or roots are others.
async fn keep(folder: PathBuf, store: Arc<SecretStore>, told: watch::Sender<bool>, drain: Drain) {
    let mut changes = store.subscribe();
    loop {
        let identity = changes.borrow_and_update().identity(DEFAULT_SECRET).cloned();
        if let Some(identity) = identity {
            let files = files(&identity, &store.roots());
            let into = folder.clone();
            match tokio::task::spawn_blocking(move || put(Some(&into), files)).await {
                Ok(Ok(())) => drop(told.send_replace(true)),
                Ok(Err(error)) => warn!(%error, "the certificate's files stay as they were"),
                Err(error) => warn!(%error, "the certificate's files stay as they were"),
            }
        }
        tokio::select! {
            () = drain.graceful() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn files(identity: &Identity, roots: &TrustBundle) -> Vec<File> {
    let set = |name: &str| Place::InSet(name.to_owned());
    vec![
        // The pod's group, which Kubernetes gives the volume, is the application's too.
        file(set(KEY), identity.key.to_pem().as_bytes().to_vec(), 0o640),
        file(set(CHAIN), identity.chain_pem().into_bytes(), 0o644),
        file(set(ROOTS), roots.to_pem().into_bytes(), 0o644),
    ]
}

fn file(place: Place, bytes: Vec<u8>, mode: u32) -> File {
    File { place, bytes: Zeroizing::new(bytes), mode, uid: None, gid: None }
}

fn put(folder: Option<&Path>, files: Vec<File>) -> Result<(), PlaceError> {
    write(folder, &files).map(drop)
}
