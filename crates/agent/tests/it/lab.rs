//! A control plane in miniature, an agent's configuration for it, and waits for conditions.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use carrick_agent::config::{AgentConfig, ControlPlane, DrainConfig, EngineKind, IdentityConfig, NodeConfig, Ports};
use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::ca_service::{
    CertificateServer, CertificateService, IstioCertificateRequest, IstioCertificateResponse, ROOTS,
};
use carrick_pki::join::JoinToken;
use carrick_pki::tls::{self, ClientAuth, PeerPolicy, TlsOptions, VerifiedPeer};
use carrick_pki::{Authority, CaOptions, Identity, KeyAlgorithm, Subject};
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_xds::server::{
    Hello, ListenOptions, Observer, Opened, Peer, SessionStatus, Source, ads_service, serve_tls,
};
use carrick_xds::{Resource, ResourceSet, TypeUrl};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub const TOKEN: &str = "good-token";

/// Waits for a condition, at most ten seconds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A folder that goes away.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("carrick-agent-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a caller proved itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    Token(String),
    Certificate(SpiffeId),
    Nothing,
}

/// A certificate authority that writes down who asked.
pub struct Ca {
    pub authority: Authority,
    pub asked: Mutex<Vec<Proof>>,
    pub accepts_tokens: Mutex<bool>,
    /// Whom it names, whoever asks.
    pub names: Mutex<SpiffeId>,
}

struct CaServer(Arc<Ca>);

#[tonic::async_trait]
impl CertificateService for CaServer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|p| p.identity.clone());
        let token = request.metadata().get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let proof = match (peer, token) {
            (Some(id), _) => Proof::Certificate(id),
            (None, Some(token)) => Proof::Token(token.trim_start_matches("Bearer ").to_owned()),
            (None, None) => Proof::Nothing,
        };
        self.0.asked.lock().unwrap().push(proof.clone());
        let trusted = match &proof {
            Proof::Token(token) => {
                *self.0.accepts_tokens.lock().unwrap() && (token == TOKEN || JoinToken::is_one(token))
            }
            Proof::Certificate(_) => true,
            Proof::Nothing => false,
        };
        if !trusted {
            let mut status = Status::unauthenticated("who are you?");
            let roots = self.0.authority.roots().to_pem();
            status.metadata_mut().insert_bin(ROOTS, tonic::metadata::MetadataValue::from_bytes(roots.as_bytes()));
            return Err(status);
        }
        let request = request.into_inner();
        let ttl = u64::try_from(request.validity_duration).ok().map(Duration::from_secs);
        let subject = Subject::Workload(self.0.names.lock().unwrap().clone());
        let issued = self
            .0
            .authority
            .sign(&request.csr, &subject, ttl, SystemTime::now())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.into_wire() }))
    }
}

/// An xDS server that gives everybody the same.
pub struct Xds {
    pub sets: watch::Sender<ResourceSet>,
    pub peers: Mutex<Vec<Option<SpiffeId>>>,
    pub status: Arc<Mutex<SessionStatus>>,
}

impl Xds {
    /// Whether there were streams, and all of them were opened with this identity.
    pub fn streams_are_of(&self, id: &SpiffeId) -> bool {
        let peers = self.peers.lock().unwrap();
        !peers.is_empty() && peers.iter().all(|peer| peer.as_ref() == Some(id))
    }
}

struct Watcher(Arc<Mutex<SessionStatus>>);

impl Observer for Watcher {
    fn changed(&mut self, status: &SessionStatus) {
        *self.0.lock().unwrap() = status.clone();
    }
}

impl Source for Xds {
    async fn open(&self, hello: Hello) -> Result<Opened, Status> {
        self.peers.lock().unwrap().push(hello.peer.identity);
        Ok(Opened { sets: self.sets.subscribe(), observer: Box::new(Watcher(Arc::clone(&self.status))), turns: None })
    }
}

/// Both on one port, as istiod has them.
pub struct Plane {
    pub folder: Folder,
    pub address: SocketAddr,
    pub ca: Arc<Ca>,
    pub xds: Arc<Xds>,
    trigger: Option<DrainTrigger>,
}

pub fn workload() -> SpiffeId {
    SpiffeId::istio(&TrustDomain::default(), "basic", "shop")
}

