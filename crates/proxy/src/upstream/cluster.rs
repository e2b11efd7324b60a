//! One worker's state of one cluster: load per host, circuit counts, pools.
//!
//! Invariant: what is counted up is counted down by a guard's drop. A retired cluster takes no connection back.

use super::pool::{Pool, PoolKey};
use crate::joint::Joint;
use crate::metrics::Service;
use crate::stats::ClusterStats;
use carrick_proxy_core::balance::Balancer;
use carrick_proxy_core::model::metadata::{Map, Value};
use carrick_proxy_core::model::{Cluster, EndpointSet};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// See the module.
pub struct ClusterState {
    /// The cluster as configured.
    pub cluster: Arc<Cluster>,
    pub(crate) stats: Arc<ClusterStats>,
    /// What is behind it, for metrics.
    pub(crate) service: Arc<Service>,
    hosts: RefCell<HashMap<SocketAddr, Rc<Host>>>,
    pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    retired: Cell<bool>,
    /// What all workers know together.
    pub(crate) shared: Arc<Joint>,
    /// Told when a connection comes back or ends, for those who wait for one.
    pub(super) freed: Notify,
    /// Choose among the endpoints, all or those of a subset; made anew when they change.
    pub(super) balancers: RefCell<Vec<Balancer>>,
    /// The version of `shared` that the balancers know.
    pub(super) judged: Cell<u64>,
    /// Subsets of the endpoints: of which set, with which labels.
    pub(super) parts: RefCell<Vec<Part>>,
    /// When hosts appeared, where they start slowly.
    births: RefCell<HashMap<SocketAddr, Instant>>,
    /// Resolved names, for DNS clusters.
    pub dns: super::dns::Resolved,
}

/// A subset: of which endpoints, its labels, its endpoints.
pub(super) type Part = (Arc<EndpointSet>, Map<Value>, Arc<EndpointSet>);

/// What a host has to do now.
#[derive(Debug, Default)]
pub struct Host {
    active: Cell<u32>,
}

/// A request under way at a host.
pub struct ActiveRequest {
    state: Rc<ClusterState>,
    host: Rc<Host>,
}

/// A connection that counts.
pub struct ActiveConnection(Rc<ClusterState>);

/// A request that waits for a connection.
pub struct Pending<'a>(&'a ClusterState);

/// A retry under way.
pub struct ActiveRetry(Rc<ClusterState>);

fn up(c: &Cell<u32>) {
    c.set(c.get().saturating_add(1));
}
fn down(c: &Cell<u32>) {
    c.set(c.get().saturating_sub(1));
}

impl ClusterState {
    pub(crate) fn new(cluster: Arc<Cluster>, stats: Arc<ClusterStats>, shared: Arc<Joint>) -> Self {
        ClusterState {
            service: Arc::new(Service::of(&cluster)),
            cluster,
            stats,
            hosts: RefCell::default(),
            pools: RefCell::default(),
            retired: Cell::new(false),
            judged: Cell::new(shared.version()),
            shared,
            freed: Notify::new(),
            balancers: RefCell::default(),
            parts: RefCell::default(),
            births: RefCell::default(),
            dns: super::dns::Resolved::default(),
        }
    }

    /// Whether new configuration has replaced it.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Requests under way at an address.
    pub fn load(&self, address: SocketAddr) -> u32 {
        self.hosts.borrow().get(&address).map_or(0, |h| h.active.get())
    }

    /// Counts a request in, unless the cluster has too many.
    pub fn begin(self: &Rc<Self>, address: SocketAddr, high: bool) -> Option<ActiveRequest> {
        if !self.shared.up(&self.shared.requests, |c| self.cluster.limits_for(high).request(c)) {
            self.stats.upstream_rq_pending_overflow.inc();
            return None;
        }
        let host = Rc::clone(self.hosts.borrow_mut().entry(address).or_default());
        up(&host.active);
        self.stats.upstream_rq_active.inc();
        self.stats.upstream_rq_total.inc();
        Some(ActiveRequest { state: Rc::clone(self), host })
    }

    /// Counts a connection in, unless there are too many and it is not `needed` all the same.
    pub fn connection(self: &Rc<Self>, high: bool, needed: bool) -> Option<ActiveConnection> {
        let allowed = |c: &_| self.cluster.limits_for(high).connection(c) || needed;
        if !self.shared.up(&self.shared.connections, allowed) {
            self.stats.upstream_cx_overflow.inc();
            return None;
        }
        self.stats.upstream_cx_active.inc();
        Some(ActiveConnection(Rc::clone(self)))
    }

