//! What the engine really holds: which secret each of its streams has acknowledged last.
//!
//! Invariant: a secret counts as held by a stream from its acknowledgement on, not from its sending; a stream that has
//! acknowledged nothing yet holds nothing old either. The native engine has no streams: it reads the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carrick_proxy::Secret;
use tokio::sync::watch;

/// The acknowledged secrets of all streams.
#[derive(Debug)]
pub struct Held {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    by_stream: BTreeMap<(u64, String), Secret>,
}

impl Default for Held {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with every acknowledgement, and when a stream ends.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What is held of a name by those streams that hold something else than `now`: at most one of several.
    pub fn behind(&self, name: &str, is_now: impl Fn(&Secret) -> bool) -> Option<Secret> {
        let inner = self.lock();
        inner.by_stream.iter().find(|((_, n), secret)| n == name && !is_now(secret)).map(|(_, secret)| secret.clone())
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// One stream's part; what it holds is forgotten with it.
#[derive(Debug)]
pub struct Stream {
    held: Arc<Held>,
    id: u64,
    sent: BTreeMap<String, Vec<(String, Secret)>>,
}

impl Stream {
    /// A new stream, which holds nothing.
    pub fn new(held: Arc<Held>) -> Self {
        let id = {
            let mut inner = held.lock();
            inner.next = inner.next.wrapping_add(1);
            inner.next
        };
        Self { held, id, sent: BTreeMap::new() }
    }

    /// These went out under a nonce.
    pub fn sent(&mut self, nonce: &str, secrets: Vec<(String, Secret)>) {
        self.sent.insert(nonce.to_owned(), secrets);
    }

    /// The answer to a nonce came.
    pub fn answered(&mut self, nonce: &str, accepted: bool) {
        let Some(secrets) = self.sent.remove(nonce) else { return };
        if accepted {
            let mut inner = self.held.lock();
            for (name, secret) in secrets {
                inner.by_stream.insert((self.id, name), secret);
            }
            drop(inner);
            self.held.bump();
        }
    }

    /// Only these names are still asked for.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.held.lock().by_stream.retain(|(id, name), _| *id != self.id || wanted(name));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.held.lock().by_stream.retain(|(id, _), _| *id != self.id);
        self.held.bump();
    }
}
