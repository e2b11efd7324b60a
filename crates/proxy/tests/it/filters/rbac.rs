//! RBAC: rules, shadow rules, routes' own rules, on HTTP and on connections.

use crate::lab::*;
use serde_json::{Value, json};

const KIND: &str = "rbac.v3.RBAC";

fn policy(permission: Value, principal: Value) -> Value {
    json!({"permissions": [permission], "principals": [principal]})
}

fn deny(permission: Value) -> Value {
    json!({"rules": {"action": "DENY", "policies": {"p": policy(permission, json!({"any": true}))}}})
}

fn template(text: &str) -> Value {
    let kind = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    json!({"uri_template": {"name": "t", "typed_config": typed(kind, json!({"path_template": text}))}})
}

fn one(name: &'static str, config: Value) -> Setup {
    Setup::new(name).filter("rbac", KIND, config)
}

fn paths(paths: &[&str]) -> Vec<Ask> {
    paths.iter().map(|p| Ask::get(p)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rbac_is_envoys() {
    let range = |ip: &str, len: u32| json!({"address_prefix": ip, "prefix_len": len});
    let here = |rbac: Value| typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", json!({"rbac": rbac}));
    let routed = |config: Value| {
        json!([{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/own"}, "route": {"cluster": "app"},
             "typed_per_filter_config": {"envoy.filters.http.rbac": config}},
            {"match": {"prefix": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
            {"match": {"prefix": "/other"}, "redirect": {"host_redirect": "o.test"}},
            {"match": {"prefix": "/app"}, "route": {"cluster": "app"}}]}])
    };
    let path = |kind: &str, text: &str| json!({"url_path": {"path": {kind: text}}});
    let regex = |text: &str| json!({"url_path": {"path": {"safe_regex": {"regex": text}}}});
    let off = typed("envoy.config.route.v3.FilterConfig", json!({"disabled": true}));
    let header = |m: Value| Ask::get("/").header("x-a", m.as_str().unwrap_or_default());
    let cases = vec![
        (one("no rules", json!({})), paths(&["/"])),
        (one("allow nothing", json!({"rules": {"policies": {}}})), paths(&["/", "/app"])),
        (one("deny nothing", json!({"rules": {"action": "DENY"}})), paths(&["/"])),
        (one("exact", deny(path("exact", "/x"))), paths(&["/x", "/x?q", "/x/", "/X", "/x%2f", "/a/../x"])),
        (one("prefix", deny(path("prefix", "/admin"))), paths(&["/admin/1", "/adm", "//admin", "/./admin"])),
        (one("suffix", deny(path("suffix", ".php"))), paths(&["/a.php", "/a.php?x=.p", "/a?x=.php"])),
        (one("regex", deny(regex("/a.+"))), paths(&["/a", "/ab", "/b/ab"])),
        (one("template", deny(template("/a/*/b/**"))), paths(&["/a/x/b/", "/a/x/b", "/a/x/y/b/", "/a/x/b/c/d"])),
        (one("variables", deny(template("/{x}/y/{z=u/*}"))), paths(&["/1/y/u/v", "/1/y/u", "/1/y/u/v/w", "//y/u/v"])),
        (
            one("header", deny(json!({"header": {"name": "x-a", "string_match": {"prefix": "b"}}}))),
            vec![header(json!("bc")), header(json!("c")), Ask::get("/").header("x-a", "c").header("x-a", "b")],
        ),
        (
            one("several values, exact", deny(json!({"header": {"name": "x-a", "string_match": {"exact": "c,b"}}}))),
            vec![
                Ask::get("/").header("x-a", "c").header("x-a", "b"),
                Ask::get("/").header("x-a", "c,b"),
                Ask::get("/").header("x-a", "c,b").header("x-a", "d"),
            ],
        ),
        (
            one(
                "several values, inverted",
                deny(json!({"header": {"name": "x-a", "invert_match": true,
                "string_match": {"exact": "b"}}})),
            ),
            vec![
                Ask::get("/").header("x-a", "b").header("x-a", "c"),
                Ask::get("/").header("x-a", "b").header("x-a", "b"),
                Ask::get("/").header("x-a", "c").header("x-a", "d"),
                Ask::get("/").header("x-a", "b"),
                Ask::get("/"),
            ],
        ),
        (
            one(
                "several values, range",
                deny(json!({"header": {"name": "x-a", "range_match": {"start": 1, "end": 5}}})),
            ),
            vec![Ask::get("/").header("x-a", "9").header("x-a", "2"), Ask::get("/").header("x-a", "5")],
        ),
        (
            one(
                "several values, not rule",
                deny(json!({"not_rule": {"header": {"name": "x-a",
                "string_match": {"exact": "b"}}}})),
            ),
            vec![
                Ask::get("/").header("x-a", "b").header("x-a", "c"),
                Ask::get("/").header("x-a", "d").header("x-a", "c"),
            ],
        ),
        (
            one(
                "missing as empty",
                deny(json!({"header": {"name": "x-a", "treat_missing_header_as_empty": true,
                "string_match": {"exact": "b"}, "invert_match": true}})),
            ),
            vec![Ask::get("/"), Ask::get("/").header("x-a", "b")],
        ),
        (
            one("not header", deny(json!({"not_rule": {"header": {"name": "x-a", "string_match": {"exact": "b"}}}}))),
            vec![header(json!("b")), header(json!("c")), Ask::get("/")],
        ),
        (
            one("present", deny(json!({"header": {"name": "x-a", "present_match": true}}))),
            vec![header(json!("")), Ask::get("/")],
        ),
        (
            one(
                "method and host",
                deny(json!({"and_rules": {"rules": [
                    {"header": {"name": ":method", "string_match": {"exact": "POST"}}},
                    {"header": {"name": ":authority", "string_match": {"exact": "APP.test", "ignore_case": true}}}]}})),
            ),
            vec![Ask::get("/"), Ask::with("POST", "/")],
        ),
        (
            one(
                "addresses",
                json!({"rules": {"policies": {"p": {
                    "permissions": [{"and_rules": {"rules": [
                        {"destination_ip": range("127.0.0.0", 8)},
                        {"destination_port_range": {"start": 1, "end": 65535}}]}}],
                    "principals": [{"and_ids": {"ids": [
                        {"direct_remote_ip": range("127.0.0.1", 32)}, {"source_ip": range("127.0.0.0", 24)},
                        {"remote_ip": range("10.1.0.0", 16)}]}}]}}}}),
            ),
            vec![
                Ask::get("/"),
                Ask::get("/").header("x-forwarded-for", "10.1.2.3"),
                Ask::get("/").header("x-forwarded-for", "10.1.2.3, 10.2.0.1"),
            ],
        ),
        (
            one(
                "plain peers",
                json!({"rules": {"policies": {"p": policy(json!({"any": true}),
                json!({"authenticated": {"principal_name": {"safe_regex": {"regex": ".*"}}}}))}}}),
            ),
            paths(&["/"]),
        ),
        (
            one(
                "not authenticated",
                json!({"rules": {"action": "DENY", "policies": {"p": policy(json!({"any": true}),
                json!({"not_id": {"authenticated": {"principal_name": {"exact": "spiffe://a"}}}}))}}}),
            ),
            paths(&["/"]),
        ),
        (one("no server name", deny(json!({"requested_server_name": {"safe_regex": {"regex": ".*"}}}))), paths(&["/"])),
        (
            one(
                "log",
                json!({"rules": {"action": "LOG", "policies": {
                "p": policy(json!({"any": true}), json!({"any": true}))}}}),
            ),
            paths(&["/"]),
        ),
        (
            one(
                "the first by name",
                json!({"rules": {"action": "DENY", "policies": {
                "z": policy(json!({"any": true}), json!({"any": true})),
                "a b": policy(path("prefix", "/a"), json!({"any": true}))}}}),
            ),
            paths(&["/a", "/z"]),
        ),
        (
            one(
                "shadow",
                json!({"shadow_rules": {"action": "DENY", "policies": {
                "p": policy(json!({"any": true}), json!({"any": true}))}}, "shadow_rules_stat_prefix": "dry_"}),
            ),
            paths(&["/"]),
        ),
        (
            // The second filter sees what the first one's shadow rules said.
            one(
                "shadow metadata",
                json!({"shadow_rules": {"action": "DENY", "policies": {
                "custom-1": policy(path("prefix", "/c"), json!({"any": true}))}}, "shadow_rules_stat_prefix": "ext_"}),
            )
            .filter(
                "second",
                KIND,
                deny(json!({"metadata": {"filter": "envoy.filters.http.rbac",
                "path": [{"key": "ext_shadow_effective_policy_id"}],
                "value": {"string_match": {"prefix": "custom-"}}}})),
            ),
            paths(&["/c", "/d"]),
        ),
        (
            one(
                "shadow result",
                json!({"shadow_rules": {"policies": {
                "p": policy(path("prefix", "/c"), json!({"any": true}))}}}),
            )
            .filter(
                "second",
                KIND,
                deny(json!({"metadata": {"filter": "envoy.filters.http.rbac",
                "path": [{"key": "shadow_engine_result"}], "value": {"string_match": {"exact": "denied"}}}})),
            ),
            paths(&["/c", "/d"]),
        ),
        (
            one(
                "missing metadata",
                deny(json!({"metadata": {"filter": "x", "path": [{"key": "y"}],
                "value": {"present_match": true}, "invert": true}})),
            ),
            paths(&["/"]),
        ),
        (
            one(
                "absent metadata",
                deny(json!({"metadata": {"filter": "x", "path": [{"key": "y"}],
                "value": {"present_match": false}}})),
            ),
            paths(&["/"]),
        ),
        (
            one("present metadata, false", json!({"shadow_rules": {"policies": {}}})).filter(
                "second",
                KIND,
                deny(json!({"metadata": {"filter": "envoy.filters.http.rbac",
                "path": [{"key": "shadow_engine_result"}], "value": {"present_match": false}}})),
            ),
            paths(&["/"]),
        ),
        (
            one("before routes", deny(path("prefix", "/d"))).hosts(routed(here(json!({})))),
            paths(&["/direct", "/nowhere", "/own", "/other", "/app", "/d"]),
        ),
        (
            one("own rules", json!({"rules": {"policies": {}}})).hosts(routed(here(deny(path("suffix", "/no"))))),
            paths(&["/own", "/own/no", "/app", "/direct", "/nowhere", "/other"]),
        ),
        (one("off here", json!({"rules": {"policies": {}}})).hosts(routed(off.clone())), paths(&["/own", "/app"])),
        (
            one("none here", json!({"rules": {"policies": {}}}))
                .hosts(routed(typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", json!({})))),
            paths(&["/own", "/app"]),
        ),
        (
            one("gRPC", json!({"rules": {"policies": {}}})),
            vec![Ask::with("POST", "/s/m").header("content-type", "application/grpc")],
        ),
        (
            {
                let mut setup = Setup::new("connections");
                let kind = "envoy.extensions.filters.network.rbac.v3.RBAC";
                let rules = json!({"stat_prefix": "tcp.", "rules": {"action": "DENY", "policies": {
                    "p": policy(json!({"any": true}), json!({"direct_remote_ip": range("127.0.0.1", 32)}))}}});
                setup.network.push(json!({"name": "rbac", "typed_config": typed(kind, rules)}));
                setup
            },
            paths(&["/"]),
        ),
    ];
    let seen = compare(&cases).await;
    let denied = seen[1][0].clone();
    assert_eq!((denied.status, denied.body.as_str()), (403, "RBAC: access denied"));
}
