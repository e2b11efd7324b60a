//! Pooled HTTP connections of one worker to one endpoint.
//!
//! Invariant: an HTTP/1 connection is in the pool only while nothing is under way on it, and is looked at before it is used again (for a
//! request that must not be lost with it also in the kernel), so that one that its peer has closed is not; it comes back only after its response
//! ended in order. HTTP/2 connections are shared up to the number of streams.

use super::cluster::{ActiveConnection, ClusterState};
use super::connect::{ConnectError, Target, connect};
use crate::io::stream::Shown;
use crate::io::sys::{self, Idle};
use crate::io::witness::{Before, Fate, Witness};
use crate::local::Local;
use crate::message::h1::client::{self, SendError};
use crate::message::h2;
use crate::message::incoming::Incoming;
use crate::message::request_body::RequestBody;
use carrick_proxy_core::model::cluster::{HttpProtocol, TransportSocket};
use carrick_proxy_core::model::filter::UpstreamOverrides;
use std::cell::{Cell, OnceCell, RefCell};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

/// Idle HTTP/1 connections kept per endpoint.
const MAX_IDLE: usize = 512;
/// Streams per HTTP/2 connection before another one is opened, where the cluster allows more. Peers commonly allow 100.
const MAX_STREAMS: u32 = 100;

/// What makes two connections interchangeable.
#[derive(Clone)]
pub struct PoolKey {
    /// Endpoint.
    pub address: SocketAddr,
    /// Its transport; compared by identity.
    pub transport: Arc<TransportSocket>,
    /// From filter state.
    pub overrides: Rc<UpstreamOverrides>,
    /// SNI taken from the request.
    pub auto_sni: Option<Arc<str>>,
    /// HTTP/2.
    pub h2: bool,
    /// Only for this downstream connection.
    pub downstream: Option<u64>,
}

impl PartialEq for PoolKey {
    fn eq(&self, o: &Self) -> bool {
        self.address == o.address
            && Arc::ptr_eq(&self.transport, &o.transport)
            && self.h2 == o.h2
            && self.downstream == o.downstream
            && self.auto_sni == o.auto_sni
            && (Rc::ptr_eq(&self.overrides, &o.overrides) || self.overrides == o.overrides)
    }
}
impl Eq for PoolKey {}
impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.address.hash(h);
        (Arc::as_ptr(&self.transport) as usize).hash(h);
        self.h2.hash(h);
    }
}

/// See the module.
#[derive(Default)]
pub struct Pool {
    /// Longest idle time after which a connection is used again, learned from the peer; looked up anew now and then.
    reuse: Cell<Option<Duration>>,
    /// The same for a request that could not be sent again.
    wary: Cell<Option<Duration>>,
    idle: RefCell<Vec<Http1>>,
    /// Connections open or being made.
    open: Cell<u32>,
    shared: RefCell<Vec<Rc<Http2>>>,
    connecting: tokio::sync::Mutex<()>,
    /// Wakes the task that looks after idle HTTP/1 connections.
    watch: OnceCell<(Arc<Watch>, Waker)>,
}

/// Told when something happens on an idle connection.
#[derive(Default)]
struct Watch(tokio::sync::Notify);

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The task ends with the pool.
        if let Some((watch, _)) = self.watch.get() {
            watch.0.notify_one();
        }
    }
}

/// An HTTP/1 connection.
pub struct Http1 {
    wire: client::Shared,
    fd: RawFd,
    /// Our address, for the log.
    pub local: Option<SocketAddr>,
    /// Names of both ends, on TLS.
    pub shown: Option<Arc<Shown>>,
    /// Since when it lies idle.
    since: Instant,
    made: Instant,
    served: u32,
    fate: Arc<Fate>,
    _counted: Open,
}

/// An HTTP/2 connection.
struct Http2 {
    sender: h2::client::Sender,
    local: Option<SocketAddr>,
    shown: Option<Arc<Shown>>,
    streams: Cell<u32>,
    served: Cell<u32>,
    since: Cell<Instant>,
    made: Instant,
}

/// A connection taken for one request.
pub enum Taken {
    /// All of it.
    Http1 {
        /// The connection.
        connection: Http1,
        /// Where it goes back to.
        home: Home,
        /// It has served before.
        reused: bool,
    },
    /// One stream of it.
    Http2 {
        /// The stream.
        stream: StreamGuard,
        /// It has served before.
        reused: bool,
    },
}

