//! The proxies that listen to the quarantine, and which list each has in force.
//!
//! Invariant: an entry lives exactly as long as its stream. What a proxy says of its own certificate is taken as told.

use super::Board;
use carrick_xds::node::metadata_text;
use carrick_xds::server::{Observer, Opened, SessionStatus};
use carrick_xds::{Node, NodeId};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GENERATOR` of a stream that asks for the quarantine and nothing else.
pub(crate) const GENERATOR: &str = "carrick-trust";

/// One proxy.
pub(super) struct Listener {
    name: String,
    engine: String,
    identity: String,
    serial: String,
    not_before: u64,
    not_after: u64,
    gateway: bool,
    pub(super) generation: u64,
    refused: Option<String>,
}

impl Listener {
    pub(super) fn shown(&self) -> Value {
        json!({
            "proxy": self.name,
            "engine": self.engine,
            "identity": self.identity,
            "serial": self.serial,
            "notBefore": self.not_before,
            "notAfter": self.not_after,
            "gateway": self.gateway,
            "generation": self.generation,
            "refused": self.refused,
        })
    }

    /// Serial, begin and end of the certificate it holds, in seconds since 1970; `None` where it has told none.
    fn life(&self) -> Option<(String, u64, u64)> {
        (self.not_after > 0).then(|| (self.serial.clone(), self.not_before, self.not_after))
    }
}

impl Board {
    /// Takes a stream in.
    pub(crate) fn open(self: &Arc<Self>, id: &NodeId, node: &Node, identity: String) -> Opened {
        let text = |key: &str| metadata_text(node, key).unwrap_or_default().to_owned();
        let listener = Listener {
            name: id.workload(),
            engine: text("CARRICK_ENGINE"),
            identity,
            serial: text("CARRICK_SERIAL"),
            not_before: text("CARRICK_NOT_BEFORE").parse().unwrap_or_default(),
            not_after: text("CARRICK_NOT_AFTER").parse().unwrap_or_default(),
            gateway: id.node_type == carrick_xds::NodeType::Router,
            generation: 0,
            refused: None,
        };
        let native = listener.engine == "native";
        let mut inner = self.lock();
        inner.next = inner.next.wrapping_add(1);
        let number = inner.next;
        inner.listeners.insert(number, listener);
        let sets = if native { self.native.subscribe() } else { self.envoy.subscribe() };
        Opened { sets, observer: Box::new(Follower { board: self.clone(), number }), turns: None }
    }

    /// Entries, and proxies that do not have the newest list.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        let behind = inner.listeners.values().filter(|listener| listener.generation < inner.generation).count();
        (inner.entries.len(), behind)
    }

    /// Lives of the certificates that proxies hold.
    pub(crate) fn lives(&self) -> Vec<(String, u64, u64)> {
        self.lock().listeners.values().filter_map(Listener::life).collect()
    }
}

struct Follower {
    board: Arc<Board>,
    number: u64,
}

impl Observer for Follower {
    fn changed(&mut self, status: &SessionStatus) {
        if let Some(listener) = self.board.lock().listeners.get_mut(&self.number) {
            listener.refused = status.refused().map(|(_, nack)| nack.message.clone());
            if listener.refused.is_none() {
                listener.generation = status.acknowledged;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.board.lock().listeners.remove(&self.number);
    }
}
