//! Every case of `mesh`, and the chain tables, loaded by a real Envoy and by the native engine.

use std::{fs, path::Path};

use carrick_mesh::{Snapshot, Views};
use carrick_render::Cache;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{envoy, native, shared, world::World};

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default)]
    world: World,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    #[serde(default)]
    add: World,
    proxies: Vec<String>,
}

/// All resources of all proxies of a file's cases, each name and content once: one run of Envoy per distinct set is what is affordable.
#[test]
fn every_case_of_mesh_is_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh/tests/cases");
    let mut checked = 0;
    for entry in fs::read_dir(folder).expect("the cases' folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = fs::read(&path).expect("a case");
        let document = carrick_api::parse::documents(&text).expect("YAML").remove(0);
        let file: File = serde_json::from_value(document).expect("a case file");
        let mut cache = Cache::default();
        let mut seen = Vec::new();
        for case in &file.cases {
            let world = file.world.with(&case.add);
            let (snapshot, _) = Snapshot::build(&world.input());
            let mut views = Views::new(snapshot);
            for proxy in &case.proxies {
                let rendered = carrick_render::resources(&views.of(&world.proxy(proxy)), &mut cache);
                let versions: Vec<_> = [&rendered.clusters, &rendered.endpoints, &rendered.listeners, &rendered.routes]
                    .iter()
                    .flat_map(|all| all.values().map(|r| r.version.clone()))
                    .collect();
                if !seen.contains(&versions) {
                    seen.push(versions);
                    let name = format!("{} {proxy}", path.display());
                    native::accept(&name, &rendered);
                    envoy::validate(&name, &rendered);
                    checked += 1;
                }
            }
        }
    }
    println!("{checked} distinct configurations accepted by Envoy");
    assert!(checked > 50);
}

