//! Access logs beside those that a real Envoy writes of the same requests, field by field.

use crate::lab::{Ask, Envoy, Setup, native, send, static_cluster, typed};
use crate::support::*;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

/// How much of a field must be the same.
#[derive(Clone, Copy, PartialEq)]
enum Same {
    /// All of it.
    All,
    /// All but numbers, which depend on the moment.
    Words,
    /// The form: digits and hexadecimal letters count alike.
    Form,
}
use Same::{All, Form, Words};

const FIELDS: &[(&str, Same)] = &[
    // Istio's own.
    ("%START_TIME%", Form),
    ("%REQ(:METHOD)%", All),
    ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", All),
    ("%PROTOCOL%", All),
    ("%RESPONSE_CODE%", All),
    ("%RESPONSE_FLAGS%", All),
    ("%RESPONSE_CODE_DETAILS%", All),
    ("%CONNECTION_TERMINATION_DETAILS%", All),
    ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", All),
    ("%BYTES_RECEIVED%", All),
    ("%BYTES_SENT%", All),
    ("%DURATION%", Words),
    ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", Words),
    ("%REQ(X-FORWARDED-FOR)%", All),
    ("%REQ(USER-AGENT)%", All),
    ("%REQ(X-REQUEST-ID)%", Form),
    ("%REQ(:AUTHORITY)%", All),
    ("%UPSTREAM_HOST%", All),
    ("%UPSTREAM_CLUSTER_RAW%", All),
    ("%UPSTREAM_LOCAL_ADDRESS%", Words),
    ("%DOWNSTREAM_LOCAL_ADDRESS%", Words),
    ("%DOWNSTREAM_REMOTE_ADDRESS%", Words),
    ("%REQUESTED_SERVER_NAME%", All),
    ("%ROUTE_NAME%", All),
    // Others.
    ("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f %z)%", Form),
    ("%START_TIME(%s.%9f)%", Form),
    ("%RESPONSE_FLAGS_LONG%", All),
    ("%GRPC_STATUS%", All),
    ("%GRPC_STATUS(SNAKE_STRING)%", All),
    ("%GRPC_STATUS_NUMBER%", All),
    ("%REQUEST_DURATION%", Words),
    ("%RESPONSE_DURATION%", Words),
    ("%RESPONSE_TX_DURATION%", Words),
    ("%UPSTREAM_CLUSTER%", All),
    ("%UPSTREAM_PROTOCOL%", All),
    ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", All),
    ("%UPSTREAM_REMOTE_ADDRESS%", All),
    ("%UPSTREAM_REMOTE_PORT%", All),
    ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", All),
    ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", All),
    ("%DOWNSTREAM_LOCAL_PORT%", Words),
    ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", All),
    ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", Words),
    ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", All),
    ("%DOWNSTREAM_PEER_URI_SAN%", All),
    ("%DOWNSTREAM_TLS_VERSION%", All),
    ("%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", All),
    ("%VIRTUAL_CLUSTER_NAME%", All),
    ("%HOSTNAME%", All),
    ("%FILTER_CHAIN_NAME%", All),
    ("%CONNECTION_ID%", Words),
    ("%STREAM_ID%", Form),
    ("%TRACE_ID%", All),
    ("%ACCESS_LOG_TYPE%", All),
    ("%REQ(X-NO?REFERER)%", All),
    ("%REQ(:PATH):4%", All),
    ("%REQ(:SCHEME)%", All),
    ("%QUERY_PARAM(x)%", All),
    ("%PATH(NQ:ORIG)%", All),
    ("%PATH(WQ:PATH)%", All),
    ("%RESP(SERVER)%", All),
    ("%RESP(CONTENT-TYPE)%", All),
    ("%TRAILER(GRPC-STATUS)%", All),
    ("%DYNAMIC_METADATA(none:key)%", All),
    ("%METADATA(ROUTE:lab:color)%", All),
    ("%METADATA(CLUSTER:lab:color)%", All),
    ("100%% %RESPONSE_CODE%", All),
];

fn log(path: &Path, format: Value) -> Value {
    json!({"access_log": [{"name": "envoy.access_loggers.file", "typed_config": typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({"path": path, "log_format": format}))}]})
}