/// Where an HTTP/1 connection belongs.
#[derive(Clone)]
pub struct Home {
    state: Rc<ClusterState>,
    pool: Rc<Pool>,
    address: SocketAddr,
}

/// A connection of a pool, for as long as it is open: counted in the cluster and in the pool.
struct Open {
    pool: Rc<Pool>,
    _counted: ActiveConnection,
}

impl Open {
    /// One more; `None` if the cluster has too many. A pool without any may always have one, as in Envoy: otherwise another
    /// worker's idle connections could keep its requests waiting for ever.
    fn new(state: &Rc<ClusterState>, pool: &Rc<Pool>, high: bool) -> Option<Self> {
        let counted = state.connection(high, pool.open.get() == 0)?;
        pool.open.set(pool.open.get().saturating_add(1));
        Some(Open { pool: Rc::clone(pool), _counted: counted })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.pool.open.set(self.pool.open.get().saturating_sub(1));
    }
}

/// A stream in use on an HTTP/2 connection.
pub struct StreamGuard(Rc<Http2>);

impl StreamGuard {
    /// Sends its request.
    pub fn sender(&self) -> &h2::client::Sender {
        &self.0.sender
    }

    /// Our address.
    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// Names of both ends, on TLS.
    pub fn shown(&self) -> Option<Arc<Shown>> {
        self.0.shown.clone()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.since.set(Instant::now());
    }
}

impl Pool {
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// Lets all connections go; those in use end with their requests.
    pub fn close(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Lets connections go that have been idle for `idle`, or open for `age`.
    pub fn sweep(&self, now: Instant, idle: Option<Duration>, age: Option<Duration>) {
        let old = |since: Instant, made: Instant| {
            idle.is_some_and(|d| now.duration_since(since) >= d) || age.is_some_and(|d| now.duration_since(made) >= d)
        };
        let reuse = self.reuse.get();
        self.idle
            .borrow_mut()
            .retain(|c| !old(c.since, c.made) && reuse.is_none_or(|most| now.duration_since(c.since) <= most));
        self.shared
            .borrow_mut()
            .retain(|c| !c.sender.is_closed() && (c.streams.get() > 0 || !old(c.since.get(), c.made)));
    }

    /// An idle connection. `careful`: for a request that must not be lost with it, so the kernel is asked in any case.
    fn take_idle(&self, careful: bool, closed: impl Fn(Instant)) -> Option<Http1> {
        // The most recently used first: the others grow old and go.
        loop {
            let mut c = self.idle.borrow_mut().pop()?;
            let lay = c.since.elapsed();
            if self.reuse.get().is_some_and(|most| lay > most) {
                // Its peer is about to close it, if it is like the others.
                continue;
            }
            if careful && self.wary.get().is_some_and(|most| lay > most) {
                // Nor does it wait for another request: the new one takes its place.
                return None;
            }
            if careful && sys::idle_state(c.fd) == Idle::Stirred {
                // Closed, or about to say something unasked: not for a new request.
                closed(c.since);
                continue;
            }
            c.served = c.served.saturating_add(1);
            return Some(c);
        }
    }

    /// Lets go of idle connections on which something has happened.
    fn look(&self, waker: &Waker, closed: impl Fn(Instant)) {
        let mut context = Context::from_waker(waker);
        let mut gone = Vec::new();
        self.idle.borrow_mut().retain(|c| {
            let stirred = c.wire.borrow_mut().poll_idle(&mut context).is_ready();
            if stirred {
                gone.push(c.since);
            }
            !stirred
        });
        gone.into_iter().for_each(closed);
    }

    fn take_stream(&self, most: u32, most_served: Option<u32>) -> Option<StreamGuard> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|c| !c.sender.is_closed() && most_served.is_none_or(|m| c.served.get() < m));
        let c = Rc::clone(shared.iter().find(|c| c.streams.get() < most.min(c.sender.limit()))?);
        c.streams.set(c.streams.get().saturating_add(1));
        c.served.set(c.served.get().saturating_add(1));
        Some(StreamGuard(c))
    }
}

impl Home {
    /// Takes over what is known of the peer's patience.
    fn learn(&self, local: &Local) {
        let (reuse, wary) = self.state.shared.idle_limits(&self.address, local.shared.started.elapsed());
        self.pool.reuse.set(reuse);
        self.pool.wary.set(wary);
    }