fn everything(mesh: Value) -> World {
    shared::world(json!({
        "mesh": mesh,
        "pods": [
            {"pod": "w.x", "ip": "10.244.0.1", "labels": {"app": "w"}},
            {"pod": "dual.x", "ip": "10.244.0.2,fd00::2", "labels": {"app": "w"}},
            {"pod": "six.x", "ip": "fd00::3", "labels": {"app": "w"}},
        ],
        "services": [
            {"service": "w.x", "vip": "10.96.0.1,fd01::1", "selector": {"app": "w"}, "ports": ["1000", "http:2000", "grpc:2001", "tcp:3000"]},
        ],
        "objects": [
            {"kind": "PeerAuthentication", "metadata": {"name": "w", "namespace": "x"}, "spec": {
                "selector": {"matchLabels": {"app": "w"}}, "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"1000": {"mode": "DISABLE"}, "2000": {"mode": "PERMISSIVE"}, "7777": {"mode": "DISABLE"}},
            }},
            {"kind": "DestinationRule", "metadata": {"name": "w", "namespace": "x"}, "spec": {
                "host": "w",
                "trafficPolicy": {
                    "connectionPool": {
                        "tcp": {"maxConnections": 1, "connectTimeout": "1s", "idleTimeout": "9s", "tcpKeepalive": {"probes": 3, "time": "7s", "interval": "5s"}},
                        "http": {"http1MaxPendingRequests": 2, "http2MaxRequests": 3, "maxRequestsPerConnection": 4, "maxRetries": 5, "idleTimeout": "8s", "maxConcurrentStreams": 6},
                    },
                    "outlierDetection": {"consecutive5xxErrors": 7, "consecutiveGatewayErrors": 0, "splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 2, "minHealthPercent": 30},
                },
            }},
        ],
    }))
}

#[test]
fn every_setting_of_the_mesh_is_accepted() {
    let meshes = [
        json!({"accessLogFile": "/dev/stdout", "pathNormalization": {"normalization": "DECODE_AND_MERGE_SLASHES"}}),
        json!({"accessLogFile": "/dev/stdout", "accessLogFormat": "%REQ(:METHOD)% %RESPONSE_CODE%", "pathNormalization": {"normalization": "NONE"}}),
        json!({"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON", "protocolDetectionTimeout": "5s"}),
        json!({"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON", "accessLogFormat": "{\"a\": \"%PROTOCOL%\"}"}),
        json!({"inboundTrafficPolicy": {"mode": "LOCALHOST"}, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}),
        json!({"meshMTLS": {"minProtocolVersion": "TLSV1_3"}, "tcpKeepalive": {"time": "10s"}}),
    ];
    for mesh in meshes {
        let world = everything(mesh.clone());
        for pod in ["w.x", "dual.x", "six.x", "w.x !tproxy", "w.x !files"] {
            let (snapshot, _) = Snapshot::build(&world.input());
            let view = carrick_mesh::sidecar(&snapshot, &world.proxy(pod));
            let rendered = carrick_render::resources(&view, &mut Cache::default());
            let name = format!("{mesh} {pod}");
            native::accept(&name, &rendered);
            envoy::validate(&name, &rendered);
        }
    }
}

/// Every provider, by objects of every kind of traffic's side: a sidecar's two, and a gateway's.
#[test]
fn every_kind_of_telemetry_is_accepted() {
    let service = |name: &str| format!("{name}.x.svc.cluster.local");
    let mut world = everything(json!({"extensionProviders": [
        {"name": "labels", "envoyFileAccessLog": {"path": "/dev/stdout", "omitEmptyValues": true, "logFormat": {"labels": {
            "code": "%RESPONSE_CODE%", "in": {"deep": "%PROTOCOL%"}, "path": "%REQ_WITHOUT_QUERY(:PATH)%"}}}},
        {"name": "text", "envoyFileAccessLog": {"path": "/dev/stdout", "logFormat": {"text": "%REQ(:METHOD)%"}}},
        {"name": "otel-logs", "envoyOtelAls": {"service": service("w"), "port": 2001, "logFormat": {
            "text": "%PROTOCOL%", "labels": {"path": "%REQ(:PATH)%", "in": {"deep": "1"}}}}},
        {"name": "http-als", "envoyHttpAls": {"service": service("w"), "port": 2001, "additionalRequestHeadersToLog": ["x-a"]}},
        {"name": "tcp-als", "envoyTcpAls": {"service": service("w"), "port": 2001}},
        {"name": "otel", "opentelemetry": {"service": service("w"), "port": 2001, "grpc": {"timeout": "2s", "initialMetadata": [{"name": "k", "value": "v"}]},
            "resourceDetectors": {"environment": {}}}},
        {"name": "otel-http", "opentelemetry": {"service": service("w"), "port": 2000, "http": {"path": "/v1/traces", "timeout": "1s", "headers": [{"name": "k", "value": "v"}]}}},
        {"name": "zipkin", "zipkin": {"service": service("w"), "port": 2000, "enable64bitTraceId": true}},
    ]}));
    let named = ["labels", "text", "otel-logs", "http-als", "tcp-als"].map(|name| json!({ "name": name }));
    let logs = json!([{"providers": named, "filter": {"expression": "response.code >= 400 || connection.mtls"}}]);
    for provider in ["otel", "otel-http", "zipkin"] {
        world.objects.retain(|o| o["kind"] != "Telemetry");
        world.objects.push(json!({"kind": "Telemetry", "metadata": {"name": "t", "namespace": "x"}, "spec": {
            "accessLogging": logs, "metrics": [{"overrides": [
                {"match": {"metric": "REQUEST_COUNT"}, "tagOverrides": {"host": {"value": "request.host"}, "request_protocol": {"operation": "REMOVE"}}}]}],
            "tracing": [{"providers": [{"name": provider}], "randomSamplingPercentage": 12.5, "useRequestIdForTraceSampling": false, "customTags": {
                "a": {"literal": {"value": "1"}}, "b": {"environment": {"name": "HOME"}}, "c": {"header": {"name": "x-c", "defaultValue": "-"}},
                "d": {"formatter": {"value": "%PROTOCOL%"}}}}],
        }}));
        let (snapshot, found) = Snapshot::build(&world.input());
        assert!(found.iter().all(|d| &*d.object.kind != "Telemetry"), "{found:?}");
        for pod in ["w.x", "w.x !router", "w.x !counted"] {
            let view = carrick_mesh::sidecar(&snapshot, &world.proxy(pod));
            let rendered = carrick_render::resources(&view, &mut Cache::default());
            envoy::validate(&format!("{provider} {pod}"), &rendered);
        }
    }
}
