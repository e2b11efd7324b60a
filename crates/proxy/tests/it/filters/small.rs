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
