//! How objects add up, level by level.

use std::sync::Arc;

use carrick_api::{MeshConfig, Telemetry as Object, from_value};
use carrick_base::Labels;
use serde_json::{Value, json};

use super::{Side, Telemetry};
use crate::{
    Counting, Snapshot, SnapshotInput,
    parts::telemetry::{LogFormat, LogSink, Stats, TagValue, TracingProvider},
};

/// A mesh with a collector, a log service and these objects: `(namespace, name, spec)`, the first being the oldest.
fn snapshot(mesh: &Value, objects: &[(&str, &str, Value)]) -> (Snapshot, Vec<String>) {
    let mut mesh = mesh.clone();
    let providers = mesh.as_object_mut().expect("an object").entry("extensionProviders").or_insert(json!([]));
    providers.as_array_mut().expect("a list").extend([
        json!({"name": "file", "envoyFileAccessLog": {"path": "/tmp/log", "logFormat": {"labels": {"code": "%RESPONSE_CODE%"}}}}),
        json!({"name": "other", "envoyFileAccessLog": {"path": "/tmp/other"}}),
        json!({"name": "otel", "opentelemetry": {"service": "otel.ops.svc.cluster.local", "port": 4317, "maxTagLength": 99}}),
        json!({"name": "second", "zipkin": {"service": "ops/otel.ops.svc.cluster.local", "port": 4317}}),
        json!({"name": "absent", "opentelemetry": {"service": "nowhere.ops.svc.cluster.local", "port": 4317}}),
        json!({"name": "stackdriver", "stackdriver": {}}),
        json!({"name": "als", "envoyHttpAls": {"service": "otel.ops.svc.cluster.local", "port": 4317}}),
    ]);
    let collector = json!({"kind": "Service", "metadata": {"name": "otel", "namespace": "ops"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "grpc", "port": 4317}]}});
    let telemetries = objects.iter().enumerate().map(|(age, (namespace, name, spec))| {
        let created = format!("2026-01-01T00:00:{age:02}Z");
        let meta = json!({"namespace": namespace, "name": name, "creationTimestamp": created});
        Arc::new(from_value::<Object>(&json!({"kind": "Telemetry", "metadata": meta, "spec": spec})).expect("readable"))
    });
    let input = SnapshotInput {
        mesh_config: from_value::<MeshConfig>(&mesh).expect("readable"),
        services: vec![Arc::new(from_value(&collector).expect("readable"))],
        telemetries: telemetries.collect(),
        ..SnapshotInput::default()
    };
    let (snapshot, found) = Snapshot::build(&input);
    (snapshot, found.iter().map(ToString::to_string).collect())
}

fn of(snapshot: &Snapshot, side: Side, counting: Counting) -> Arc<Telemetry> {
    let labels: Labels = [("app".into(), "web".into())].into();
    snapshot.telemetry().of("shop", &labels, side, counting)
}

fn logs(snapshot: &Snapshot, side: Side) -> Vec<String> {
    let text = |sink: &LogSink| match sink {
        LogSink::File { path, format: LogFormat::Text(format), .. } => format!("{path} text {format}"),
        LogSink::File { path, format: LogFormat::Json(format), .. } => format!("{path} json {format}"),
        LogSink::OpenTelemetry { to, .. } => format!("otel {}", to.cluster),
        LogSink::Grpc(log) => format!("als {} {}", log.to.cluster, log.name),
    };
    let all = of(snapshot, side, Counting::Nobody);
    all.logs
        .iter()
        .map(|l| format!("{}{}", text(&l.sink), l.filter.as_ref().map_or(String::new(), |f| format!(" if {f}"))))
        .collect()
}

fn named(name: &str) -> Value {
    json!([{ "name": name }])
}

#[test]
fn nobody_asked_for_anything() {
    let (snapshot, found) = snapshot(&json!({}), &[]);
    assert_eq!(found, [""; 0]);
    for counting in [Counting::Nobody, Counting::Engine] {
        assert_eq!(*of(&snapshot, Side::Client, counting), Telemetry::default());
    }
    assert!(
        matches!(&of(&snapshot, Side::Server, Counting::Agent).stats, Stats::Agent(rules) if rules.metrics.is_empty())
    );
}