    /// Takes a connection back once its response has ended.
    pub fn give_back(self, local: &Rc<Local>, mut connection: Http1) {
        let limit = self.state.cluster.max_requests_per_connection;
        let spent = limit.is_some_and(|m| connection.served >= m);
        connection.fate.disarm();
        if self.state.is_retired() || spent || !connection.wire.borrow().is_reusable() {
            return;
        }
        connection.since = Instant::now();
        let (_, waker) = self.pool.watch.get_or_init(|| self.watch(local));
        // From now on whatever happens on it wakes the one who looks after all of them.
        if connection.wire.borrow_mut().poll_idle(&mut Context::from_waker(waker)).is_ready() {
            return;
        }
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        drop(idle);
        self.state.freed.notify_one();
    }

    /// Looks after idle connections for as long as there is the pool.
    fn watch(&self, local: &Rc<Local>) -> (Arc<Watch>, Waker) {
        let watch = Arc::new(Watch::default());
        let waker = Waker::from(Arc::clone(&watch));
        let pool = Rc::downgrade(&self.pool);
        let state = Rc::downgrade(&self.state);
        let (own, told, address, by) = (Rc::clone(local), Arc::clone(&watch), self.address, waker.clone());
        local.spawn(async move {
            loop {
                told.0.notified().await;
                let (Some(pool), Some(state)) = (Weak::upgrade(&pool), Weak::upgrade(&state)) else { return };
                let home = Home { state, pool, address };
                home.pool.look(&by, |since| home.closed_idle(&own, since));
            }
        });
        (watch, waker)
    }

    /// The peer has closed an idle connection.
    fn closed_idle(&self, local: &Local, since: Instant) {
        self.state.stats.upstream_cx_closed_idle.inc();
        self.state.shared.closed_idle(self.address, local.shared.started.elapsed(), since.elapsed());
        self.learn(local);
    }

    fn take_idle(&self, local: &Local, careful: bool) -> Option<Taken> {
        let connection = self.pool.take_idle(careful, |since| self.closed_idle(local, since))?;
        Some(Taken::Http1 { connection, home: self.clone(), reused: true })
    }
}

impl Http1 {
    /// Notes where the connection stands, so that it can be told later whether the peer has seen what comes.
    pub fn arm(&self) -> Option<Before> {
        self.fate.arm(self.fd)
    }

    /// What outlives it.
    pub fn fate(&self) -> Arc<Fate> {
        Arc::clone(&self.fate)
    }

    /// Has the rest of the request written whether or not anybody reads the response.
    pub fn pump(&self, local: &Local) {
        let mut wire = self.wire.borrow_mut();
        if wire.is_sending() {
            wire.leave_to_pump();
            local.spawn(client::pump(Rc::downgrade(&self.wire)));
        }
    }

    /// The connection itself.
    pub fn wire(&self) -> client::Shared {
        Rc::clone(&self.wire)
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// It broke off; or nothing of it was written, then it is given back.
    pub async fn send(
        &mut self,
        request: &http::request::Parts,
        body: RequestBody,
        reused: bool,
    ) -> Result<http::Response<Incoming>, SendError> {
        client::send(&self.wire, request, body, reused).await
    }
}

/// A connection for one request: an idle one, a stream of a shared one, or a new one.
///
/// # Errors
/// No connection could be made, or the circuit limits forbid it. Nothing has been sent.
pub(crate) async fn take(
    local: &Rc<Local>,
    state: &Rc<ClusterState>,
    key: &PoolKey,
    target: &Target,
    need: Need,
) -> Result<Taken, ConnectError> {
    let pool = state.pool(key);
    if key.h2 {
        stream(local, state, pool, target, need).await
    } else {
        exclusive(local, state, pool, target, need).await
    }
}

/// What a request needs of its connection.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// A new one.
    pub fresh: bool,
    /// Circuit limits of high priority.
    pub high: bool,
    /// The request cannot be sent again without more ado, so its connection is looked at twice.
    pub careful: bool,
}

