//! The decision table of semantics §3.7: what becomes of one HTTP request, by client rule, server policy and sidecar.
//!
//! Invariant: both ends are taken from rendered resources: the client's socket from cluster and endpoint, the server's chain by Envoy's order.

use carrick_render::Rendered;
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::{TransportSocket, transport_socket::ConfigType},
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::{FilterChain, Listener, listener_filter_chain_match_predicate::Rule},
    },
    extensions::transport_sockets::tls::v3::UpstreamTlsContext,
};
use prost::Message;
use serde_json::{Value, json};

use crate::{
    shared::{self, listener},
    world::World,
};

const CLUSTER: &str = "outbound|80||s.y.svc.cluster.local";

/// A client with a sidecar, and a server with or without one.
fn world(port: &str, sidecar: bool, policy: &str, rule: Option<&str>) -> World {
    let mut objects = vec![json!({
        "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "y"},
        "spec": {"selector": {"matchLabels": {"app": "s"}}, "mtls": {"mode": policy}},
    })];
    objects.extend(rule.map(|mode| -> Value {
        json!({
            "kind": "DestinationRule", "metadata": {"name": "r", "namespace": "y"},
            "spec": {"host": "s", "trafficPolicy": {"tls": {"mode": mode}}},
        })
    }));
    shared::world(json!({
        "pods": [
            {"pod": "c.x", "ip": "10.244.0.1", "labels": {"app": "c"}},
            {"pod": "s.y", "ip": "10.244.0.2", "labels": {"app": "s"}, "sidecar": sidecar},
        ],
        "services": [{"service": "s.y", "vip": "10.96.0.1", "ports": [port], "selector": {"app": "s"}}],
        "objects": objects,
    }))
}

/// What leaves the client towards the one endpoint.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Sent {
    Plain,
    MeshTls,
    OtherTls,
}

fn sent(rendered: &Rendered) -> (Sent, Vec<String>) {
    let cluster = Cluster::decode(&*rendered.clusters[CLUSTER].body.value).expect("own bytes");
    let load = ClusterLoadAssignment::decode(&*rendered.endpoints[CLUSTER].body.value).expect("own bytes");
    let metadata = load.endpoints[0].lb_endpoints[0].metadata.clone().unwrap_or_default();
    let marked =
        metadata.filter_metadata.get("envoy.transport_socket_match").is_some_and(|m| m.fields.contains_key("tlsMode"));
    let chosen = cluster.transport_socket_matches.iter().find(|m| {
        let wants = m.r#match.clone().unwrap_or_default();
        wants.fields.is_empty() || marked
    });
    let socket = chosen.map_or(cluster.transport_socket.clone(), |m| m.transport_socket.clone());
    match socket {
        Some(TransportSocket { name, config_type: Some(ConfigType::TypedConfig(any)) }) if name.ends_with(".tls") => {
            let context = UpstreamTlsContext::decode(&*any.value).expect("own bytes");
            let common = context.common_tls_context.expect("set");
            let own = common.tls_certificate_sds_secret_configs.iter().any(|s| s.name == "default");
            (if own { Sent::MeshTls } else { Sent::OtherTls }, common.alpn_protocols)
        }
        _ => (Sent::Plain, Vec::new()),
    }
}

/// Whether an inspector looks at a port.
fn inspected(listener: &Listener, filter: &str, port: u16) -> bool {
    fn holds(rule: Option<&Rule>, port: i32) -> bool {
        match rule {
            Some(Rule::DestinationPortRange(range)) => (range.start..range.end).contains(&port),
            Some(Rule::OrMatch(set)) => set.rules.iter().any(|r| holds(r.rule.as_ref(), port)),
            Some(Rule::NotMatch(inner)) => !holds(inner.rule.as_ref(), port),
            _ => false,
        }
    }
    let filter = listener.listener_filters.iter().find(|f| f.name.ends_with(filter));
    filter.is_some_and(|f| !holds(f.filter_disabled.as_ref().and_then(|p| p.rule.as_ref()), i32::from(port)))
}

