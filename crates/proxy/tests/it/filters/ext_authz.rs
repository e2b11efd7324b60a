//! External authorizers over HTTP and gRPC: what they are told, and what their answers do.

use crate::lab::*;
use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;

const KIND: &str = "ext_authz.v3.ExtAuthz";

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

/// An authorizer that answers by the path it is asked about, and says what it saw in `x-seen`.
async fn authorizer() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(tcp), service_fn(answer)).await;
            });
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    if parts.uri.path().ends_with("/Check") {
        let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
        return Ok(grpc(&body, &authority));
    }
    let ignored =
        ["x-request-id", "x-forwarded-for", "x-envoy-internal", "x-envoy-expected-rq-timeout-ms", "x-forwarded-proto"];
    let mut seen: Vec<String> = parts
        .headers
        .iter()
        .filter(|(name, _)| !ignored.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap_or("?")))
        .collect();
    seen.sort();
    let path = parts.uri.path();
    let status = match path {
        p if p.contains("deny") => 401,
        p if p.contains("moved") => 302,
        p if p.contains("created") => 201,
        p if p.contains("broken") => 503,
        p if p.contains("slow") => {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            200
        }
        _ => 200,
    };
    let text = if status == 200 { String::new() } else { "because".to_owned() };
    let response = Response::builder()
        .status(status)
        .header(
            "x-seen",
            format!("{} {} {} {}", parts.method, parts.uri, seen.join(";"), String::from_utf8_lossy(&body)),
        )
        .header("x-up", "up")
        .header("x-more", "more")
        .header("x-down", "down")
        .header("location", "http://login.test/")
        .header("www-authenticate", "Basic")
        .header("x-envoy-auth-headers-to-remove", "x-gone, x-also")
        .body(Full::new(Bytes::from(text)).boxed_unsync());
    Ok(response.unwrap())
}

