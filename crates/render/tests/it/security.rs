//! Policies as Envoy's filters: golden JSON of both kinds of chains, and where the filters stand.
//!
//! Invariant: a golden is rewritten only when `UPDATE_GOLDEN` is set.

use std::{fs, path::Path};

use carrick_envoy_json::{Names, any_to_json};
use carrick_mesh::Snapshot;
use envoy_types::pb::envoy::{
    config::listener::v3::{FilterChain, filter::ConfigType},
    extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, http_filter},
};
use prost::Message;
use serde_json::{Value, json};

use crate::{
    shared::{self, listener},
    world::World,
};

/// The filters of a workload's HTTP and TCP chains, as JSON.
fn filters(world: &World) -> Value {
    let (snapshot, _) = Snapshot::build(&world.input());
    let security = snapshot.security_of("x", &world.pods[0].labels);
    let unpack = |name: &str, any: &envoy_types::pb::google::protobuf::Any| {
        let config = any_to_json(&any.type_url, &any.value, Names::Camel).expect("own bytes");
        json!({"name": name, "typedConfig": config})
    };
    let http: Vec<_> = carrick_render::security::http_filters(&security)
        .iter()
        .map(|f| match &f.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => unpack(&f.name, any),
            other => panic!("{other:?}"),
        })
        .collect();
    let network: Vec<_> = carrick_render::security::network_filters(&security)
        .iter()
        .map(|f| match &f.config_type {
            Some(ConfigType::TypedConfig(any)) => unpack(&f.name, any),
            other => panic!("{other:?}"),
        })
        .collect();
    json!({"http": http, "network": network})
}

fn world(objects: Value, mesh: Value) -> World {
    shared::world(json!({
        "mesh": mesh,
        "pods": [{"pod": "w.x", "ip": "10.244.0.1", "labels": {"app": "w"}}],
        "services": [
            {"service": "w.x", "vip": "10.96.0.1", "selector": {"app": "w"}, "ports": ["1000", "http:2000", "tcp:3000"]},
            {"service": "authz.x", "vip": "10.96.0.2", "selector": {"app": "authz"}, "ports": ["http:8000", "grpc:9000"]},
        ],
        "objects": objects,
    }))
}

fn check(name: &str, objects: Value, mesh: Value) {
    let got = filters(&world(objects, mesh));
    let shown = serde_json::to_string_pretty(&got).expect("JSON") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, &shown).expect("writable");
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    // As values: the order of a map's entries is nobody's.
    let want: Value = serde_json::from_str(&want).unwrap_or_default();
    assert!(json!(got) == want, "{}: set UPDATE_GOLDEN=1 to take\n{shown}", path.display());
}

fn policy(name: &str, annotations: Value, spec: Value) -> Value {
    json!({
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "x", "annotations": annotations}, "spec": spec,
    })
}

#[test]
fn allow_and_deny() {
    let allow = policy(
        "allow",
        json!({}),
        json!({"rules": [{
            "from": [{"source": {"principals": ["cluster.local/ns/a/sa/b", "*/sa/c"], "notNamespaces": ["bad-*"]}}, {"source": {"requestPrincipals": ["https://i.example/*"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/a/{*}/b", "/c*"], "hosts": ["*.example"]}}, {"operation": {"ports": ["3000"]}}],
            "when": [{"key": "request.headers[x-t]", "values": ["*"]}, {"key": "request.auth.claims[g][h]", "notValues": ["v"]}, {"key": "connection.sni", "values": ["a"]}],
        }]}),
    );
    let deny = policy(
        "deny",
        json!({}),
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"notPaths": ["/open"]}}]}]}),
    );
    let audit = policy("audit", json!({}), json!({"action": "AUDIT", "rules": [{}]}));
    check("allow-and-deny", json!([allow, deny, audit]), Value::Null);
}

#[test]
fn nothing_is_allowed_without_rules() {
    check("allow-nothing", json!([policy("none", json!({}), json!({}))]), Value::Null);
}

#[test]
fn dry_run_stands_in_the_shadow() {
    let dry = json!({"istio.io/dry-run": "true"});
    let rule = json!({"from": [{"source": {"ipBlocks": ["10.0.0.0/8"], "serviceAccounts": ["s"]}}]});
    let objects = json!([
        policy("allow", dry.clone(), json!({"rules": [rule.clone()]})),
        policy("deny", dry, json!({"action": "DENY", "rules": [rule.clone()]})),
        policy("deny-too", json!({}), json!({"action": "DENY", "rules": [rule]})),
    ]);
    check("dry-run", objects, Value::Null);
}

