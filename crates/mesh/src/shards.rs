//! A map that is cheap to copy and to change a little: what changed is copied, the rest is shared with the copies before.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// A change copies one of them: with ten thousand entries, some hundred.
const SHARDS: u64 = 64;

/// The map.
#[derive(Debug, Clone)]
pub(crate) struct Shards<K, V>(Box<[Arc<HashMap<K, V>>]>);

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self((0..SHARDS).map(|_| empty.clone()).collect())
    }
}

fn at<Q: Hash + ?Sized>(key: &Q) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS).unwrap_or_default()
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(at(key))?.get(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if let Some(shard) = self.0.get_mut(at(&key)) {
            Arc::make_mut(shard).insert(key, value);
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let shard = self.0.get_mut(at(key))?;
        // What is not there is no reason to copy.
        if !shard.contains_key(key) {
            return None;
        }
        Arc::make_mut(shard).remove(key)
    }

    /// Changes a value in its place, beginning with the default; one that `keep` says no to is removed.
    pub fn change(&mut self, key: K, keep: impl FnOnce(&mut V) -> bool)
    where
        V: Default,
    {
        let Some(shard) = self.0.get_mut(at(&key)) else { return };
        let shard = Arc::make_mut(shard);
        let value = shard.entry(key.clone()).or_default();
        if !keep(value) {
            shard.remove(&key);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flat_map(|shard| shard.iter())
    }
}
