//! Istio's metrics of requests and connections: who called whom, how it ended.
//!
//! Invariant: a set of labels is one cell with one writer; a request whose labels are those of one before on its connection finds its
//! cell without lock or allocation. At most [`MAX_SETS`] sets are kept for each worker and kind; what comes beyond is counted in sets that
//! name neither peer nor service nor host, and `server.metric_sets_refused` says how often. Texts are made when read (see `text`).

mod text;

use crate::counter::Counter;
use crate::io::stream::Shown;
use carrick_proxy_core::model::Cluster;
use carrick_proxy_core::model::metadata::Value;
use carrick_proxy_core::model::stats::BUCKETS;
use carrick_proxy_core::model::stats::Stats as Config;
use carrick_proxy_core::peer::Peer;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use text::Cells;

/// Label sets kept for each worker: of requests, and of connections.
const MAX_SETS: usize = 5_000;

/// What a service is called in metrics.
#[derive(Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Service {
    /// Host, empty if not known.
    pub host: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
}

impl Service {
    /// From a cluster's metadata, or from its name in Istio's form.
    pub fn of(cluster: &Cluster) -> Self {
        let first = match cluster.metadata.namespace("istio").and_then(|m| m.get("services")) {
            Some(Value::List(all)) => all.first(),
            _ => None,
        };
        if let Some(Value::Object(service)) = first {
            let text = |key: &str| match service.get(key) {
                Some(Value::Text(text)) => Box::from(&**text),
                _ => Box::default(),
            };
            return Service { host: text("host"), name: text("name"), namespace: text("namespace") };
        }
        if cluster.name.ends_with("PassthroughCluster") || &*cluster.name == "BlackHoleCluster" {
            return Service { name: Box::from(&*cluster.name), ..Service::default() };
        }
        let host = cluster.name.split('|').nth(3).unwrap_or_default();
        let mut parts = host.split('.');
        let name = parts.next().unwrap_or_default();
        let inside = host.contains(".svc.") || host.ends_with(".svc");
        let namespace = parts.next().filter(|_| inside).unwrap_or_default();
        Service { host: host.into(), name: name.into(), namespace: namespace.into() }
    }
}

/// A configuration, told apart by identity.
#[derive(Debug, Clone)]
pub(crate) struct ConfigRef(pub Option<Arc<Config>>);

impl ConfigRef {
    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |c| Arc::as_ptr(c) as usize)
    }
}
impl PartialEq for ConfigRef {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}
impl Eq for ConfigRef {}
impl Hash for ConfigRef {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.address().hash(h);
    }
}

/// What distinguishes requests and connections in Istio's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub outbound: bool,
    pub service: Option<Arc<Service>>,
    /// The request's host, where the cluster names no service.
    pub host: Option<Arc<str>>,
    pub code: u16,
    pub flags: &'static str,
    pub grpc: Option<i32>,
    pub protocol: &'static str,
    pub mutual: bool,
    pub peer: Option<Arc<Peer>>,
    pub peer_principal: Option<Arc<str>>,
    pub own_principal: Option<Arc<str>>,
    pub config: ConfigRef,
    /// To the questions of `config`.
    pub answers: Box<[Box<str>]>,
}

/// The same, only lent.
#[derive(Clone, Copy)]
pub(crate) struct KeyRef<'a> {
    pub outbound: bool,
    pub service: Option<&'a Arc<Service>>,
    pub host: Option<&'a Arc<str>>,
    pub code: u16,
    pub flags: &'static str,
    pub grpc: Option<i32>,
    pub protocol: &'static str,
    pub mutual: bool,
    pub peer: Option<&'a Arc<Peer>>,
    pub peer_principal: Option<&'a Arc<str>>,
    pub own_principal: Option<&'a Arc<str>>,
    pub config: Option<&'a Arc<Config>>,
    pub answers: &'a [Box<str>],
}

