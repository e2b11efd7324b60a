//! Warming, atomicity, reuse, interests.

use std::sync::Arc;

use carrick_proxy_core::store::type_url;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType;

use crate::message::{
    Store, any, assignment, chain, cluster, endpoint, http, listener, manager, name, prefix, rds_source, route, table,
    tcp, virtual_host,
};

fn http_listener(table: &str) -> envoy_types::pb::envoy::config::listener::v3::Listener {
    listener("l", "0.0.0.0:80", vec![chain("", Default::default(), http(&manager(rds_source(table))))])
}

fn some_table(table_name: &str) -> envoy_types::pb::envoy::config::route::v3::RouteConfiguration {
    table(table_name, vec![virtual_host("v", &["*"], vec![route(prefix("/"), "c")])])
}

#[test]
fn a_cluster_waits_for_its_endpoints() {
    let mut store = Store::default();
    store.clusters(&[cluster("c", DiscoveryType::Eds)]).unwrap();
    assert!(store.runtime().clusters.is_empty());
    assert!(store.0.warming().clusters.contains("c"));
    assert_eq!(store.0.interests().endpoints, [name("c")].into());
    store.endpoints(&[assignment("c", &[&[endpoint("1.1.1.1:80")]])]).unwrap();
    assert!(store.runtime().clusters.contains_key("c"));
    assert_eq!(store.runtime().endpoints["c"].endpoints.len(), 1);
}

#[test]
fn a_listener_waits_for_its_routes_and_serves_the_old_ones_until_then() {
    let mut store = Store::default();
    store.listeners(&[http_listener("a")]).unwrap();
    assert!(store.runtime().listeners.by_name.is_empty());
    store.routes(&[some_table("a")]).unwrap();
    let first = Arc::clone(&store.runtime().listeners.by_name["l"]);
    store.listeners(&[http_listener("b")]).unwrap();
    assert!(Arc::ptr_eq(&first, &store.runtime().listeners.by_name["l"]), "the old version serves while b is missing");
    assert!(store.runtime().routes.contains_key("a"));
    assert_eq!(store.0.interests().routes, [name("a"), name("b")].into());
    store.routes(&[some_table("b")]).unwrap();
    assert!(!Arc::ptr_eq(&first, &store.runtime().listeners.by_name["l"]));
    assert_eq!(store.0.interests().routes, [name("b")].into());
    assert!(!store.runtime().routes.contains_key("a"), "nothing refers to a any more");
}

#[test]
fn a_refused_version_leaves_the_old_one_and_its_neighbours() {
    let mut store = Store::default();
    store.clusters(&[cluster("a", DiscoveryType::Static), cluster("b", DiscoveryType::Static)]).unwrap();
    let before = store.runtime();
    let mut bad = cluster("a", DiscoveryType::Static);
    bad.lrs_server = Some(Default::default());
    let mut changed = cluster("b", DiscoveryType::Static);
    changed.alt_stat_name = "new".to_owned();
    let rejections = store.clusters(&[bad, changed, cluster("c", DiscoveryType::Static)]).unwrap_err();
    assert_eq!(rejections.len(), 1);
    assert_eq!(carrick_proxy_core::nack_text(&rejections), "a: lrs_server: unsupported field");
    assert_eq!(store.0.rejected().len(), 1);
    let after = store.runtime();
    assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    assert_eq!(&*after.clusters["b"].stat_name, "new");
    assert!(after.clusters.contains_key("c"));
    store.clusters(&[cluster("a", DiscoveryType::Static)]).unwrap();
    assert!(store.0.rejected().is_empty());
}

#[test]
fn what_did_not_change_is_the_same_value() {
    let mut store = Store::default();
    store.clusters(&[cluster("a", DiscoveryType::Eds), cluster("b", DiscoveryType::Eds)]).unwrap();
    store.endpoints(&[assignment("a", &[]), assignment("b", &[])]).unwrap();
    let before = store.runtime();
    store.endpoints(&[assignment("a", &[])]).unwrap();
    assert!(Arc::ptr_eq(&before, &store.runtime()), "the same bytes are no change");
    store.endpoints(&[assignment("a", &[&[endpoint("1.1.1.1:1")]])]).unwrap();
    let after = store.runtime();
    assert!(after.generation > before.generation);
    assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    assert!(!Arc::ptr_eq(&before.endpoints["a"], &after.endpoints["a"]));
    assert!(Arc::ptr_eq(&before.endpoints["b"], &after.endpoints["b"]));
}

#[test]
fn removal() {
    let mut store = Store::default();
    store.routes(&[some_table("a")]).unwrap();
    store.listeners(&[http_listener("a")]).unwrap();
    store.0.apply(type_url::ROUTE, vec![], &[name("a")]).unwrap();
    assert!(store.runtime().routes.contains_key("a"), "routes in use stay");
    store.0.apply(type_url::LISTENER, vec![], &[name("l")]).unwrap();
    assert!(store.runtime().listeners.by_name.is_empty());
    assert!(store.runtime().listeners.by_address.is_empty());
    assert!(store.runtime().routes.is_empty());
    assert!(store.0.dump().values().all(Vec::is_empty));
}

#[test]
fn an_address_belongs_to_one_listener() {
    let at = |n: &str, address: &str| listener(n, address, vec![chain("", Default::default(), tcp("c"))]);
    let mut store = Store::default();
    store.listeners(&[at("a", "0.0.0.0:1")]).unwrap();
    let rejections = store.listeners(&[at("b", "0.0.0.0:1")]).unwrap_err();
    assert_eq!(rejections[0].to_string(), "b: address: listener \"a\" has the same address");
    // Both change at once: a moves away, b takes its place.
    store.listeners(&[at("b", "0.0.0.0:1"), at("a", "0.0.0.0:2")]).unwrap();
    assert_eq!(&*store.runtime().listeners.by_address[&"0.0.0.0:1".parse().unwrap()].name, "b");
}

#[test]
fn secrets_are_named() {
    let mut store = Store::default();
    crate::rendered::fill(&mut store, &crate::rendered::two_pods("PERMISSIVE", None), "server");
    let secrets = store.0.interests().secrets;
    assert_eq!(secrets, [name("ROOTCA"), name("default")].into());
}

#[test]
fn arrival_out_of_order_is_no_matter() {
    let mut store = Store::default();
    store.endpoints(&[assignment("c", &[])]).unwrap();
    store.routes(&[some_table("a")]).unwrap();
    store.listeners(&[http_listener("a")]).unwrap();
    store.clusters(&[cluster("c", DiscoveryType::Eds)]).unwrap();
    let runtime = store.runtime();
    assert!(runtime.listeners.by_name.contains_key("l") && runtime.clusters.contains_key("c"));
    assert_eq!(store.0.dump()[type_url::CLUSTER], [(name("c"), any(&cluster("c", DiscoveryType::Eds)))]);
}
