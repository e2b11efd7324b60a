//! What this worker tells mesh peers of the workload, and what peers have told it.
//!
//! Invariant: names are read once for each text and then shared; the memory for them is bounded. Without a workload of our own nothing is
//! told, read or removed.

use crate::options::Workload;
use carrick_proxy_core::model::Endpoint;
use carrick_proxy_core::model::metadata::Value;
use carrick_proxy_core::peer::{self, METADATA, METADATA_ID, Peer};
use http::{HeaderMap, HeaderValue};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Texts that are remembered; beyond, all are forgotten and learned anew.
const MOST: usize = 4096;

/// What texts say; `None` for one that cannot be read.
type Known = HashMap<Box<[u8]>, Option<Arc<Peer>>>;

/// See the module.
pub(crate) struct Peers {
    own: Option<(HeaderValue, HeaderValue)>,
    known: RefCell<Known>,
}

impl Peers {
    pub fn new(own: &Workload) -> Self {
        let told = own.peer();
        let values = || Some((HeaderValue::from_str(&told.encode()).ok()?, HeaderValue::from_str(&own.node).ok()?));
        Peers { own: if own.name.is_empty() { None } else { values() }, known: RefCell::default() }
    }

    /// Whether headers are exchanged at all.
    pub fn active(&self) -> bool {
        self.own.is_some()
    }

    /// Puts our names on a message.
    pub fn tell(&self, headers: &mut HeaderMap) {
        if let Some((metadata, id)) = &self.own {
            headers.insert(METADATA, metadata.clone());
            headers.insert(METADATA_ID, id.clone());
        }
    }

    /// Takes the other side's names off a message.
    pub fn take(&self, headers: &mut HeaderMap) -> Option<HeaderValue> {
        headers.remove(METADATA_ID);
        headers.remove(METADATA)
    }

    /// The workload that a header names.
    pub fn of_header(&self, value: &HeaderValue) -> Option<Arc<Peer>> {
        self.learn(value.as_bytes(), || Peer::decode(value.as_bytes()))
    }

    /// The workload that an endpoint names.
    pub fn of_endpoint(&self, endpoint: &Endpoint) -> Option<Arc<Peer>> {
        let Value::Text(text) = endpoint.metadata.namespace("istio")?.get("workload")? else { return None };
        self.learn(text.as_bytes(), || Peer::of_endpoint(&endpoint.metadata))
    }

    fn learn(&self, text: &[u8], read: impl FnOnce() -> Option<Peer>) -> Option<Arc<Peer>> {
        let mut known = self.known.borrow_mut();
        if let Some(peer) = known.get(text) {
            return peer.clone();
        }
        if known.len() >= MOST {
            known.clear();
        }
        let peer = read().map(Arc::new);
        known.insert(text.into(), peer.clone());
        peer
    }
}

/// Whether an endpoint takes our names off again.
pub(crate) fn is_mesh(endpoint: &Endpoint) -> bool {
    peer::is_mesh(&endpoint.metadata)
}