fn providers() -> Value {
    json!({"extensionProviders": [
        {"name": "http", "envoyExtAuthzHttp": {
            "service": "authz.x.svc.cluster.local", "port": 8000, "timeout": "2s", "pathPrefix": "/check", "failOpen": true, "clearRouteCache": true,
            "statusOnError": "503", "includeRequestHeadersInCheck": ["x-a", "x-b-*"], "includeAdditionalHeadersInCheck": {"x-two": "2", "x-one": "1"},
            "includeRequestBodyInCheck": {"maxRequestBytes": 64, "allowPartialMessage": true}, "headersToUpstreamOnAllow": ["x-user"],
            "headersToDownstreamOnDeny": ["*-why"], "headersToDownstreamOnAllow": ["*"],
        }},
        {"name": "grpc", "envoyExtAuthzGrpc": {"service": "authz.x.svc.cluster.local", "port": 9000}},
    ]})
}

fn custom(provider: &str) -> Value {
    let spec = json!({"action": "CUSTOM", "provider": {"name": provider}, "rules": [{"to": [{"operation": {"paths": ["/ask"]}}]}]});
    json!([policy("ask", json!({}), spec)])
}

#[test]
fn custom_asks_by_http() {
    check("custom-http", custom("http"), providers());
}

#[test]
fn custom_asks_by_grpc() {
    check("custom-grpc", custom("grpc"), providers());
}

#[test]
fn custom_without_an_authorizer_denies() {
    check("custom-unknown", custom("nobody"), providers());
}

#[test]
fn tokens() {
    let keys = r#"{"keys":[]}"#;
    let rules = json!([
        {"issuer": "b", "jwks": keys, "audiences": ["x"], "fromHeaders": [{"name": "x-jwt", "prefix": "T "}], "fromParams": ["p"], "fromCookies": ["c"],
         "outputPayloadToHeader": "x-payload", "forwardOriginalToken": true, "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}], "spaceDelimitedClaims": ["roles"]},
        {"issuer": "a", "jwks": keys},
    ]);
    let object = json!({"kind": "RequestAuthentication", "metadata": {"name": "t", "namespace": "x"}, "spec": {"jwtRules": rules}});
    check("tokens", json!([object]), Value::Null);
}

/// Names of the filters of a chain: the network's, and the HTTP filters within.
fn names(chain: &FilterChain) -> Vec<String> {
    let mut out = Vec::new();
    for filter in &chain.filters {
        out.push(filter.name.rsplit('.').next().unwrap_or_default().to_owned());
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        if filter.name.ends_with("http_connection_manager") {
            let manager = HttpConnectionManager::decode(&*any.value).expect("own bytes");
            out.extend(manager.http_filters.iter().map(|f| f.name.trim_start_matches("envoy.filters.").to_owned()));
        }
    }
    out
}

#[test]
fn every_chain_asks_in_istios_order() {
    let mut objects = custom("grpc");
    let deny = policy("deny", json!({}), json!({"action": "DENY", "rules": [{}]}));
    let audit = policy("audit", json!({}), json!({"action": "AUDIT", "rules": [{}]}));
    let jwt = json!({
        "kind": "RequestAuthentication", "metadata": {"name": "t", "namespace": "x"},
        "spec": {"jwtRules": [{"issuer": "a", "jwks": "{\"keys\":[]}"}]},
    });
    objects.as_array_mut().expect("a list").extend([deny, audit, policy("allow", json!({}), json!({})), jwt]);
    let listener = listener(&shared::render(&world(objects, providers()), "w.x"), "virtualInbound");
    let (mut http, mut tcp) = (0, 0);
    for chain in &listener.filter_chains {
        let names = names(chain);
        match names.last().map(String::as_str) {
            Some("http.router") => {
                http += 1;
                let order = [
                    "http.rbac",
                    "http.ext_authz",
                    "http.jwt_authn",
                    "http.rbac",
                    "http.rbac",
                    "http.rbac",
                    "http.router",
                ];
                assert_eq!(names[1..], order, "{}", chain.name);
            }
            _ if chain.name == "virtualInbound-blackhole" => assert_eq!(names, ["tcp_proxy"]),
            _ => {
                tcp += 1;
                assert_eq!(names, ["rbac", "ext_authz", "rbac", "rbac", "rbac", "tcp_proxy"], "{}", chain.name);
            }
        }
    }
    assert!(http >= 6 && tcp >= 6, "{http} {tcp}: passthrough chains included");
}
