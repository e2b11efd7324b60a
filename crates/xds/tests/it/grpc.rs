//! Server and client over gRPC on loopback and Unix sockets: admission, reconnection, back-pressure of nothing.

use crate::{resource, set};
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_xds::TypeUrl::{self, Cluster, Endpoint, Listener};
use carrick_xds::client::{ClientOptions, Connector, Handler, Interest, Nack, Update, run};
use carrick_xds::relay::{Keep, Own, RelayEvent, relay_service};
use carrick_xds::server::{
    Hello, ListenOptions, Observer, Opened, SessionStatus, Source, ads_service, sds_service, serve_plain, serve_unix,
};
use carrick_xds::{Node, ResourceSet};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tonic::Status;

/// A source with the same resources for everybody.
pub struct FixedSource {
    sets: watch::Sender<ResourceSet>,
    status: watch::Sender<SessionStatus>,
    refuse: bool,
    turns: Option<Arc<Semaphore>>,
}

struct Follow(Arc<FixedSource>);

impl Observer for Follow {
    fn changed(&mut self, status: &SessionStatus) {
        self.0.status.send_replace(status.clone());
    }
}

impl FixedSource {
    pub fn new(set: ResourceSet) -> Arc<Self> {
        Arc::new(Self {
            sets: watch::channel(set).0,
            status: watch::channel(SessionStatus::default()).0,
            refuse: false,
            turns: None,
        })
    }

    fn refusing() -> Arc<Self> {
        let (sets, status) = (watch::channel(ResourceSet::default()).0, watch::channel(SessionStatus::default()).0);
        Arc::new(Self { sets, status, refuse: true, turns: None })
    }

    pub fn set(&self, set: ResourceSet) {
        self.sets.send_replace(set);
    }

    pub fn status(&self) -> SessionStatus {
        self.status.borrow().clone()
    }

    /// Waits until a client has acknowledged clusters and everything else up to a generation.
    pub async fn acknowledged(&self, generation: u64) {
        let mut status = self.status.subscribe();
        let reached = status.wait_for(|s| s.types.contains_key(&Cluster) && s.acknowledged >= generation);
        if tokio::time::timeout(Duration::from_secs(20), reached).await.is_err() {
            panic!("generation {generation} is not acknowledged: {:#?}", self.status());
        }
    }

    /// How many responses of which type were sent on the last stream.
    pub fn sent(&self) -> Vec<(&'static str, u64)> {
        let status = self.status();
        let names = ["CDS", "EDS", "LDS", "RDS", "SDS"];
        let pushes = TypeUrl::ORDERED.iter().map(|t| status.types.get(t).map_or(0, |s| s.pushes));
        names.into_iter().zip(pushes).filter(|(_, n)| *n > 0).collect()
    }
}

struct Fixed(Arc<FixedSource>);

impl Source for Fixed {
    async fn open(&self, hello: Hello) -> Result<Opened, Status> {
        if self.0.refuse {
            return Err(Status::permission_denied(format!("not you, {}", hello.node.id)));
        }
        Ok(Opened {
            sets: self.0.sets.subscribe(),
            observer: Box::new(Follow(self.0.clone())),
            turns: self.0.turns.clone(),
        })
    }
}

/// A running server.
pub struct Served {
    trigger: DrainTrigger,
    task: tokio::task::JoinHandle<()>,
    pub address: Option<SocketAddr>,
}

impl Served {
    pub fn unix(socket: &Path, source: Arc<FixedSource>) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = tokio::net::UnixListener::bind(socket).expect("bind");
        let (trigger, drain) = drain::channel();
        let fixed = Arc::new(Fixed(source));
        let routes = tonic::service::Routes::new(ads_service(fixed.clone())).add_service(sds_service(fixed));
        let task = tokio::spawn(serve_unix(listener, routes, ListenOptions::default(), drain));
        Self { trigger, task, address: None }
    }

    async fn tcp(address: SocketAddr, source: Arc<FixedSource>) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let (trigger, drain) = drain::channel();
        let routes = tonic::service::Routes::new(ads_service(Arc::new(Fixed(source))));
        let task = tokio::spawn(serve_plain(listener, routes, ListenOptions::default(), drain));
        Self { trigger, task, address: Some(address) }
    }

    pub async fn stop(self) {
        self.trigger.drain(Duration::from_secs(2)).await;
        self.task.await.expect("the server does not panic");
    }
}