impl Plane {
    pub async fn start() -> Self {
        let folder = Folder::new();
        let options = CaOptions { algorithm: KeyAlgorithm::EcdsaP256, ..CaOptions::default() };
        let authority = Authority::load_or_create(&folder.path().join("ca"), options, SystemTime::now()).unwrap();
        std::fs::write(folder.path().join("root.pem"), authority.roots().to_pem()).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let ca = Arc::new(Ca {
            authority,
            asked: Mutex::default(),
            accepts_tokens: Mutex::new(true),
            names: Mutex::new(workload()),
        });
        let xds = Arc::new(Xds {
            sets: watch::Sender::new(ResourceSet::default()),
            peers: Mutex::default(),
            status: Arc::default(),
        });
        let mut plane = Self { folder, address: ([127, 0, 0, 1], 0).into(), ca, xds, trigger: None };
        plane.listen().await;
        plane
    }

    /// Begins to listen, on the same port as before if there was one.
    pub async fn listen(&mut self) {
        let subject = Subject::Server { dns: vec!["istiod.istio-system.svc".into()], ips: vec![] };
        let own = self.ca.authority.issue(&subject, None, SystemTime::now()).unwrap();
        let policy = PeerPolicy::new(self.ca.authority.roots(), vec![]);
        let config = tls::server_config(&own, ClientAuth::Optional(policy), &["h2"], &TlsOptions::default()).unwrap();
        let identify = Arc::new(|connection: &rustls::ServerConnection| {
            Ok(VerifiedPeer::of_client(connection).and_then(|peer| peer.spiffe().cloned()))
        });
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let mut routes = Routes::new(CertificateServer::new(CaServer(Arc::clone(&self.ca))));
        routes = routes.add_service(ads_service(Arc::clone(&self.xds)));
        let (trigger, drain) = drain::channel();
        let tls = Arc::new(move || Arc::clone(&config));
        tokio::spawn(serve_tls(listener, routes, tls, identify, ListenOptions::default(), drain));
        self.trigger = Some(trigger);
    }

    /// Stops listening and cuts every connection.
    pub async fn stop(&mut self) {
        if let Some(trigger) = self.trigger.take() {
            trigger.drain(Duration::from_secs(5)).await;
        }
    }

    pub fn publish(&self, generation: u64, resources: Vec<(TypeUrl, Resource)>) {
        let mut types: std::collections::BTreeMap<TypeUrl, carrick_xds::TypeMap> = Default::default();
        for (type_url, resource) in resources {
            types.entry(type_url).or_default().insert(resource.name.clone(), Arc::new(resource));
        }
        let types = types.into_iter().map(|(t, map)| (t, Arc::new(map))).collect();
        self.xds.sets.send_replace(ResourceSet::new(generation, generation.to_string(), types));
    }

    pub fn config(&self, engine: EngineKind) -> AgentConfig {
        let path = |name: &str| self.folder.path().join(name);
        let admin = if engine == EngineKind::Native { 0 } else { free_port() };
        AgentConfig {
            role: carrick_agent::Role::Sidecar,
            node: NodeConfig {
                name: "shop-1".into(),
                namespace: "basic".into(),
                service_account: "shop".into(),
                ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
                cluster_domain: "cluster.local".into(),
                trust_domain: TrustDomain::default(),
                labels: [("app".to_owned(), "shop".to_owned())].into(),
                annotations: Default::default(),
                metadata: Default::default(),
            },
            engine,
            concurrency: 1,
            session_resumption: true,
            control_plane: ControlPlane {
                discovery_address: self.address.to_string(),
                ca_address: self.address.to_string(),
                server_name: "istiod.istio-system.svc".into(),
                root_file: path("root.pem"),
            },
            identity: IdentityConfig {
                token_file: path("token"),
                folder: None,
                credentials: None,
                ttl: Duration::from_secs(3600),
                grace_ratio: 0.5,
                grace_jitter: 0.01,
                algorithm: KeyAlgorithm::EcdsaP256,
            },
            state_dir: path("state"),
            workload_api_socket: None,
            drain: DrainConfig { duration: Duration::from_secs(5), minimum: Duration::ZERO, exit_on_zero: true },
            dns: None,
            probe: None,
            app_probes: Default::default(),
            app_metrics: None,
            ports: Ports { bind: Ipv4Addr::LOCALHOST.into(), admin, status: 0, health: 0, prometheus: 0 },
            log_level: "info".into(),
            log_json: false,
        }
    }

    /// An identity of another workload of the mesh.
    pub fn other(&self, account: &str) -> Identity {
        let id = SpiffeId::istio(&TrustDomain::default(), "basic", account);
        self.ca.authority.issue(&Subject::Workload(id), None, SystemTime::now()).unwrap()
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// One HTTP/1 exchange in the clear; status and body.
pub async fn http(address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}
