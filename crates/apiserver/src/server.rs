//! Start and end of the API server: storage, bootstrap, certificates, kubeconfig, listeners, controllers.
//!
//! Invariant: when `start` returns the server answers; everything it keeps is under the data folder; a second server on
//! the same folder is refused before anything is touched.
//! With its objects in etcd, the folder still keeps the API's keys, which are the same for all servers over one etcd.
//! What it leaves to others: the process (signals, other components).

use crate::auth::certs::{self, Authority, CertError, Leaf};
use crate::auth::files;
use crate::auth::tokens::Tokens;
use crate::catalog::Catalog;
use crate::controllers::{self, Admission, RootPem};
use crate::error::ApiError;
use crate::rbac::Rbac;
use crate::rest::Api;
use crate::serve;
use crate::storage::etcd::{self, EtcdOptions};
use crate::storage::{Engine, EngineOptions, FolderLock, RedbFile, StorageError};
use crate::store::Store;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carrick_runtime::clock::{SharedClock, SystemClock};
use carrick_runtime::drain::{self, DrainTrigger, Drained};
use carrick_runtime::tasks::TaskSet;
use carrick_streams::Pods;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// For the storage to close after the last request.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// What a server is started with.
pub struct ApiOptions {
    /// Folder for everything that is kept; made if missing.
    pub data_dir: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// More addresses, the same port where theirs is 0.
    pub more: Vec<SocketAddr>,
    /// The mesh's root certificates for `istio-ca-root-cert`, when they are known.
    pub root_pem: watch::Receiver<RootPem>,
    /// The authority's revocation lists for `istio-ca-crl`, while it has some.
    pub crl_pem: watch::Receiver<RootPem>,
    /// Whoever runs pods on this machine, for `exec`, `attach`, `logs` and `port-forward`.
    pub pods: Option<Arc<dyn Pods>>,
    /// Time.
    pub clock: SharedClock,
    /// Sizes of the storage engine.
    pub engine: EngineOptions,
    /// Where objects are kept instead of the data folder.
    pub etcd: Option<EtcdOptions>,
    /// How long a server that shares its storage has the loops' turn without renewing it.
    pub turn: Duration,
}

