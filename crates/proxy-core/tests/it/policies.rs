//! Verdicts name the policy that decided, on requests and on connections.

use std::collections::HashMap;

use carrick_proxy_core::simulate::{Caller, Connection, End, Opening, Verdict, inbound_from};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as lds;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use crate::message::{
    Request, Store, chain, http, listener, manager, network, number, prefix, route, table, virtual_host,
};

fn path(prefix: &str) -> rbac::Permission {
    let text = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix.to_owned())),
        ..Default::default()
    };
    let path = matcher::PathMatcher { rule: Some(matcher::path_matcher::Rule::Path(text)) };
    rbac::Permission { rule: Some(rbac::permission::Rule::UrlPath(path)) }
}

fn from(ip: &str) -> rbac::Principal {
    let range = core::CidrRange { address_prefix: ip.to_owned(), prefix_len: number(32) };
    rbac::Principal { identifier: Some(rbac::principal::Identifier::DirectRemoteIp(range)) }
}

fn rules(action: rbac::rbac::Action, name: &str, policy: rbac::Policy) -> Option<rbac::Rbac> {
    let policies = HashMap::from([(name.to_owned(), policy)]);
    Some(rbac::Rbac { action: action.into(), policies, ..Default::default() })
}

fn arrive(store: &Store, source: &str, url: &str) -> Verdict {
    let connection = Connection {
        destination: "10.0.0.1:80".parse().unwrap(),
        source: source.parse().unwrap(),
        opening: Opening::Http11,
        captured_at: None,
    };
    inbound_from(&store.runtime(), &connection, &Caller::default(), Some(&Request::get(url).head()), 0)
}

#[test]
fn a_verdict_names_its_policy() {
    let any = rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) };
    let all = rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) };
    let admin = rbac::Policy { permissions: vec![path("/admin")], principals: vec![any], ..Default::default() };
    let peer = rbac::Policy { permissions: vec![all], principals: vec![from("10.0.0.9")], ..Default::default() };
    let filter = http_rbac::Rbac {
        rules: rules(rbac::rbac::Action::Deny, "ns[x]-policy[no-admin]-rule[0]", admin.clone()),
        shadow_rules: rules(rbac::rbac::Action::Deny, "dry", peer.clone()),
        ..Default::default()
    };
    let table = table("t", vec![virtual_host("v", &["*"], vec![route(prefix("/"), "r")])]);
    let mut manager = manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(table));
    let filter = hcm::HttpFilter {
        name: "envoy.filters.http.rbac".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any_of(&filter))),
        ..Default::default()
    };
    manager.http_filters.insert(0, filter);
    let closed = network_rbac::Rbac {
        rules: rules(rbac::rbac::Action::Deny, "nobody", peer),
        stat_prefix: "tcp.".to_owned(),
        ..Default::default()
    };
    let mut chain = chain("c", lds::FilterChainMatch::default(), http(&manager));
    let mut store = Store::default();
    store.listeners(&[listener("l", "10.0.0.1:80", vec![chain.clone()])]).unwrap();

    let denied = arrive(&store, "10.0.0.2:1", "h/admin/x");
    assert_eq!(denied.end, End::Answered(403));
    let last = denied.decided.last().unwrap();
    assert_eq!(last.status, Some(403));
    assert!(last.what.contains("ns[x]-policy[no-admin]-rule[0]"), "{last:?}");
    let passed = arrive(&store, "10.0.0.9:1", "h/other");
    assert_eq!(passed.end, End::NoCluster);
    assert!(passed.decided[0].what.contains("would deny: policy dry"), "{:?}", passed.decided);

    chain.filters.insert(0, network("envoy.filters.network.rbac", any_of(&closed)));
    store.listeners(&[listener("l", "10.0.0.1:80", vec![chain])]).unwrap();
    let refused = arrive(&store, "10.0.0.9:1", "h/other");
    assert_eq!(refused.end, End::Refused);
    assert!(refused.decided[0].what.contains("nobody"), "{:?}", refused.decided);
}

fn any_of<T: prost::Name>(message: &T) -> envoy_types::pb::google::protobuf::Any {
    crate::message::any(message)
}
