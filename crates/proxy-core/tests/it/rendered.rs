//! From objects to verdicts: what the mesh renders is accepted whole, and connections end as the specification's tables say.

use carrick_mesh::Snapshot;
use carrick_mesh::view::sidecar;
use carrick_proxy_core::model::RuntimeConfig;
use carrick_proxy_core::request::RequestHead;
use carrick_proxy_core::simulate::{Connection, End, Opening, Verdict, inbound, outbound};
use carrick_proxy_core::store::type_url;
use carrick_render::{Cache, Resources};
use serde_json::{Value, json};

use crate::message::{Request, Store};
use crate::world::World;

/// A client `client.x` and a server `server.y`, the server's service on 80 → 8080.
pub fn two_pods(policy: &str, rule: Option<&str>) -> Value {
    world("http:80->8080", true, policy, rule)
}

fn world(port: &str, sidecar: bool, policy: &str, rule: Option<&str>) -> Value {
    let mut objects = vec![json!({
        "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "y"},
        "spec": {"selector": {"matchLabels": {"app": "s"}}, "mtls": {"mode": policy}},
    })];
    objects.extend(rule.map(|mode| {
        json!({
            "kind": "DestinationRule", "metadata": {"name": "r", "namespace": "y"},
            "spec": {"host": "server", "trafficPolicy": {"tls": {"mode": mode}}},
        })
    }));
    json!({
        "pods": [
            {"pod": "client.x", "ip": "10.244.0.1", "labels": {"app": "c"}},
            {"pod": "server.y", "ip": "10.244.0.2", "labels": {"app": "s"}, "sidecar": sidecar},
        ],
        "services": [{"service": "server.y", "vip": "10.96.0.1", "ports": [port], "selector": {"app": "s"}}],
        "objects": objects,
    })
}

/// Applies everything that the mesh renders for a pod; nothing may be refused.
pub fn fill(store: &mut Store, world: &Value, pod: &str) {
    fill_with(world, pod, |kind, resources| {
        let all = resources.values().map(|r| (r.name.clone(), r.body.clone())).collect();
        store.0.apply(kind, all, &[]).unwrap_or_else(|e| panic!("{}", carrick_proxy_core::nack_text(&e)));
    });
}

/// Hands over everything that the mesh renders for a pod, type by type.
pub fn fill_with(world: &Value, pod: &str, mut take: impl FnMut(&'static str, &Resources)) {
    let world: World = serde_json::from_value(world.clone()).expect("a world");
    let (snapshot, _) = Snapshot::build(&world.input());
    let full = if pod == "client" { "client.x" } else { "server.y" };
    let view = sidecar(&snapshot, &world.proxy(full));
    let rendered = carrick_render::resources(&view, &mut Cache::default());
    for (kind, resources) in [
        (type_url::CLUSTER, &rendered.clusters),
        (type_url::ENDPOINT, &rendered.endpoints),
        (type_url::LISTENER, &rendered.listeners),
        (type_url::ROUTE, &rendered.routes),
    ] {
        take(kind, resources);
    }
}

fn runtime(world: &Value, pod: &str) -> std::sync::Arc<RuntimeConfig> {
    let mut store = Store::default();
    fill(&mut store, world, pod);
    let warming = store.0.warming();
    assert!(warming.clusters.is_empty() && warming.listeners.is_empty(), "{warming:?}");
    store.runtime()
}

const MESH_HTTP: Opening<'static> = Opening::Tls {
    server_name: Some("outbound_.80_._.server.y.svc.cluster.local"),
    alpn: &["istio-http/1.1", "istio", "http/1.1"],
};
const MESH_TCP: Opening<'static> = Opening::Tls { server_name: None, alpn: &["istio-peer-exchange", "istio"] };
const OTHER_TLS: Opening<'static> = Opening::Tls { server_name: None, alpn: &["h2", "http/1.1"] };

fn arrive(runtime: &RuntimeConfig, port: u16, opening: Opening<'_>) -> Verdict {
    let connection = Connection {
        destination: std::net::SocketAddr::from(([10, 244, 0, 2], port)),
        source: "10.244.0.1:40000".parse().unwrap(),
        opening,
        captured_at: Some(15006),
    };
    inbound(runtime, &connection, Some(&Request::get("server.y/").head()), 0)
}

