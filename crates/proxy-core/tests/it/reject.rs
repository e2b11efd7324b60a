//! What is refused, with which field and reason.

use carrick_proxy_core::Rejection;
use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as lds;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::filters::http::lua::v3::Lua;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::redis_proxy::v3::RedisProxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::message::{
    Store, any, chain, cluster, http, listener, manager, network, prefix, rds_source, route, table, tcp, virtual_host,
};

fn one(result: Result<(), Vec<Rejection>>) -> String {
    let rejections = result.expect_err("refused");
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    rejections[0].to_string()
}

fn refused_listener(change: impl FnOnce(&mut lds::Listener)) -> String {
    let mut resource = listener("l", "0.0.0.0:80", vec![chain("c", Default::default(), tcp("x"))]);
    change(&mut resource);
    one(Store::default().listeners(&[resource]))
}

fn refused_manager(change: impl FnOnce(&mut hcm::HttpConnectionManager)) -> String {
    let mut manager = manager(rds_source("r"));
    change(&mut manager);
    refused_listener(|l| l.filter_chains[0].filters = vec![http(&manager)])
}

fn refused_route(change: impl FnOnce(&mut rds::Route)) -> String {
    let mut route = route(prefix("/"), "c");
    change(&mut route);
    one(Store::default().routes(&[table("t", vec![virtual_host("v", &["*"], vec![route])])]))
}

fn refused_action(change: impl FnOnce(&mut rds::RouteAction)) -> String {
    refused_route(|r| {
        let Some(rds::route::Action::Route(action)) = &mut r.action else { panic!("a forwarding route") };
        change(action);
    })
}

fn refused_cluster(change: impl FnOnce(&mut cds::Cluster)) -> String {
    let mut resource = cluster("c", cds::cluster::DiscoveryType::Static);
    change(&mut resource);
    one(Store::default().clusters(&[resource]))
}

fn refused_tls(change: impl FnOnce(&mut tls::DownstreamTlsContext, &mut tls::CommonTlsContext)) -> String {
    let mut context = tls::DownstreamTlsContext::default();
    let mut common = tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig {
            name: "default".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    change(&mut context, &mut common);
    context.common_tls_context = Some(common);
    refused_listener(|l| {
        l.filter_chains[0].transport_socket = Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&context))),
        });
    })
}

const MANAGER: &str = "l: filter_chains[0].filters[0].typed_config";
const TLS: &str = "l: filter_chains[0].transport_socket.typed_config";
const ACTION: &str = "t: virtual_hosts[0].routes[0].route";

#[test]
fn network_and_http_filters_that_we_do_not_run() {
    let redis = || network("envoy.filters.network.redis_proxy", any(&RedisProxy::default()));
    assert_eq!(
        refused_listener(|l| l.filter_chains[0].filters = vec![redis()]),
        format!("{MANAGER}: unsupported network filter \"envoy.filters.network.redis_proxy\"")
    );
    let fault = hcm::HttpFilter {
        name: "envoy.filters.http.lua".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&Lua::default()))),
        ..Default::default()
    };
    assert_eq!(
        refused_manager(|m| m.http_filters.insert(0, fault)),
        format!("{MANAGER}.http_filters[0].typed_config: unsupported HTTP filter \"envoy.filters.http.lua\"")
    );
    assert_eq!(
        refused_manager(|m| m.http_filters.clear()),
        format!("{MANAGER}.http_filters: the router must be the last filter, and there only")
    );
    assert_eq!(
        refused_listener(|l| l.filter_chains[0].filters.push(tcp("y"))),
        "l: filter_chains[0].filters[1]: a filter after the terminal filter"
    );
    assert_eq!(
        refused_listener(|l| l.filter_chains[0].filters.clear()),
        "l: filter_chains[0].filters: no terminal filter"
    );
}

