//! Logs sent to servers: OpenTelemetry's and Envoy's own, beside what a real Envoy sends; and servers that do not take them.

use super::collector::Collector;
use crate::lab::{Ask, Envoy, Setup, h2_cluster, native_as, send, typed};
use crate::support::*;
use carrick_proxy::{EngineOptions, Workload};
use carrick_proxy_core::otlp::{self, ExportLogs, KeyValue};
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3 as als;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const ENTRIES: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

fn lab_node() -> EngineOptions {
    let workload = Workload { node: "lab".to_owned(), service: "lab".to_owned(), ..Workload::default() };
    EngineOptions { workload, workers: 2, ..EngineOptions::default() }
}

fn common() -> Value {
    json!({"log_name": "lab-log", "transport_api_version": "V3", "buffer_flush_interval": "0.1s",
        "grpc_service": {"envoy_grpc": {"cluster_name": "logs"}}})
}

fn setups(server: SocketAddr) -> Vec<Setup> {
    let text = |t: &str| json!({"string_value": t});
    let pair = |key: &str, value: Value| json!({"key": key, "value": value});
    let otel = json!({
        "common_config": common(),
        "body": text("%REQ(:METHOD)% %REQ(:PATH)% -> %RESPONSE_CODE%"),
        "attributes": {"values": [
            pair("code", text("%RESPONSE_CODE%")), pair("missing", text("%REQ(X-NO)%")), pair("flags", text("%RESPONSE_FLAGS%")),
            pair("tree", json!({"kvlist_value": {"values": [pair("route", text("r %ROUTE_NAME%"))]}})),
        ]},
        "resource_attributes": {"values": [pair("team", text("lab"))]},
    });
    let entries = json!({"common_config": common(),
        "additional_request_headers_to_log": ["x-a", "x-none"], "additional_response_headers_to_log": ["server"]});
    let one = |name, kind: &str, config: Value, filter: Value| {
        let mut log = json!({"name": name, "typed_config": typed(kind, config)});
        if !filter.is_null() {
            log["filter"] = filter;
        }
        let mut setup = Setup::new(name).cluster(h2_cluster("logs", server));
        setup.manager = json!({"access_log": [log]});
        setup
    };
    let cel = json!({"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": typed(
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        json!({"expression": "response.code >= 400 || request.headers['x-a'] == 'log'"}))}});
    let both = json!({"and_filter": {"filters": [
        {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 200, "runtime_key": "none"}}}},
        {"not_health_check_filter": {}},
        {"or_filter": {"filters": [
            {"header_filter": {"header": {"name": "x-a", "string_match": {"exact": "log"}}}},
            {"duration_filter": {"comparison": {"op": "GE", "value": {"default_value": 600, "runtime_key": "none"}}}}]}}]}});
    let kinds = "envoy.extensions.access_loggers";
    vec![
        one("otel", &format!("{kinds}.open_telemetry.v3.OpenTelemetryAccessLogConfig"), otel, Value::Null),
        one("entries", &format!("{kinds}.grpc.v3.HttpGrpcAccessLogConfig"), entries.clone(), cel),
        one("both", &format!("{kinds}.grpc.v3.HttpGrpcAccessLogConfig"), entries, both),
    ]
}

fn asks() -> Vec<Ask> {
    vec![
        Ask::get("/a?b=c").header("x-a", "log").header("user-agent", "lab"),
        Ask::get("/quiet"),
        Ask::get("/fail").header("x-a", "no"),
        Ask::with("POST", "/b").header("x-a", "log").body("hello"),
        Ask::get("/slow"),
    ]
}

