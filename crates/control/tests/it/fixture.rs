//! A control plane on free ports whose objects are told, and a client that remembers what it got.

use carrick_api::MeshConfig;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_control::rotation::RotationOptions;
use carrick_control::source::{Change, Event, KINDS, Kind};
use carrick_control::{Control, ControlOptions, Objects, ReviewError, TokenReviewer};
use carrick_pki::Identity;
use carrick_pki::ca::{Authority, CaOptions, Subject};
use carrick_pki::tls::{ServerAuth, TlsOptions, client_config};
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_runtime::metrics::Metrics;
use carrick_xds::client::{ClientOptions, Connector, Handler, Interest, Nack, Update, run};
use carrick_xds::health::Health;
use carrick_xds::name_table::NameTable;
use carrick_xds::node::text;
use carrick_xds::{Any, Node, NodeId, TypeUrl};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};

/// Tokens here are `namespace/serviceaccount`.
pub struct Words;

#[tonic::async_trait]
impl TokenReviewer for Words {
    async fn review(&self, token: &str) -> Result<(String, String), ReviewError> {
        match token.split_once('/') {
            _ if token == "down" => Err(ReviewError::Unavailable("the API is away".into())),
            Some((namespace, account)) => Ok((namespace.to_owned(), account.to_owned())),
            None => Err(ReviewError::Refused("no such token".into())),
        }
    }
}

pub struct World {
    pub control: Control,
    pub authority: Arc<Authority>,
    events: mpsc::Sender<Event>,
    objects: BTreeMap<Kind, BTreeMap<(String, String), Value>>,
    version: u64,
}

pub fn authority(dir: &Path) -> Arc<Authority> {
    Arc::new(Authority::load_or_create(dir, CaOptions::default(), SystemTime::now()).expect("authority"))
}

pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl World {
    /// Starts with nothing listed yet.
    pub async fn start(authority: Arc<Authority>, xds: SocketAddr) -> Self {
        Self::begin(authority, xds, None).await
    }

    /// The same with a port for gRPC libraries.
    pub async fn with_plain_port(authority: Arc<Authority>) -> Self {
        Self::begin(authority, local(0), Some(0)).await
    }

    /// One whose roots may change.
    pub async fn rotating(authority: Arc<Authority>, rotation: RotationOptions) -> Self {
        Self::begin_with(authority, local(0), None, Some(rotation)).await
    }

    async fn begin(authority: Arc<Authority>, xds: SocketAddr, plain_xds_port: Option<u16>) -> Self {
        Self::begin_with(authority, xds, plain_xds_port, None).await
    }

    async fn begin_with(
        authority: Arc<Authority>,
        xds: SocketAddr,
        plain_xds_port: Option<u16>,
        rotation: Option<RotationOptions>,
    ) -> Self {
        Self::with(authority, |options| {
            (options.xds_addr, options.plain_xds, options.rotation) = (xds, plain_xds_port.map(local), rotation);
        })
        .await
    }

    /// With other options.
    pub async fn with(authority: Arc<Authority>, change: impl FnOnce(&mut ControlOptions)) -> Self {
        let (events, receiver) = mpsc::channel(4096);
        let mut options = ControlOptions {
            leading: None,
            mesh_map: "istio".to_owned(),
            resident: None,
            objects: Objects::Told(receiver),
            reviewer: Arc::new(Words),
            authority: authority.clone(),
            rotation: None,
            ledger: None,
            mesh_config: MeshConfig::default(),
            mesh_file: None,
            xds_addr: local(0),
            plain_xds: None,
            debug_addr: local(0),
            name: "carrick-test".into(),
            version: "1".into(),
            server_names: vec![],
            server_ips: vec![Ipv4Addr::LOCALHOST.into()],
            server_cert_ttl: Duration::from_secs(3600),
            cluster_id: "Kubernetes".into(),
            mesh_networks: Default::default(),
            debounce: Default::default(),
            keys: Default::default(),
            machine_grace: Duration::from_secs(10),
            federation: Default::default(),
            metrics: Metrics::new(),
        };
        change(&mut options);
        let control = Control::start(options).await.expect("starts");
        Self { control, authority, events, objects: BTreeMap::new(), version: 100 }
    }

    /// Around a control plane whose objects come from elsewhere.
    pub fn of(control: Control, authority: Arc<Authority>) -> Self {
        Self { control, authority, events: mpsc::channel(1).0, objects: BTreeMap::new(), version: 0 }
    }

    pub async fn new(authority: Arc<Authority>) -> Self {
        Self::start(authority, local(0)).await
    }

    /// Puts an object into the world before it is listed.
    pub fn put(&mut self, kind: Kind, mut object: Value) -> u64 {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (name("namespace"), name("name"));
        self.objects.entry(kind).or_default().insert(key, object);
        self.version
    }

    /// The first list of everything.
    pub async fn list(&self) {
        for info in &KINDS {
            let all = self.objects.get(&info.kind).map(|m| m.values().cloned().collect()).unwrap_or_default();
            self.tell(info.kind, Change::Replace(all)).await;
        }
        tokio::time::timeout(Duration::from_secs(20), self.control.ready()).await.expect("ready");
    }

    pub async fn tell(&self, kind: Kind, change: Change) {
        self.events.send(Event { kind, change }).await.expect("control runs");
    }

    pub async fn apply(&mut self, kind: Kind, object: Value) -> u64 {
        let version = self.put(kind, object.clone());
        let mut object = object;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.tell(kind, Change::Apply(object)).await;
        version
    }

    pub async fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> u64 {
        self.version += 1;
        let key = (namespace.to_owned(), name.to_owned());
        let mut object = self.objects.entry(kind).or_default().remove(&key).expect("exists");
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(kind, Change::Delete(object)).await;
        self.version
    }

    /// A service with one pod behind it, in a namespace of its own kind.
    pub fn service(&mut self, namespace: &str, name: &str, number: u32) {
        let ip = Ipv4Addr::from(0x0af4_0000 + number).to_string();
        let cluster_ip = Ipv4Addr::from(0x0a60_0000 + number).to_string();
        self.put(Kind::Namespace, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        self.put(Kind::Service, json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "selector": {"app": name}, "type": "ClusterIP",
                     "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}}));
        self.put(Kind::Pod, pod(namespace, name, &ip));
        self.put(Kind::EndpointSlice, slice(namespace, name, &[&ip]));
    }

    pub fn identity(&self, namespace: &str, account: &str) -> Identity {
        let spiffe = SpiffeId::istio(&TrustDomain::default(), namespace, account);
        self.authority.issue(&Subject::Workload(spiffe), None, SystemTime::now()).expect("identity")
    }

    pub fn connector(&self, identity: Option<Identity>) -> Connector {
        connector(&self.authority, self.control.xds_addr(), identity)
    }

    /// Answer of a debug page.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.control.debug_addr()).await.expect("debug port");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "x").body(Empty::<&[u8]>::new()).expect("request");
        let response = sender.send_request(request).await.expect("answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        driver.abort();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

pub fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace,
            "labels": {"app": name, "security.istio.io/tlsMode": "istio"},
            "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"serviceAccountName": name, "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

pub fn slice(namespace: &str, name: &str, ips: &[&str]) -> Value {
    let endpoints: Vec<Value> = ips
        .iter()
        .enumerate()
        .map(|(number, ip)| {
            // The first is the pod's; the others are nobody's the API knows.
            let pod = (number == 0).then(|| json!({"kind": "Pod", "name": name, "namespace": namespace}));
            json!({"addresses": [ip], "conditions": {"ready": true}, "targetRef": pod})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{name}-1"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

pub fn connector(authority: &Authority, address: SocketAddr, identity: Option<Identity>) -> Connector {
    let roots = authority.roots();
    Connector::Tls {
        address: address.to_string(),
        server_name: "istiod.istio-system.svc".try_into().expect("a name"),
        config: Arc::new(move || {
            client_config(identity.as_ref(), ServerAuth::Dns { roots: roots.clone() }, &["h2"], &TlsOptions::default())
                .map_err(|error| error.to_string())
        }),
    }
}

pub fn node(namespace: &str, name: &str, ip: IpAddr) -> Node {
    let id = NodeId::sidecar(ip, name, namespace, "cluster.local");
    let mut node = Node { id: id.to_string(), cluster: format!("{name}.{namespace}"), ..Default::default() };
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert("NAMESPACE".into(), text(namespace));
    fields.insert("SERVICE_ACCOUNT".into(), text(name));
    fields.insert("CLUSTER_ID".into(), text("Kubernetes"));
    fields.insert("ISTIO_VERSION".into(), text("1.30.0"));
    node
}

#[derive(Default)]
pub struct Got {
    pub held: BTreeMap<TypeUrl, BTreeMap<String, Any>>,
    pub updates: Vec<(TypeUrl, Vec<String>, Vec<String>)>,
    pub reasons: Vec<String>,
    /// Cluster names that are to be refused.
    pub refuse: BTreeSet<String>,
}

/// Who is told, what is got, and whether names of the mesh are wanted.
struct Taker(watch::Sender<()>, Arc<Mutex<Got>>, bool);

impl Handler for Taker {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        let got = self.1.lock().expect("got");
        let clusters = got.held.get(&TypeUrl::Cluster);
        let names = clusters
            .into_iter()
            .flat_map(|m| m.keys())
            .filter(|name| name.starts_with("outbound|"))
            .map(|name| Arc::from(name.as_str()))
            .collect();
        let mut all = vec![
            (TypeUrl::Cluster, Interest::Wildcard),
            (TypeUrl::Endpoint, Interest::Names(names)),
            (TypeUrl::Listener, Interest::Wildcard),
        ];
        if self.2 {
            all.push((NameTable::type_url(), Interest::Wildcard));
        }
        all
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        let mut got = self.1.lock().expect("got");
        if let Some(bad) = update.upserts.iter().find(|r| got.refuse.contains(&*r.name)) {
            return Err(Nack { message: format!("{}: not here", bad.name) });
        }
        let names = update.upserts.iter().map(|r| r.name.to_string()).collect();
        let removed: Vec<String> = update.removed.iter().map(|r| r.to_string()).collect();
        let held = got.held.entry(update.type_url.clone()).or_default();
        held.extend(update.upserts.into_iter().map(|r| (r.name.to_string(), r.body)));
        removed.iter().for_each(|name| drop(held.remove(name)));
        got.updates.push((update.type_url, names, removed));
        drop(got);
        self.0.send_replace(());
        Ok(())
    }

    fn disconnected(&mut self, reason: &str) {
        self.1.lock().expect("got").reasons.push(reason.to_owned());
        self.0.send_replace(());
    }
}

/// A connected proxy.
pub struct Proxy {
    changed: watch::Receiver<()>,
    pub got: Arc<Mutex<Got>>,
    trigger: DrainTrigger,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub fn start(connector: Connector, node: Node, token: Option<&str>) -> Self {
        Self::refusing(connector, node, token, &[])
    }

    pub fn refusing(connector: Connector, node: Node, token: Option<&str>, refuse: &[&str]) -> Self {
        Self::telling(connector, node, token, refuse, None)
    }

    /// With the health of its workload, as an agent tells it; it wants to know the mesh's names, too.
    pub fn telling(
        connector: Connector,
        node: Node,
        token: Option<&str>,
        refuse: &[&str],
        health: Option<watch::Receiver<Option<Health>>>,
    ) -> Self {
        let (sender, changed) = watch::channel(());
        let got =
            Arc::new(Mutex::new(Got { refuse: refuse.iter().map(|s| s.to_string()).collect(), ..Default::default() }));
        let (trigger, drain) = drain::channel();
        let mut options = ClientOptions::new(connector, node);
        options.backoff = (Duration::from_millis(10), Duration::from_millis(100));
        let names = health.is_some();
        options.health = health;
        let token = token.map(str::to_owned);
        options.token = token.map(|token| -> carrick_xds::client::Token { Arc::new(move || Some(token.clone())) });
        let taker = Taker(sender, got.clone(), names);
        let task = tokio::spawn(async move { drop(run(options, taker, drain).await) });
        Self { changed, got, trigger, task }
    }

    pub async fn until(&mut self, what: &str, f: impl Fn(&Got) -> bool) {
        let got = self.got.clone();
        let reached = self.changed.wait_for(|()| f(&got.lock().expect("got")));
        if tokio::time::timeout(Duration::from_secs(20), reached).await.is_err() {
            let got = self.got.lock().expect("got");
            let names: Vec<_> = got.held.iter().map(|(t, m)| (t.clone(), m.len())).collect();
            panic!("{what}: held {names:?}, reasons {:?}", got.reasons);
        }
    }

    pub fn updates(&self) -> usize {
        self.got.lock().expect("got").updates.len()
    }

    pub async fn stop(self) {
        self.trigger.drain(Duration::from_secs(2)).await;
        let _ = self.task.await;
    }
}

pub fn count(got: &Got, t: &TypeUrl) -> usize {
    got.held.get(t).map_or(0, BTreeMap::len)
}