/// Takes clusters, and the endpoints they are named like.
#[derive(Default)]
struct State {
    held: BTreeMap<(TypeUrl, String), u8>,
    updates: usize,
    connected: usize,
    reasons: Vec<String>,
}

struct Taker(watch::Sender<Arc<Mutex<State>>>);

impl Taker {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let out = f(&mut self.0.borrow().lock().expect("state"));
        self.0.send_modify(|_| {});
        out
    }
}

impl Handler for Taker {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        let names: BTreeSet<Arc<str>> = self
            .with(|s| s.held.keys().filter(|(t, _)| *t == Cluster).map(|(_, name)| Arc::from(name.as_str())).collect());
        vec![(Cluster, Interest::Wildcard), (Endpoint, Interest::Names(names)), (Listener, Interest::Wildcard)]
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        self.with(|s| {
            s.updates += 1;
            for r in update.upserts {
                s.held.insert((update.type_url.clone(), r.name.to_string()), r.body.value[0]);
            }
            for name in update.removed {
                s.held.remove(&(update.type_url.clone(), name.to_string()));
            }
        });
        Ok(())
    }

    fn connected(&mut self) {
        self.with(|s| s.connected += 1);
    }

    fn disconnected(&mut self, reason: &str) {
        self.with(|s| s.reasons.push(reason.to_owned()));
    }
}

struct Client {
    state: watch::Receiver<Arc<Mutex<State>>>,
    trigger: DrainTrigger,
    task: tokio::task::JoinHandle<Taker>,
}