/// A question about a connection has no request; it is answered by the name that the authorizer was asked under.
fn grpc(body: &[u8], authority: &str) -> Answer {
    let question = CheckRequest::decode(&body[5..]).unwrap();
    let attributes = question.attributes.unwrap_or_default();
    let of_connection = attributes.request.is_none();
    let both = attributes.source.is_some() && attributes.destination.is_some();
    let http = attributes.request.and_then(|r| r.http).unwrap_or_default();
    let mut headers: Vec<String> = http
        .headers
        .iter()
        .filter(|(k, _)| *k != "x-request-id" && *k != "content-length")
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    headers.sort();
    let mut context: Vec<String> = attributes.context_extensions.iter().map(|(k, v)| format!("{k}={v}")).collect();
    context.sort();
    let seen = format!(
        "{} {} {} {} {} {} [{}] {} {} {context:?}",
        http.method,
        http.path,
        http.host,
        http.scheme,
        http.protocol,
        http.size,
        headers.join(";"),
        http.body,
        http.raw_body.len(),
    );
    let option = |key: &str, value: &str, more: Value| {
        let mut option = json!({"header": {"key": key, "value": value}});
        for (k, v) in more.as_object().unwrap() {
            option[k] = v.clone();
        }
        option
    };
    let set = |action: &str| json!({"append_action": action});
    let changes = json!([
        option("x-seen", &seen, json!({})),
        option("x-plain", "2", json!({})),
        option("x-true", "2", json!({"append": true})),
        option("x-false", "2", json!({"append": false})),
        option("x-absent", "2", set("ADD_IF_ABSENT")),
        option("x-over", "2", set("OVERWRITE_IF_EXISTS_OR_ADD")),
        option("x-exists", "2", set("OVERWRITE_IF_EXISTS"))
    ]);
    let path = if of_connection && both { authority } else { http.path.as_str() };
    let answer = if path.contains("deny") {
        json!({"status": {"code": 7}, "denied_response": {"status": {"code": 402}, "body": "pay", "headers": changes}})
    } else if path.contains("bare") {
        json!({"status": {"code": 16}})
    } else if path.contains("empty") {
        json!({})
    } else {
        json!({"status": {"code": 0}, "ok_response": {"headers": changes, "headers_to_remove": ["x-gone"],
            "response_headers_to_add": [option("x-down", "1", json!({})), option("server", "auth", set("ADD_IF_ABSENT"))],
            "query_parameters_to_set": [{"key": "q", "value": "set"}], "query_parameters_to_remove": ["gone"]},
            "dynamic_metadata": {"who": "ann"}})
    };
    let message: CheckResponse = carrick_envoy_json::from_json(&answer).unwrap();
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(&message);
    let status = if path.contains("broken") { "13" } else { "0" };
    let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    let frames = [Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn asks() -> Vec<Ask> {
    let mut asks: Vec<Ask> =
        ["/", "/deny?x=1", "/moved", "/created", "/broken", "/bare", "/empty", "/own/x", "/off", "/nowhere"]
            .iter()
            .map(|p| {
                Ask::get(p)
                    .header("authorization", "Bearer t")
                    .header("x-a", "1")
                    .header("x-up", "mine")
                    .header("x-more", "mine")
                    .header("x-gone", "gone")
                    .header("x-exists", "1")
                    .header("x-absent", "1")
                    .header("x-true", "1")
                    .header("x-false", "1")
                    .header("x-plain", "1")
                    .header("x-over", "1")
            })
            .collect();
    asks.push(Ask::get("/"));
    asks.push(Ask::get("/?a=1&q=old&gone=1"));
    asks.push(Ask::with("POST", "/").body("0123456789"));
    asks.push(Ask::with("POST", "/deny").body("0123456789abcdef"));
    asks.push(Ask::with("POST", "/s/deny").header("content-type", "application/grpc"));
    asks
}

#[tokio::test(flavor = "multi_thread")]
async fn authorizers_of_connections_are_asked_and_obeyed_as_by_envoy() {
    let server = authorizer().await;
    let gone = crate::support::free_port();
    let filter = |cluster: &str, authority: &str, more: Value| {
        let mut config = json!({"stat_prefix": "tcp.", "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": cluster, "authority": authority}, "timeout": "1s"}});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let kind = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
        json!({"name": "envoy.filters.network.ext_authz", "typed_config": typed(kind, config)})
    };
    let rbac = |config: Value| {
        let kind = "envoy.extensions.filters.network.rbac.v3.RBAC";
        json!({"name": "envoy.filters.network.rbac", "typed_config": typed(kind, config)})
    };
    // As Istio has it: a rule in the shadow says whether the authorizer is to be asked.
    let shadow = |wanted: Value| {
        rbac(
            json!({"stat_prefix": "tcp.", "shadow_rules_stat_prefix": "istio_ext_authz_", "shadow_rules": {"action": "DENY", "policies": {
            "istio-ext-authz-p": {"permissions": [{"any": true}], "principals": [wanted]}}}}),
        )
    };
    let told = json!({"filter_enabled_metadata": {"filter": "envoy.filters.network.rbac",
        "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}], "value": {"string_match": {"prefix": "istio-ext-authz"}}}});
    let one = |name: &'static str, filters: Vec<Value>| {
        let mut setup =
            Setup::new(name).cluster(h2_cluster("auth-grpc", server)).cluster(h2_cluster("gone-grpc", gone));
        setup.network.extend(filters);
        (setup, vec![Ask::get("/"), Ask::get("/again")])
    };
    let deny_all = json!({"stat_prefix": "tcp.", "rules": {"action": "DENY", "policies": {
        "p": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}});
    let cases = vec![
        one("consents", vec![filter("auth-grpc", "yes.test", json!({}))]),
        one("refuses", vec![filter("auth-grpc", "deny.test", json!({}))]),
        one("bare refusal", vec![filter("auth-grpc", "bare.test", json!({}))]),
        one("broken", vec![filter("auth-grpc", "broken.test", json!({}))]),
        one("broken, allowed", vec![filter("auth-grpc", "broken.test", json!({"failure_mode_allow": true}))]),
        one("gone", vec![filter("gone-grpc", "yes.test", json!({}))]),
        one("gone, allowed", vec![filter("gone-grpc", "yes.test", json!({"failure_mode_allow": true}))]),
        one("consents, then denied", vec![filter("auth-grpc", "yes.test", json!({})), rbac(deny_all)]),
        one("not meant", vec![filter("auth-grpc", "deny.test", told.clone())]),
        one("meant", vec![shadow(json!({"any": true})), filter("auth-grpc", "deny.test", told.clone())]),
        one("a rule of others", vec![shadow(json!({"not_id": {"any": true}})), filter("auth-grpc", "deny.test", told)]),
    ];
    let seen = compare(&cases).await;
    let status: Vec<u16> = seen.iter().map(|answers| answers[0].status).collect();
    assert_eq!(status, [200, 0, 0, 0, 200, 0, 200, 0, 200, 0, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn authorizers_are_asked_and_obeyed_as_by_envoy() {
    let server = authorizer().await;
    let gone = crate::support::free_port();
    let here = |config: Value| json!({"envoy.filters.http.ext_authz": typed("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", config)});
    let hosts = json!([{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": "/own"}, "route": {"cluster": "app"},
         "typed_per_filter_config": here(json!({"check_settings": {"context_extensions": {"a": "b"}}}))},
        {"match": {"prefix": "/off"}, "route": {"cluster": "app"}, "typed_per_filter_config": here(json!({"disabled": true}))},
        {"match": {"prefix": "/nowhere"}, "redirect": {"host_redirect": "o.test"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]);
    let exact = |names: &[&str]| json!({"patterns": names.iter().map(|n| json!({"exact": n})).collect::<Vec<_>>()});
    let one = |name: &'static str, config: Value| {
        Setup::new(name)
            .filter("ext_authz", KIND, config)
            .hosts(hosts.clone())
            .cluster(static_cluster("auth", server))
            .cluster(h2_cluster("auth-grpc", server))
            .cluster(static_cluster("gone", gone))
            .cluster(h2_cluster("gone-grpc", gone))
    };
    let http = |cluster: &str, more: Value| {
        let mut service = json!({"server_uri": {"uri": "http://auth.test", "cluster": cluster, "timeout": "1s"}});
        for (key, value) in more.as_object().unwrap() {
            service[key] = value.clone();
        }
        service
    };
    let answers = json!({"authorization_response": {
        "allowed_upstream_headers": exact(&["x-seen", "x-up"]), "allowed_upstream_headers_to_append": exact(&["x-more"]),
        "allowed_client_headers": exact(&["x-down"]), "allowed_client_headers_on_success": exact(&["x-down"])}});
    let mut prefixed = answers.clone();
    prefixed["path_prefix"] = json!("/check");
    prefixed["authorization_request"] = json!({"headers_to_add": [{"key": "x-who", "value": "lab"}]});
    let grpc = |cluster: &str| json!({"envoy_grpc": {"cluster_name": cluster}, "timeout": "1s"});
    let slow = vec![Ask::get("/slow")];
    let few = || vec![Ask::get("/"), Ask::with("POST", "/s/m").header("content-type", "application/grpc")];
    let body = |partial: bool| json!({"max_request_bytes": 12, "allow_partial_message": partial});
    let cases = vec![
        (one("http", json!({"http_service": http("auth", answers.clone())})), asks()),
        (one("http, plain", json!({"http_service": http("auth", json!({}))})), asks()),
        (
            one(
                "http, prefix and headers",
                json!({"http_service": http("auth", prefixed),
            "allowed_headers": exact(&["x-a", "cookie"]), "disallowed_headers": exact(&["authorization"])}),
            ),
            asks(),
        ),
        (
            one("http, body", json!({"http_service": http("auth", answers.clone()), "with_request_body": body(true)})),
            asks(),
        ),
        (
            one(
                "http, short body",
                json!({"http_service": http("auth", answers.clone()), "with_request_body": body(false)}),
            ),
            asks(),
        ),
        (one("http, slow", json!({"http_service": http("auth", json!({}))})), slow),
        (one("http, gone", json!({"http_service": http("gone", json!({}))})), few()),
        (
            one(
                "http, gone, other status",
                json!({"http_service": http("gone", json!({})), "status_on_error": {"code": 503}}),
            ),
            few(),
        ),
        (
            one(
                "http, gone, allowed",
                json!({"http_service": http("gone", json!({})), "failure_mode_allow": true,
            "failure_mode_allow_header_add": true}),
            ),
            few(),
        ),
        (one("grpc", json!({"grpc_service": grpc("auth-grpc"), "transport_api_version": "V3"})), asks()),
        (
            one(
                "grpc, headers",
                json!({"grpc_service": grpc("auth-grpc"), "transport_api_version": "V3",
            "allowed_headers": exact(&["x-a"]), "clear_route_cache": true}),
            ),
            asks(),
        ),
        (
            one(
                "grpc, body",
                json!({"grpc_service": grpc("auth-grpc"), "transport_api_version": "V3",
            "with_request_body": body(true)}),
            ),
            asks(),
        ),
        (one("grpc, gone", json!({"grpc_service": grpc("gone-grpc"), "transport_api_version": "V3"})), few()),
        (
            one(
                "by metadata",
                json!({"http_service": http("auth", json!({})), "filter_enabled_metadata": {
            "filter": "envoy.filters.http.rbac", "path": [{"key": "x"}], "value": {"string_match": {"exact": "y"}}}}),
            ),
            few(),
        ),
        (
            one(
                "denied when off",
                json!({"http_service": http("auth", json!({})), "deny_at_disable": {"runtime_key": "d",
            "default_value": true}, "filter_enabled": {"default_value": {"numerator": 0}}}),
            ),
            few(),
        ),
    ];
    compare(&cases).await;
}
