//! The server side: sessions ([`DeltaSession`], [`SotwSession`]) and the gRPC services that carry them.
//!
//! Invariant: one task owns one stream with its session; a [`Source`] gives it the newest set, and sets that come faster
//! than the peer acknowledges are merged, not queued.

pub mod authority;
mod delta;
mod held;
mod listen;
mod names;
mod service;
mod sotw;
mod status;
mod wire;

pub use delta::DeltaSession;
pub use listen::{Identify, ListenOptions, TlsSource, serve_plain, serve_tls, serve_unix, serve_unix_where};
pub use names::NameSets;
pub(crate) use service::drive_delta;
pub use service::{AdsService, SdsService, ads_service, sds_service};
pub use sotw::SotwSession;
pub use status::{Nack, SessionStatus, TypeStatus};
pub use wire::DeltaResponse;

use crate::health::Health;
use crate::{Node, NodeId, ResourceSet, TypeUrl};
use carrick_base::SpiffeId;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Who is at the other end of a connection. Put into a request's extensions by [`serve_tls`], never read from the wire.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The peer's address; `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// The identity in the peer's verified client certificate, when it presented one.
    pub identity: Option<SpiffeId>,
}

/// What a stream knows when its first request has come.
pub struct Hello {
    /// The verified peer.
    pub peer: Peer,
    /// The bearer token of the request, to be reviewed by the source.
    pub bearer: Option<Bearer>,
    /// The node as it describes itself.
    pub node: Node,
    /// The parsed node id; `None` when it is not of Istio's form.
    pub id: Option<NodeId>,
    /// Whether the stream speaks delta.
    pub delta: bool,
}

/// A bearer token; never printed.
#[derive(Clone)]
pub struct Bearer {
    /// The token.
    pub token: String,
    /// The cluster that it is said to be of (`clusterid`).
    pub cluster: Option<String>,
}

impl Bearer {
    /// The token of an `authorization: Bearer …` header, and what `clusterid` says.
    pub fn of(metadata: &tonic::metadata::MetadataMap) -> Option<Self> {
        let (scheme, token) = metadata.get("authorization")?.to_str().ok()?.split_once(' ')?;
        let cluster = metadata.get("clusterid").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| Self { token: token.trim().to_owned(), cluster: cluster.map(str::to_owned) })
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(redacted)")
    }
}

/// A violation of the protocol that ends the stream. The fault is the client's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A request without a type URL.
    #[error("the request names no type")]
    NoType,
    /// The first request has no node id.
    #[error("the first request has no node id")]
    NoNode,
    /// More types on one stream than a proxy can have use for.
    #[error("more than {0} types on one stream")]
    TooManyTypes(usize),
    /// More names than a stream may ask for.
    #[error("more than {limit} names asked for of type {type_url}")]
    TooManyNames {
        /// The type.
        type_url: TypeUrl,
        /// The limit.
        limit: usize,
    },
}

/// Types on one stream: Istio knows some ten.
const MAX_TYPES: usize = 32;
/// Names of one type on one stream.
const MAX_NAMES: usize = 200_000;

fn check_limits(type_url: &TypeUrl, types: usize, names: usize) -> Result<(), ProtocolError> {
    if types > MAX_TYPES {
        return Err(ProtocolError::TooManyTypes(MAX_TYPES));
    }
    if names > MAX_NAMES {
        return Err(ProtocolError::TooManyNames { type_url: type_url.clone(), limit: MAX_NAMES });
    }
    Ok(())
}

/// What a source gives to a new stream.
pub struct Opened {
    /// The newest set for this proxy. The stream ends with `Unavailable` when the sender is dropped. A set whose
    /// generation is 0 means "not known yet": nothing is answered before the first real one.
    pub sets: watch::Receiver<ResourceSet>,
    /// Is told what the proxy has acknowledged; dropped when the stream ends.
    pub observer: Box<dyn Observer>,
    /// A push waits for one of these turns, and takes what is newest when it gets one. `None` for what cannot wait.
    pub turns: Option<Arc<Semaphore>>,
}

/// Turns for half of this machine's processors: a push for everybody must not keep those busy who answer, or certificates come too late.
pub fn turns() -> Arc<Semaphore> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Arc::new(Semaphore::new((processors / 2).max(1)))
}

/// Follows one stream.
pub trait Observer: Send {
    /// Called after each request and each push with the state of the session.
    fn changed(&mut self, status: &SessionStatus);

    /// Called when the peer tells of its workload's health.
    fn health(&mut self, _: Health) {}
}

impl Observer for () {
    fn changed(&mut self, _: &SessionStatus) {}
}

/// Decides who may connect and what they get.
pub trait Source: Send + Sync + 'static {
    /// Admits a stream or refuses it with a gRPC status (`PermissionDenied`, `InvalidArgument`, …).
    fn open(&self, hello: Hello) -> impl Future<Output = Result<Opened, tonic::Status>> + Send;
}
