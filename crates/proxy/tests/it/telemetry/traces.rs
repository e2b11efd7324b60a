//! Spans beside those that a real Envoy sends of the same requests, and what is told to the upstream.

use super::collector::Collector;
use crate::lab::{Ask, Envoy, Setup, h2_cluster, native_as, send, static_cluster, typed};
use crate::support::*;
use carrick_proxy::{EngineOptions, Workload};
use carrick_proxy_core::otlp::{self, ExportTraces, Span};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const QUIET: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn tracing(service: Value, more: Value) -> Value {
    let mut config = json!({
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": typed(
            "envoy.config.trace.v3.OpenTelemetryConfig", service)},
        "custom_tags": [
            {"tag": "fixed", "literal": {"value": "here"}},
            {"tag": "asked", "request_header": {"name": "x-a", "default_value": "nobody"}},
            {"tag": "silent", "request_header": {"name": "x-none"}},
            {"tag": "color", "metadata": {"kind": {"route": {}}, "metadata_key": {"key": "lab", "path": [{"key": "color"}]}}},
        ],
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    json!({"tracing": config})
}

fn setups(server: SocketAddr) -> Vec<Setup> {
    let grpc = |name: &str| json!({"grpc_service": {"envoy_grpc": {"cluster_name": "spans"}, "timeout": "1s"}, "service_name": name});
    let http = json!({"http_service": {"http_uri": {"uri": "http://spans/v1/traces", "cluster": "spans-http", "timeout": "1s"}},
        "service_name": "by-http"});
    let hosts = json!([{"name": "all", "domains": ["*"], "routes": [
        {"name": "decorated", "match": {"prefix": "/decorated"}, "route": {"cluster": "app"}, "decorator": {"operation": "op.of:80/*"}},
        {"name": "never", "match": {"prefix": "/never"}, "route": {"cluster": "app"}, "tracing": {"random_sampling": {"numerator": 0}}},
        {"name": "all", "match": {"prefix": "/"}, "route": {"cluster": "app"}, "metadata": {"filter_metadata": {"lab": {"color": "red"}}}}]}]);
    let one = |name, service: Value, more: Value, listener: Value| {
        let mut setup = Setup::new(name).cluster(h2_cluster("spans", server)).hosts(hosts.clone());
        setup = setup.cluster(static_cluster("spans-http", server));
        setup.manager = tracing(service, more);
        setup.more = listener;
        setup
    };
    let outbound = json!({"traffic_direction": "OUTBOUND"});
    vec![
        one("in", grpc("in"), json!({}), json!({"traffic_direction": "INBOUND"})),
        one("out", grpc("out"), json!({"random_sampling": {"value": 100}}), outbound.clone()),
        one("out-two", grpc("out-two"), json!({"spawn_upstream_span": true}), outbound.clone()),
        one("in-two", grpc("in-two"), json!({"spawn_upstream_span": true, "max_path_tag_length": 5}), json!({})),
        one("none", grpc("none"), json!({"random_sampling": {"value": 0}}), outbound),
        one("by-http", http, json!({}), json!({})),
    ]
}

fn asks() -> Vec<Ask> {
    vec![
        Ask::get("/a/long/path?q=1").header("user-agent", "lab").header("x-a", "me"),
        Ask::get("/b").header("traceparent", PARENT).header("tracestate", "k=v"),
        Ask::get("/b").header("traceparent", QUIET),
        Ask::get("/b").header("traceparent", "nonsense"),
        Ask::get("/b").header("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124").header("x-b3-sampled", "0"),
        Ask::get("/b").header("x-client-trace-id", "c1").header("x-envoy-force-trace", "1"),
        Ask::get("/fail"),
        Ask::get("/decorated"),
        Ask::get("/decorated").header("x-envoy-decorator-operation", "theirs"),
        Ask::get("/never"),
        Ask::get("/never").header("x-request-id", "00000064-aaaa-aaaa-aaaa-aaaaaaaaaaaa"),
        Ask::get("/b").header("x-request-id", "00000064-aaaa-4aaa-aaaa-aaaaaaaaaaaa"),
        Ask::with("POST", "/mirror")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body("\0\0\0\0\0"),
    ]
}

/// What differs each time is left as a form.
fn form(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_hexdigit() { '9' } else { c }).collect()
}