/// Records in a comparable form.
fn records(server: &Collector) -> Vec<(BTreeMap<String, String>, BTreeMap<String, String>)> {
    let map = |all: &[KeyValue]| all.iter().map(|kv| (kv.key.clone(), format!("{:?}", kv.value))).collect();
    let mut out = Vec::new();
    for resource in server.messages::<ExportLogs>(otlp::LOGS).into_iter().flat_map(|m| m.resource_logs) {
        let of = resource.resource.map(|r| map(&r.attributes)).unwrap_or_default();
        for record in resource.scope_logs.into_iter().flat_map(|s| s.log_records) {
            assert!(record.time_unix_nano > 1_700_000_000_000_000_000, "{record:?}");
            let mut shown: BTreeMap<String, String> = map(&record.attributes);
            shown.insert("body".to_owned(), format!("{:?}", record.body));
            shown.insert("trace".to_owned(), format!("{:?}", (record.trace_id, record.span_id)));
            out.push((shown, of.clone()));
        }
    }
    out.sort();
    out
}

/// Entries in a comparable form.
fn entries(server: &Collector) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    for message in server.messages::<als::StreamAccessLogsMessage>(ENTRIES) {
        if let Some(identifier) = &message.identifier {
            let node = identifier.node.as_ref().expect("a node");
            assert_eq!(
                (identifier.log_name.as_str(), node.id.as_str(), node.cluster.as_str()),
                ("lab-log", "lab", "lab")
            );
        }
        let Some(als::stream_access_logs_message::LogEntries::HttpLogs(logs)) = message.log_entries else { continue };
        for HttpAccessLogEntry { common_properties, protocol_version, request, response } in logs.log_entry {
            let (common, mut request, mut response) = (common_properties.unwrap(), request.unwrap(), response.unwrap());
            assert!(common.start_time.is_some() && common.duration.is_some() && !request.request_id.is_empty());
            request.request_id.clear();
            (request.request_headers_bytes, response.response_headers_bytes) = (0, 0);
            (request.upstream_header_bytes_sent, request.downstream_header_bytes_received) = (0, 0);
            (response.upstream_header_bytes_received, response.downstream_header_bytes_sent) = (0, 0);
            let common = format!(
                "{:?}",
                (
                    protocol_version,
                    &common.upstream_cluster,
                    &common.route_name,
                    common.response_flags,
                    common.upstream_request_attempt_count,
                    common.access_log_type,
                    common.upstream_remote_address,
                    common.downstream_transport_failure_reason,
                )
            );
            out.push((format!("{request:?}"), format!("{response:?}"), common));
        }
    }
    out.sort();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_logs_get_what_envoy_sends() {
    let (app, _) = echo_app().await;
    let ((theirs, to_theirs), (ours, to_ours)) = (Collector::start().await, Collector::start().await);
    let (envoys, natives) = (setups(to_theirs), setups(to_ours));
    let envoy = Envoy::start(&envoys.iter().collect::<Vec<_>>(), app).await;
    let (run, ports) = native_as(&natives.iter().collect::<Vec<_>>(), app, lab_node());
    for (theirs, ours) in envoy.ports.iter().zip(&ports) {
        for ask in asks() {
            send(*theirs, &ask).await;
            send(*ours, &ask).await;
        }
    }
    // The first log takes all, the second what fails or asks for it, the third slow ones and who asks for it.
    let all = |c: &Collector| (records(c).len(), entries(c).len());
    until("all is sent", || all(&theirs) == (5, 6) && all(&ours) == (5, 6)).await;
    for ((ours, theirs), what) in records(&ours).iter().zip(&records(&theirs)).zip(0..) {
        assert_eq!(ours, theirs, "record {what}");
    }
    for (ours, theirs) in entries(&ours).iter().zip(&entries(&theirs)) {
        assert_eq!(ours, theirs);
    }
    until("counted", || {
        run.engine.stats().get("access_logs.open_telemetry_access_log.logs_written") == 5
            && run.engine.stats().get("access_logs.grpc_access_log.logs_written") == 6
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_costs_entries_and_nothing_else() {
    let (app, _) = echo_app().await;
    let all = setups(free_port());
    let (run, ports) = native_as(&[&all[0]], app, lab_node());
    for _ in 0..20 {
        assert_eq!(send(ports[0], &Ask::get("/")).await.status, 200);
    }
    let dropped = || run.engine.stats().get("access_logs.open_telemetry_access_log.logs_dropped");
    until("counted as lost", || dropped() == 20).await;
}
