//! What all workers know together of a cluster: circuit counts, ejected and unhealthy hosts, how long peers keep idle connections.
//!
//! Invariant: nothing here is touched by a request of a cluster without finite limits, outlier detection and health checks, except
//! one look at a version number. Locks are held for the length of a look-up.

use carrick_proxy_core::circuit::CircuitCounts;
use carrick_proxy_core::idle::IdleTimes;
use carrick_proxy_core::model::cluster::{CircuitLimits, Cluster, OutlierDetection};
use carrick_proxy_core::model::{EndpointSet, Name};
use carrick_proxy_core::outlier::{Outcome, OutlierState};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub struct Joint {
    /// The configuration it is for.
    cluster: Arc<Cluster>,
    /// Limits are finite, so counts are kept.
    counted: bool,
    pub(crate) connections: AtomicU32,
    pub(crate) pending: AtomicU32,
    pub(crate) requests: AtomicU32,
    pub(crate) retries: AtomicU32,
    version: AtomicU64,
    out: Mutex<Out>,
    idle: Mutex<HashMap<SocketAddr, IdleTimes>>,
    checked: AtomicBool,
}

/// Who takes no traffic, and why.
#[derive(Debug, Default)]
struct Out {
    outlier: OutlierState<SocketAddr>,
    unhealthy: HashSet<SocketAddr>,
    hosts: usize,
}

/// The clusters of an engine, by name.
#[derive(Debug, Default)]
pub struct Joints(Mutex<HashMap<Name, Arc<Joint>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finite(limits: &CircuitLimits) -> bool {
    let all = [limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries];
    all.iter().any(|l| *l < i32::MAX.unsigned_abs()) || limits.retry_budget.is_some()
}

impl Joints {
    /// What is known of a cluster; anew when its configuration changed.
    pub fn get(&self, cluster: &Arc<Cluster>) -> Arc<Joint> {
        let mut all = lock(&self.0);
        if let Some(known) = all.get(&cluster.name)
            && Arc::ptr_eq(&known.cluster, cluster)
        {
            return Arc::clone(known);
        }
        let made = Arc::new(Joint {
            cluster: Arc::clone(cluster),
            counted: finite(&cluster.limits) || finite(&cluster.high_limits),
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            version: AtomicU64::new(0),
            out: Mutex::default(),
            idle: Mutex::default(),
            checked: AtomicBool::new(false),
        });
        all.insert(Arc::clone(&cluster.name), Arc::clone(&made));
        made
    }

    /// Forgets clusters that are gone.
    pub fn retain(&self, keep: impl Fn(&Name) -> bool) {
        lock(&self.0).retain(|name, _| keep(name));
    }
}

impl Joint {
    /// Counts one up if `allowed` says so of the counts before.
    pub(crate) fn up(&self, counter: &AtomicU32, allowed: impl FnOnce(&CircuitCounts) -> bool) -> bool {
        if !self.counted {
            return true;
        }
        let fits = allowed(&self.counts());
        if fits {
            counter.fetch_add(1, Relaxed);
        }
        fits
    }

    /// Counts one down.
    pub(crate) fn down(&self, counter: &AtomicU32) {
        if self.counted {
            let _ = counter.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(1)));
        }
    }

    /// What limits are compared with.
    pub fn counts(&self) -> CircuitCounts {
        CircuitCounts {
            connections: self.connections.load(Relaxed),
            pending: self.pending.load(Relaxed),
            requests: self.requests.load(Relaxed),
            retries: self.retries.load(Relaxed),
        }
    }

    /// Grows when hosts leave or come back.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Runs `f` with the question whether a host takes no traffic.
    pub(crate) fn with_out(&self, f: impl FnOnce(&dyn Fn(&SocketAddr) -> bool)) {
        if self.version() == 0 {
            // Nobody has ever left.
            return f(&|_| false);
        }
        let out = lock(&self.out);
        f(&|host| out.outlier.is_ejected(host) || out.unhealthy.contains(host));
    }

    /// How many hosts there are, and which.
    pub(crate) fn hosts(&self, set: &EndpointSet) {
        if self.cluster.outlier.is_some() {
            let mut out = lock(&self.out);
            // A subset's endpoints are not all.
            let others = if self.cluster.subsets.is_some() { out.hosts } else { 0 };
            out.hosts = set.endpoints.len().max(others);
        }
    }

    pub(crate) fn outcome(&self, o: &OutlierDetection, host: &SocketAddr, outcome: Outcome, now: u64, random: u64) {
        let mut out = lock(&self.out);
        let count = out.hosts;
        let mut changed = out.outlier.record(o, host, outcome, count, now, random);
        if out.outlier.next_sweep(o).is_none_or(|t| t <= now) {
            changed |= out.outlier.sweep(o, count, now, random);
        }
        drop(out);
        self.note(changed);
    }

    pub(crate) fn sweep(&self, o: &OutlierDetection, now: u64, random: u64) {
        let mut out = lock(&self.out);
        let count = out.hosts;
        let due = out.outlier.ejected() > 0 && out.outlier.next_sweep(o).is_none_or(|t| t <= now);
        let changed = due && out.outlier.sweep(o, count, now, random);
        drop(out);
        self.note(changed);
    }

    fn note(&self, changed: bool) {
        if changed {
            self.version.fetch_add(1, Relaxed);
        }
    }

    /// Whether the caller is the one to run the health checks.
    pub(crate) fn claim_checks(&self) -> bool {
        !self.checked.swap(true, Relaxed)
    }

    /// A health check's verdict.
    pub(crate) fn health(&self, host: SocketAddr, healthy: bool) {
        let mut out = lock(&self.out);
        let changed = if healthy { out.unhealthy.remove(&host) } else { out.unhealthy.insert(host) };
        drop(out);
        self.note(changed);
    }

    /// A peer closed a connection after it had been idle for so long.
    pub(crate) fn closed_idle(&self, host: SocketAddr, now: Duration, idle: Duration) {
        lock(&self.idle).entry(host).or_default().closed(now, idle);
    }

    /// How long a connection to a host may have been idle to be used again, and to be used for a request that could not be sent again.
    pub(crate) fn idle_limits(&self, host: &SocketAddr, now: Duration) -> (Option<Duration>, Option<Duration>) {
        lock(&self.idle).get(host).map_or((None, None), |times| (times.limit(now), times.wary_limit(now)))
    }
}
