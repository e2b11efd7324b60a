//! The proxies that are connected, and what each has acknowledged.
//!
//! Invariant: an entry lives exactly as long as its stream; times of acknowledgements are those at which the answer came.

use crate::history::Published;
use crate::machines::{EntryKey, Machines};
use crate::metrics::{ByType, ControlMetrics};
use crate::renderer::Renderer;
use carrick_base::SpiffeId;
use carrick_mesh::ProxyNode;
use carrick_xds::ResourceSet;
use carrick_xds::health::Health;
use carrick_xds::server::{Observer, SessionStatus};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::seen::Seen;

/// Acknowledgements remembered per proxy.
const ACKS: usize = 256;

/// An acknowledgement of everything up to a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) sequence: u64,
    pub(crate) at: Instant,
    pub(crate) time: SystemTime,
    /// Nothing was refused at that moment.
    pub(crate) clean: bool,
}

/// One connected proxy.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) node: ProxyNode,
    pub(crate) cluster: String,
    pub(crate) version: String,
    pub(crate) identity: SpiffeId,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) delta: bool,
    /// Its identity was proven.
    pub(crate) secured: bool,
    pub(crate) connected: SystemTime,
    pub(crate) sets: watch::Receiver<ResourceSet>,
    pub(crate) status: SessionStatus,
    pub(crate) acks: VecDeque<Ack>,
}

impl Connection {
    /// `name.namespace`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.node.name, self.node.namespace)
    }

    /// The first acknowledgement that covers a snapshot.
    pub(crate) fn acknowledged(&self, sequence: u64) -> Option<Ack> {
        // The oldest acknowledgement remembered may be later than the first that covered it; that is the best known.
        self.acks.iter().find(|ack| ack.sequence >= sequence).copied()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Connections {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    all: BTreeMap<u64, Connection>,
}

impl Connections {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::channel(0).0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes whenever a proxy comes, goes, or acknowledges.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A copy of all, by name.
    pub(crate) fn all(&self) -> Vec<Connection> {
        let mut all: Vec<Connection> = self.lock().all.values().cloned().collect();
        all.sort_by(|a, b| (&a.node.namespace, &a.node.name, a.id).cmp(&(&b.node.namespace, &b.node.name, b.id)));
        all
    }

    /// The connection of a proxy, by node id or `name.namespace`; the newest of several.
    pub(crate) fn find(&self, proxy: &str) -> Option<Connection> {
        self.lock().all.values().rev().find(|c| *c.node.id == *proxy || c.name() == proxy).cloned()
    }

    /// Calls `f` with every connection.
    pub(crate) fn each(&self, mut f: impl FnMut(&Connection)) {
        self.lock().all.values().for_each(&mut f);
    }

    /// Takes a new connection in; gives its number.
    pub(crate) fn add(&self, mut connection: Connection) -> u64 {
        let mut inner = self.lock();
        inner.next = inner.next.wrapping_add(1);
        connection.id = inner.next;
        let id = inner.next;
        inner.all.insert(id, connection);
        drop(inner);
        self.bump();
        id
    }

    fn remove(&self, id: u64) -> Option<Connection> {
        let removed = self.lock().all.remove(&id);
        self.bump();
        removed
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().all.len()
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Follows one stream for [`Connections`].
pub(crate) struct Follower {
    pub(crate) id: u64,
    pub(crate) connections: Arc<Connections>,
    pub(crate) renderer: Arc<Renderer>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) metrics: ControlMetrics,
    /// The WorkloadEntry that was made for it.
    pub(crate) machine: Option<(Arc<Machines>, EntryKey)>,
}

impl Observer for Follower {
    fn health(&mut self, health: Health) {
        if let Some((machines, key)) = &self.machine {
            machines.health(key, health);
        }
    }

    fn changed(&mut self, status: &SessionStatus) {
        let mut inner = self.connections.lock();
        let Some(connection) = inner.all.get_mut(&self.id) else { return };
        for (type_url, now) in &status.types {
            let before = connection.status.types.get(type_url);
            let pushes = now.pushes.saturating_sub(before.map_or(0, |b| b.pushes));
            if pushes > 0 {
                let label = ByType { r#type: type_url.short().to_ascii_lowercase() };
                self.metrics.pushes.get_or_create(&label).inc_by(i64::try_from(pushes).unwrap_or(i64::MAX));
            }
            let rejects = now.rejects.saturating_sub(before.map_or(0, |b| b.rejects));
            if rejects > 0 {
                self.metrics.rejects.inc_by(i64::try_from(rejects).unwrap_or(i64::MAX));
                if let Some(nack) = &now.nack {
                    warn!(
                        proxy = connection.name(),
                        r#type = type_url.short(),
                        reason = nack.message,
                        "configuration refused"
                    );
                }
            }
        }
        let advanced = status.acknowledged > connection.status.acknowledged;
        let first = connection.acks.is_empty();
        connection.status = status.clone();
        if !advanced {
            return;
        }
        let (at, clean) = (Instant::now(), status.refused().is_none());
        if connection.acks.len() >= ACKS {
            connection.acks.pop_front();
        }
        connection.acks.push_back(Ack { sequence: status.acknowledged, at, time: SystemTime::now(), clean });
        drop(inner);
        self.connections.bump();
        // What a proxy gets when it connects is no reaction to a change.
        if !first && let Some(published) = self.snapshot(status.acknowledged) {
            self.metrics.convergence.observe(at.saturating_duration_since(published.first_event).as_secs_f64());
        }
    }
}

impl Follower {
    fn snapshot(&self, sequence: u64) -> Option<Published> {
        self.seen.lock().history.snapshot(sequence).cloned()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.renderer.leave(self.id);
        if let Some((machines, key)) = &self.machine {
            machines.left(key, self.id);
        }
        if let Some(connection) = self.connections.remove(self.id) {
            info!(proxy = connection.name(), "proxy disconnected");
        }
        self.metrics.connected.set(i64::try_from(self.connections.len()).unwrap_or(i64::MAX));
    }
}