async fn exclusive(
    local: &Rc<Local>,
    state: &Rc<ClusterState>,
    pool: Rc<Pool>,
    target: &Target,
    need: Need,
) -> Result<Taken, ConnectError> {
    let Need { fresh, high, careful } = need;
    let home = Home { state: Rc::clone(state), pool, address: target.address };
    if !fresh && let Some(taken) = home.take_idle(local, careful) {
        return Ok(taken);
    }
    let pending = state.pending(high).ok_or(ConnectError::Overflow)?;
    let counted = loop {
        // Registered before looking, so that no connection that comes free between is missed.
        let freed = state.freed.notified();
        if let Some(c) = Open::new(state, &home.pool, high) {
            break c;
        }
        freed.await;
        if let Some(taken) = home.take_idle(local, careful) {
            return Ok(taken);
        }
    };
    let stream = connect(local, &state.cluster, &state.stats, target, "http/1.1").await?;
    drop(pending);
    state.stats.upstream_cx_http1_total.inc();
    let (fd, address) = (stream.raw_fd(), stream.socket().tcp().local_addr().ok());
    let shown = stream.shown.clone();
    home.learn(local);
    let (witness, fate) = Witness::new(stream);
    let wire = client::Connection::new(witness, state.cluster.http1.header_case);
    let now = Instant::now();
    let connection =
        Http1 { wire, fd, local: address, shown, since: now, made: now, served: 1, fate, _counted: counted };
    Ok(Taken::Http1 { connection, home, reused: false })
}

async fn stream(
    local: &Rc<Local>,
    state: &Rc<ClusterState>,
    pool: Rc<Pool>,
    target: &Target,
    need: Need,
) -> Result<Taken, ConnectError> {
    let Need { fresh, high, .. } = need;
    let options = &state.cluster.http2;
    let most = options.max_concurrent_streams.clamp(1, MAX_STREAMS);
    let served = state.cluster.max_requests_per_connection;
    if fresh {
        pool.shared.borrow_mut().retain(|c| !c.sender.is_closed());
    } else if let Some(stream) = pool.take_stream(most, served) {
        return Ok(Taken::Http2 { stream, reused: true });
    }
    let pending = state.pending(high).ok_or(ConnectError::Overflow)?;
    // One connects, the others wait for its result.
    let _one = pool.connecting.lock().await;
    if !fresh && let Some(stream) = pool.take_stream(most, served) {
        return Ok(Taken::Http2 { stream, reused: true });
    }
    let counted = Open::new(state, &pool, high).ok_or(ConnectError::Overflow)?;
    let stream = connect(local, &state.cluster, &state.stats, target, "h2").await?;
    drop(pending);
    state.stats.upstream_cx_http2_total.inc();
    let address = stream.socket().tcp().local_addr().ok();
    let shown = stream.shown.clone();
    let own = h2::Own {
        table: options.hpack_table_size,
        streams: 0,
        window: options.initial_stream_window.min(WINDOW),
        connection: options.initial_connection_window.min(CONNECTION_WINDOW),
        list: MAX_RESPONSE_HEADER_BYTES,
        connect: false,
    };
    let alive = options.keepalive_interval.map(|interval| h2::Alive::new(interval, options.keepalive_timeout));
    let (sender, connection) = h2::client::connect(stream, own, alive, h2::Patience::default());
    local.spawn(async move {
        connection.await;
        drop(counted);
    });
    let now = Instant::now();
    let made = Rc::new(Http2 {
        sender,
        local: address,
        shown,
        streams: Cell::new(1),
        served: Cell::new(1),
        since: Cell::new(now),
        made: now,
    });
    if !state.is_retired() {
        pool.shared.borrow_mut().push(Rc::clone(&made));
    }
    Ok(Taken::Http2 { stream: StreamGuard(made), reused: false })
}

const MAX_RESPONSE_HEADER_BYTES: u32 = 60 * 1024;
/// Windows: enough for a fast stream, without letting one slow reader hold Envoy's 16 MiB.
pub(crate) const WINDOW: u32 = 1024 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Whether a cluster is spoken to in HTTP/2 for a request that came in HTTP/2 or not.
pub fn speaks_h2(protocol: HttpProtocol, downstream_h2: bool) -> bool {
    match protocol {
        HttpProtocol::Http2 => true,
        HttpProtocol::Http1 => false,
        // By ALPN means trying h2 first on TLS; without a common protocol HTTP/1.1 is what every peer speaks.
        HttpProtocol::Auto => false,
        HttpProtocol::UseDownstream => downstream_h2,
    }
}