/// One letter for an end: Http/Tcp over `m`esh TLS or `p`lain, `-` no chain, `!` not HTTP.
fn letter(verdict: &Verdict) -> String {
    let tls = if verdict.tls.is_some() { "m" } else { "p" };
    match verdict.end {
        End::Http => format!("{tls}H"),
        End::Tcp => format!("{tls}T"),
        End::NoChain => "-".to_owned(),
        End::NotHttp => "!".to_owned(),
        ref other => format!("{other:?}"),
    }
}

#[test]
fn the_inbound_table() {
    // Port, mode, then: plain HTTP, silent, mesh HTTP, mesh TCP, other TLS.
    let table = [
        ("http:80->8080", "PERMISSIVE", "pH ! mH mH -"),
        ("http:80->8080", "STRICT", "- - mH mH mH"),
        ("http:80->8080", "DISABLE", "pH ! ! ! !"),
        ("tcp:80->8080", "PERMISSIVE", "pT pT mT mT pT"),
        ("tcp:80->8080", "STRICT", "- - mT mT mT"),
        ("tcp:80->8080", "DISABLE", "pT pT pT pT pT"),
        ("80->8080", "PERMISSIVE", "pH pT mH mT pT"),
        ("80->8080", "STRICT", "- - mH mT mT"),
        ("80->8080", "DISABLE", "pH pT pT pT pT"),
    ];
    for (port, mode, expected) in table {
        let runtime = runtime(&world(port, true, mode, None), "server");
        let openings = [Opening::Http11, Opening::Silent, MESH_HTTP, MESH_TCP, OTHER_TLS];
        let found: Vec<_> = openings.iter().map(|o| letter(&arrive(&runtime, 8080, *o))).collect();
        assert_eq!(found.join(" "), expected, "{port} {mode}");
    }
}

#[test]
fn requests_are_made_fit_before_they_are_routed() {
    let runtime = runtime(&two_pods("DISABLE", None), "server");
    let connection = Connection {
        destination: "10.244.0.2:8080".parse().unwrap(),
        source: "10.244.0.1:40000".parse().unwrap(),
        opening: Opening::Http11,
        captured_at: Some(15006),
    };
    for (method, path, end) in [
        ("GET", "/", End::Http),
        ("HEAD", "/x?y", End::Http),
        ("get", "/", End::Answered(400)),
        ("BREW", "/", End::Answered(400)),
        ("GET", "/a#b", End::Answered(400)),
        ("GET", "http://server.y/x", End::Http),
        ("GET", "http://server.y/x#b", End::Answered(400)),
        ("OPTIONS", "*", End::Answered(404)),
    ] {
        let headers = http::HeaderMap::new();
        let head = RequestHead { method, path, authority: "server.y", scheme: "http", headers: &headers };
        assert_eq!(inbound(&runtime, &connection, Some(&head), 0).end, end, "{method} {path}");
    }
}

#[test]
fn ports_that_no_service_names_follow_the_workloads_mode() {
    let strict = runtime(&two_pods("STRICT", None), "server");
    assert_eq!(letter(&arrive(&strict, 9999, Opening::Http11)), "-");
    let verdict = arrive(&strict, 9999, MESH_HTTP);
    assert_eq!(letter(&verdict), "mH");
    assert_eq!(verdict.cluster.as_deref(), Some("InboundPassthroughCluster"));
    assert_eq!(verdict.upstream.unwrap().address, Some("10.244.0.2:9999".parse().unwrap()));
    let loop_back = arrive(&strict, 15006, MESH_HTTP);
    assert_eq!((loop_back.cluster.as_deref(), loop_back.end), (Some("BlackHoleCluster"), End::NoEndpoint));
}

#[test]
fn mesh_tls_is_terminated_with_the_workloads_certificate_and_a_client_certificate() {
    let verdict = arrive(&runtime(&two_pods("STRICT", None), "server"), 8080, MESH_HTTP);
    let tls = verdict.tls.expect("terminated");
    assert_eq!((&*tls.certificate, tls.trust.as_deref(), tls.client_certificate), ("default", Some("ROOTCA"), true));
    assert_eq!(tls.alpn.as_deref(), Some("http/1.1"));
    assert_eq!(verdict.cluster.as_deref(), Some("inbound|8080||"));
}

fn leave(runtime: &RuntimeConfig, to: &str, opening: Opening<'_>, host: &str) -> Verdict {
    let connection = Connection {
        destination: to.parse().unwrap(),
        source: "10.244.0.1:40000".parse().unwrap(),
        opening,
        captured_at: Some(15001),
    };
    outbound(runtime, &connection, Some(&Request::get(&format!("{host}/")).head()), 0)
}