#[test]
fn set_fields_without_support() {
    assert_eq!(refused_listener(|l| l.enable_mptcp = true), "l: enable_mptcp: unsupported field");
    assert_eq!(
        refused_listener(|l| l.filter_chains[0].filter_chain_match.as_mut().unwrap().address_suffix = "1".to_owned()),
        "l: filter_chains[0].filter_chain_match.address_suffix: unsupported field"
    );
    assert_eq!(
        refused_manager(|m| m.local_reply_config = Some(Default::default())),
        format!("{MANAGER}.local_reply_config: unsupported field")
    );
    assert_eq!(
        refused_action(|a| a.internal_redirect_policy = Some(Default::default())),
        format!("{ACTION}.internal_redirect_policy: unsupported field")
    );
    assert_eq!(
        refused_action(|a| a.request_mirror_policies = vec![Default::default()]),
        format!("{ACTION}.request_mirror_policies[0].cluster: empty")
    );
    assert_eq!(
        refused_cluster(|c| c.health_checks = vec![Default::default()]),
        "c: health_checks[0].timeout: must be greater than zero"
    );
    assert_eq!(refused_cluster(|c| c.lrs_server = Some(Default::default())), "c: lrs_server: unsupported field");
}

#[test]
fn tls_contexts_that_we_could_not_keep() {
    assert_eq!(
        refused_tls(|_, c| c.tls_certificate_sds_secret_configs.clear()),
        format!("{TLS}.common_tls_context.tls_certificate_sds_secret_configs: a server needs a certificate")
    );
    assert_eq!(
        refused_tls(|t, _| t.require_client_certificate = crate::message::flag(true)),
        format!("{TLS}.require_client_certificate: no validation context to check certificates with")
    );
    assert_eq!(
        refused_tls(|_, c| {
            let params = tls::TlsParameters { cipher_suites: vec!["RC4".to_owned()], ..Default::default() };
            c.tls_params = Some(params);
        }),
        format!("{TLS}.common_tls_context.tls_params.cipher_suites: unsupported cipher suite `RC4`")
    );
    let params = |change: fn(&mut tls::TlsParameters)| {
        refused_tls(|_, c| {
            let mut params = tls::TlsParameters::default();
            change(&mut params);
            c.tls_params = Some(params);
        })
    };
    assert_eq!(
        params(|p| p.tls_maximum_protocol_version = 2),
        format!("{TLS}.common_tls_context.tls_params.tls_maximum_protocol_version: TLS before 1.2 is not supported")
    );
    assert_eq!(
        params(|p| p.ecdh_curves = vec!["P-521".to_owned()]),
        format!("{TLS}.common_tls_context.tls_params.ecdh_curves: none of them is supported")
    );
    assert_eq!(
        params(|p| p.cipher_suites = vec!["AES128-SHA".to_owned()]),
        format!("{TLS}.common_tls_context.tls_params.cipher_suites: none of them is supported")
    );
    let inline = |text: &str| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };
    let context = |change: fn(&mut tls::CertificateValidationContext)| {
        refused_tls(|_, c| {
            let mut context = tls::CertificateValidationContext::default();
            change(&mut context);
            c.validation_context_type =
                Some(tls::common_tls_context::ValidationContextType::ValidationContext(context));
        })
    };
    const CONTEXT: &str = "common_tls_context.validation_context";
    assert_eq!(context(|_| {}), format!("{TLS}.{CONTEXT}.trusted_ca: missing"));
    assert_eq!(
        context(|c| c.verify_certificate_hash = vec!["abc".to_owned()]),
        format!("{TLS}.{CONTEXT}.verify_certificate_hash[0]: not a SHA-256 in hexadecimal")
    );
    assert_eq!(
        context(|c| c.allow_expired_certificate = true),
        format!("{TLS}.{CONTEXT}.allow_expired_certificate: unsupported field")
    );
    assert_eq!(
        refused_tls(|_, c| {
            c.tls_certificate_sds_secret_configs.clear();
            let pair = tls::TlsCertificate { certificate_chain: Some(inline("x")), ..Default::default() };
            c.tls_certificates = vec![pair];
        }),
        format!("{TLS}.common_tls_context.tls_certificates[0].private_key: missing")
    );
}

