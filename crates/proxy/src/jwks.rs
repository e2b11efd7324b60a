//! Key sets fetched from their servers, kept per worker.
//!
//! Invariant: nobody waits for a fetch while good keys are there; one fetch of a set at a time; a failure leaves the last good keys in force
//! and is not repeated for a second.

use crate::call::{self, Call};
use crate::local::Local;
use crate::upstream::Upstreams;
use bytes::Bytes;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::jws::keys::KeySet;
use carrick_proxy_core::model::jwt::Remote;
use http::Request;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest key set, bytes.
const MAX_SET: usize = 1024 * 1024;
/// Time before a failed fetch is tried again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Entry {
    keys: Option<Arc<KeySet>>,
    until: Option<Instant>,
    fetching: Rc<tokio::sync::Mutex<()>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Cache {
    entries: RefCell<HashMap<Arc<Remote>, Entry>>,
}

impl Cache {
    /// The keys that are here.
    pub fn get(&self, remote: &Remote) -> Option<Arc<KeySet>> {
        self.entries.borrow().get(remote)?.keys.clone()
    }

    fn is_due(&self, remote: &Remote) -> bool {
        self.entries.borrow().get(remote).and_then(|e| e.until).is_none_or(|until| until <= Instant::now())
    }

    /// Fetches a set that is missing or has had its time.
    pub async fn ensure(&self, local: &Rc<Local>, upstreams: &Upstreams, config: &RuntimeConfig, remote: &Arc<Remote>) {
        if !self.is_due(remote) {
            return;
        }
        let fetching = Rc::clone(&self.entries.borrow_mut().entry(Arc::clone(remote)).or_default().fetching);
        let _one = fetching.lock().await;
        if !self.is_due(remote) {
            return;
        }
        let fetched = fetch(local, upstreams, config, remote).await;
        let now = Instant::now();
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(Arc::clone(remote)).or_default();
        match fetched {
            Some(keys) => {
                entry.keys = Some(Arc::new(keys));
                entry.until = now.checked_add(remote.cache);
            }
            None => entry.until = now.checked_add(AGAIN),
        }
    }
}

async fn fetch(local: &Rc<Local>, upstreams: &Upstreams, config: &RuntimeConfig, remote: &Remote) -> Option<KeySet> {
    let head = Request::get(&*remote.path).header(http::header::HOST, &*remote.host).body(()).ok()?.into_parts().0;
    let call =
        Call { cluster: &remote.cluster, head, body: Bytes::new(), h2: false, timeout: remote.timeout, limit: MAX_SET };
    match call::ask(local, upstreams, config, call).await {
        Ok(answer) if answer.head.status == http::StatusCode::OK => match KeySet::parse(&answer.body) {
            Ok(keys) => return Some(keys),
            Err(e) => tracing::warn!(host = %remote.host, path = %remote.path, "key set: {}", e.text()),
        },
        Ok(answer) => tracing::warn!(host = %remote.host, path = %remote.path, "key set: {}", answer.head.status),
        Err(e) => tracing::warn!(host = %remote.host, path = %remote.path, "key set: {e}"),
    }
    None
}
