//! A request that curl cannot make, made by ourselves inside the pod: WebSocket, gRPC.
//!
//! Invariant: it is answered in the words of curl's answers, so that a case judges all of them alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{curl::Answer, grpc, websocket};

/// The request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Where to.
    pub url: String,
    /// Headers, or metadata of gRPC.
    pub headers: BTreeMap<String, String>,
    /// What is spoken.
    pub kind: Kind,
}

/// What is spoken.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Over a WebSocket.
    WebSocket(websocket::Exchange),
    /// In gRPC.
    Grpc(grpc::Exchange),
}

/// Makes calls; what they have in common stays from one to the next.
#[derive(Debug, Default)]
pub struct Caller {
    grpc: grpc::Client,
}

impl Caller {
    /// Makes one.
    pub async fn call(&self, call: &Call) -> Answer {
        match &call.kind {
            Kind::WebSocket(exchange) => websocket::call(call, exchange).await,
            Kind::Grpc(exchange) => self.grpc.call(call, exchange).await,
        }
    }
}