#[test]
fn routes_that_make_no_sense() {
    use rds::route_match::PathSpecifier as P;
    assert_eq!(refused_route(|r| r.r#match = None), "t: virtual_hosts[0].routes[0].match: missing");
    assert_eq!(refused_route(|r| r.action = None), "t: virtual_hosts[0].routes[0]: no action");
    let bad = refused_route(|r| {
        r.r#match.as_mut().unwrap().path_specifier =
            Some(P::SafeRegex(envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher {
                regex: "(".to_owned(),
                ..Default::default()
            }));
    });
    assert!(bad.starts_with("t: virtual_hosts[0].routes[0].match.safe_regex.regex: "), "{bad}");
    let add = |key: &str, value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(
        refused_route(|r| r.request_headers_to_add = vec![add("x", "1"), add("Host", "h")]),
        "t: virtual_hosts[0].routes[0].request_headers_to_add[1].header.key: `Host` may not be modified"
    );
    assert_eq!(
        refused_route(|r| r.response_headers_to_add = vec![add("x", "%NOT_THERE%")]),
        "t: virtual_hosts[0].routes[0].response_headers_to_add[0].header.value: unsupported operator `%NOT_THERE%`"
    );
    assert_eq!(
        refused_action(
            |a| a.retry_policy = Some(rds::RetryPolicy { retry_on: "5xx,never".to_owned(), ..Default::default() })
        ),
        format!("{ACTION}.retry_policy.retry_on: unknown condition `never`")
    );
    let twice = table("t", vec![virtual_host("a", &["x.y"], vec![]), virtual_host("b", &["X.Y"], vec![])]);
    assert_eq!(one(Store::default().routes(&[twice])), "t: virtual_hosts[1].domains: `X.Y` occurs twice");
}

#[test]
fn clusters_whose_parts_do_not_fit() {
    assert_eq!(
        refused_cluster(|c| c.lb_policy = cds::cluster::LbPolicy::ClusterProvided.into()),
        "c: lb_policy: ORIGINAL_DST clusters, and only they, have CLUSTER_PROVIDED"
    );
    assert_eq!(
        refused_cluster(|c| c.cluster_discovery_type = Some(cds::cluster::ClusterDiscoveryType::Type(3))),
        "c: eds_cluster_config: missing"
    );
    assert_eq!(
        refused_cluster(|c| c.load_assignment =
            Some(crate::message::assignment("c", &[&[crate::message::endpoint("name.local:80")]]))),
        "c: load_assignment: host names need a DNS cluster"
    );
    assert_eq!(
        refused_cluster(|c| c.connect_timeout = crate::message::seconds(-1)),
        "c: connect_timeout: negative duration"
    );
}

#[test]
fn a_resource_of_another_name_or_type() {
    let mut store = Store::default();
    let resource = any(&cluster("other", cds::cluster::DiscoveryType::Static));
    let result = store.0.apply(carrick_proxy_core::store::type_url::CLUSTER, vec![("c".into(), resource.clone())], &[]);
    assert_eq!(one(result), "c: name: \"other\" is not the resource's name");
    let result = store.0.apply(carrick_proxy_core::store::type_url::ROUTE, vec![("c".into(), resource.clone())], &[]);
    assert_eq!(
        one(result),
        "c: expected envoy.config.route.v3.RouteConfiguration, found envoy.config.cluster.v3.Cluster"
    );
    assert!(store.0.apply("type.googleapis.com/x.Y", vec![], &[]).is_err());
}

#[test]
fn automatic_name_checks_reach_the_handshake() {
    use carrick_proxy_core::model::cluster::TransportSocket;
    use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
    let context = |validated: bool| {
        let config = tls::SdsSecretConfig { name: "file-root:system".to_owned(), ..Default::default() };
        let common = tls::CommonTlsContext {
            validation_context_type: validated
                .then_some(tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(config)),
            ..Default::default()
        };
        any(&tls::UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() })
    };
    let options = upstream::HttpProtocolOptions {
        upstream_http_protocol_options: Some(core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: true,
            ..Default::default()
        }),
        upstream_protocol_options: Some(upstream::http_protocol_options::UpstreamProtocolOptions::AutoConfig(
            upstream::http_protocol_options::AutoHttpConfig::default(),
        )),
        ..Default::default()
    };
    let with = |validated| {
        let mut resource = cluster("c", cds::cluster::DiscoveryType::Static);
        resource.typed_extension_protocol_options =
            [("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), any(&options))].into();
        resource.transport_socket = Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(context(validated))),
        });
        resource
    };
    let mut store = Store::default();
    store.clusters(&[with(true)]).unwrap();
    let runtime = store.runtime();
    let TransportSocket::Tls(tls) = runtime.clusters["c"].transport.default.as_ref() else { panic!("TLS") };
    assert!(tls.auto_san_of_requests);
    assert_eq!(
        one(Store::default().clusters(&[with(false)])),
        "c: transport_socket: auto_san_validation needs a validation context"
    );
}
