//! What was rendered before, by the input it was rendered from.
//!
//! Invariant: the key is the generator's whole input, so a hit is always right; what no push used since the last sweep is forgotten.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use carrick_mesh::view::{
    Cluster, GatewayListener, Inbound, InboundCluster, Load, Outbound, OutboundListener, RouteTable, SecretPart,
};
use envoy_types::pb::google::protobuf::Any;
use sha2::{Digest, Sha256};

use crate::{BoundPort, BuiltIn, Resource, Resources, outbound::CatchAll};

/// Bytes of the hash that make a version; 16 are beyond accident and attack.
const VERSION_BYTES: usize = 16;

/// What was rendered before, shared over proxies and pushes.
#[derive(Debug, Default)]
pub struct Cache {
    pub(crate) generation: u64,
    pub(crate) clusters: Memo<Cluster>,
    pub(crate) inbound_clusters: Memo<InboundCluster>,
    pub(crate) built_in: Memo<BuiltIn>,
    pub(crate) listeners: Memo<OutboundListener>,
    pub(crate) catch_all: Memo<CatchAll>,
    pub(crate) inbound: Memo<Inbound>,
    pub(crate) bound: Memo<BoundPort>,
    pub(crate) routes: Memo<RouteTable>,
    pub(crate) loads: Memo<Load>,
    pub(crate) gateways: Memo<GatewayListener>,
    pub(crate) secrets: Memo<SecretPart>,
    pub(crate) outbound_sets: Shared<Outbound, OutboundSet>,
    pub(crate) load_sets: Shared<[Arc<Load>], Arc<Resources>>,
    pub(crate) joined: Joined,
    /// The set of nothing, which sets begin with that have no shared part.
    pub(crate) none: Arc<Resources>,
}

/// Resources of one client side, shared by all proxies that see the same.
#[derive(Debug, Clone)]
pub(crate) struct OutboundSet {
    pub clusters: Arc<Resources>,
    pub listeners: Arc<Resources>,
    pub routes: Arc<Resources>,
}

impl Cache {
    /// Forgets what no call of [`crate::resources`] used since the last sweep. To be called once per push round.
    pub fn sweep(&mut self) {
        let now = self.generation;
        self.clusters.sweep(now);
        self.inbound_clusters.sweep(now);
        self.built_in.sweep(now);
        self.listeners.sweep(now);
        self.catch_all.sweep(now);
        self.inbound.sweep(now);
        self.bound.sweep(now);
        self.routes.sweep(now);
        self.loads.sweep(now);
        self.gateways.sweep(now);
        self.secrets.sweep(now);
        self.outbound_sets.sweep(now);
        self.load_sets.sweep(now);
        self.joined.sweep(now);
        self.generation = self.generation.wrapping_add(1);
    }

    /// How many resources are remembered.
    pub fn len(&self) -> usize {
        [
            self.clusters.len(),
            self.inbound_clusters.len(),
            self.built_in.len(),
            self.listeners.len(),
            self.catch_all.len(),
            self.inbound.len(),
            self.bound.len(),
            self.routes.len(),
            self.loads.len(),
            self.gateways.len(),
            self.secrets.len(),
        ]
        .iter()
        .sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Resources by their generator's input.
#[derive(Debug)]
pub(crate) struct Memo<K> {
    known: HashMap<Arc<K>, (Arc<Resource>, u64)>,
}

impl<K> Default for Memo<K> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<K: Eq + Hash> Memo<K> {
    /// What was rendered from this input, or now is. `key` makes the kept copy of it.
    pub fn get(
        &mut self,
        now: u64,
        input: &K,
        key: impl FnOnce() -> Arc<K>,
        render: impl FnOnce(&K) -> (Arc<str>, Any),
    ) -> Arc<Resource> {
        if let Some((resource, used)) = self.known.get_mut(input) {
            *used = now;
            return resource.clone();
        }
        let (name, body) = render(input);
        let resource = Arc::new(Resource::of(name, body));
        self.known.insert(key(), (resource.clone(), now));
        resource
    }

    fn sweep(&mut self, now: u64) {
        self.known.retain(|_, (_, used)| *used == now);
    }

    fn len(&self) -> usize {
        self.known.len()
    }
}

/// Values by the identity of a shared input: an `Arc` that is kept, so that its address stays its own.
#[derive(Debug)]
pub(crate) struct Shared<K: ?Sized, V> {
    known: HashMap<usize, (Arc<K>, V, u64)>,
}

impl<K: ?Sized, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<K: ?Sized, V: Clone> Shared<K, V> {
    /// The value, and whether it was already used since the last sweep.
    pub fn get(&mut self, now: u64, input: &Arc<K>) -> Option<(V, bool)> {
        let (_, value, used) = self.known.get_mut(&identity(input))?;
        Some((value.clone(), std::mem::replace(used, now) == now))
    }

    pub fn insert(&mut self, now: u64, input: &Arc<K>, value: V) {
        self.known.insert(identity(input), (input.clone(), value, now));
    }

    fn sweep(&mut self, now: u64) {
        self.known.retain(|_, (_, _, used)| *used == now);
    }
}

/// Sets that are a shared one with a few resources more, by the identity of all of them: proxies whose own resources are equal have the
/// same set.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    known: HashMap<Vec<usize>, Join>,
}

/// All parts are kept, so that their addresses stay their own.
#[derive(Debug)]
struct Join {
    _base: Arc<Resources>,
    _more: Vec<Arc<Resource>>,
    all: Arc<Resources>,
    used: u64,
}

impl Joined {
    pub fn get(&mut self, now: u64, base: &Arc<Resources>, more: Vec<Arc<Resource>>) -> Arc<Resources> {
        let key = std::iter::once(identity(base)).chain(more.iter().map(identity)).collect();
        let join = self.known.entry(key).or_insert_with(|| {
            let mut all = (**base).clone();
            all.extend(more.iter().map(|resource| (resource.name.clone(), resource.clone())));
            Join { _base: base.clone(), _more: more, all: Arc::new(all), used: now }
        });
        join.used = now;
        join.all.clone()
    }

    fn sweep(&mut self, now: u64) {
        self.known.retain(|_, join| join.used == now);
    }
}

fn identity<K: ?Sized>(input: &Arc<K>) -> usize {
    Arc::as_ptr(input).cast::<()>() as usize
}

pub(crate) fn version(body: &Any) -> Arc<str> {
    let digest = Sha256::digest(&body.value);
    let mut text = String::with_capacity(VERSION_BYTES * 2);
    for byte in digest.iter().take(VERSION_BYTES) {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text.into()
}
