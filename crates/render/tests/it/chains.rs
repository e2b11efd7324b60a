//! The table of semantics §2.6 and the passthrough chains of §2.4, as rendered.

use carrick_mesh::sidecar;
use envoy_types::pb::envoy::{
    config::listener::v3::{
        Listener, ListenerFilterChainMatchPredicate as Predicate, listener_filter_chain_match_predicate::Rule,
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager,
            http_connection_manager::{ForwardClientCertDetails, RouteSpecifier},
        },
        transport_sockets::tls::v3::{
            DownstreamTlsContext, common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::string_matcher::MatchPattern,
};
use prost::Message;
use serde_json::json;

use crate::{
    shared::{self, listener},
    world::World,
};

/// One port of each class, all in one mode; 7777 is named by no service.
fn world(mode: &str) -> World {
    shared::world(json!({
        "pods": [{"pod": "w.x", "ip": "10.244.0.1", "labels": {"app": "w"}}],
        "services": [{
            "service": "w.x", "vip": "10.96.0.1", "selector": {"app": "w"},
            "ports": ["1000", "http:2000", "grpc:2001", "tcp:3000"],
        }],
        "objects": [{
            "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "x"},
            "spec": {"mtls": {"mode": mode}},
        }],
    }))
}

fn predicate(from: Option<&Predicate>) -> String {
    match from.and_then(|p| p.rule.as_ref()) {
        None => "never".to_owned(),
        Some(Rule::DestinationPortRange(range)) => format!("{}..{}", range.start, range.end),
        Some(Rule::OrMatch(set)) => set.rules.iter().map(|r| predicate(Some(r))).collect::<Vec<_>>().join(" or "),
        Some(Rule::NotMatch(inner)) => format!("not ({})", predicate(Some(inner))),
        Some(other) => format!("{other:?}"),
    }
}

fn summary(listener: &Listener) -> String {
    let mut out = String::new();
    for filter in &listener.listener_filters {
        let short = filter.name.rsplit('.').next().unwrap_or_default();
        out += &format!("{short} off: {}\n", predicate(filter.filter_disabled.as_ref()));
    }
    for chain in &listener.filter_chains {
        out += &shared::chain(chain);
        out.push('\n');
    }
    out
}

fn inbound(world: &World) -> Listener {
    listener(&shared::render(world, "w.x"), "virtualInbound")
}

const BLACK_HOLE: &str = "virtualInbound-blackhole | port 15006  | tcp_proxy | as it is\n";

#[test]
fn permissive() {
    let want = "\
original_dst off: never
tls_inspector off: never
http_inspector off: 2000..2001 or 2001..2002 or 3000..3001
";
    let chains = "\
virtualInbound-catchall-http | 0.0.0.0/0 tls istio-http/1.0,istio-http/1.1,istio-h2 | http_connection_manager | mesh TLS
virtualInbound-catchall-http | 0.0.0.0/0 raw_buffer http/1.1,h2c | http_connection_manager | as it is
virtualInbound | 0.0.0.0/0 tls istio-peer-exchange,istio | tcp_proxy | mesh TLS
virtualInbound | 0.0.0.0/0 raw_buffer | tcp_proxy | as it is
virtualInbound | 0.0.0.0/0 tls | tcp_proxy | as it is
0.0.0.0_1000 | port 1000 tls istio-http/1.0,istio-http/1.1,istio-h2 | http_connection_manager | mesh TLS
0.0.0.0_1000 | port 1000 raw_buffer http/1.1,h2c | http_connection_manager | as it is
0.0.0.0_1000 | port 1000 tls istio-peer-exchange,istio | tcp_proxy | mesh TLS
0.0.0.0_1000 | port 1000 raw_buffer | tcp_proxy | as it is
0.0.0.0_1000 | port 1000 tls | tcp_proxy | as it is
0.0.0.0_2000 | port 2000 tls istio-http/1.0,istio-http/1.1,istio-h2,istio-peer-exchange,istio | http_connection_manager | mesh TLS
0.0.0.0_2000 | port 2000 raw_buffer | http_connection_manager | as it is
0.0.0.0_2001 | port 2001 tls istio-http/1.0,istio-http/1.1,istio-h2,istio-peer-exchange,istio | http_connection_manager | mesh TLS
0.0.0.0_2001 | port 2001 raw_buffer | http_connection_manager | as it is
0.0.0.0_3000 | port 3000 tls istio-http/1.0,istio-http/1.1,istio-h2,istio-peer-exchange,istio | tcp_proxy | mesh TLS
0.0.0.0_3000 | port 3000 tls | tcp_proxy | as it is
0.0.0.0_3000 | port 3000 raw_buffer | tcp_proxy | as it is
";
    assert_eq!(summary(&inbound(&world("PERMISSIVE"))), format!("{want}{BLACK_HOLE}{chains}"));
}

#[test]
fn strict() {
    let want = "\
original_dst off: never
tls_inspector off: never
";
    let chains = "\
virtualInbound-catchall-http | 0.0.0.0/0 tls istio-http/1.0,istio-http/1.1,istio-h2 | http_connection_manager | mesh TLS
virtualInbound | 0.0.0.0/0 tls | tcp_proxy | mesh TLS
0.0.0.0_1000 | port 1000 tls istio-http/1.0,istio-http/1.1,istio-h2 | http_connection_manager | mesh TLS
0.0.0.0_1000 | port 1000 tls | tcp_proxy | mesh TLS
0.0.0.0_2000 | port 2000 tls | http_connection_manager | mesh TLS
0.0.0.0_2001 | port 2001 tls | http_connection_manager | mesh TLS
0.0.0.0_3000 | port 3000 tls | tcp_proxy | mesh TLS
";
    assert_eq!(summary(&inbound(&world("STRICT"))), format!("{want}{BLACK_HOLE}{chains}"));
}

#[test]
fn disable() {
    let want = "\
original_dst off: never
http_inspector off: 2000..2001 or 2001..2002 or 3000..3001
";
    let chains = "\
virtualInbound-catchall-http | 0.0.0.0/0 raw_buffer http/1.1,h2c | http_connection_manager | as it is
virtualInbound | 0.0.0.0/0 raw_buffer | tcp_proxy | as it is
0.0.0.0_1000 | port 1000 raw_buffer http/1.1,h2c | http_connection_manager | as it is
0.0.0.0_1000 | port 1000 raw_buffer | tcp_proxy | as it is
0.0.0.0_2000 | port 2000 raw_buffer | http_connection_manager | as it is
0.0.0.0_2001 | port 2001 raw_buffer | http_connection_manager | as it is
0.0.0.0_3000 | port 3000 raw_buffer | tcp_proxy | as it is
";
    assert_eq!(summary(&inbound(&world("DISABLE"))), format!("{want}{BLACK_HOLE}{chains}"));
}

#[test]
fn port_levels_switch_inspectors_one_by_one() {
    let mut world = world("STRICT");
    world.objects.push(json!({
        "kind": "PeerAuthentication", "metadata": {"name": "w", "namespace": "x"},
        "spec": {
            "selector": {"matchLabels": {"app": "w"}},
            "portLevelMtls": {"1000": {"mode": "DISABLE"}, "2000": {"mode": "PERMISSIVE"}, "7777": {"mode": "PERMISSIVE"}},
        },
    }));
    let text = summary(&inbound(&world));
    let lines: Vec<_> = text.lines().filter(|l| l.contains(" off: ") || l.contains("7777")).collect();
    let want = "\
original_dst off: never
tls_inspector off: 1000..1001
http_inspector off: not (1000..1001 or 7777..7778)
virtualInbound-catchall-http | port 7777 tls istio-http/1.0,istio-http/1.1,istio-h2 | http_connection_manager | mesh TLS
virtualInbound-catchall-http | port 7777 raw_buffer http/1.1,h2c | http_connection_manager | as it is
virtualInbound | port 7777 tls istio-peer-exchange,istio | tcp_proxy | mesh TLS
virtualInbound | port 7777 raw_buffer | tcp_proxy | as it is
virtualInbound | port 7777 tls | tcp_proxy | as it is";
    assert_eq!(lines.join("\n"), want);
}

#[test]
fn mesh_tls_demands_a_mesh_identity() {
    let mut world = world("STRICT");
    world.mesh = Some(json!({"trustDomainAliases": ["old.example"]}));
    let listener = inbound(&world);
    let mut seen = 0;
    for chain in &listener.filter_chains {
        let Some(socket) = &chain.transport_socket else { continue };
        seen += 1;
        let Some(envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(any)) =
            &socket.config_type
        else {
            panic!("no config")
        };
        let context = DownstreamTlsContext::decode(&*any.value).expect("own bytes");
        assert!(context.require_client_certificate.expect("set").value);
        let common = context.common_tls_context.expect("set");
        let parameters = common.tls_params.expect("set");
        assert_eq!(parameters.tls_minimum_protocol_version(), TlsProtocol::TlSv12);
        assert_eq!(parameters.tls_maximum_protocol_version(), TlsProtocol::TlSv13);
        assert_eq!(parameters.cipher_suites.len(), 6);
        assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "default");
        let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type else {
            panic!("no validation")
        };
        assert_eq!(combined.validation_context_sds_secret_config.expect("set").name, "ROOTCA");
        let prefixes: Vec<_> = combined
            .default_validation_context
            .expect("set")
            .match_typed_subject_alt_names
            .into_iter()
            .map(|m| m.matcher.and_then(|m| m.match_pattern))
            .collect();
        let prefix = |td: &str| Some(MatchPattern::Prefix(format!("spiffe://{td}/")));
        assert_eq!(prefixes, [prefix("cluster.local"), prefix("old.example")]);
        // Whoever agreed on `istio-peer-exchange` would get Istio's metadata ahead of its application's bytes.
        assert_eq!(common.alpn_protocols, ["h2", "http/1.1"]);
    }
    assert_eq!(seen, 7);
}