fn routes() -> Value {
    let to = |cluster: &str| json!({"cluster": cluster});
    let route = |path: &str, action: Value| json!({"name": path, "match": {"prefix": path}, "route": action});
    json!([{"name": "all", "domains": ["app.test"], "routes": [
        {"name": "direct", "match": {"path": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
        {"name": "away", "match": {"path": "/away"}, "redirect": {"host_redirect": "elsewhere"}},
        route("/dead", to("dead")),
        route("/unknown", to("unknown")),
        route("/empty", to("empty")),
        route("/slow", json!({"cluster": "app", "timeout": "0.2s"})),
        route("/again", json!({"cluster": "dead", "retry_policy": {"retry_on": "connect-failure", "num_retries": 1}})),
        route("/rewritten", json!({"cluster": "app", "prefix_rewrite": "/else"})),
        {"name": "colored", "match": {"prefix": "/"}, "route": to("app"),
         "metadata": {"filter_metadata": {"lab": {"color": "blue"}}}},
    ]}])
}

fn setup(name: &'static str, manager: Value, dead: SocketAddr, app: SocketAddr) -> Setup {
    let mut setup = Setup::new(name).hosts(routes()).cluster(static_cluster("dead", dead));
    let mut colored = static_cluster("app", app);
    colored["metadata"] = json!({"filter_metadata": {"lab": {"color": "green"}}});
    setup = setup.cluster(colored).cluster(json!({"name": "empty", "type": "STATIC", "connect_timeout": "2s"}));
    let fault = json!({"abort": {"header_abort": {}, "percentage": {"numerator": 100}},
        "delay": {"header_delay": {}, "percentage": {"numerator": 100}}});
    setup = setup.filter("fault", "fault.v3.HTTPFault", fault);
    let rules = json!({"rules": {"action": "DENY", "policies": {"p": {
        "permissions": [{"url_path": {"path": {"exact": "/denied"}}}], "principals": [{"any": true}]}}}});
    setup = setup.filter("rbac", "rbac.v3.RBAC", rules);
    setup.manager = manager;
    setup.routes = json!({"validate_clusters": false});
    setup
}

fn asks() -> Vec<Ask> {
    let grpc = |path: &str| {
        Ask::with("POST", path).header("content-type", "application/grpc").header("te", "trailers").body("\0\0\0\0\0")
    };
    vec![
        Ask::get("/a?x=1&y=2")
            .header("user-agent", "lab/1")
            .header("referer", "http://from/")
            .header("x-forwarded-for", "10.0.0.9"),
        Ask::with("POST", "/a/../b").body("hello \"body\""),
        Ask::with("HEAD", "/a"),
        Ask::get("/direct?x=5"),
        Ask::get("/away"),
        Ask::get("/dead"),
        Ask::get("/again"),
        Ask::get("/unknown"),
        Ask::get("/empty"),
        Ask::get("/slow"),
        Ask::get("/fail"),
        Ask::get("/denied"),
        Ask::get("/rewritten/a?x=7"),
        Ask::get("/a").header("x-envoy-fault-abort-request", "503"),
        Ask::get("/a").header("x-envoy-fault-delay-request", "20"),
        Ask::get("/a").header("x-request-id", "aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa").header("user-agent", "quo\"te"),
        grpc("/mirror"),
        Ask { body: String::new(), ..grpc("/dead") },
        grpc("/denied"),
    ]
}

fn reduced(text: &str, same: Same) -> String {
    match same {
        All => text.to_owned(),
        Words => {
            let mut out = String::new();
            for c in text.chars() {
                let c = if c.is_ascii_digit() { '9' } else { c };
                if c != '9' || !out.ends_with('9') {
                    out.push(c);
                }
            }
            out
        }
        Form => text.chars().map(|c| if matches!(c, '0'..='9' | 'a'..='f') { '9' } else { c }).collect(),
    }
}

/// The lines of a log once there are so many.
async fn lines(path: &Path, wanted: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    until("the log is written", || read().matches('\n').count() >= wanted).await;
    read().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_is_envoys() {
    let (app, _) = echo_app().await;
    let (dead, dir) = (free_port(), tempfile::tempdir().unwrap());
    let text = FIELDS.iter().map(|(f, _)| *f).collect::<Vec<_>>().join("\t") + "\n";
    let tree = json!({"code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "mixed": "a %REQ(X-NO)% %PROTOCOL%",
        "none": "%REQ(X-NO)%", "nested": {"bytes": "%BYTES_SENT%", "ua": "%REQ(USER-AGENT)%"}, "list": ["%ROUTE_NAME%", 1.5, true],
        "number": 7, "grpc": "%GRPC_STATUS%", "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "cut": "%REQ(:PATH):3%"});
    let formats =
        [("text", json!({"text_format_source": {"inline_string": text}})), ("json", json!({"json_format": tree}))];
    let of = |engine: &str| -> Vec<Setup> {
        let one = |(name, format): &(&'static str, Value)| {
            setup(name, log(&dir.path().join(format!("{engine}-{name}")), format.clone()), dead, app)
        };
        formats.iter().map(one).collect()
    };
    let (theirs, ours) = (of("envoy"), of("native"));
    let envoy = Envoy::start(&theirs.iter().collect::<Vec<_>>(), app).await;
    let (_native, ports) = native(&ours.iter().collect::<Vec<_>>(), app);
    let asks = asks();
    let mut differences = Vec::new();
    for (i, (name, _)) in formats.iter().enumerate() {
        for ask in &asks {
            send(envoy.ports[i], ask).await;
            send(ports[i], ask).await;
        }
        let theirs = lines(&dir.path().join(format!("envoy-{name}")), asks.len()).await;
        let ours = lines(&dir.path().join(format!("native-{name}")), asks.len()).await;
        assert_eq!((theirs.len(), ours.len()), (asks.len(), asks.len()));
        for (ask, (theirs, ours)) in asks.iter().zip(theirs.iter().zip(&ours)) {
            if name.starts_with("json") {
                let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                let (theirs, ours) = (parse(theirs), parse(ours));
                if theirs != ours {
                    differences.push(format!("{} {}\n  Envoy: {theirs}\n  ours:  {ours}", ask.method, ask.path));
                }
                continue;
            }
            let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.split('\t').collect(), ours.split('\t').collect());
            assert_eq!((theirs.len(), ours.len()), (FIELDS.len(), FIELDS.len()), "{theirs:?}\n{ours:?}");
            for ((field, same), (theirs, ours)) in FIELDS.iter().zip(theirs.iter().zip(&ours)) {
                if reduced(theirs, *same) != reduced(ours, *same) {
                    differences.push(format!("{} {} {field}: Envoy {theirs}, ours {ours}", ask.method, ask.path));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}
