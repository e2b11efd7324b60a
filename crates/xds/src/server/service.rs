//! The gRPC services around the sessions: aggregated discovery, and secret discovery for a local proxy.
//!
//! Invariant: a stream is one future polled by its connection (no task of its own), so it ends with it; requests are
//! read only when all earlier responses have been taken, which bounds what a slow peer can make us hold.

use super::names::NameSets;
use super::wire::{self, DeltaResponse, Outgoing, Requests};
use super::{Bearer, DeltaSession, Hello, Observer, Peer, ProtocolError, SessionStatus, SotwSession, Source};
use crate::health::Health;
use crate::{Node, NodeId, ResourceSet};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

/// Time for the first request after the stream was opened.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// Time for an answer before newer changes of the same type go out without it.
const ANSWER: Duration = Duration::from_secs(15);

/// The aggregated discovery service over a source.
pub struct AdsService<S>(Common<S>);

/// The secret discovery service over a source.
pub struct SdsService<S>(Common<S>);

/// The aggregated discovery service over `source`.
pub fn ads_service<S: Source>(source: Arc<S>) -> AdsService<S> {
    AdsService(Common { source, names: Arc::default() })
}

/// The secret discovery service over `source`: what an agent offers to the Envoy beside it on a Unix socket.
pub fn sds_service<S: Source>(source: Arc<S>) -> SdsService<S> {
    SdsService(Common { source, names: Arc::default() })
}

/// What all streams of a service have in common.
struct Common<S> {
    source: Arc<S>,
    names: Arc<NameSets>,
}

impl<S> Clone for Common<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), names: self.names.clone() }
    }
}

impl<S: Source> Common<S> {
    /// Answers a call; both services have the same methods, by names of their own.
    fn call(&self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path().rsplit('/').next() {
            Some("DeltaAggregatedResources" | "DeltaSecrets") => self.answer::<DeltaSession>(request),
            Some("StreamAggregatedResources" | "StreamSecrets") => self.answer::<SotwSession>(request),
            Some("FetchSecrets") => Status::unimplemented("secrets are streamed, not fetched").into_http(),
            _ => Status::unimplemented("there is no such method").into_http(),
        }
    }

    fn answer<K: Session>(&self, request: http::Request<Body>) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let peer = head.extensions.get::<Peer>().cloned().unwrap_or_default();
        let bearer = Bearer::of(&MetadataMap::from_headers(head.headers));
        wire::answer(drive::<S, K>(self.clone(), peer, bearer, Requests::of(body)))
    }
}

macro_rules! service {
    ($type:ident, $name:literal) => {
        impl<S> Clone for $type<S> {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl<S> NamedService for $type<S> {
            const NAME: &'static str = $name;
        }

        impl<S: Source> tower::Service<http::Request<Body>> for $type<S> {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                ready(Ok(self.0.call(request)))
            }
        }
    };
}

service!(AdsService, "envoy.service.discovery.v3.AggregatedDiscoveryService");
service!(SdsService, "envoy.service.secret.v3.SecretDiscoveryService");

/// What both variants of the protocol have in common.
trait Session: Send + Sized + 'static {
    type Request: Message + Default + 'static;
    type Response: Outgoing + Send + 'static;
    const DELTA: bool;
    fn start(seed: u64, names: Arc<NameSets>) -> Self;
    fn node(request: &Self::Request) -> Option<&Node>;
    /// What it tells of the workload's health, if that is what it is for.
    fn health(request: &Self::Request) -> Option<Health>;
    fn request(&mut self, request: &Self::Request) -> Result<Vec<Self::Response>, ProtocolError>;
    fn push(&mut self, set: ResourceSet) -> Vec<Self::Response>;
    /// Responses that the peer has not answered.
    fn unanswered(&self) -> Vec<Arc<str>>;
    /// Waits no longer for them.
    fn give_up(&mut self, nonces: &[Arc<str>]) -> Vec<Self::Response>;
    fn status(&self) -> &SessionStatus;
}

impl Session for DeltaSession {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaResponse;
    const DELTA: bool = true;

    fn start(seed: u64, names: Arc<NameSets>) -> Self {
        Self::sharing(seed, names)
    }
    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }
    fn health(request: &DeltaDiscoveryRequest) -> Option<Health> {
        Health::of_delta(request)
    }
    fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<DeltaResponse>, ProtocolError> {
        self.on_request(request)
    }
    fn push(&mut self, set: ResourceSet) -> Vec<DeltaResponse> {
        self.on_push(set)
    }
    fn unanswered(&self) -> Vec<Arc<str>> {
        DeltaSession::unanswered(self)
    }
    fn give_up(&mut self, nonces: &[Arc<str>]) -> Vec<DeltaResponse> {
        DeltaSession::give_up(self, nonces)
    }
    fn status(&self) -> &SessionStatus {
        DeltaSession::status(self)
    }
}

impl Session for SotwSession {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const DELTA: bool = false;

    fn start(seed: u64, _: Arc<NameSets>) -> Self {
        Self::new(seed)
    }
    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }
    fn health(request: &DiscoveryRequest) -> Option<Health> {
        Health::of_sotw(request)
    }
    fn request(&mut self, request: &DiscoveryRequest) -> Result<Vec<DiscoveryResponse>, ProtocolError> {
        self.on_request(request)
    }
    fn push(&mut self, set: ResourceSet) -> Vec<DiscoveryResponse> {
        self.on_push(set)
    }
    // The nonce of this variant belongs to one response at a time: an answer to an older one could not be told from a stale one.
    fn unanswered(&self) -> Vec<Arc<str>> {
        Vec::new()
    }
    fn give_up(&mut self, _: &[Arc<str>]) -> Vec<DiscoveryResponse> {
        Vec::new()
    }
    fn status(&self) -> &SessionStatus {
        SotwSession::status(self)
    }
}