/// Equal, the cheap way first.
fn same<T: PartialEq + ?Sized>(a: Option<&Arc<T>>, b: &Option<Arc<T>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    }
}

impl KeyRef<'_> {
    fn is(&self, key: &Key) -> bool {
        let config = self.config.map_or(0, |c| Arc::as_ptr(c) as usize);
        self.code == key.code
            && self.outbound == key.outbound
            && self.mutual == key.mutual
            && self.grpc == key.grpc
            && self.protocol == key.protocol
            && self.flags == key.flags
            && config == key.config.address()
            && same(self.service, &key.service)
            && same(self.peer, &key.peer)
            && same(self.peer_principal, &key.peer_principal)
            && same(self.own_principal, &key.own_principal)
            && same(self.host, &key.host)
            && *self.answers == *key.answers
    }

    fn to_key(self) -> Key {
        Key {
            outbound: self.outbound,
            service: self.service.cloned(),
            host: self.host.cloned(),
            code: self.code,
            flags: self.flags,
            grpc: self.grpc,
            protocol: self.protocol,
            mutual: self.mutual,
            peer: self.peer.cloned(),
            peer_principal: self.peer_principal.cloned(),
            own_principal: self.own_principal.cloned(),
            config: ConfigRef(self.config.cloned()),
            answers: self.answers.into(),
        }
    }
}

/// A histogram with Istio's bounds.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    pub count: Counter,
    pub sum: Counter,
    pub buckets: [Counter; BUCKETS.len()],
}

impl Histogram {
    fn add(&self, value: u64) {
        self.count.inc();
        self.sum.add(value);
        #[allow(clippy::cast_precision_loss)]
        let at = BUCKETS.partition_point(|bound| *bound < value as f64);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.inc();
        }
    }
}

/// What is counted of requests.
#[derive(Debug, Default)]
pub(crate) struct RequestCell {
    pub millis: Histogram,
    pub request_bytes: Histogram,
    pub response_bytes: Histogram,
    pub request_messages: Counter,
    pub response_messages: Counter,
}

/// A finished request in numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub took: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub request_messages: u64,
    pub response_messages: u64,
}

impl RequestCell {
    fn add(&self, m: &Measured) {
        self.millis.add(u64::try_from(m.took.as_millis()).unwrap_or(u64::MAX));
        self.request_bytes.add(m.request_bytes);
        self.response_bytes.add(m.response_bytes);
        self.request_messages.add(m.request_messages);
        self.response_messages.add(m.response_messages);
    }
}

/// What is counted of connections.
#[derive(Debug, Default)]
pub(crate) struct TcpCell {
    pub opened: Counter,
    pub closed: Counter,
    pub sent: Counter,
    pub received: Counter,
}

/// The cells that a connection's latest requests went to.
#[derive(Debug, Default)]
pub(crate) struct Memo(Vec<(Key, Arc<RequestCell>)>);

/// Cells that a connection remembers.
const MEMO: usize = 4;

/// One worker's cells.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    requests: Mutex<HashMap<Key, Arc<RequestCell>>>,
    connections: Mutex<HashMap<Key, Arc<TcpCell>>>,
    refused: Counter,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sets {
    /// Counts a finished request.
    pub fn request(&self, key: KeyRef<'_>, memo: &mut Memo, measured: &Measured) {
        if let Some((_, cell)) = memo.0.iter().find(|(known, _)| key.is(known)) {
            cell.add(measured);
            return;
        }
        let (owned, cell) = self.cell(&self.requests, key);
        cell.add(measured);
        if memo.0.len() >= MEMO {
            memo.0.remove(0);
        }
        memo.0.push((owned, cell));
    }

    /// The cell of a connection.
    pub fn connection(&self, key: KeyRef<'_>) -> Arc<TcpCell> {
        self.cell(&self.connections, key).1
    }

    /// Requests and connections that had to go to a common set.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    fn cell<T: Default>(&self, all: &Mutex<HashMap<Key, Arc<T>>>, key: KeyRef<'_>) -> (Key, Arc<T>) {
        let mut all = lock(all);
        let owned = key.to_key();
        let full = all.len() >= MAX_SETS;
        match all.entry(owned.clone()) {
            Entry::Occupied(known) => return (owned, Arc::clone(known.get())),
            Entry::Vacant(place) if !full => {
                let cell = Arc::clone(place.insert(Arc::default()));
                return (owned, cell);
            }
            Entry::Vacant(_) => {}
        }
        self.refused.inc();
        let common = KeyRef { service: None, host: None, peer: None, peer_principal: None, answers: &[], ..key };
        (owned, Arc::clone(all.entry(common.to_key()).or_default()))
    }
}

