//! Cases as data: each file under `cases/` is a list of objects with what is expected of them.
//!
//! A case that says nothing about an expectation expects nothing to be found; every case names itself in a failure.

use std::collections::BTreeMap;

use carrick_api::kinds::{Kind, registry};
use carrick_api::schema::{Cursor, Schema, Type};
use carrick_api::timestamp::Timestamp;
use carrick_api::{DestinationRule, MeshConfig, PeerAuthentication, from_value, parse, protocol, validate};
use carrick_base::Diagnostic;
use serde_json::{Value, json};

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/cases/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let documents = parse::documents(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    let cases: Vec<Value> =
        documents.into_iter().flat_map(|d| d.as_array().cloned().expect("a list of cases")).collect();
    assert!(!cases.is_empty(), "{path} has no cases");
    cases
}

fn name(case: &Value) -> &str {
    case["name"].as_str().expect("every case has a name")
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|v| v.as_str().expect("a text")).collect()
}

fn kind_of(object: &Value) -> &'static Kind {
    registry().of_object(object).unwrap_or_else(|| panic!("no kind for {object}"))
}

fn schema_of(object: &Value) -> &'static Schema {
    let (_, version) = carrick_api::kinds::split_api_version(object["apiVersion"].as_str().unwrap());
    kind_of(object).schema(version)
}

/// Objects by their schema: every problem, in full.
#[test]
fn schemas_find_what_they_should() {
    for file in ["schema_istio.yaml", "schema_kubernetes.yaml", "schema_objects.yaml"] {
        for case in cases(file) {
            let found: Vec<String> =
                schema_of(&case["object"]).check(&case["object"]).iter().map(ToString::to_string).collect();
            assert_eq!(found, texts(&case["problems"]), "{file}: {}", name(&case));
            // What strict decoding refuses, pruning removes, and then nothing unknown is left.
            let mut pruned = case["object"].clone();
            schema_of(&case["object"]).prune(&mut pruned);
            let left = schema_of(&case["object"]).check(&pruned);
            assert!(!left.iter().any(|e| e.is_unknown()), "{file}: {}: {left:?}", name(&case));
        }
    }
}

const RULES: [&str; 21] = [
    "rules_any.yaml",
    "rules_authorization_policy.yaml",
    "rules_cert_manager.yaml",
    "rules_destination_rule.yaml",
    "rules_envoy_filter.yaml",
    "rules_gateway.yaml",
    "rules_gateway_api.yaml",
    "rules_legacy.yaml",
    "rules_mesh_config.yaml",
    "rules_objects.yaml",
    "rules_peer_authentication.yaml",
    "rules_proxy_config.yaml",
    "rules_request_authentication.yaml",
    "rules_service_entry.yaml",
    "rules_sidecar.yaml",
    "rules_telemetry.yaml",
    "rules_traffic_extension.yaml",
    "rules_virtual_service.yaml",
    "rules_wasm_plugin.yaml",
    "rules_workload_entry.yaml",
    "rules_workload_group.yaml",
];

