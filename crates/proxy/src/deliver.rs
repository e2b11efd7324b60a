//! Sending logs and traces to their servers, in batches.
//!
//! Invariant: the way goes through the cluster's own balancing, pools and TLS; what could not be sent is counted as lost, not sent again.

use crate::call::{self, Call};
use crate::export::{Batch, Entry, Head, counter};
use crate::options::Workload;
use crate::worker::Worker;
use bytes::{BufMut, Bytes, BytesMut};
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::collector::Collector;
use carrick_proxy_core::{access_log, otlp};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::accesslog::v3 as als;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, TE};
use http::{Method, Request};
use prost::Message;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Longest answer of a server.
const MAX_ANSWER: usize = 64 * 1024;
/// How long a draining worker sends what is left.
const LAST: Duration = Duration::from_secs(2);

/// Sends what is due, for as long as the worker lives.
pub(crate) async fn run(worker: Rc<Worker>) {
    let exports = &worker.log.exports;
    loop {
        match exports.next() {
            None => exports.wake.notified().await,
            Some(at) => {
                let due = tokio::time::sleep_until(at.into());
                tokio::select! {
                    () = due => {}
                    () = exports.wake.notified() => {}
                }
            }
        }
        for name in exports.dropped.take() {
            worker.stats.filter(None, &name);
        }
        for batch in exports.take(Instant::now(), false) {
            let own = Rc::clone(&worker);
            worker.spawn(async move { send(&own, batch).await });
        }
    }
}

/// Sends what is left.
pub(crate) async fn last(worker: &Rc<Worker>) {
    for batch in worker.log.exports.take(Instant::now(), true) {
        let _ = tokio::time::timeout(LAST, send(worker, batch)).await;
    }
}

async fn send(worker: &Rc<Worker>, batch: Batch) {
    let n = batch.entries.len();
    let (sent, dropped) = (counter(&batch.to, &batch.head, true), counter(&batch.to, &batch.head, false));
    let result = deliver(worker, &batch.to, message(&batch.head, batch.entries, &worker.shared.options.workload)).await;
    if let Err(e) = &result {
        tracing::debug!(cluster = %batch.to.cluster, "{n} entries lost: {e}");
    }
    let name = if result.is_ok() { &sent } else { &dropped };
    (0..n).for_each(|_| worker.stats.filter(None, name));
    batch.sending.set(false);
    worker.log.exports.wake.notify_one();
}

#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error(transparent)]
    Call(#[from] call::CallError),
    #[error("status {0}")]
    Status(String),
    #[error("bad address")]
    Address,
}

async fn deliver(worker: &Rc<Worker>, to: &Collector, message: Vec<u8>) -> Result<(), NotSent> {
    let mut request = Request::builder().method(Method::POST).uri(&*to.path);
    let headers = request.headers_mut().ok_or(NotSent::Address)?;
    headers.extend(to.metadata.iter().cloned());
    headers.insert(HOST, HeaderValue::from_str(&to.authority).map_err(|_| NotSent::Address)?);
    let body = if to.grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let mut framed = BytesMut::with_capacity(message.len().saturating_add(5));
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.put_slice(&message);
        framed.freeze()
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(message.len()));
        Bytes::from(message)
    };
    let call = Call {
        cluster: &to.cluster,
        head: request.body(()).map_err(|_| NotSent::Address)?.into_parts().0,
        body,
        h2: to.grpc,
        timeout: to.timeout,
        limit: MAX_ANSWER,
    };
    let live = worker.live();
    let answer = call::ask(&worker.local, &worker.upstreams, &live.config, call).await?;
    if !answer.head.status.is_success() {
        return Err(NotSent::Status(answer.head.status.to_string()));
    }
    let status = answer.trailers.get("grpc-status").or(answer.head.headers.get("grpc-status"));
    match status {
        Some(status) if to.grpc && status != "0" => Err(NotSent::Status(format!("{status:?}"))),
        _ => Ok(()),
    }
}

fn message(head: &Head, entries: Vec<Entry>, own: &Workload) -> Vec<u8> {
    match head {
        Head::Records(format) => {
            let mut attributes = Vec::new();
            if format.builtin {
                attributes.extend([
                    otlp::text("log_name", &*format.log_name),
                    otlp::text("zone_name", own.zone.as_str()),
                    otlp::text("cluster_name", own.service.as_str()),
                    otlp::text("node_name", own.node.as_str()),
                ]);
            }
            attributes.extend(access_log::pairs(&format.resource, &Facts::default()));
            let records = entries.into_iter().filter_map(|e| match e {
                Entry::Record(record) => Some(record),
                _ => None,
            });
            let scope_logs = vec![otlp::ScopeLogs { scope: None, log_records: records.collect() }];
            let resource = Some(otlp::Resource { attributes });
            otlp::ExportLogs { resource_logs: vec![otlp::ResourceLogs { resource, scope_logs }] }.encode_to_vec()
        }
        Head::Spans(tracer) => {
            let spans = entries.into_iter().filter_map(|e| match e {
                Entry::Span(span) => Some(span),
                _ => None,
            });
            let scope = otlp::InstrumentationScope { name: "envoy".to_owned(), ..Default::default() };
            let scope_spans = vec![otlp::ScopeSpans { scope: Some(scope), spans: spans.collect() }];
            let resource = Some(otlp::Resource { attributes: vec![otlp::text("service.name", &*tracer.service_name)] });
            otlp::ExportTraces { resource_spans: vec![otlp::ResourceSpans { resource, scope_spans }] }.encode_to_vec()
        }
        Head::Entries(format) => {
            use als::stream_access_logs_message as inner;
            let node = Node { id: own.node.clone(), cluster: own.service.clone(), ..Node::default() };
            let identifier = inner::Identifier { node: Some(node), log_name: format.log_name.to_string() };
            let (mut http, mut tcp) = (Vec::new(), Vec::new());
            for entry in entries {
                match entry {
                    Entry::Http(entry) => http.push(entry),
                    Entry::Tcp(entry) => tcp.push(entry),
                    _ => {}
                }
            }
            let log_entries = if format.http {
                inner::LogEntries::HttpLogs(inner::HttpAccessLogEntries { log_entry: http })
            } else {
                inner::LogEntries::TcpLogs(inner::TcpAccessLogEntries { log_entry: tcp })
            };
            als::StreamAccessLogsMessage { identifier: Some(identifier), log_entries: Some(log_entries) }
                .encode_to_vec()
        }
    }
}
