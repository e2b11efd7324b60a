//! The native engine, fed by the control plane: delta ADS → `proxy-core` → `proxy`.
//!
//! Invariant: what is refused is refused to the control plane by resource and field, and the rest is in force; when the
//! control plane is away, the last configuration stays. What is dumped is what was taken over, with its time.

mod book;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use carrick_pki::tls::{self, ServerAuth, TlsOptions};
use carrick_proxy::{Engine, EngineOptions, Secret, Workload};
use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use carrick_xds::client::{ClientOptions, Connector, Handler, Interest, Nack, TlsProvider, Token, Update};
use carrick_xds::name_table::NameTable;
use carrick_xds::relay::Own;
use carrick_xds::{Node, TypeUrl};
use rustls::pki_types::ServerName;
use tracing::{debug, info, warn};

use crate::config::{AgentConfig, DrainConfig};
use crate::kept::Keeper;
use crate::metrics::AgentMetrics;
use crate::node::metadata_text;
use crate::readiness::Readiness;
use crate::secrets::{SecretStore, read_remote};

pub use book::{Book, Entry};

/// Where captured packets arrive.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

/// The engine with what it was told.
#[derive(Debug)]
pub struct NativeEngine {
    pub engine: Engine,
    pub node: Node,
    pub store: Arc<SecretStore>,
    pub readiness: Arc<Readiness>,
    pub started: SystemTime,
    pub clock: SharedClock,
    pub concurrency: usize,
    metrics: Arc<AgentMetrics>,
    book: Mutex<Book>,
}

/// What the workload beside this agent is called.
pub(crate) fn workload(config: &AgentConfig, node: &Node) -> Workload {
    let label = |key: &str| config.node.labels.get(key).cloned().unwrap_or_default();
    let name = metadata_text(node, "WORKLOAD_NAME").unwrap_or_default();
    let first = |keys: [&str; 3]| keys.into_iter().map(label).find(|v| !v.is_empty());
    let canonical =
        first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or_else(|| name.clone());
    let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Workload {
        name,
        namespace: config.node.namespace.clone(),
        app: label("app"),
        version: label("version"),
        canonical_service: canonical,
        canonical_revision: revision.unwrap_or_else(|| "latest".to_owned()),
        cluster: metadata_text(node, "CLUSTER_ID").unwrap_or_default(),
        instance: config.node.name.clone(),
        node: node.id.clone(),
        service: node.cluster.clone(),
        zone: node.locality.as_ref().map(|l| l.zone.clone()).unwrap_or_default(),
    }
}

impl NativeEngine {
    /// Starts the workers, without configuration.
    pub fn start(
        config: &AgentConfig,
        node: Node,
        store: Arc<SecretStore>,
        readiness: Arc<Readiness>,
        metrics: Arc<AgentMetrics>,
        clock: SharedClock,
    ) -> std::io::Result<Arc<Self>> {
        let options = EngineOptions {
            workers: config.concurrency,
            resume: config.session_resumption,
            workload: workload(config, &node),
            ..EngineOptions::default()
        };
        let engine = Engine::start(options, store.subscribe())?;
        Ok(Arc::new(Self {
            engine,
            node,
            store,
            readiness,
            started: clock.now(),
            clock,
            concurrency: config.concurrency,
            metrics,
            book: Mutex::default(),
        }))
    }

    /// Follows the control plane until drained; `own` is what the agent says and hears on the same stream.
    /// What was kept is in force first, until the control plane tells what is different now.
    pub async fn follow(
        self: Arc<Self>,
        connector: Connector,
        token: Token,
        own: Own,
        kept: Option<Arc<Keeper>>,
        drain: Drain,
    ) {
        let mut options = ClientOptions {
            health: own.health.clone(),
            token: Some(token),
            ..ClientOptions::new(connector, self.node.clone())
        };
        let mut follower = Follower { native: self, own, kept: None, last_reason: String::new() };
        for update in kept.iter().flat_map(|kept| kept.updates()) {
            let held: Vec<_> =
                update.upserts.iter().map(|r| (update.type_url.clone(), r.name.clone(), r.version.clone())).collect();
            // What is refused now is asked for again.
            if follower.apply(update).is_ok() {
                options.held.extend(held);
            }
        }
        follower.kept = kept;
        carrick_xds::client::run(options, follower, drain).await;
    }

    /// Looks at what was taken over.
    pub fn book<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets connections end, within the limits of `config`.
    pub async fn drain(&self, config: &DrainConfig) {
        let drained = self.engine.drain(config.duration);
        if config.exit_on_zero {
            tokio::join!(drained, tokio::time::sleep(config.minimum));
        } else {
            tokio::join!(drained, tokio::time::sleep(config.duration.max(config.minimum)));
        }
    }

    /// Secrets go to the store alone: nothing that is dumped holds them.
    fn take_secrets(&self, update: Update) -> Result<(), Nack> {
        let mut complaints = Vec::new();
        let mut changes: Vec<(String, Option<Secret>)> =
            update.removed.iter().map(|name| (name.to_string(), None)).collect();
        for resource in update.upserts {
            match read_remote(&resource.name, &resource.body) {
                Ok(secret) => changes.push((resource.name.to_string(), Some(secret))),
                Err(error) => complaints.push(format!("{}: {error}", resource.name)),
            }
        }
        self.store.set_remote(changes);
        if complaints.is_empty() { Ok(()) } else { Err(Nack { message: complaints.join("; ") }) }
    }