/// Spans in a comparable form, by service.
fn spans(server: &Collector) -> Vec<String> {
    let mut all: Vec<(String, Span)> = Vec::new();
    for path in [otlp::TRACES, "/v1/traces"] {
        for resource in server.messages::<ExportTraces>(path).into_iter().flat_map(|m| m.resource_spans) {
            let of = resource.resource.unwrap_or_default();
            let name = of.attributes.iter().find(|a| a.key == "service.name").map(|a| format!("{:?}", a.value));
            all.extend(
                resource.scope_spans.into_iter().flat_map(|s| s.spans).map(|s| (name.clone().unwrap_or_default(), s)),
            );
        }
    }
    let parent_of = |span: &Span| all.iter().any(|(_, s)| s.span_id == span.parent_span_id);
    let mut out: Vec<String> = all
        .iter()
        .map(|(service, span)| {
            assert!(span.start_time_unix_nano > 1_700_000_000_000_000_000, "{span:?}");
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
            let attributes: BTreeMap<&str, String> = span
                .attributes
                .iter()
                // The application tells of an empty `tracestate` that Envoy sends, and we do not.
                .filter(|a| a.key != "response_size")
                .map(|a| {
                    let text = format!("{:?}", a.value);
                    (a.key.as_str(), if a.key == "guid:x-request-id" { form(&text) } else { text })
                })
                .collect();
            let parent = match span.parent_span_id.as_slice() {
                [] => "none".to_owned(),
                _ if parent_of(span) => "ours".to_owned(),
                theirs => carrick_proxy_core::trace::hex(theirs),
            };
            format!(
                "{service} {} {} parent={parent} state={} flags={} status={:?}\n    {attributes:#?}",
                span.name, span.kind, span.trace_state, span.flags, span.status
            )
        })
        .collect();
    out.sort();
    out
}

/// The headers about tracing that the application or the caller saw.
fn told(body: &str) -> Vec<String> {
    let names = [
        "traceparent: ",
        "tracestate: ",
        "x-b3-",
        "x-envoy-decorator-operation: ",
        "x-client-trace-id",
        "x-envoy-force",
    ];
    let mut out: Vec<String> = body
        .lines()
        .filter(|l| names.iter().any(|n| l.starts_with(n)) && *l != "tracestate: ")
        .map(|l| {
            if l.starts_with("traceparent") && l.len() > 60 {
                form(l.get(..66).unwrap_or(l)) + &l[66..]
            } else {
                l.to_owned()
            }
        })
        .collect();
    out.sort();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_envoys() {
    let (app, _) = echo_app().await;
    let ((theirs, to_theirs), (ours, to_ours)) = (Collector::start().await, Collector::start().await);
    let (envoys, natives) = (setups(to_theirs), setups(to_ours));
    let envoy = Envoy::start(&envoys.iter().collect::<Vec<_>>(), app).await;
    let node = Workload { node: "lab".to_owned(), service: "lab".to_owned(), ..Workload::default() };
    let options = EngineOptions { workload: node, workers: 1, ..EngineOptions::default() };
    let (run, ports) = native_as(&natives.iter().collect::<Vec<_>>(), app, options);
    let mut differences = Vec::new();
    for (i, setup) in envoys.iter().enumerate() {
        for ask in asks() {
            let (theirs, ours) = (send(envoy.ports[i], &ask).await, send(ports[i], &ask).await);
            let shown = |s: &crate::lab::Seen| (told(&s.body), s.headers.get("x-envoy-decorator-operation").cloned());
            if shown(&theirs) != shown(&ours) {
                differences.push(format!(
                    "{} {ask:?}\n  Envoy: {:?}\n  ours:  {:?}",
                    setup.name,
                    shown(&theirs),
                    shown(&ours)
                ));
            }
        }
    }
    // Both have sent all when as many have come as Envoy sends and nothing more comes.
    let mut before = (0, 0);
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        let now = (spans(&theirs).len(), spans(&ours).len());
        if now == before && now.0 == now.1 && now.0 > 0 {
            break;
        }
        before = now;
    }
    let (theirs, ours) = (spans(&theirs), spans(&ours));
    for span in theirs.iter().filter(|s| !ours.contains(s)) {
        differences.push(format!("only Envoy's: {span}"));
    }
    for span in ours.iter().filter(|s| !theirs.contains(s)) {
        differences.push(format!("only ours: {span}"));
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
    assert_eq!(theirs.len(), ours.len());
    let sent = || run.engine.stats().get("tracing.opentelemetry.spans_sent");
    until("counted", || sent() == ours.len() as u64).await;
    assert!(run.engine.stats().get("http.lab.tracing.random_sampling") > 0);
}