/// An admitted stream.
struct Running<K: Session> {
    session: K,
    requests: Requests<K::Request>,
    sets: watch::Receiver<ResourceSet>,
    observer: Box<dyn Observer>,
    turns: Option<Arc<Semaphore>>,
    /// Responses not yet taken by the connection.
    ready: VecDeque<K::Response>,
    /// What is unanswered, and until when it is waited for.
    waiting: BTreeMap<Arc<str>, Instant>,
}

impl<K: Session> Running<K> {
    fn took_request(&mut self, request: &K::Request) -> Result<(), Status> {
        if let Some(health) = K::health(request) {
            self.observer.health(health);
            return Ok(());
        }
        let responses = self.session.request(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.took(responses);
        Ok(())
    }

    fn took_set(&mut self) {
        let set = self.sets.borrow_and_update().clone();
        // Generation 0: the source does not know yet what this proxy is to have.
        if set.generation() > 0 {
            let responses = self.session.push(set);
            self.took(responses);
        }
    }

    fn took(&mut self, responses: Vec<K::Response>) {
        self.ready.extend(responses);
        self.observer.changed(self.session.status());
    }

    /// Until when the first of the unanswered responses is waited for.
    fn deadline(&mut self) -> Option<Instant> {
        let now = self.session.unanswered();
        self.waiting.retain(|nonce, _| now.contains(nonce));
        for nonce in now {
            self.waiting.entry(nonce).or_insert_with(|| Instant::now() + ANSWER);
        }
        self.waiting.values().min().copied()
    }

    fn give_up(&mut self) {
        let now = Instant::now();
        let overdue: Vec<_> = self.waiting.iter().filter(|(_, until)| **until <= now).map(|(n, _)| n.clone()).collect();
        let responses = self.session.give_up(&overdue);
        self.took(responses);
    }

    /// The next response; `None` when the peer is gone.
    async fn next(&mut self) -> Result<Option<K::Response>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            let deadline = self.deadline();
            let overdue = async {
                match deadline {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = overdue => self.give_up(),
                request = self.requests.message() => match request? {
                    Some(request) => self.took_request(&request)?,
                    None => return Ok(None),
                },
                changed = self.sets.changed() => match changed {
                    Ok(()) => {
                        // Waiting here and not among the tasks that can run: there, who asks for a certificate would be behind all of them.
                        let turn = match self.turns.clone() {
                            Some(turns) => turns.acquire_owned().await.ok(),
                            None => None,
                        };
                        self.took_set();
                        drop(turn);
                    }
                    Err(_) => return Err(Status::unavailable("the control plane is shutting down")),
                },
            }
        }
    }
}

/// A stream whose first request has not come yet.
struct New<S, K: Session> {
    common: Common<S>,
    peer: Peer,
    bearer: Option<Bearer>,
    requests: Requests<K::Request>,
}

enum State<S, K: Session> {
    New(Box<New<S, K>>),
    Running(Box<Running<K>>),
    Ended,
}

/// The response stream of one call of the delta variant that somebody else serves.
pub(crate) fn drive_delta<S: Source>(
    source: Arc<S>,
    request: Request<Streaming<DeltaDiscoveryRequest>>,
) -> BoxStream<'static, Result<DeltaDiscoveryResponse, Status>> {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let bearer = Bearer::of(request.metadata());
    let common = Common { source, names: Arc::default() };
    let responses = drive::<S, DeltaSession>(common, peer, bearer, Requests::Decoded(request.into_inner()));
    responses.map(|response| response.map(|response| response.message())).boxed()
}

/// The response stream of one call. The status of a refused stream comes as its only item, so that a client need not
/// wait for response headers before it sends its first request.
fn drive<S: Source, K: Session>(
    common: Common<S>,
    peer: Peer,
    bearer: Option<Bearer>,
    requests: Requests<K::Request>,
) -> BoxStream<'static, Result<K::Response, Status>> {
    let new = New { common, peer, bearer, requests };
    stream::unfold(State::<S, K>::New(Box::new(new)), |state| async {
        let mut running = match state {
            State::New(new) => match open(*new).await {
                Ok(Some(running)) => Box::new(running),
                Ok(None) => return None,
                Err(status) => return Some((Err(status), State::Ended)),
            },
            State::Running(running) => running,
            State::Ended => return None,
        };
        match running.next().await {
            Ok(Some(response)) => Some((Ok(response), State::Running(running))),
            Ok(None) => None,
            Err(status) => Some((Err(status), State::Ended)),
        }
    })
    .boxed()
}

async fn open<S: Source, K: Session>(new: New<S, K>) -> Result<Option<Running<K>>, Status> {
    let New { common, peer, bearer, mut requests } = new;
    let first = tokio::time::timeout(FIRST_REQUEST, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(first) = first else { return Ok(None) };
    let node = K::node(&first)
        .filter(|node| !node.id.is_empty())
        .cloned()
        .ok_or_else(|| Status::invalid_argument(ProtocolError::NoNode.to_string()))?;
    let id = node.id.parse::<NodeId>().ok();
    let opened = common.source.open(Hello { peer, bearer, node, id, delta: K::DELTA }).await?;
    let mut running = Running {
        session: K::start(rand::random(), common.names),
        requests,
        sets: opened.sets,
        observer: opened.observer,
        turns: opened.turns,
        ready: VecDeque::new(),
        waiting: BTreeMap::new(),
    };
    running.took_set();
    running.took_request(&first)?;
    Ok(Some(running))
}