/// Names of both ends where we are the client.
pub(crate) fn principals(shown: Option<&Arc<Shown>>) -> (Option<&Arc<str>>, Option<&Arc<str>>) {
    shown.map_or((None, None), |s| (s.peer.as_ref(), s.local.as_ref()))
}

/// Counts the messages in a gRPC body by their five-byte headers.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct GrpcFrames {
    /// Messages that have begun.
    pub count: u64,
    header: [u8; 5],
    have: usize,
    body: u64,
}

impl GrpcFrames {
    /// A piece of the body.
    pub fn pass(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.body > 0 {
                let skip = usize::try_from(self.body).unwrap_or(usize::MAX).min(data.len());
                self.body = self.body.saturating_sub(skip as u64);
                data = data.get(skip..).unwrap_or_default();
                continue;
            }
            let Some((first, rest)) = data.split_first() else { return };
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = *first;
            }
            self.have = self.have.saturating_add(1);
            data = rest;
            if self.have >= self.header.len() {
                let [_, length @ ..] = self.header;
                (self.have, self.body) = (0, u32::from_be_bytes(length).into());
                self.count = self.count.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key<'a>() -> KeyRef<'a> {
        KeyRef {
            outbound: true,
            service: None,
            host: None,
            code: 200,
            flags: "-",
            grpc: None,
            protocol: "http",
            mutual: false,
            peer: None,
            peer_principal: None,
            own_principal: None,
            config: None,
            answers: &[],
        }
    }

    fn measured() -> Measured {
        Measured {
            took: Duration::from_millis(3),
            request_bytes: 1,
            response_bytes: 2,
            request_messages: 0,
            response_messages: 0,
        }
    }

    #[test]
    fn label_sets_are_bounded_and_none_is_lost() {
        let sets = Sets::default();
        let more = 300;
        for i in 0..MAX_SETS + more {
            let host: Arc<str> = format!("h{i}").into();
            sets.request(KeyRef { host: Some(&host), ..key() }, &mut Memo::default(), &measured());
        }
        let all = lock(&sets.requests);
        assert_eq!(all.len(), MAX_SETS + 1);
        assert_eq!(all.values().map(|c| c.millis.count.get()).sum::<u64>(), (MAX_SETS + more) as u64);
        assert_eq!(sets.refused(), more as u64);
    }

    #[test]
    fn a_connection_remembers_its_cells() {
        let (sets, mut memo) = (Sets::default(), Memo::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "a".into());
        for host in [&a, &b, &a] {
            sets.request(KeyRef { host: Some(host), ..key() }, &mut memo, &measured());
        }
        assert_eq!((memo.0.len(), lock(&sets.requests).len()), (1, 1));
        for code in 300..310 {
            sets.request(KeyRef { code, ..key() }, &mut memo, &measured());
        }
        assert_eq!((memo.0.len(), lock(&sets.requests).len()), (MEMO, 11));
    }

    #[test]
    fn grpc_messages_are_counted_however_they_are_cut() {
        let body = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1, 9]].concat();
        for cut in 1..body.len() {
            let mut frames = GrpcFrames::default();
            body.chunks(cut).for_each(|c| frames.pass(c));
            assert_eq!(frames.count, 3, "{cut}");
        }
    }
}