    fn apply(&self, update: Update) -> Result<(), Nack> {
        let now = self.clock.now();
        let type_url = update.type_url.clone();
        if type_url == TypeUrl::Secret {
            return self.take_secrets(update);
        }
        let (runtime, secrets, mut complaints) = {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            let complaints = book.take(update, now);
            (book.config.runtime(), book.config.interests().secrets, complaints)
        };
        self.store.want(secrets.iter().map(AsRef::as_ref));
        if let Err(errors) = self.engine.apply(Arc::clone(&runtime)) {
            // Told with the update that brought the listener; other types cannot mend it.
            if type_url == TypeUrl::Listener {
                complaints.extend(errors.iter().map(ToString::to_string));
            }
            for error in &errors {
                warn!(%error, "listener");
            }
        }
        let listens = |port| runtime.listeners.by_name.values().any(|l| l.bind_to_port && l.address.port() == port);
        let (outbound, inbound) = (listens(OUTBOUND_PORT), listens(INBOUND_PORT));
        self.readiness.update(|state| {
            state.clusters |= type_url == TypeUrl::Cluster;
            state.listeners |= type_url == TypeUrl::Listener;
            (state.outbound, state.inbound) = (outbound, inbound);
        });
        debug!(kind = type_url.short(), generation = runtime.generation, "configuration applied");
        if complaints.is_empty() { Ok(()) } else { Err(Nack { message: complaints.join("; ") }) }
    }
}

/// Takes updates over; lives in the task of the client.
struct Follower {
    native: Arc<NativeEngine>,
    own: Own,
    kept: Option<Arc<Keeper>>,
    last_reason: String,
}

impl Handler for Follower {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        let interests = self.native.book(|book| book.config.interests());
        let secrets = interests.secrets.into_iter().filter(|name| !SecretStore::is_local(name)).collect();
        let mut all = vec![
            (TypeUrl::Cluster, Interest::Wildcard),
            (TypeUrl::Endpoint, Interest::Names(interests.endpoints)),
            (TypeUrl::Listener, Interest::Wildcard),
            (TypeUrl::Route, Interest::Names(interests.routes)),
            (TypeUrl::Secret, Interest::Names(secrets)),
        ];
        if self.own.names.is_some() {
            all.push((NameTable::type_url(), Interest::Wildcard));
        }
        all
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        let copy = self.kept.as_ref().map(|_| update.clone());
        let result = self.take(update);
        if let (Some(kept), Some(update), Ok(())) = (&self.kept, &copy, &result) {
            kept.take(update);
            for (type_url, interest) in self.interests() {
                if let Interest::Names(names) = interest {
                    kept.retain(&type_url, |name| names.contains(name));
                }
            }
        }
        result
    }

    fn connected(&mut self) {
        self.last_reason.clear();
        info!("connected to the control plane");
    }

    fn disconnected(&mut self, reason: &str) {
        AgentMetrics::add(&self.native.metrics.xds_ends);
        if self.last_reason == reason {
            debug!(reason, "no connection to the control plane");
        } else {
            warn!(reason, "no connection to the control plane; the last configuration stays in force");
            reason.clone_into(&mut self.last_reason);
        }
    }
}

impl Follower {
    fn take(&mut self, update: Update) -> Result<(), Nack> {
        if update.type_url == NameTable::type_url() {
            let table = update.upserts.iter().find_map(|resource| NameTable::read(&resource.body));
            if let (Some(names), Some(table)) = (&self.own.names, table) {
                names(table);
            }
            return Ok(());
        }
        let result = self.native.apply(update);
        if let Err(nack) = &result {
            warn!(message = %nack.message, "configuration refused");
        }
        result
    }
}

/// The way to the control plane with the pod's own certificate, made anew for each connection.
pub fn connector(config: &AgentConfig, store: &Arc<SecretStore>) -> Result<Connector, String> {
    connector_to(&config.control_plane.discovery_address, config, store)
}

/// The same to another address of it.
pub fn connector_to(address: &str, config: &AgentConfig, store: &Arc<SecretStore>) -> Result<Connector, String> {
    let server_name = ServerName::try_from(config.control_plane.server_name.clone())
        .map_err(|_| format!("{:?} cannot be a server's name", config.control_plane.server_name))?;
    let store = Arc::clone(store);
    let provider: TlsProvider = Arc::new(move || {
        store.identity().ok_or_else(|| "no certificate yet".to_owned())?;
        let auth = ServerAuth::Dns { roots: store.authority_roots() };
        let shown = store.shown_to_authority();
        tls::client_config(shown.as_deref(), auth, &["h2"], &TlsOptions::default()).map_err(|e| e.to_string())
    });
    Ok(Connector::Tls { address: address.to_owned(), server_name, config: provider })
}

/// The service account's token, for a control plane that does not know the pod's certificate.
pub fn token(config: &AgentConfig, store: &Arc<SecretStore>) -> Token {
    let (store, file) = (Arc::clone(store), config.identity.token_file.clone());
    Arc::new(move || {
        if store.shown_to_authority().is_some() {
            return None;
        }
        let text = std::fs::read_to_string(&file).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    })
}