#[test]
fn outbound_http_by_host_name() {
    let client = runtime(&two_pods("PERMISSIVE", None), "client");
    for host in ["server.y", "server.y.svc.cluster.local", "server.y.svc:80", "10.96.0.1"] {
        let verdict = leave(&client, "10.96.0.1:80", Opening::Http11, host);
        assert_eq!(verdict.cluster.as_deref(), Some("outbound|80||server.y.svc.cluster.local"), "{host}: {verdict:?}");
        let upstream = verdict.upstream.expect("an endpoint");
        assert_eq!(upstream.address, Some("10.244.0.2:8080".parse().unwrap()));
        let (sni, alpn) = upstream.tls.expect("mesh TLS");
        assert_eq!(sni.as_deref(), Some("outbound_.80_._.server.y.svc.cluster.local"));
        assert_eq!(alpn.first().map(|a| &**a), Some("istio-http/1.1"), "{alpn:?}");
    }
    let unknown = leave(&client, "10.96.0.1:80", Opening::Http11, "example.com");
    assert_eq!(unknown.cluster.as_deref(), Some("PassthroughCluster"));
    let elsewhere = leave(&client, "1.2.3.4:9", Opening::Silent, "");
    assert_eq!((elsewhere.cluster.as_deref(), elsewhere.end), (Some("PassthroughCluster"), End::Tcp));
}

#[test]
fn the_request_protocol_chooses_the_alpn() {
    let client = runtime(&world("80->8080", true, "PERMISSIVE", None), "client");
    let first = |opening| {
        let verdict = leave(&client, "10.96.0.1:80", opening, "server.y");
        let upstream = verdict.upstream.expect("an endpoint");
        upstream.tls.and_then(|(_, alpn)| alpn.first().cloned()).map(|a| a.to_string())
    };
    assert_eq!(first(Opening::Http11).as_deref(), Some("istio-http/1.1"));
    assert_eq!(first(Opening::Http2).as_deref(), Some("istio-h2"));
    assert_eq!(first(Opening::Silent).as_deref(), Some("istio"));
}

#[test]
fn the_client_side_table() {
    // Sidecar at the server, policy, rule, whether the client speaks mesh TLS.
    let table = [
        (true, "STRICT", None, true),
        (true, "STRICT", Some("DISABLE"), false),
        (true, "PERMISSIVE", None, true),
        (true, "DISABLE", None, false),
        (true, "DISABLE", Some("ISTIO_MUTUAL"), true),
        (false, "PERMISSIVE", None, false),
        (false, "PERMISSIVE", Some("ISTIO_MUTUAL"), true),
    ];
    for (sidecar, policy, rule, expected) in table {
        let client = runtime(&world("http:80->8080", sidecar, policy, rule), "client");
        let verdict = leave(&client, "10.96.0.1:80", Opening::Http11, "server.y");
        let upstream = verdict.upstream.expect("an endpoint");
        assert_eq!(upstream.tls.is_some(), expected, "{sidecar} {policy} {rule:?}");
    }
}

#[test]
fn rules_with_pools_and_balancers_are_accepted() {
    let mut world = two_pods("PERMISSIVE", None);
    let rule = json!({
        "kind": "DestinationRule", "metadata": {"name": "r", "namespace": "y"},
        "spec": {"host": "server", "trafficPolicy": {
            "connectionPool": {
                "tcp": {"maxConnections": 10, "connectTimeout": "3s", "tcpKeepalive": {"time": "7200s", "interval": "75s"}},
                "http": {"http1MaxPendingRequests": 5, "maxRequestsPerConnection": 2, "idleTimeout": "30s", "maxRetries": 4},
            },
            "loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}},
            "outlierDetection": {"consecutive5xxErrors": 7, "interval": "5s", "baseEjectionTime": "15m"},
        }},
    });
    world["objects"].as_array_mut().unwrap().push(rule);
    let runtime = runtime(&world, "client");
    let cluster = &runtime.clusters["outbound|80||server.y.svc.cluster.local"];
    assert_eq!((cluster.limits.max_connections, cluster.max_requests_per_connection), (10, Some(2)));
    assert_eq!(cluster.outlier.as_ref().map(|o| o.consecutive_5xx), Some(7));
}