impl ApiOptions {
    /// Loopback at `port`, no root certificates yet.
    pub fn new(data_dir: impl Into<PathBuf>, port: u16) -> Self {
        Self {
            data_dir: data_dir.into(),
            bind: (Ipv4Addr::LOCALHOST, port).into(),
            more: Vec::new(),
            root_pem: watch::channel(None).1,
            crl_pem: watch::channel(None).1,
            pods: None,
            clock: SystemClock::shared(),
            engine: EngineOptions::default(),
            etcd: None,
            turn: controllers::TURN,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder, its lock or its file.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// Keys and certificates.
    #[error("{0}")]
    Certificates(#[from] CertError),
    /// A file or folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// First objects.
    #[error("cannot create the first objects: {0}")]
    Bootstrap(#[from] ApiError),
}

/// A running server. Dropping it stops it at once.
pub struct ApiServer {
    api: Arc<Api>,
    address: SocketAddr,
    kubeconfig: PathBuf,
    trigger: DrainTrigger,
    /// Listeners; they end by the drain.
    servers: TaskSet,
    /// Controllers; they are stopped.
    loops: TaskSet,
    /// Where the storage is not in the folder, and so does not hold it.
    _lock: Option<FolderLock>,
}

impl ApiServer {
    /// Opens the data folder, brings everything up and starts answering. Not cancel safe.
    ///
    /// # Errors
    /// `StartError`; nothing keeps running then.
    pub async fn start(options: ApiOptions) -> Result<Self, StartError> {
        let ApiOptions { data_dir, bind, more, root_pem, crl_pem, pods, clock, engine, etcd, turn } = options;
        let pki = data_dir.join("pki");
        for folder in [&data_dir, &pki] {
            files::private_folder(folder).map_err(|source| StartError::File { path: folder.clone(), source })?;
        }
        let folder = data_dir.clone();
        let now = clock.now().into();
        let open = move || match etcd {
            None => Ok((Engine::start(RedbFile::open(&folder)?, engine)?, None)),
            Some(cluster) => {
                let lock = FolderLock::take(&folder)?;
                share_keys(&cluster, &folder.join("pki"), now)?;
                Ok::<_, StartError>((Engine::over_etcd(cluster, engine)?, Some(lock)))
            }
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let (engine, lock) = opened.map_err(|e| StorageError::Medium(e.to_string()))??;
        let store = Store::new(engine, Catalog::of(carrick_api::kinds::registry()), clock);
        controllers::bootstrap(&store).await?;

        let first = listen(bind).await?;
        let address = first.local_addr().map_err(|source| StartError::Listen { address: bind, source })?;
        let mut listeners = vec![first];
        let mut bound = vec![address];
        for mut extra in more {
            if extra.port() == 0 {
                extra.set_port(address.port());
            }
            listeners.push(listen(extra).await?);
            bound.push(extra);
        }

        let now = store.now();
        let authority = Authority::load_or_create(&pki, now)?;
        let tls = serve::tls(&authority, authority.server(&serve::certificate_addresses(&bound), now)?)?;
        let admin = authority.client("kubernetes-admin", "system:masters", now)?;
        let kubeconfig = data_dir.join("kubeconfig");
        write_kubeconfig(&kubeconfig, address, &authority, &admin)?;

        let tokens = Tokens::load_or_create(&pki, store.clone())?;
        let (trigger, drain) = drain::channel();
        let authorizer = Arc::new(Rbac::new(store.clone()));
        let admission = Admission::new(store.clone());
        let mut api = Api::new(store.clone(), authorizer, admission, tokens, drain.clone());
        api.pods = pods;
        let api = Arc::new(api);
        let mut servers = TaskSet::new();
        for (listener, address) in listeners.into_iter().zip(bound) {
            servers.spawn(format!("api {address}"), serve::run(listener, tls.clone(), api.clone(), drain.clone()));
        }
        let mut loops = TaskSet::new();
        controllers::start(&store, authority.certificate_pem().into(), root_pem, crl_pem, turn, &mut loops);
        api.set_ready();
        tracing::info!(%address, data = %data_dir.display(), revision = store.revision(), "the API answers");
        Ok(Self { api, address, kubeconfig, trigger, servers, loops, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// All objects, without HTTP.
    pub fn store(&self) -> &Store {
        &self.api.store
    }

    /// Makes the counters' text whenever asked, for an admin server elsewhere.
    pub fn metrics(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let api = self.api.clone();
        move || api.metrics_text()
    }

    /// Ends watches, lets requests finish for at most `deadline`, stops the controllers.
    pub async fn drain(self, deadline: Duration) -> Drained {
        let Self { api, trigger, servers, loops, .. } = self;
        let closed = api.store.engine().ended();
        loops.abort().await;
        drop(api);
        // The API's own share of the drain is held by the listeners' tasks from here on.
        let drained = trigger.drain(deadline).await;
        servers.abort().await;
        if tokio::time::timeout(CLOSE_TIME, closed).await.is_err() {
            tracing::warn!("the storage is still in use at the end of the drain");
        }
        drained
    }
}

/// Makes the API's keys those that all servers over this etcd have; the first one's are everybody's.
fn share_keys(cluster: &EtcdOptions, pki: &Path, now: time::OffsetDateTime) -> Result<(), StartError> {
    Authority::load_or_create(pki, now)?;
    certs::load_or_create_key(&pki.join(certs::TOKEN_KEY))?;
    let named = |name: &str| {
        let path = pki.join(name);
        move |source| StartError::File { path, source }
    };
    let mut entries = Vec::new();
    for name in certs::SHARED {
        entries.push((name, std::fs::read(pki.join(name)).map_err(named(name))?));
    }
    let all = etcd::agree(cluster, entries.clone())?;
    for ((name, ours), theirs) in entries.into_iter().zip(all) {
        if ours != theirs {
            tracing::info!(name, "taken from etcd, where another server has put it");
            files::write(&pki.join(name), &theirs, 0o600).map_err(named(name))?;
        }
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn write_kubeconfig(path: &Path, address: SocketAddr, authority: &Authority, admin: &Leaf) -> Result<(), StartError> {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let config = kubeconfig(SocketAddr::new(ip, address.port()), authority.certificate_pem(), admin);
    // JSON is YAML, and every reader of kubeconfigs reads it.
    let text = serde_saphyr::to_string(&config).unwrap_or_else(|_| config.to_string());
    files::write(path, text.as_bytes(), 0o600).map_err(|source| StartError::File { path: path.to_owned(), source })
}

fn kubeconfig(server: SocketAddr, authority: &str, admin: &Leaf) -> Value {
    let encode = |pem: &str| STANDARD.encode(pem);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "carrick", "cluster": {
            "server": format!("https://{server}"), "certificate-authority-data": encode(authority),
        }}],
        "users": [{"name": "kubernetes-admin", "user": {
            "client-certificate-data": encode(&admin.certificate_pem), "client-key-data": encode(&admin.key_pem),
        }}],
        "contexts": [{"name": "carrick", "context": {"cluster": "carrick", "user": "kubernetes-admin"}}],
        "current-context": "carrick",
    })
}
