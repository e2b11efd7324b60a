//! Listener and chain match: one listener with many chains, a table of connections.

use std::sync::Arc;

use carrick_proxy_core::chain::ConnFacts;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3 as pb;

use crate::message::{Store, chain, flag, listener, number, tcp};

fn range(text: &str) -> CidrRange {
    let (ip, len) = text.split_once('/').expect("prefix");
    CidrRange { address_prefix: ip.to_owned(), prefix_len: number(len.parse().expect("length")) }
}

/// `port=1 dst=10.0.0.0/8 sni=a,*.b tp=tls alpn=x,y direct=… type=external src=… sport=1,2`
fn matching(text: &str) -> pb::FilterChainMatch {
    let mut out = pb::FilterChainMatch::default();
    for (key, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
        let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
        let ranges = || value.split(',').map(range).collect::<Vec<_>>();
        match key {
            "port" => out.destination_port = number(value.parse().expect("port")),
            "dst" => out.prefix_ranges = ranges(),
            "sni" => out.server_names = list(),
            "tp" => out.transport_protocol = value.to_owned(),
            "alpn" => out.application_protocols = list(),
            "direct" => out.direct_source_prefix_ranges = ranges(),
            "type" => out.source_type = if value == "external" { 2 } else { 1 },
            "src" => out.source_prefix_ranges = ranges(),
            "sport" => out.source_ports = list().iter().map(|p| p.parse().expect("port")).collect(),
            other => panic!("{other}"),
        }
    }
    out
}

/// Chains named by their match; the default chain is `default`.
fn find(chains: &[&str], default: bool, connections: &[(&str, &str)]) {
    let built = chains.iter().map(|text| chain(text, matching(text), tcp("c"))).collect();
    let mut resource = listener("l", "0.0.0.0:15006", built);
    resource.default_filter_chain = default.then(|| chain("default", pb::FilterChainMatch::default(), tcp("c")));
    let mut store = Store::default();
    store.listeners(&[resource]).expect("accepted");
    let runtime = store.runtime();
    let listener = &runtime.listeners.by_name["l"];
    for (connection, expected) in connections {
        let mut facts = ConnFacts::raw("10.1.2.3:80".parse().unwrap(), "9.9.9.9:5000".parse().unwrap());
        let mut alpn = Vec::new();
        for (key, value) in connection.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "to" => facts.destination = value.parse().unwrap(),
                "from" => (facts.source, facts.direct_source) = (value.parse().unwrap(), value.parse().unwrap()),
                "sni" => facts.server_name = Some(value),
                "tp" => facts.transport_protocol = value,
                "alpn" => alpn = value.split(',').collect(),
                other => panic!("{other}"),
            }
        }
        facts.application_protocols = &alpn;
        let found = listener.find_chain(&facts).map_or("none", |chain| &chain.name);
        assert_eq!(found, *expected, "connection `{connection}`");
    }
}

#[test]
fn a_port_with_chains_of_its_own_never_falls_back_to_those_without() {
    find(
        &["port=80 tp=tls", "tp=raw_buffer", ""],
        false,
        &[
            ("to=1.1.1.1:80 tp=tls", "port=80 tp=tls"),
            ("to=1.1.1.1:80 tp=raw_buffer", "none"),
            ("to=1.1.1.1:81", "tp=raw_buffer"),
            ("to=1.1.1.1:81 tp=tls", ""),
        ],
    );
}

#[test]
fn the_default_chain_takes_what_no_chain_matches() {
    find(&["port=80 tp=tls"], true, &[("to=1.1.1.1:80", "default"), ("to=1.1.1.1:81", "default")]);
}

