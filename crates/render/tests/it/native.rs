//! The native engine's own decisions over rendered resources: what it accepts, and where connections end.
//!
//! Invariant: whatever is rendered, the native engine accepts whole, but for the fields named here.

use std::net::SocketAddr;

use carrick_proxy_core::{
    ConfigStore, RuntimeConfig,
    request::RequestHead,
    simulate::{self, Connection, End, Opening, Verdict},
    store::type_url,
};
use carrick_render::{Rendered, Resources};
use http::HeaderMap;
use serde_json::json;

use crate::shared;

/// What the native engine refuses by design, with a reason that names it. Each is the end of a field and a part of the reason:
/// revocation lists are not read yet, and connections are asked of no external authorizer.
const REFUSED: [(&str, &str); 5] = [
    // Other localities for another try.
    ("retry_policy.retry_priority", "unsupported field"),
    // Tunnels by POST.
    ("tunneling_config.use_post", "unsupported field"),
    // Listeners at a path.
    ("address.pipe", "unsupported field"),
    ("default_validation_context.crl", "unsupported field"),
    ("typed_config", "envoy.filters.network.ext_authz"),
];

/// Loads all resources of a proxy into the native engine.
pub fn accept(name: &str, rendered: &Rendered) -> std::sync::Arc<RuntimeConfig> {
    let mut store = ConfigStore::new();
    let mut apply = |kind: &str, all: &Resources| {
        let upserts = all.iter().map(|(name, r)| (name.clone(), r.body.clone())).collect();
        let mut rejections = store.apply(kind, upserts, &[]).err().unwrap_or_default();
        rejections.retain(|r| !REFUSED.iter().any(|(field, why)| r.field.ends_with(field) && r.reason.contains(why)));
        assert!(rejections.is_empty(), "{name}: refused: {}", carrick_proxy_core::nack_text(&rejections));
    };
    apply(type_url::CLUSTER, &rendered.clusters);
    apply(type_url::ENDPOINT, &rendered.endpoints);
    apply(type_url::LISTENER, &rendered.listeners);
    apply(type_url::ROUTE, &rendered.routes);
    store.runtime()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Sends one connection through both ends and tells what each did.
fn journey(
    client: &RuntimeConfig,
    server: &RuntimeConfig,
    to: &str,
    host: &str,
    opening: Opening<'_>,
) -> (Verdict, Verdict) {
    let headers = HeaderMap::new();
    let request = RequestHead { method: "GET", path: "/", authority: host, scheme: "http", headers: &headers };
    let out =
        Connection { destination: address(to), source: address("10.244.0.1:40000"), opening, captured_at: Some(15001) };
    let sent = simulate::outbound(client, &out, Some(&request), 7);
    let upstream = sent.upstream.clone().expect("an endpoint");
    let (sni, alpn) = upstream.tls.clone().unwrap_or_default();
    let alpn: Vec<&str> = alpn.iter().map(|a| &**a).collect();
    let opening = match &upstream.tls {
        Some(_) => Opening::Tls { server_name: sni.as_deref(), alpn: &alpn },
        None => opening,
    };
    let into = Connection {
        destination: upstream.address.expect("an address"),
        source: address("10.244.0.1:40001"),
        opening,
        captured_at: Some(15006),
    };
    (sent, simulate::inbound(server, &into, Some(&request), 7))
}

fn offered(verdict: &Verdict) -> String {
    let tls = verdict.upstream.as_ref().and_then(|u| u.tls.as_ref());
    tls.map_or("plain".to_owned(), |(_, alpn)| alpn.join(","))
}

#[test]
fn each_protocol_offers_the_alpn_of_its_kind_and_lands_in_its_chain() {
    for mode in ["PERMISSIVE", "STRICT"] {
        let world = shared::world(json!({
            "pods": [
                {"pod": "c.x", "ip": "10.244.0.1", "labels": {"app": "c"}},
                {"pod": "s.y", "ip": "10.244.0.2", "labels": {"app": "s"}},
            ],
            "services": [{
                "service": "s.y", "vip": "10.96.0.1", "selector": {"app": "s"},
                "ports": ["1000", "http:2000", "grpc:2001", "tcp:3000"],
            }],
            "objects": [{
                "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "y"}, "spec": {"mtls": {"mode": mode}},
            }],
        }));
        let client = accept("client", &shared::render(&world, "c.x"));
        let server = accept("server", &shared::render(&world, "s.y"));
        let (h1, h2, tcp) = ("istio-http/1.1,istio,http/1.1", "istio-h2,istio,h2", "istio");
        let rows = [
            ("1000", Opening::Http11, h1, End::Http),
            ("1000", Opening::Http2, h2, End::Http),
            ("1000", Opening::Opaque, tcp, End::Tcp),
            ("2000", Opening::Http11, h1, End::Http),
            ("2000", Opening::Http2, h1, End::Http),
            ("2001", Opening::Http2, h2, End::Http),
            ("3000", Opening::Silent, tcp, End::Tcp),
            ("3000", Opening::Http11, tcp, End::Tcp),
        ];
        for (port, opening, alpn, end) in rows {
            let to = format!("10.96.0.1:{port}");
            let (sent, received) = journey(&client, &server, &to, "s.y", opening);
            let what = format!("{mode} {port} {opening:?}");
            assert_eq!(offered(&sent), alpn, "{what}");
            assert_eq!(sent.cluster.as_deref(), Some(&*format!("outbound|{port}||s.y.svc.cluster.local")), "{what}");
            let sni = sent.upstream.as_ref().and_then(|u| u.tls.as_ref()).and_then(|t| t.0.clone());
            assert_eq!(sni.as_deref(), Some(&*format!("outbound_.{port}_._.s.y.svc.cluster.local")), "{what}");
            assert_eq!(received.end, end, "{what}");
            assert_eq!(received.cluster.as_deref(), Some(&*format!("inbound|{port}||")), "{what}");
            let tls = received.tls.expect("mesh TLS is terminated");
            assert!(tls.client_certificate, "{what}");
        }
    }
}

#[test]
fn what_nobody_declared_passes_or_is_refused_as_the_mesh_says() {
    for (mode, http, opaque) in
        [("ALLOW_ANY", End::Http, End::Tcp), ("REGISTRY_ONLY", End::Answered(502), End::NoEndpoint)]
    {
        let world = shared::world(json!({
            "mesh": {"outboundTrafficPolicy": {"mode": mode}},
            "pods": [{"pod": "c.x", "ip": "10.244.0.1", "labels": {"app": "c"}}],
            "services": [{"service": "s.y", "vip": "10.96.0.1", "selector": {"app": "s"}, "ports": ["http:80"]}],
        }));
        let client = accept("client", &shared::render(&world, "c.x"));
        let headers = HeaderMap::new();
        let request =
            RequestHead { method: "GET", path: "/", authority: "example.org", scheme: "http", headers: &headers };
        let send = |to: &str, opening| {
            let source = address("10.244.0.1:40000");
            let connection = Connection { destination: address(to), source, opening, captured_at: Some(15001) };
            simulate::outbound(&client, &connection, Some(&request), 1)
        };
        assert_eq!(send("192.0.2.1:80", Opening::Http11).end, http, "{mode}: another host on a declared port");
        assert_eq!(send("192.0.2.1:80", Opening::Opaque).end, opaque, "{mode}: no HTTP on a declared port");
        assert_eq!(send("192.0.2.1:9999", Opening::Opaque).end, opaque, "{mode}: a port nobody declared");
    }
}