fn kind_name(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// The case's object; one that gives only a `spec` (and perhaps `metadata`) is of the kind that the file is named after.
fn object_of(file: &str, case: &Value) -> Value {
    if !case["object"].is_null() {
        return case["object"].clone();
    }
    let (api_version, kind) = match file.trim_start_matches("rules_").trim_end_matches(".yaml") {
        "authorization_policy" => ("security.istio.io/v1", "AuthorizationPolicy"),
        "destination_rule" => ("networking.istio.io/v1", "DestinationRule"),
        "envoy_filter" => ("networking.istio.io/v1alpha3", "EnvoyFilter"),
        "gateway" => ("networking.istio.io/v1", "Gateway"),
        "proxy_config" => ("networking.istio.io/v1beta1", "ProxyConfig"),
        "request_authentication" => ("security.istio.io/v1", "RequestAuthentication"),
        "service_entry" => ("networking.istio.io/v1", "ServiceEntry"),
        "sidecar" => ("networking.istio.io/v1", "Sidecar"),
        "telemetry" => ("telemetry.istio.io/v1", "Telemetry"),
        "traffic_extension" => ("extensions.istio.io/v1alpha1", "TrafficExtension"),
        "virtual_service" => ("networking.istio.io/v1", "VirtualService"),
        "wasm_plugin" => ("extensions.istio.io/v1alpha1", "WasmPlugin"),
        "workload_entry" => ("networking.istio.io/v1", "WorkloadEntry"),
        "workload_group" => ("networking.istio.io/v1", "WorkloadGroup"),
        _ => panic!("{file}: {} has no object", name(case)),
    };
    let metadata =
        if case["metadata"].is_null() { json!({"name": "a", "namespace": "ns"}) } else { case["metadata"].clone() };
    json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": case["spec"]})
}

/// Objects by Istio's rules: `error|warning path text`, where the text is a part of the message.
#[test]
fn rules_find_what_they_should() {
    let mut failures = Vec::new();
    for file in RULES {
        for case in cases(file) {
            let object = object_of(file, &case);
            if texts(&case["findings"]).is_empty() && kind_name(&object) != "ConfigMap" {
                let problems: Vec<String> = schema_of(&object).check(&object).iter().map(ToString::to_string).collect();
                if !problems.is_empty() {
                    failures.push(format!("{file}: {}: {problems:?}", name(&case)));
                }
            }
            let found = validate::object(&object);
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            let expected = texts(&case["findings"]);
            let fits = |(finding, expected): (&Diagnostic, &str)| {
                let mut parts = expected.splitn(3, ' ');
                let mut next = || parts.next().unwrap_or_default();
                finding.severity.to_string().to_lowercase() == next()
                    && finding.field.as_str() == next()
                    && finding.message.contains(next())
            };
            if found.len() != expected.len() || !found.iter().zip(expected.iter().copied()).all(fits) {
                failures.push(format!("{file}: {}: expected {expected:#?}, found {shown:#?}", name(&case)));
            }
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

/// Objects as rows.
#[test]
fn tables_read_as_kubectl_shows_them() {
    for case in cases("tables.yaml") {
        let object = &case["object"];
        let kind = kind_of(object);
        let now = Timestamp::parse(case["now"].as_str().unwrap_or("2026-01-01T01:00:00Z")).unwrap();
        let cells = kind.cells(object, now);
        let shown: Vec<String> =
            kind.columns.iter().zip(&cells).map(|(column, cell)| format!("{}={}", column.name, plain(cell))).collect();
        assert_eq!(shown, texts(&case["cells"]), "{}", name(&case));
    }
}

fn plain(cell: &Value) -> String {
    cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)
}

#[test]
fn protocols_are_selected() {
    for case in cases("protocols.yaml") {
        let port = from_value(&case["port"]).unwrap();
        assert_eq!(protocol::of_service_port(&port).as_str(), case["is"], "{}", case["port"]);
    }
}

/// Every kind prints an object of any shape without a panic, and one cell per column.
#[test]
fn rows_of_broken_objects_have_all_cells() {
    let junk =
        [json!(null), json!({}), json!([]), json!("x"), json!(7), json!({"a": [null, {}]}), json!([1, "x", {}, null])];
    for kind in registry().iter() {
        for spec in &junk {
            for status in &junk {
                let object = json!({"metadata": {"name": "x"}, "spec": spec, "status": status, "data": spec, "subsets": status, "ports": spec, "endpoints": status});
                assert_eq!(kind.cells(&object, Timestamp::default()).len(), kind.columns.len(), "{}", kind.kind);
                let _ = kind.schema(kind.storage_version()).check(&object);
                let _ = validate::object(
                    &json!({"apiVersion": kind.storage_api_version(), "kind": kind.kind, "metadata": spec, "spec": status}),
                );
            }
            assert_eq!(kind.cells(spec, Timestamp::default()).len(), kind.columns.len(), "{}", kind.kind);
        }
    }
}

#[test]
fn the_registry_is_consistent() {
    let mut names: BTreeMap<(String, &str), &str> = BTreeMap::new();
    for kind in registry().iter() {
        for word in [kind.plural, kind.singular].iter().chain(kind.short_names) {
            if let Some(other) = names.insert((kind.group.to_owned(), word), kind.kind) {
                assert_eq!(other, kind.kind, "{word} in {:?} is two kinds", kind.group);
            }
        }
        assert!(!kind.versions.is_empty());
        assert_eq!(registry().find(kind.group, kind.plural).unwrap().kind, kind.kind);
        assert_eq!(registry().by_kind(kind.group, kind.kind).unwrap().plural, kind.plural);
        for version in kind.versions {
            let schema = kind.schema(version);
            for field in ["apiVersion", "kind", "metadata"] {
                assert!(schema.cursor().field(field).is_some(), "{} {version} has no {field}", kind.kind);
            }
            assert!(schema.definitions().contains_key(schema.root_name()), "{}", schema.root_name());
        }
    }
    let groups = registry().groups();
    let istio = groups.iter().find(|(group, _)| *group == "networking.istio.io").unwrap();
    assert_eq!(istio.1, ["v1", "v1beta1", "v1alpha3"]);
    for (word, expected) in [
        ("pa", "PeerAuthentication"),
        ("peerauthentication", "PeerAuthentication"),
        ("PeerAuthentications.security.istio.io", "PeerAuthentication"),
        ("dr.networking", "DestinationRule"),
        ("svc", "Service"),
        ("po", "Pod"),
        ("no", "Node"),
        ("meshpolicies", "MeshPolicy"),
        ("endpoints", "Endpoints"),
    ] {
        assert_eq!(registry().by_word(word).map(|k| k.kind), Some(expected), "{word}");
    }
    assert!(registry().by_word("dr.security").is_none());
    assert!(
        registry().of_object(&json!({"apiVersion": "networking.istio.io/v1alpha1", "kind": "Gateway"})).is_none(),
        "a version that is not served"
    );
}

/// Every reference of the OpenAPI documents points to one of the components beside it.
#[test]
fn openapi_is_closed() {
    for kind in registry().iter() {
        for version in kind.versions {
            let components = kind.schema(version).openapi_components();
            assert!(components.contains_key(kind.schema(version).root_name()));
            let text = Value::Object(components.clone()).to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let target = reference.split('"').next().unwrap();
                assert!(components.contains_key(target), "{} refers to {target}", kind.kind);
            }
        }
    }
}

#[test]
fn merge_keys_are_where_patches_need_them() {
    let key = |group: &str, kind: &str, path: &str| -> Option<String> {
        let mut at: Cursor<'_> = registry().by_kind(group, kind).unwrap().schema("v1").cursor();
        for step in path.split('.') {
            at = match at.items() {
                Some(items) => items.field(step)?,
                None => at.field(step)?,
            };
        }
        at.patch_merge_key().map(str::to_owned)
    };
    for (kind, path, expected) in [
        ("Pod", "spec.containers", Some("name")),
        ("Pod", "spec.containers.ports", Some("containerPort")),
        ("Pod", "spec.containers.env", Some("name")),
        ("Pod", "spec.containers.volumeMounts", Some("mountPath")),
        ("Pod", "spec.volumes", Some("name")),
        ("Pod", "spec.containers.args", None),
        ("Pod", "spec.tolerations", None),
        ("Pod", "status.conditions", Some("type")),
        ("Service", "spec.ports", Some("port")),
        ("Service", "metadata.ownerReferences", Some("uid")),
        ("ServiceAccount", "secrets", Some("name")),
        ("Node", "status.addresses", Some("type")),
    ] {
        assert_eq!(key("", kind, path).as_deref(), expected, "{kind} {path}");
    }
    assert_eq!(key("networking.istio.io", "DestinationRule", "spec.subsets"), None, "CRDs have no strategic merge");
}

/// Schemas are built when first asked for; all of them together must not be felt at a start.
#[test]
fn schemas_are_built_quickly() {
    let start = std::time::Instant::now();
    for kind in registry().iter() {
        let schema = kind.schema(kind.storage_version());
        assert!(matches!(schema.cursor().ty(), Type::Object(_)), "{}", kind.kind);
    }
    let took = start.elapsed();
    println!("all schemas in {took:?}");
    // Ten times what a slow machine needs without optimisation: a guard against building per request, no benchmark.
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
}

#[test]
fn typed_objects_tolerate_what_protobuf_tolerates() {
    let read = |spec: Value| {
        from_value::<PeerAuthentication>(
            &json!({"metadata": {"name": "a", "labels": {"x": null}}, "spec": spec, "unknown": 1}),
        )
    };
    use carrick_api::MutualTlsMode::{Disable, Permissive, Strict, Unset};
    for (spec, mode) in [
        (json!(null), Unset),
        (json!({}), Unset),
        (json!({"mtls": null}), Unset),
        (json!({"mtls": {}}), Unset),
        (json!({"mtls": {"mode": null}}), Unset),
        (json!({"mtls": {"mode": "STRICT"}}), Strict),
        (json!({"mtls": {"mode": 3}}), Strict),
        (json!({"mtls": {"mode": 2, "other": true}}), Permissive),
        (json!({"mtls": {"mode": "DISABLE"}, "selector": null, "portLevelMtls": null}), Disable),
    ] {
        assert_eq!(read(spec.clone()).unwrap().spec.mode(), mode, "{spec}");
    }
    for bad in [
        json!({"mtls": {"mode": "strict"}}),
        json!({"mtls": {"mode": 4}}),
        json!({"mtls": {"mode": true}}),
        json!("x"),
        json!({"portLevelMtls": {"http": {}}}),
    ] {
        assert!(read(bad.clone()).is_err(), "{bad}");
    }
    let ports =
        read(json!({"portLevelMtls": {"8080": {"mode": 1}, "9090": null}})).unwrap().spec.port_level_mtls.unwrap();
    assert_eq!(ports.iter().map(|(p, m)| (*p, m.mode)).collect::<Vec<_>>(), [(8080, Disable), (9090, Unset)]);

    let rule: DestinationRule = from_value(&json!({"spec": {
        "host": "a",
        "trafficPolicy": {
            "tls": {"mode": 3, "sni": null},
            "loadBalancer": {"simple": 4, "warmupDurationSecs": "1m30s", "consistentHash": {"minimumRingSize": "1024"}},
            "connectionPool": {"tcp": {"connectTimeout": "0.25s", "maxConnections": null}},
            "outlierDetection": {"consecutive5xxErrors": 5},
        },
    }}))
    .unwrap();
    let policy = rule.spec.traffic_policy.unwrap();
    assert_eq!(policy.tls.unwrap().mode, carrick_api::ClientTlsMode::IstioMutual);
    let balancer = policy.load_balancer.unwrap();
    assert_eq!(balancer.warmup_duration_secs.unwrap().get().as_secs(), 90);
    assert_eq!(balancer.consistent_hash.unwrap().minimum_ring_size.unwrap().0, 1024);
    assert_eq!(policy.connection_pool.unwrap().tcp.unwrap().connect_timeout.unwrap().to_string(), "0.250s");
    assert_eq!(policy.outlier_detection.unwrap().consecutive_5xx_errors, Some(5));
}

#[test]
fn mesh_configuration_has_istios_defaults() {
    let config = MeshConfig::default();
    assert_eq!((config.proxy_listen_port, config.proxy_inbound_listen_port), (15001, 15006));
    assert!(config.enable_auto_mtls && config.enable_prometheus_merge);
    assert_eq!((config.trust_domain.as_str(), config.root_namespace.as_str()), ("cluster.local", "istio-system"));
    let partial = MeshConfig::read(&json!({"trustDomain": "bank", "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "meshMTLS": {"minProtocolVersion": "TLSV1_3"}})).unwrap();
    assert_eq!(partial.trust_domain, "bank");
    assert_eq!(partial.outbound_traffic_policy.mode.as_str(), "REGISTRY_ONLY");
    assert_eq!(partial.mesh_mtls.unwrap().min_protocol_version.as_str(), "TLSV1_3");
    assert_eq!(partial.connect_timeout, config.connect_timeout);
    for nothing in [json!(null), json!({}), json!({"trustDomain": null, "outboundTrafficPolicy": {"mode": null}})] {
        assert_eq!(MeshConfig::read(&nothing).unwrap(), config, "{nothing}");
    }
    assert!(MeshConfig::read(&json!({"outboundTrafficPolicy": {"mode": "SOME"}})).is_err());
}