#[test]
fn the_longest_destination_prefix_wins_and_is_final() {
    find(
        &["dst=10.0.0.0/8", "dst=10.1.0.0/16 tp=tls", "dst=::/0"],
        false,
        &[
            ("to=10.2.0.1:1", "dst=10.0.0.0/8"),
            ("to=10.1.0.1:1 tp=tls", "dst=10.1.0.0/16 tp=tls"),
            // The longer prefix is taken; that its transport protocol does not fit is no way back.
            ("to=10.1.0.1:1", "none"),
            ("to=[2001:db8::1]:1", "dst=::/0"),
            ("to=11.0.0.1:1", "none"),
        ],
    );
}

#[test]
fn server_names_exact_then_longest_wildcard_then_none() {
    find(
        &["sni=a.b.c", "sni=*.b.c", "sni=*.c", ""],
        false,
        &[
            ("sni=a.b.c", "sni=a.b.c"),
            ("sni=x.b.c", "sni=*.b.c"),
            ("sni=x.y.b.c", "sni=*.b.c"),
            ("sni=x.c", "sni=*.c"),
            ("sni=b.c", "sni=*.c"),
            ("sni=c", ""),
            ("", ""),
        ],
    );
}

#[test]
fn alpn_is_taken_in_the_clients_order() {
    find(
        &["tp=tls alpn=h2,istio", "tp=tls alpn=http/1.1", "tp=tls"],
        false,
        &[
            ("tp=tls alpn=istio", "tp=tls alpn=h2,istio"),
            ("tp=tls alpn=http/1.1,h2", "tp=tls alpn=http/1.1"),
            ("tp=tls alpn=spdy,h2", "tp=tls alpn=h2,istio"),
            ("tp=tls alpn=spdy", "tp=tls"),
            ("tp=tls", "tp=tls"),
            ("alpn=h2", "none"),
        ],
    );
}

#[test]
fn sources_by_type_prefix_and_port() {
    find(
        &["type=local", "type=external src=9.0.0.0/8 sport=7,8", "src=9.0.0.0/8", "direct=4.4.0.0/16"],
        false,
        &[
            ("from=127.0.0.1:1", "type=local"),
            ("to=5.5.5.5:1 from=5.5.5.5:9", "type=local"),
            ("from=9.1.1.1:8", "type=external src=9.0.0.0/8 sport=7,8"),
            // External has entries, so what it does not have is not looked for elsewhere.
            ("from=9.1.1.1:9", "none"),
            ("from=4.4.1.1:9", "direct=4.4.0.0/16"),
        ],
    );
}

#[test]
fn equal_matches_are_refused() {
    let chains =
        vec![chain("a", matching("port=80 alpn=h2,x"), tcp("c")), chain("b", matching("port=80 alpn=x"), tcp("c"))];
    let rejections = Store::default().listeners(&[listener("l", "0.0.0.0:1", chains)]).unwrap_err();
    assert_eq!(rejections[0].field, "filter_chains[1].filter_chain_match");
}

#[test]
fn captured_connections_are_handed_to_the_listener_of_their_destination() {
    let any = || vec![chain("", pb::FilterChainMatch::default(), tcp("c"))];
    let unbound = |name: &str, at: &str| pb::Listener { bind_to_port: flag(false), ..listener(name, at, any()) };
    let mut acceptor = listener("virtualOutbound", "0.0.0.0:15001", any());
    acceptor.use_original_dst = flag(true);
    let mut store = Store::default();
    store.listeners(&[acceptor, unbound("vip", "10.96.0.7:80"), unbound("wild", "0.0.0.0:80")]).expect("accepted");
    let runtime = store.runtime();
    let acceptor = &runtime.listeners.by_name["virtualOutbound"];
    for (destination, expected) in
        [("10.96.0.7:80", "vip"), ("10.96.0.8:80", "wild"), ("10.96.0.7:81", "virtualOutbound")]
    {
        let found = runtime.listeners.hand_off(acceptor, Some(destination.parse().unwrap()));
        assert_eq!(&*found.name, expected, "{destination}");
    }
    assert!(Arc::ptr_eq(runtime.listeners.hand_off(acceptor, None), acceptor));
}