/// The chain by Envoy's order: port, then transport protocol, then ALPN.
fn chain<'a>(listener: &'a Listener, port: u16, sent: Sent, alpn: &[String]) -> Option<&'a FilterChain> {
    let tls = sent != Sent::Plain && inspected(listener, "tls_inspector", port);
    let http = sent == Sent::Plain && inspected(listener, "http_inspector", port);
    let seen: Vec<String> = match (tls, http) {
        (true, _) => alpn.to_vec(),
        (false, true) => vec!["http/1.1".to_owned()],
        (false, false) => Vec::new(),
    };
    let of = |c: &&FilterChain, f: &dyn Fn(&envoy_types::pb::envoy::config::listener::v3::FilterChainMatch) -> bool| {
        c.filter_chain_match.as_ref().is_some_and(f)
    };
    let mut all: Vec<_> = listener.filter_chains.iter().collect();
    all.retain(|c| of(c, &|m| m.destination_port.is_some_and(|p| p.value == u32::from(port))));
    all.retain(|c| of(c, &|m| m.transport_protocol == if tls { "tls" } else { "raw_buffer" }));
    all.iter()
        .find(|c| of(c, &|m| m.application_protocols.iter().any(|a| seen.contains(a))))
        .or_else(|| all.iter().find(|c| of(c, &|m| m.application_protocols.is_empty())))
        .copied()
}

fn verdict(port: &str, sidecar: bool, policy: &str, rule: Option<&str>) -> &'static str {
    let world = world(port, sidecar, policy, rule);
    let (sent, alpn) = sent(&shared::render(&world, "c.x"));
    if !sidecar {
        return match sent {
            Sent::Plain => "plaintext ok",
            Sent::MeshTls => "fails",
            Sent::OtherTls => "app must speak TLS",
        };
    }
    let inbound = listener(&shared::render(&world, "s.y"), "virtualInbound");
    let Some(chain) = chain(&inbound, 8080, sent, &alpn) else { return "reset" };
    let http = chain.filters[0].name.ends_with("http_connection_manager");
    match (sent, chain.transport_socket.is_some(), http) {
        (Sent::Plain, false, _) => "plaintext ok",
        (Sent::MeshTls, true, _) => "mTLS ok",
        (Sent::OtherTls, true, _) => "TLS fails",
        (Sent::MeshTls | Sent::OtherTls, false, true) => "codec error",
        (Sent::MeshTls | Sent::OtherTls, false, false) => "TLS to the app",
        (Sent::Plain, true, _) => "plaintext into TLS",
    }
}

#[test]
fn the_table() {
    let rules = [None, Some("DISABLE"), Some("ISTIO_MUTUAL"), Some("SIMPLE")];
    let rows: [(&str, bool, &str, [&str; 4]); 12] = [
        ("http:80->8080", true, "STRICT", ["mTLS ok", "reset", "mTLS ok", "TLS fails"]),
        ("80->8080", true, "STRICT", ["mTLS ok", "reset", "mTLS ok", "TLS fails"]),
        ("tcp:80->8080", true, "STRICT", ["mTLS ok", "reset", "mTLS ok", "TLS fails"]),
        ("http:80->8080", true, "PERMISSIVE", ["mTLS ok", "plaintext ok", "mTLS ok", "reset"]),
        ("80->8080", true, "PERMISSIVE", ["mTLS ok", "plaintext ok", "mTLS ok", "TLS to the app"]),
        ("tcp:80->8080", true, "PERMISSIVE", ["mTLS ok", "plaintext ok", "mTLS ok", "TLS to the app"]),
        ("http:80->8080", true, "DISABLE", ["plaintext ok", "plaintext ok", "codec error", "codec error"]),
        ("80->8080", true, "DISABLE", ["plaintext ok", "plaintext ok", "TLS to the app", "TLS to the app"]),
        ("tcp:80->8080", true, "DISABLE", ["plaintext ok", "plaintext ok", "TLS to the app", "TLS to the app"]),
        ("http:80->8080", false, "STRICT", ["plaintext ok", "plaintext ok", "fails", "app must speak TLS"]),
        ("http:80->8080", false, "PERMISSIVE", ["plaintext ok", "plaintext ok", "fails", "app must speak TLS"]),
        ("http:80->8080", false, "DISABLE", ["plaintext ok", "plaintext ok", "fails", "app must speak TLS"]),
    ];
    for (port, sidecar, policy, wants) in rows {
        for (rule, want) in rules.into_iter().zip(wants) {
            assert_eq!(verdict(port, sidecar, policy, rule), want, "{port} sidecar={sidecar} {policy} rule={rule:?}");
        }
    }
}

#[test]
fn a_client_without_a_sidecar() {
    for (policy, want) in [("STRICT", false), ("PERMISSIVE", true), ("DISABLE", true)] {
        for port in ["http:80->8080", "80->8080", "tcp:80->8080"] {
            let inbound = listener(&shared::render(&world(port, true, policy, None), "s.y"), "virtualInbound");
            assert_eq!(chain(&inbound, 8080, Sent::Plain, &[]).is_some(), want, "{policy} {port}");
        }
    }
}