    /// Counts a waiting request in, unless too many wait.
    pub fn pending(&self, high: bool) -> Option<Pending<'_>> {
        if !self.shared.up(&self.shared.pending, |c| self.cluster.limits_for(high).pending(c)) {
            self.stats.upstream_rq_pending_overflow.inc();
            return None;
        }
        Some(Pending(self))
    }

    /// Notes hosts that are new, where that counts, and lets go of balancers of endpoints that are no more.
    pub(super) fn note_births(&self, set: &EndpointSet) {
        self.shared.hosts(set);
        if self.cluster.slow_start.is_some() {
            let (mut births, now) = (self.births.borrow_mut(), Instant::now());
            for host in (0..set.endpoints.len()).filter_map(|i| set.key(i)) {
                births.entry(host).or_insert(now);
            }
        }
    }

    /// How long a host has been there.
    pub(super) fn age(&self, host: &SocketAddr, now: Instant) -> std::time::Duration {
        self.births.borrow().get(host).map_or(std::time::Duration::ZERO, |born| now.saturating_duration_since(*born))
    }

    /// Whether one more retry is allowed.
    pub fn retry_allowed(&self, high: bool) -> bool {
        self.cluster.limits_for(high).retry(&self.shared.counts())
    }

    /// Counts a retry in.
    pub fn retry(self: &Rc<Self>) -> ActiveRetry {
        self.shared.up(&self.shared.retries, |_| true);
        self.stats.upstream_rq_retry.inc();
        ActiveRetry(Rc::clone(self))
    }

    /// The pool of a key.
    pub fn pool(self: &Rc<Self>, key: &PoolKey) -> Rc<Pool> {
        if let Some(pool) = self.pools.borrow().get(key) {
            return Rc::clone(pool);
        }
        let pool = Rc::new(Pool::default());
        self.pools.borrow_mut().insert(key.clone(), Rc::clone(&pool));
        pool
    }

    /// Ends idle connections and takes none back.
    pub fn retire(&self) {
        self.retired.set(true);
        for pool in self.pools.borrow_mut().drain().map(|(_, p)| p) {
            pool.close();
        }
        self.freed.notify_waiters();
    }

    /// Ends idle connections to endpoints that are not in `set` with the same transport.
    pub fn keep_only(&self, set: &EndpointSet) {
        let transports = &self.cluster.transport;
        let wanted: HashSet<(SocketAddr, usize)> = (0..set.endpoints.len())
            .filter_map(|i| {
                let transport = set.endpoints.get(i)?.transport;
                Some((set.key(i)?, Arc::as_ptr(transports.get(transport)) as usize))
            })
            .collect();
        let dns = set
            .endpoints
            .iter()
            .any(|e| matches!(e.address, carrick_proxy_core::model::endpoint::EndpointAddress::Dns { .. }));
        if dns {
            return;
        }
        self.balancers.borrow_mut().clear();
        self.parts.borrow_mut().clear();
        self.births.borrow_mut().retain(|a, _| wanted.iter().any(|(w, _)| w == a));
        self.pools.borrow_mut().retain(|key, pool| {
            let keep = wanted.contains(&(key.address, Arc::as_ptr(&key.transport) as usize));
            if !keep {
                pool.close();
            }
            keep
        });
        self.hosts.borrow_mut().retain(|a, h| h.active.get() > 0 || wanted.iter().any(|(w, _)| w == a));
    }

    /// Ends connections idle for too long.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep(now, self.cluster.idle_timeout, self.cluster.max_connection_duration);
            !pool.is_empty() || Rc::strong_count(pool) > 1
        });
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        down(&self.host.active);
        self.state.shared.down(&self.state.shared.requests);
        self.state.stats.upstream_rq_active.dec();
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.shared.down(&self.0.shared.connections);
        self.0.stats.upstream_cx_active.dec();
        self.0.stats.upstream_cx_destroy.inc();
        self.0.freed.notify_one();
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.shared.down(&self.0.shared.pending);
    }
}

impl Drop for ActiveRetry {
    fn drop(&mut self) {
        self.0.shared.down(&self.0.shared.retries);
    }
}

impl std::fmt::Debug for ClusterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterState").field("name", &self.cluster.name).finish_non_exhaustive()
    }
}