#[test]
fn logs_of_the_mesh_hold_until_an_object_speaks() {
    let mesh = json!({"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON"});
    let (silent, _) = snapshot(&mesh, &[]);
    assert_eq!(logs(&silent, Side::Client), ["/dev/stdout json "]);
    // Istio's own provider has the mesh's format.
    let spec = json!({"accessLogging": [{"providers": named("envoy")}]});
    let (envoy, _) = snapshot(&mesh, &[("shop", "a", spec)]);
    assert_eq!(logs(&envoy, Side::Client), ["/dev/stdout json "]);
    let off = json!({"accessLogging": [{"providers": named("envoy"), "disabled": true}]});
    let (off, _) = snapshot(&mesh, &[("shop", "a", off)]);
    assert_eq!(logs(&off, Side::Client), [""; 0], "an object's word counts, not the file");
    let (defaults, _) = snapshot(&json!({"accessLogFile": "/x", "defaultProviders": {"accessLogging": ["file"]}}), &[]);
    assert_eq!(logs(&defaults, Side::Server), ["/tmp/log json {\"code\":\"%RESPONSE_CODE%\"}"]);
}

#[test]
fn the_lowest_level_that_names_providers_says_who_is_told() {
    let root = json!({"accessLogging": [{"providers": [{"name": "file"}, {"name": "other"}]}]});
    let own = json!({"accessLogging": [{"filter": {"expression": "response.code >= 400"}}]});
    let workload = json!({"selector": {"matchLabels": {"app": "web"}},
        "accessLogging": [{"match": {"mode": "CLIENT"}, "providers": named("other"), "disabled": true}]});
    let stranger = json!({"selector": {"matchLabels": {"app": "no"}}, "accessLogging": [{"disabled": true}]});
    let younger = json!({"accessLogging": [{"disabled": true}]});
    let all = [
        ("istio-system", "root", root),
        ("shop", "own", own),
        ("shop", "workload", workload),
        ("shop", "stranger", stranger),
        ("shop", "younger", younger),
        ("bank", "foreign", json!({"accessLogging": [{"disabled": true}]})),
    ];
    let (snapshot, _) = snapshot(&json!({}), &all);
    let json = "/tmp/log json {\"code\":\"%RESPONSE_CODE%\"} if response.code >= 400";
    assert_eq!(logs(&snapshot, Side::Server), [json, "/tmp/other text  if response.code >= 400"]);
    assert_eq!(logs(&snapshot, Side::Client), [""; 0], "only `other` is in scope, and it is off");
}

#[test]
fn what_is_not_known_or_not_there_is_told() {
    let bad = |name: &str| json!({"accessLogging": [{"providers": named("file")}, {"providers": named(name)}]});
    for (name, told) in [
        ("nobody", "the mesh has no provider \"nobody\""),
        ("stackdriver", "providers of kind stackdriver are not supported"),
        ("otel", "provider \"otel\" takes no access logs"),
    ] {
        let (snapshot, found) = snapshot(&json!({}), &[("shop", "t", bad(name))]);
        assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        assert!(found[0].contains("spec.accessLogging[1].providers[0].name"), "{found:?}");
        assert_eq!(logs(&snapshot, Side::Client), [""; 0], "the object is left out");
    }
    let missing = json!({"tracing": [{"providers": named("absent")}], "accessLogging": [{"providers": named("file")}]});
    let (snapshot, found) = snapshot(&json!({}), &[("shop", "t", missing)]);
    assert!(found.len() == 1 && found[0].contains("there is no service nowhere.ops"), "{found:?}");
    assert_eq!(of(&snapshot, Side::Client, Counting::Nobody).tracing, None);
    assert_eq!(logs(&snapshot, Side::Client).len(), 1, "the rest of the object holds");
}