impl Client {
    fn start(connector: Connector) -> Self {
        let (sender, state) = watch::channel(Arc::new(Mutex::new(State::default())));
        let (trigger, drain) = drain::channel();
        let node = Node { id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local".into(), ..Default::default() };
        let mut options = ClientOptions::new(connector, node);
        options.backoff = (Duration::from_millis(5), Duration::from_millis(50));
        let task = tokio::spawn(run(options, Taker(sender), drain));
        Self { state, trigger, task }
    }

    async fn until(&mut self, what: &str, f: impl Fn(&State) -> bool) {
        let reached = self.state.wait_for(|s| f(&s.lock().expect("state")));
        if tokio::time::timeout(Duration::from_secs(10), reached).await.is_err() {
            let state = self.state.borrow().clone();
            let state = state.lock().expect("state");
            panic!("{what}: {:?} {:?}", state.held, state.reasons);
        }
    }

    fn updates(&self) -> usize {
        self.state.borrow().lock().expect("state").updates
    }

    async fn stop(self) {
        self.trigger.drain(Duration::from_secs(2)).await;
        self.task.await.expect("the client does not panic");
    }
}

fn holds(state: &State, t: TypeUrl, name: &str, body: u8) -> bool {
    state.held.get(&(t, name.to_owned())) == Some(&body)
}

#[tokio::test]
async fn a_client_follows_and_comes_back_for_the_difference() {
    let resources = [(Cluster, "a", 1), (Endpoint, "a", 1), (Listener, "l", 1), (Endpoint, "unwanted", 1)];
    let source = FixedSource::new(set(1, &resources));
    let served = Served::tcp(([127, 0, 0, 1], 0).into(), source.clone()).await;
    let address = served.address.expect("tcp");
    let mut client = Client::start(Connector::Plain { address: address.to_string() });
    client
        .until("all of it", |s| holds(s, Cluster, "a", 1) && holds(s, Endpoint, "a", 1) && holds(s, Listener, "l", 1))
        .await;
    source.acknowledged(1).await;
    source.set(set(2, &[(Cluster, "b", 1), (Endpoint, "b", 1), (Endpoint, "a", 1), (Listener, "l", 2)]));
    client
        .until("the change", |s| {
            holds(s, Endpoint, "b", 1) && holds(s, Listener, "l", 2) && !s.held.contains_key(&(Cluster, "a".into()))
        })
        .await;
    source.acknowledged(2).await;

    let before = client.updates();
    served.stop().await;
    client.until("a reason", |s| !s.reasons.is_empty()).await;
    let again = FixedSource::new(set(3, &[(Cluster, "b", 1), (Endpoint, "b", 1), (Listener, "l", 2)]));
    let served = Served::tcp(address, again.clone()).await;
    again.acknowledged(3).await;
    assert_eq!(client.updates(), before, "nothing changed, nothing is sent");
    again.set(set(4, &[(Cluster, "b", 1), (Endpoint, "b", 4), (Listener, "l", 2)]));
    client.until("the endpoints", |s| holds(s, Endpoint, "b", 4)).await;
    assert_eq!(client.updates(), before + 1);
    client.stop().await;
    served.stop().await;
}

#[tokio::test]
async fn a_refused_client_hears_why_and_tries_again() {
    let served = Served::tcp(([127, 0, 0, 1], 0).into(), FixedSource::refusing()).await;
    let address = served.address.expect("tcp").to_string();
    let mut client = Client::start(Connector::Plain { address });
    client
        .until("two refusals", |s| s.reasons.iter().filter(|r| r.contains("PermissionDenied: not you")).count() >= 2)
        .await;
    client.stop().await;
    served.stop().await;
}

#[tokio::test]
async fn a_relay_passes_everything_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let source = FixedSource::new(set(1, &[(Cluster, "a", 1), (Endpoint, "a", 1), (Listener, "l", 1)]));
    let served = Served::tcp(([127, 0, 0, 1], 0).into(), source.clone()).await;
    let address = served.address.expect("tcp");
    let upstream = Connector::Plain { address: address.to_string() };
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let observer = Arc::new(move |event| seen.lock().expect("events").push(event));
    let service = relay_service(upstream, None, observer, Own::default());
    let socket = dir.path().join("relay.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
    let (trigger, drain) = drain::channel();
    let relay =
        tokio::spawn(serve_unix(listener, tonic::service::Routes::new(service), ListenOptions::default(), drain));
    let mut client = Client::start(Connector::Unix(socket));
    client.until("all of it", |s| holds(s, Endpoint, "a", 1) && holds(s, Listener, "l", 1)).await;
    source.acknowledged(1).await;
    served.stop().await;
    client.until("the loss", |s| !s.reasons.is_empty()).await;
    let unreachable =
        |events: &[RelayEvent]| matches!(events.last(), Some(RelayEvent::Failed(why)) if why.contains("refused"));
    let waited = async {
        while !unreachable(&events.lock().expect("events")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.expect("the relay tries again");
    let again = FixedSource::new(set(2, &[(Cluster, "a", 1), (Endpoint, "a", 2), (Listener, "l", 1)]));
    let served = Served::tcp(address, again).await;
    client.until("the news", |s| holds(s, Endpoint, "a", 2)).await;
    client.until("one loss only: the second stream waited", |s| s.reasons.len() == 1).await;
    served.stop().await;
    let events = events.lock().expect("events").clone();
    assert_eq!(events[0], RelayEvent::Connected);
    assert!(events.contains(&RelayEvent::Response(Endpoint.as_str().to_owned())), "{events:?}");
    client.stop().await;
    trigger.drain(Duration::from_secs(2)).await;
    relay.await.expect("the relay does not panic");
}

/// What passes, counted, and what is told instead.
struct Memory(Mutex<usize>, ResourceSet);

impl Keep for Memory {
    fn passed(&self, _: &DeltaDiscoveryResponse) {
        *self.0.lock().expect("count") += 1;
    }
    fn asked(&self, _: &DeltaDiscoveryRequest) {}
    fn set(&self) -> Option<ResourceSet> {
        Some(self.1.clone())
    }
}

#[tokio::test]
async fn a_relay_tells_what_was_kept_until_the_control_plane_is_there() {
    let dir = tempfile::tempdir().expect("tempdir");
    let free = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let address = free.local_addr().expect("bound");
    drop(free);
    let kept = Arc::new(Memory(Mutex::new(0), set(1, &[(Cluster, "a", 1), (Endpoint, "a", 1), (Listener, "l", 1)])));
    let own = Own { kept: Some(kept.clone()), ..Own::default() };
    let service = relay_service(Connector::Plain { address: address.to_string() }, None, Arc::new(|_| {}), own);
    let socket = dir.path().join("relay.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
    let (trigger, drain) = drain::channel();
    let relay =
        tokio::spawn(serve_unix(listener, tonic::service::Routes::new(service), ListenOptions::default(), drain));
    let mut client = Client::start(Connector::Unix(socket));
    client.until("what was kept", |s| holds(s, Endpoint, "a", 1) && holds(s, Listener, "l", 1)).await;
    assert_eq!(*kept.0.lock().expect("count"), 0, "what is told instead does not pass");
    // Of three resources one has changed meanwhile and one is gone.
    let source = FixedSource::new(set(7, &[(Cluster, "a", 1), (Endpoint, "a", 2)]));
    let served = Served::tcp(address, source.clone()).await;
    client.until("the news", |s| holds(s, Endpoint, "a", 2) && !holds(s, Listener, "l", 1)).await;
    source.acknowledged(7).await;
    assert!(*kept.0.lock().expect("count") > 0);
    client.stop().await;
    served.stop().await;
    trigger.drain(Duration::from_secs(2)).await;
    relay.await.expect("the relay does not panic");
}

#[tokio::test]
async fn a_push_waits_for_its_turn_and_then_takes_the_newest() {
    let turns = Arc::new(Semaphore::new(0));
    let first = set(1, &[(Cluster, "a", 1)]);
    let source = Arc::new(FixedSource {
        sets: watch::channel(first).0,
        status: watch::channel(SessionStatus::default()).0,
        refuse: false,
        turns: Some(turns.clone()),
    });
    let served = Served::tcp(([127, 0, 0, 1], 0).into(), source.clone()).await;
    let mut client = Client::start(Connector::Plain { address: served.address.expect("tcp").to_string() });
    client.until("the first, which waits for nobody", |s| holds(s, Cluster, "a", 1)).await;
    source.acknowledged(1).await;
    source.set(set(2, &[(Cluster, "a", 2)]));
    tokio::time::timeout(Duration::from_millis(100), source.acknowledged(2)).await.expect_err("it is not its turn");
    source.set(set(3, &[(Cluster, "a", 3)]));
    turns.add_permits(1);
    client.until("the newest", |s| holds(s, Cluster, "a", 3)).await;
    source.acknowledged(3).await;
    client.stop().await;
    served.stop().await;
}

#[tokio::test]
async fn nothing_known_yet_is_not_nothing() {
    let source = FixedSource::new(ResourceSet::default());
    let served = Served::tcp(([127, 0, 0, 1], 0).into(), source.clone()).await;
    let mut client = Client::start(Connector::Plain { address: served.address.expect("tcp").to_string() });
    client.until("the connection", |s| s.connected == 1).await;
    tokio::time::timeout(Duration::from_millis(100), source.acknowledged(1)).await.expect_err("nothing to acknowledge");
    assert_eq!(client.updates(), 0);
    source.set(ResourceSet::from_resources(1, "v", [(Cluster, resource(&Cluster, "a", 1))]));
    client.until("the cluster", |s| holds(s, Cluster, "a", 1)).await;
    client.stop().await;
    served.stop().await;
}
