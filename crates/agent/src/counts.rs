//! Istio's metrics beside a stock Envoy: it sends access logs over a socket of the agent's, and they are counted here (spec §25.2).
//!
//! Invariant: what an entry says only adds to a set of labels; at most [`MAX_SETS`] sets are kept, and what comes beyond is counted in
//! sets that name neither peer nor service nor host. What the labels are is decided in `labels`, how they are shown in `text`.

mod labels;
mod plan;
mod text;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrick_proxy::Workload;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use plan::Plan;
use text::{Connections, Requests};

/// Sets of labels that are kept: of requests, and of connections.
const MAX_SETS: usize = 5_000;

/// What a set of labels follows from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Key {
    plan: Arc<Plan>,
    /// What the other side says of itself, in base64.
    told: Box<str>,
    /// What the endpoint's metadata say.
    endpoint: Box<str>,
    /// The service, as the cluster's metadata name it.
    service: Box<str>,
    /// Where it went, and which host it asked for, where no service is named.
    cluster: Box<str>,
    host: Box<str>,
    own: Box<str>,
    theirs: Box<str>,
    protocol: &'static str,
    code: u32,
    grpc: Box<str>,
    flags: Box<str>,
    /// Values of changed labels, in the plan's order.
    answers: Vec<Box<str>>,
}

#[derive(Debug, Default)]
struct Sets {
    requests: HashMap<Key, Requests>,
    connections: HashMap<Key, Connections>,
}

/// Everything that was counted.
#[derive(Debug)]
pub struct Counts {
    own: Workload,
    sets: Mutex<Sets>,
}

impl Counts {
    /// Nothing, of this workload.
    pub fn new(own: Workload) -> Arc<Self> {
        Arc::new(Self { own, sets: Mutex::default() })
    }

    /// The service that Envoy sends its logs to.
    pub fn service(self: &Arc<Self>) -> AccessLogServiceServer<Receiver> {
        AccessLogServiceServer::new(Receiver(Arc::clone(self)))
    }

    /// Prometheus text.
    pub fn prometheus(&self) -> String {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        text::write(&self.own, &sets.requests, &sets.connections)
    }

    fn request(&self, plan: &Arc<Plan>, entry: HttpAccessLogEntry) {
        let Some(common) = entry.common_properties else { return };
        let (request, response) = (entry.request.unwrap_or_default(), entry.response.unwrap_or_default());
        let mut key = key(plan, &common);
        let grpc = tag(&common, "type").starts_with("application/grpc");
        key.protocol = if grpc { "grpc" } else { "http" };
        key.code = response.response_code.map_or(0, |code| code.value);
        if grpc {
            key.grpc = tag(&common, "grpc").into();
        }
        if key.service.is_empty() {
            key.host = request.authority.as_str().into();
        }
        let millis = common.duration.map_or(0.0, |d| {
            // Exact up to 2^53 milliseconds.
            #[allow(clippy::cast_precision_loss)]
            let seconds = d.seconds as f64;
            seconds.mul_add(1000.0, f64::from(d.nanos) / 1_000_000.0)
        });
        let sizes = (
            request.request_headers_bytes.saturating_add(request.request_body_bytes),
            response.response_headers_bytes.saturating_add(response.response_body_bytes),
        );
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        slot(&mut sets.requests, key).add(millis, sizes);
    }

    fn connection(&self, plan: &Arc<Plan>, entry: &TcpAccessLogEntry) {
        let Some(common) = &entry.common_properties else { return };
        let mut key = key(plan, common);
        key.protocol = "tcp";
        let begins = common.access_log_type == i32::from(AccessLogType::TcpUpstreamConnected);
        // The flags are known at the end alone; the beginning is counted under those of most connections.
        let failed = common.upstream_local_address.is_none();
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = slot(&mut sets.connections, key);
        if begins || failed {
            cell.opened = cell.opened.wrapping_add(1);
        }
        if !begins {
            let bytes = entry.connection_properties.unwrap_or_default();
            cell.closed = cell.closed.wrapping_add(1);
            cell.sent = cell.sent.wrapping_add(bytes.sent_bytes);
            cell.received = cell.received.wrapping_add(bytes.received_bytes);
        }
    }
}

fn tag<'a>(common: &'a AccessLogCommon, name: &str) -> &'a str {
    common.custom_tags.get(name).map(String::as_str).filter(|text| *text != "-").unwrap_or_default()
}

fn key(plan: &Arc<Plan>, common: &AccessLogCommon) -> Key {
    let text = |name: &str| Box::from(tag(common, name));
    Key {
        plan: Arc::clone(plan),
        told: text("told"),
        endpoint: text("peer"),
        service: text("svc"),
        cluster: common.upstream_cluster.as_str().into(),
        own: text("own"),
        theirs: text("theirs"),
        flags: text("flags"),
        answers: plan.questions().map(text).collect(),
        ..Key::default()
    }
}

/// The cell of a set; a coarser one when there are too many.
fn slot<C: Default>(sets: &mut HashMap<Key, C>, mut key: Key) -> &mut C {
    if sets.len() >= MAX_SETS && !sets.contains_key(&key) {
        key = Key { plan: key.plan, protocol: key.protocol, code: key.code, ..Key::default() };
    }
    sets.entry(key).or_default()
}

/// The receiving end of Envoy's streams.
#[derive(Debug, Clone)]
pub struct Receiver(Arc<Counts>);

#[tonic::async_trait]
impl AccessLogService for Receiver {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        let mut plan: Option<Arc<Plan>> = None;
        while let Some(message) = messages.message().await? {
            if let Some(identifier) = message.identifier {
                plan = Some(Arc::new(Plan::read(&identifier.log_name).map_err(Status::invalid_argument)?));
                debug!(name = identifier.log_name, "Envoy sends logs to be counted");
            }
            let Some(plan) = &plan else { return Err(Status::invalid_argument("the first message has no identifier")) };
            match message.log_entries {
                Some(LogEntries::HttpLogs(logs)) => {
                    logs.log_entry.into_iter().for_each(|entry| self.0.request(plan, entry));
                }
                Some(LogEntries::TcpLogs(logs)) => {
                    logs.log_entry.iter().for_each(|entry| self.0.connection(plan, entry));
                }
                None => {}
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

#[cfg(test)]
mod tests;