#[test]
fn traces_take_the_first_provider_and_the_last_word() {
    let root = json!({"tracing": [{"providers": [{"name": "otel"}, {"name": "second"}], "randomSamplingPercentage": 50,
        "customTags": {"a": {"literal": {"value": "1"}}, "b": {"header": {"name": "x-b", "defaultValue": "none"}}}}]});
    let own = json!({"tracing": [{"match": {"mode": "SERVER"}, "randomSamplingPercentage": 100, "useRequestIdForTraceSampling": false}]});
    let off = json!({"selector": {"matchLabels": {"app": "web"}}, "tracing": [{"match": {"mode": "CLIENT"}, "disableSpanReporting": true}]});
    let (on, found) = snapshot(&json!({}), &[("istio-system", "root", root.clone()), ("shop", "own", own.clone())]);
    assert!(found.len() == 1 && found[0].contains("only the first provider"), "{found:?}");
    let server = of(&on, Side::Server, Counting::Nobody).tracing.clone().expect("traced");
    assert!(matches!(&*server.provider, TracingProvider::OpenTelemetry { to, http: None, .. }
        if *to.cluster == *"outbound|4317||otel.ops.svc.cluster.local"));
    assert_eq!((server.sampling.0, server.by_request_id, server.max_path_length), (100.0, false, 99));
    let tags =
        [("a".into(), TagValue::Literal("1".into())), ("b".into(), TagValue::Header("x-b".into(), "none".into()))];
    assert_eq!(server.tags.iter().filter(|(name, _)| !name.starts_with("istio.")).cloned().collect::<Vec<_>>(), tags);
    assert!(server.tags.contains(&("istio.canonical_service".into(), TagValue::Literal("web".into()))));
    assert_eq!(&*server.service, "web.shop");
    assert_eq!(of(&on, Side::Client, Counting::Nobody).tracing.as_ref().map(|t| t.sampling.0), Some(50.0));
    let (off, _) = snapshot(&json!({}), &[("istio-system", "root", root), ("shop", "own", own), ("shop", "off", off)]);
    assert_eq!(of(&off, Side::Client, Counting::Nobody).tracing, None);
    assert!(of(&off, Side::Server, Counting::Nobody).tracing.is_some());
}

#[test]
fn traces_by_the_meshs_own_settings() {
    let (default, _) = snapshot(&json!({"defaultProviders": {"tracing": ["otel"]}}), &[]);
    assert_eq!(of(&default, Side::Client, Counting::Nobody).tracing.as_ref().map(|t| t.sampling.0), Some(1.0));
    let config = json!({"tracing": {"sampling": 7, "zipkin": {"address": "otel.ops:4317"}}});
    let (zipkin, found) = snapshot(&json!({ "defaultConfig": config }), &[]);
    assert_eq!(found, [""; 0]);
    let tracing = of(&zipkin, Side::Client, Counting::Nobody).tracing.clone().expect("traced");
    assert!(matches!(&*tracing.provider, TracingProvider::Zipkin { .. }));
    assert_eq!(tracing.sampling.0, 7.0);
    let (off, _) = snapshot(&json!({"defaultConfig": config, "enableTracing": false}), &[]);
    assert_eq!(of(&off, Side::Client, Counting::Nobody).tracing, None);
    let away = json!({"tracing": {"zipkin": {"address": "zipkin.away:9411"}}});
    let (_, found) = snapshot(&json!({ "defaultConfig": away }), &[]);
    assert!(found.len() == 1 && found[0].contains("there is no service zipkin.away:9411"), "{found:?}");
}