#[test]
fn inbound_http_forwards_the_peer_and_never_times_out() {
    let listener = inbound(&world("STRICT"));
    let chain = listener.filter_chains.iter().find(|c| c.name == "0.0.0.0_2000").expect("a chain");
    let Some(envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any)) =
        &chain.filters[0].config_type
    else {
        panic!("no config")
    };
    let manager = HttpConnectionManager::decode(&*any.value).expect("own bytes");
    assert_eq!(manager.forward_client_cert_details(), ForwardClientCertDetails::AppendForward);
    let details = manager.set_current_client_cert_details.expect("set");
    assert!(details.subject.expect("set").value && details.uri && details.dns && !details.cert && !details.chain);
    assert_eq!(manager.server_name, "istio-envoy");
    assert_eq!(manager.stat_prefix, "inbound_0.0.0.0_2000;");
    assert_eq!(manager.http_filters.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["envoy.filters.http.router"]);
    let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier else { panic!("no routes") };
    assert_eq!(routes.name, "inbound|2000||");
    assert_eq!(routes.virtual_hosts[0].name, "inbound|http|2000");
    let route = &routes.virtual_hosts[0].routes[0];
    assert_eq!(route.decorator.as_ref().expect("set").operation, "w.x.svc.cluster.local:2000/*");
}

#[test]
fn without_interception_there_is_no_inbound_listener() {
    let world = world("STRICT");
    let (snapshot, _) = carrick_mesh::Snapshot::build(&world.input());
    let view = sidecar(&snapshot, &world.proxy("w.x !none"));
    let rendered = carrick_render::resources(&view, &mut carrick_render::Cache::default());
    assert!(!rendered.listeners.keys().any(|name| name.starts_with("virtual")));
}
