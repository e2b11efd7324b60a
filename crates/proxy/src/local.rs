//! What the parts of one worker share: counters, TLS configurations, the log, randomness.
//!
//! Invariant: single-threaded; it knows no connection and no configuration, so that everything may know it.

use crate::io::ties::Ties;
use crate::log::Log;
use crate::peers::Peers;
use crate::shared::Shared;
use crate::stats::{ListenerStats, WorkerStats};
use crate::tls::TlsCache;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::listener::Listener;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// See the module.
pub(crate) struct Local {
    pub shared: Arc<Shared>,
    pub stats: Arc<WorkerStats>,
    pub tls: TlsCache,
    /// Connections by the certificates of their ends.
    pub ties: Ties,
    pub log: Log,
    pub peers: Peers,
    /// Name of this machine.
    pub hostname: String,
    listeners: RefCell<HashMap<Name, Arc<ListenerStats>>>,
    ids: Cell<u64>,
    random: Cell<u64>,
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_owned()).unwrap_or_default()
}

impl Local {
    pub fn new(shared: Arc<Shared>, stats: Arc<WorkerStats>) -> Self {
        Local {
            tls: TlsCache::new(shared.secrets.clone(), shared.tickets.clone()),
            ties: Ties::default(),
            log: Log::default(),
            hostname: hostname(),
            peers: Peers::new(&shared.options.workload),
            listeners: RefCell::default(),
            ids: Cell::new(0),
            random: Cell::new(rand::random::<u64>() | 1),
            shared,
            stats,
        }
    }

    /// Runs a task on this worker. It ends with the worker at the latest.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, task: F) -> JoinHandle<()> {
        tokio::task::spawn_local(task)
    }

    /// A number for a connection, unique within the engine's life for practical purposes.
    pub fn next_id(&self) -> u64 {
        self.ids.set(self.ids.get().wrapping_add(1));
        self.ids.get()
    }

    /// Cheap randomness for balancing and sampling (xorshift*): not for secrets.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Milliseconds of `now` since the engine started.
    pub fn millis(&self, now: std::time::Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.shared.started).as_millis()).unwrap_or(u64::MAX)
    }

    pub fn listener_stats(&self, name: &Name) -> Arc<ListenerStats> {
        Arc::clone(self.listeners.borrow_mut().entry(Arc::clone(name)).or_insert_with(|| self.stats.listener(name)))
    }

    pub fn log_no_chain(&self, listener: &Listener, local: SocketAddr, peer: SocketAddr, sni: Option<&str>) {
        tracing::debug!(listener = %listener.name, %local, %peer, sni, "no filter chain: connection reset");
        self.log.no_chain(listener, local, peer, sni);
    }

    pub fn log_tls_failure(
        &self,
        listener: &Listener,
        local: SocketAddr,
        peer: SocketAddr,
        sni: Option<&str>,
        why: &str,
    ) {
        tracing::debug!(listener = %listener.name, %local, %peer, "handshake failed: {why}");
        self.log.tls_failure(listener, local, peer, sni, why);
    }
}
