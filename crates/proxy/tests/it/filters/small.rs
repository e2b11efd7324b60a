//! Faults, CORS, local rate limits, header mutations.

use crate::lab::*;
use serde_json::{Value, json};

fn all() -> Value {
    json!({"numerator": 100})
}

fn preflight(origin: &str) -> Ask {
    Ask::with("OPTIONS", "/").header("origin", origin).header("access-control-request-method", "PUT")
}

#[tokio::test(flavor = "multi_thread")]
async fn small_filters_are_envoys() {
    let grpc = || Ask::with("POST", "/s/m").header("content-type", "application/grpc");
    let two = || vec![Ask::get("/"), grpc(), Ask::get("/").header("x-a", "1")];
    let fault = |name: &'static str, config: Value| Setup::new(name).filter("fault", "fault.v3.HTTPFault", config);
    let abort = |status: Value| {
        let mut abort = json!({"percentage": all()});
        for (key, value) in status.as_object().unwrap() {
            abort[key] = value.clone();
        }
        json!({"abort": abort})
    };
    let cors = |name: &'static str, policy: Value| {
        let here = typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", policy);
        let hosts = json!([{"name": "all", "domains": ["*"], "typed_per_filter_config": {"envoy.filters.http.cors": here},
            "routes": [{"match": {"prefix": "/direct"}, "direct_response": {"status": 418}},
                {"match": {"prefix": "/app"}, "route": {"cluster": "app"}}, {"match": {"path": "/"}, "route": {"cluster": "app"}}]}]);
        Setup::new(name).filter("cors", "cors.v3.Cors", json!({})).hosts(hosts)
    };
    let origins = json!([{"exact": "http://a.test"}, {"safe_regex": {"regex": "http://.*[.]b[.]test"}}]);
    let full = json!({"allow_origin_string_match": origins, "allow_methods": "GET,PUT", "allow_headers": "x-a",
        "expose_headers": "x-b", "max_age": "60", "allow_credentials": true, "allow_private_network_access": true});
    let mut strict = full.clone();
    strict["forward_not_matching_preflights"] = json!(false);
    let mut off = full.clone();
    off["filter_enabled"] = json!({"default_value": {"numerator": 0}});
    let sites = || {
        vec![
            Ask::get("/"),
            Ask::get("/").header("origin", "http://a.test"),
            Ask::get("/").header("origin", "http://x.b.test"),
            Ask::get("/").header("origin", "http://evil.test"),
            Ask::get("/direct").header("origin", "http://a.test"),
            Ask::get("/nowhere").header("origin", "http://a.test"),
            preflight("http://a.test"),
            preflight("http://evil.test"),
            preflight("http://a.test").header("access-control-request-private-network", "true"),
            preflight(""),
            Ask::with("OPTIONS", "/").header("origin", "http://a.test"),
        ]
    };
    let limit = |more: Value| {
        let mut limit = json!({"stat_prefix": "l", "token_bucket": {"max_tokens": 2, "fill_interval": "1000s"},
            "filter_enabled": {"default_value": all()}, "filter_enforced": {"default_value": all()}});
        for (key, value) in more.as_object().unwrap() {
            limit[key] = value.clone();
        }
        limit
    };
    let rate = |name: &'static str, config: Value| {
        Setup::new(name).filter("local_ratelimit", "local_ratelimit.v3.LocalRateLimit", config)
    };
    let add = |key: &str, value: &str| json!({"append": {"header": {"key": key, "value": value}}});
    let mutations = json!({"mutations": {
        "request_mutations": [add("x-a", "new %REQ(:path)%"), {"remove": "x-gone"}, add("x-last", "%REQ(x-a)%")],
        "response_mutations": [add("x-down", "%RESPONSE_CODE%"), {"remove": "x-envoy-upstream-service-time"}]}});
    let mutated =
        Setup::new("mutations").filter("header_mutation", "header_mutation.v3.HeaderMutation", mutations.clone());
    let denied = Setup::new("mutations of a denial")
        .filter("rbac", "rbac.v3.RBAC", json!({"rules": {"policies": {}}}))
        .filter("header_mutation", "header_mutation.v3.HeaderMutation", mutations);
    let cases = vec![
        (fault("abort", abort(json!({"http_status": 418}))), two()),
        (fault("abort in gRPC", abort(json!({"grpc_status": 8}))), two()),
        (fault("never", json!({"abort": {"http_status": 500}})), two()),
        (
            fault(
                "by header",
                json!({"abort": {"http_status": 500, "percentage": all()},
            "headers": [{"name": "x-a", "string_match": {"exact": "1"}}]}),
            ),
            two(),
        ),
        (
            fault(
                "other cluster",
                json!({"abort": {"http_status": 500, "percentage": all()}, "upstream_cluster": "other"}),
            ),
            two(),
        ),
        (
            fault("told", abort(json!({"header_abort": {}}))),
            vec![Ask::get("/").header("x-envoy-fault-abort-request", "503"), Ask::get("/")],
        ),
        (
            fault(
                "delay and abort",
                json!({"delay": {"fixed_delay": "0.05s", "percentage": all()},
            "abort": {"http_status": 502, "percentage": all()}}),
            ),
            two(),
        ),
        (cors("cors", full), sites()),
        (cors("cors, strict", strict), sites()),
        (cors("cors, off", off), sites()),
        (rate("rate", limit(json!({}))), vec![Ask::get("/"), Ask::get("/"), Ask::get("/"), grpc()]),
        (
            rate(
                "rate, other status",
                limit(json!({"status": {"code": 503}, "rate_limited_as_resource_exhausted": true,
            "response_headers_to_add": [{"header": {"key": "x-limited", "value": "yes"}}]})),
            ),
            vec![Ask::get("/"), Ask::get("/"), Ask::get("/"), grpc()],
        ),
        (
            rate(
                "rate, not enforced",
                limit(json!({"filter_enforced": {"default_value": {"numerator": 0}},
            "request_headers_to_add_when_not_enforced": [{"header": {"key": "x-over", "value": "yes"}}]})),
            ),
            vec![Ask::get("/"), Ask::get("/"), Ask::get("/")],
        ),
        (mutated, vec![Ask::get("/p").header("x-a", "old").header("x-gone", "1"), Ask::get("/")]),
        (denied, vec![Ask::get("/")]),
    ];
    compare(&cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_proxy_go_back_by_their_route() {
    let both =
        || vec![Ask::get("/").header("x-a", "1"), Ask::with("POST", "/s/m").header("content-type", "application/grpc")];
    let weighted = || {
        let say = |value: &str| json!([{"header": {"key": "x-said", "value": value}}]);
        json!([{"name": "all", "domains": ["*"], "response_headers_to_add": say("host %REQ(x-a)% %RESPONSE_CODE%"),
            "routes": [{"match": {"prefix": "/"}, "response_headers_to_add": say("route %PROTOCOL%"),
                "response_headers_to_remove": ["content-type"],
                "request_headers_to_add": [{"header": {"key": "x-a", "value": "changed"}}],
                "route": {"weighted_clusters": {"clusters": [
                    {"name": "app", "weight": 1, "response_headers_to_add": say("cluster")}]}}}]}])
    };
    let abort = json!({"abort": {"http_status": 418, "percentage": all()}});
    let forwarded = || {
        let mut asks = both();
        asks.push(Ask::get("/").header("x-forwarded-for", "192.0.2.7"));
        asks
    };
    let who = json!([{"header": {"key": "x-said", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]);
    let to = |route: Value| {
        let mut route = route;
        route["match"] = json!({"prefix": "/"});
        json!([{"name": "all", "domains": ["*"], "response_headers_to_add": who, "routes": [route]}])
    };
    let preflights = json!([{"name": "all", "domains": ["*"], "response_headers_to_add": [{"header": {"key": "x-said", "value": "host"}}],
        "typed_per_filter_config": {"envoy.filters.http.cors": typed("envoy.extensions.filters.http.cors.v3.CorsPolicy",
            json!({"allow_origin_string_match": [{"exact": "http://a.test"}]}))},
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]);
    let cases = vec![
        (Setup::new("a fault").hosts(weighted()).filter("fault", "fault.v3.HTTPFault", abort.clone()), both()),
        (
            Setup::new("a denial").hosts(weighted()).filter("rbac", "rbac.v3.RBAC", json!({"rules": {"policies": {}}})),
            both(),
        ),
        (Setup::new("a redirect").hosts(to(json!({"redirect": {"path_redirect": "/there"}}))), forwarded()),
        (Setup::new("an upstream").hosts(to(json!({"route": {"cluster": "app"}}))), forwarded()),
        (
            Setup::new("a preflight").hosts(preflights).filter("cors", "cors.v3.Cors", json!({})),
            vec![preflight("http://a.test")],
        ),
        (
            Setup::new("no forwarding route")
                .hosts(json!([{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "direct_response": {"status": 200},
                     "response_headers_to_add": [{"header": {"key": "x-said", "value": "route %RESPONSE_CODE%"}}]}]}]))
                .filter("fault", "fault.v3.HTTPFault", abort),
            both(),
        ),
        (
            Setup::new("a direct response").hosts(json!([{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "direct_response": {"status": 200},
                 "response_headers_to_add": [{"header": {"key": "x-said", "value": "%REQ(x-a)% %PROTOCOL% %RESPONSE_CODE%"}}]}]}])),
            both(),
        ),
    ];
    let seen = compare(&cases).await;
    assert!(seen[0][0].headers["x-said"].contains("route HTTP/1.1"), "{:?}", seen[0][0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_given_more_than_once_match_as_with_envoy() {
    let tests = [
        json!({"string_match": {"exact": "one"}}),
        json!({"string_match": {"exact": "one,two"}}),
        json!({"string_match": {"exact": "one, two"}}),
        json!({"string_match": {"prefix": "one"}}),
        json!({"string_match": {"prefix": "two"}}),
        json!({"string_match": {"suffix": "two"}}),
        json!({"string_match": {"contains": "e,t"}}),
        json!({"string_match": {"safe_regex": {"regex": "[a-z.]+"}}}),
        json!({"string_match": {"safe_regex": {"regex": "[a-z,]+"}}}),
        json!({"present_match": true}),
        json!({"range_match": {"start": 1, "end": 9}}),
    ];
    let matchers: Vec<Value> = tests
        .iter()
        .flat_map(|test| {
            [
                json!({}),
                json!({"invert_match": true}),
                json!({"treat_missing_header_as_empty": true, "invert_match": true}),
            ]
            .map(|more| {
                let mut matcher = test.clone();
                matcher["name"] = json!("x-a");
                for (key, value) in more.as_object().unwrap() {
                    matcher[key] = value.clone();
                }
                matcher
            })
        })
        .collect();
    let routes: Vec<Value> = matchers
        .iter()
        .enumerate()
        .map(|(i, m)| json!({"match": {"path": format!("/{i}"), "headers": [m]}, "direct_response": {"status": 200}}))
        .collect();
    let policies: serde_json::Map<String, Value> = matchers
        .iter()
        .enumerate()
        .map(|(i, m)| {
            let path = json!({"url_path": {"path": {"exact": format!("/{i}")}}});
            let rules = json!([{"and_rules": {"rules": [path, {"header": m}]}}]);
            (format!("p{i}"), json!({"permissions": rules, "principals": [{"any": true}]}))
        })
        .collect();
    let asks: Vec<Ask> = (0..matchers.len())
        .flat_map(|i| {
            let get = Ask::get(&format!("/{i}"));
            [
                get.clone(),
                get.clone().header("x-a", "one").header("x-a", "one"),
                get.clone().header("x-a", "one").header("x-a", "two"),
                get.clone().header("x-a", "one,two"),
                get.clone().header("x-a", "").header("x-a", "one"),
                get.clone().header("x-a", "5").header("x-a", "6"),
                get.header("x-a", "5").header("x-a", "x"),
            ]
        })
        .collect();
    let cases = vec![
        (Setup::new("routes").hosts(json!([{"name": "all", "domains": ["*"], "routes": routes}])), asks.clone()),
        (Setup::new("rbac").filter("rbac", "rbac.v3.RBAC", json!({"rules": {"policies": policies}})), asks),
    ];
    compare(&cases).await;
}