#[test]
fn the_native_engine_makes_no_spans_of_zipkins() {
    let spec = |name: &str| json!({"tracing": [{"match": {"mode": "CLIENT"}, "providers": [{"name": name}]}]});
    let labels: Labels = [("app".into(), "web".into())].into();
    let refused = |snapshot: &Snapshot| -> Vec<String> {
        snapshot.telemetry().beyond_native("shop", &labels).iter().map(|o| o.name.to_string()).collect()
    };
    let (zipkin, found) = snapshot(&json!({}), &[("shop", "spans", spec("second"))]);
    assert_eq!(found, [""; 0]);
    assert!(of(&zipkin, Side::Client, Counting::Nobody).tracing.is_some());
    assert_eq!(of(&zipkin, Side::Client, Counting::Engine).tracing, None);
    assert_eq!(refused(&zipkin).len(), 1, "{:?}", refused(&zipkin));
    let (otel, _) = snapshot(&json!({}), &[("shop", "spans", spec("otel"))]);
    assert!(of(&otel, Side::Client, Counting::Engine).tracing.is_some());
    assert_eq!(refused(&otel), [""; 0]);
}

#[test]
fn metrics_change_in_order() {
    let tag = |value: &str| json!({"operation": "UPSERT", "value": value});
    let root = json!({"metrics": [{"providers": named("prometheus"), "reportingInterval": "15s", "overrides": [
        {"tagOverrides": {"request_protocol": {"operation": "REMOVE"}}},
        {"match": {"metric": "REQUEST_COUNT", "mode": "SERVER"}, "tagOverrides": {"host": tag("request.host"), "path": tag("request.path")}},
        {"match": {"metric": "REQUEST_SIZE"}, "disabled": true},
    ]}]});
    let own = json!({"metrics": [{"overrides": [
        {"match": {"metric": "REQUEST_COUNT"}, "tagOverrides": {"host": {"operation": "REMOVE"}}},
        {"match": {"metric": "REQUEST_SIZE"}, "disabled": false},
        {"match": {"metric": "RESPONSE_SIZE"}, "disabled": true},
    ]}]});
    let (snapshot, found) = snapshot(&json!({}), &[("istio-system", "root", root), ("shop", "own", own)]);
    assert_eq!(found, [""; 0]);
    let show = |side| {
        let all = of(&snapshot, side, Counting::Engine);
        let Stats::Engine(rules) = &all.stats else { panic!("{all:?}") };
        assert_eq!(rules.interval, 15_000);
        let line = |m: &crate::parts::telemetry::MetricRule| {
            let set: Vec<_> = m.dimensions.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{}{} +{} -{}", m.name, if m.drop { " off" } else { "" }, set.join(","), m.removed.join(","))
        };
        (rules.metrics.len(), rules.metrics.iter().filter(|m| m.name.starts_with("re")).map(line).collect::<Vec<_>>())
    };
    let rest = [
        "request_bytes + -request_protocol",
        "request_duration_milliseconds + -request_protocol",
        "request_messages_total + -request_protocol",
    ];
    let tail = ["response_bytes off + -request_protocol", "response_messages_total + -request_protocol"];
    let server = [&rest[..], &["requests_total +path=request.path -host,request_protocol"], &tail[..]].concat();
    assert_eq!(show(Side::Server), (10, server.iter().map(ToString::to_string).collect()));
    let client = [&rest[..], &["requests_total + -host,request_protocol"], &tail[..]].concat();
    assert_eq!(show(Side::Client), (10, client.iter().map(ToString::to_string).collect()));
}

#[test]
fn metrics_of_nobody() {
    let (none, _) = snapshot(&json!({"defaultProviders": {"metrics": []}}), &[]);
    assert!(matches!(&of(&none, Side::Client, Counting::Agent).stats, Stats::Agent(rules) if !rules.counts));
    assert!(matches!(&of(&none, Side::Client, Counting::Engine).stats,
        Stats::Engine(rules) if rules.metrics.len() == 10 && rules.metrics.iter().all(|m| m.drop)));
}

#[test]
fn a_gateway_is_meant_by_reference() {
    let refs = json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}],
        "accessLogging": [{"providers": named("other")}]});
    let (snapshot, _) = snapshot(&json!({}), &[("shop", "t", refs)]);
    assert_eq!(logs(&snapshot, Side::Client), [""; 0]);
    let edge: Labels = [("gateway.networking.k8s.io/gateway-name".into(), "edge".into())].into();
    assert_eq!(snapshot.telemetry().of("shop", &edge, Side::Client, Counting::Nobody).logs.len(), 1);
}
