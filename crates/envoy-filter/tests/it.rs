//! EnvoyFilters as people write them, over small resources: what changes, what is refused, and by whom.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{EnvoyFilter, from_value};
use carrick_envoy_filter::{Memo, Target, apply};
use carrick_envoy_json::{Names, any_to_json, bytes_from_json};
use carrick_render::{Rendered, Resource, Resources};
use envoy_types::pb::google::protobuf::Any;
use serde_json::{Value, json};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";

fn resources(kind: &str, all: &[Value]) -> Arc<Resources> {
    let one = |json: &Value| {
        let value = bytes_from_json(kind, json).unwrap_or_else(|e| panic!("{e}"));
        let name: Arc<str> = json["name"].as_str().expect("a name").into();
        (name.clone(), Arc::new(Resource::of(name, Any { type_url: format!("type.googleapis.com/{kind}"), value })))
    };
    Arc::new(all.iter().map(one).collect())
}

fn manager(route: Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "http_filters": [
            {"name": "envoy.filters.http.cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ],
    });
    manager.as_object_mut().expect("a map").extend(route.as_object().expect("a map").clone());
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

fn rendered() -> Rendered {
    let local = json!({"route_config": {"name": "inbound|8080||", "virtual_hosts": [{"name": "inbound|http|80", "domains": ["*"],
        "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": "inbound|8080||"}}]}]}});
    let rds = json!({"rds": {"route_config_name": "80", "config_source": {"ads": {}}}});
    let address = |port: u16| json!({"socket_address": {"address": "0.0.0.0", "port_value": port}});
    Rendered {
        listeners: resources(
            LISTENER,
            &[
                json!({"name": "virtualInbound", "address": address(15006), "traffic_direction": "INBOUND", "filter_chains": [
                {"name": "web", "filter_chain_match": {"destination_port": 8080}, "filters": [manager(local)]}]}),
                json!({"name": "0.0.0.0_80", "address": address(80), "traffic_direction": "OUTBOUND", "filter_chains": [
                {"filters": [manager(rds)]}]}),
            ],
        ),
        clusters: resources(
            CLUSTER,
            &[
                json!({"name": "outbound|80||web.shop.svc.cluster.local", "type": "EDS", "connect_timeout": "10s",
                   "eds_cluster_config": {"eds_config": {"ads": {}}}}),
                json!({"name": "inbound|8080||", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s"}),
            ],
        ),
        routes: resources(
            ROUTE,
            &[json!({"name": "80", "virtual_hosts": [{"name": "web.shop.svc.cluster.local:80",
            "domains": ["web"], "routes": [{"name": "default", "match": {"prefix": "/"},
                                            "route": {"cluster": "outbound|80||web.shop.svc.cluster.local"}}]}]})],
        ),
        ..Rendered::default()
    }
}

fn filter(patches: Value) -> Arc<EnvoyFilter> {
    let object = json!({"kind": "EnvoyFilter", "metadata": {"name": "f", "namespace": "shop"}, "spec": {"configPatches": patches}});
    Arc::new(from_value(&object).expect("an EnvoyFilter"))
}

fn sidecar(native: bool) -> Target {
    Target { gateway: false, native, version: "1.30.0".into(), metadata: BTreeMap::new() }
}

/// What a patch makes of everything, and what is told of it.
fn patched(patches: Value, target: &Target) -> (Value, Vec<String>) {
    let (out, findings) = apply(&rendered(), &[filter(patches)], target, &mut Memo::default());
    let show = |all: &Resources| -> Value {
        all.iter()
            .map(|(n, r)| (n.to_string(), any_to_json(&r.body.type_url, &r.body.value, Names::Proto).expect("shows")))
            .collect()
    };
    let all = json!({"listeners": show(&out.listeners), "clusters": show(&out.clusters), "routes": show(&out.routes)});
    (all, findings.into_iter().map(|f| f.reason).collect())
}

fn http_filters(all: &Value, listener: &str) -> Vec<String> {
    let filters = &all["listeners"][listener]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
    filters.as_array().into_iter().flatten().filter_map(|f| f["name"].as_str().map(str::to_owned)).collect()
}

fn lua(operation: &str, context: &str, sub: Option<&str>) -> Value {
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "subFilter": sub.map(|name| json!({"name": name}))});
    json!([{"applyTo": "HTTP_FILTER",
        "match": {"context": context, "listener": {"filterChain": {"filter": filter}}},
        "patch": {"operation": operation, "value": {"name": "envoy.lua", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": "function envoy_on_request(h) h:headers():add('x-by','lua') end"}}}}}])
}

const CORS: &str = "envoy.filters.http.cors";
const ROUTER: &str = "envoy.filters.http.router";

#[test]
fn http_filters_stand_where_they_are_put() {
    for (operation, sub, want) in [
        ("INSERT_BEFORE", Some(ROUTER), [CORS, "envoy.lua", ROUTER]),
        ("INSERT_BEFORE", Some("envoy.router"), [CORS, "envoy.lua", ROUTER]),
        ("INSERT_AFTER", Some(CORS), [CORS, "envoy.lua", ROUTER]),
        ("INSERT_FIRST", None, ["envoy.lua", CORS, ROUTER]),
        ("INSERT_BEFORE", None, ["envoy.lua", CORS, ROUTER]),
        ("ADD", None, [CORS, "envoy.lua", ROUTER]),
    ] {
        let (all, findings) = patched(lua(operation, "SIDECAR_INBOUND", sub), &sidecar(false));
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!(http_filters(&all, "virtualInbound"), want, "{operation} {sub:?}");
        assert_eq!(http_filters(&all, "0.0.0.0_80"), [CORS, ROUTER], "the other side stays as it is");
    }
    let (all, _) = patched(lua("INSERT_BEFORE", "SIDECAR_INBOUND", Some("no.such.filter")), &sidecar(false));
    assert_eq!(http_filters(&all, "virtualInbound"), [CORS, ROUTER]);
    let (all, _) = patched(lua("INSERT_FIRST", "GATEWAY", None), &sidecar(false));
    assert_eq!(http_filters(&all, "virtualInbound"), [CORS, ROUTER]);
}

#[test]
fn the_native_engine_keeps_what_it_has() {
    let before = patched(json!([]), &sidecar(false)).0;
    let (all, findings) = patched(lua("INSERT_FIRST", "ANY", None), &sidecar(true));
    assert_eq!(all, before);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].contains("native engine"), "{findings:?}");
}

#[test]
fn a_merge_concerns_the_clusters_it_names() {
    let timeout = json!([{"applyTo": "CLUSTER", "match": {"context": "SIDECAR_OUTBOUND", "cluster": {"service": "web.shop.svc.cluster.local"}},
        "patch": {"operation": "MERGE", "value": {"connect_timeout": "1s"}}}]);
    let (all, findings) = patched(timeout, &sidecar(false));
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(all["clusters"]["outbound|80||web.shop.svc.cluster.local"]["connect_timeout"], "1s");
    assert_eq!(all["clusters"]["inbound|8080||"]["connect_timeout"], "10s");
}

#[test]
fn clusters_are_added_and_removed() {
    let (all, findings) = patched(
        json!([
            {"applyTo": "CLUSTER", "match": {"context": "ANY", "cluster": {"name": "inbound|8080||"}}, "patch": {"operation": "REMOVE"}},
            {"applyTo": "CLUSTER", "match": {"context": "SIDECAR_OUTBOUND"}, "patch": {"operation": "ADD", "value": {"name": "own", "type": "STATIC"}}},
        ]),
        &sidecar(false),
    );
    assert!(findings.is_empty(), "{findings:?}");
    let names: Vec<&String> = all["clusters"].as_object().expect("a map").keys().collect();
    assert_eq!(names, ["outbound|80||web.shop.svc.cluster.local", "own"]);
}

#[test]
fn routes_by_table_host_and_route() {
    let header = json!({"response_headers_to_add": [{"header": {"key": "x-by", "value": "filter"}}]});
    for (apply_to, matched, path) in [
        ("ROUTE_CONFIGURATION", json!({"portNumber": 80}), "/routes/80/response_headers_to_add/0/header/key"),
        (
            "VIRTUAL_HOST",
            json!({"vhost": {"name": "web.shop.svc.cluster.local:80"}}),
            "/routes/80/virtual_hosts/0/response_headers_to_add/0/header/key",
        ),
        (
            "HTTP_ROUTE",
            json!({"vhost": {"domainName": "web", "route": {"action": "ROUTE"}}}),
            "/routes/80/virtual_hosts/0/routes/0/response_headers_to_add/0/header/key",
        ),
        (
            "VIRTUAL_HOST",
            json!({"vhost": {"name": "inbound|http|80"}}),
            "/listeners/virtualInbound/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/response_headers_to_add/0/header/key",
        ),
    ] {
        let patch = json!([{"applyTo": apply_to, "match": {"routeConfiguration": matched}, "patch": {"operation": "MERGE", "value": header}}]);
        let (all, findings) = patched(patch, &sidecar(false));
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!(all.pointer(path), Some(&json!("x-by")), "{apply_to} {matched}: {all:#}");
    }
    let none = json!([{"applyTo": "VIRTUAL_HOST", "match": {"routeConfiguration": {"portNumber": 81}}, "patch": {"operation": "MERGE", "value": header}}]);
    assert_eq!(patched(none, &sidecar(false)).0, patched(json!([]), &sidecar(false)).0);
}

#[test]
fn what_cannot_be_done_is_told_and_changes_nothing() {
    let before = patched(json!([]), &sidecar(false)).0;
    for (patch, reason) in [
        (
            json!({"applyTo": "CLUSTER", "match": {}, "patch": {"operation": "MERGE", "value": {"conect_timeout": "1s"}}}),
            "conect_timeout",
        ),
        (json!({"applyTo": "BOOTSTRAP", "match": {}, "patch": {"operation": "MERGE", "value": {}}}), "BOOTSTRAP"),
        (json!({"applyTo": "HTTP_FILTER", "match": {}, "patch": {"operation": "ADD"}}), "patch.value: missing"),
    ] {
        let (all, findings) = patched(json!([patch]), &sidecar(false));
        assert_eq!(all, before, "{patch}");
        assert!(!findings.is_empty() && findings.iter().all(|f| f.contains(reason)), "{patch}: {findings:?}");
    }
}

#[test]
fn versions_and_metadata_narrow_it() {
    let with = |proxy: Value| {
        let mut patch = lua("INSERT_FIRST", "ANY", None);
        patch[0]["match"]["proxy"] = proxy;
        let mut target = sidecar(false);
        target.metadata.insert("TEAM".into(), "red".into());
        http_filters(&patched(patch, &target).0, "virtualInbound").len() == 3
    };
    assert!(with(json!({"proxyVersion": r"^1\.30.*"})));
    assert!(!with(json!({"proxyVersion": r"^1\.29.*"})));
    assert!(with(json!({"metadata": {"TEAM": "red"}})));
    assert!(!with(json!({"metadata": {"TEAM": "blue"}})));
}
