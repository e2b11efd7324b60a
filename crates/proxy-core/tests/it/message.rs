//! Short ways to make messages.
//!
//! Invariant: what a test does not mention is left unset.

use std::sync::Arc;

use carrick_proxy_core::model::{Name, RuntimeConfig};
use carrick_proxy_core::store::type_url;
use carrick_proxy_core::{ConfigStore, Rejection};
use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::config::listener::v3 as lds;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
use http::HeaderMap;

use carrick_proxy_core::request::RequestHead;

pub fn any<T: prost::Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

pub fn name(text: &str) -> Name {
    Arc::from(text)
}

pub fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

pub fn address(text: &str) -> Option<core::Address> {
    let (host, port) = text.rsplit_once(':').expect("host:port");
    let socket = core::SocketAddress {
        address: host.trim_matches(['[', ']']).to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.parse().expect("port"))),
        ..Default::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

pub fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    })
}

pub fn network(name: &str, config: Any) -> lds::Filter {
    lds::Filter { name: name.to_owned(), config_type: Some(lds::filter::ConfigType::TypedConfig(config)) }
}

pub fn tcp(cluster: &str) -> lds::Filter {
    let proxy = tcp::TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    network("envoy.filters.network.tcp_proxy", any(&proxy))
}

pub fn manager(routes: hcm::http_connection_manager::RouteSpecifier) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        stat_prefix: "test".to_owned(),
        route_specifier: Some(routes),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn rds_source(table: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        config_source: ads(),
        route_config_name: table.to_owned(),
    })
}

pub fn http(manager: &hcm::HttpConnectionManager) -> lds::Filter {
    network("envoy.filters.network.http_connection_manager", any(manager))
}

pub fn chain(name: &str, matching: lds::FilterChainMatch, filter: lds::Filter) -> lds::FilterChain {
    lds::FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(matching),
        filters: vec![filter],
        ..Default::default()
    }
}

pub fn listener(name: &str, at: &str, chains: Vec<lds::FilterChain>) -> lds::Listener {
    lds::Listener { name: name.to_owned(), address: address(at), filter_chains: chains, ..Default::default() }
}

pub fn cluster(name: &str, kind: cds::cluster::DiscoveryType) -> cds::Cluster {
    let eds = (kind == cds::cluster::DiscoveryType::Eds)
        .then(|| cds::cluster::EdsClusterConfig { eds_config: ads(), service_name: String::new() });
    cds::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(kind.into())),
        eds_cluster_config: eds,
        ..Default::default()
    }
}

pub fn endpoint(at: &str) -> eds::LbEndpoint {
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: address(at),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Endpoints by priority.
pub fn assignment(cluster: &str, priorities: &[&[eds::LbEndpoint]]) -> eds::ClusterLoadAssignment {
    let group = |(priority, endpoints): (usize, &&[eds::LbEndpoint])| eds::LocalityLbEndpoints {
        lb_endpoints: endpoints.to_vec(),
        priority: u32::try_from(priority).expect("small"),
        ..Default::default()
    };
    eds::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: priorities.iter().enumerate().map(group).collect(),
        ..Default::default()
    }
}

pub fn route(path: rds::route_match::PathSpecifier, cluster: &str) -> rds::Route {
    let action = rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    rds::Route {
        name: cluster.to_owned(),
        r#match: Some(rds::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(rds::route::Action::Route(action)),
        ..Default::default()
    }
}

pub fn prefix(text: &str) -> rds::route_match::PathSpecifier {
    rds::route_match::PathSpecifier::Prefix(text.to_owned())
}

pub fn virtual_host(name: &str, domains: &[&str], routes: Vec<rds::Route>) -> rds::VirtualHost {
    rds::VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

pub fn table(name: &str, hosts: Vec<rds::VirtualHost>) -> rds::RouteConfiguration {
    rds::RouteConfiguration { name: name.to_owned(), virtual_hosts: hosts, ..Default::default() }
}

/// A store with methods short enough for tables.
#[derive(Default)]
pub struct Store(pub ConfigStore);

impl Store {
    pub fn clusters(&mut self, all: &[cds::Cluster]) -> Result<(), Vec<Rejection>> {
        let all = all.iter().map(|c| (name(&c.name), any(c))).collect();
        self.0.apply(type_url::CLUSTER, all, &[])
    }

    pub fn endpoints(&mut self, all: &[eds::ClusterLoadAssignment]) -> Result<(), Vec<Rejection>> {
        let all = all.iter().map(|c| (name(&c.cluster_name), any(c))).collect();
        self.0.apply(type_url::ENDPOINT, all, &[])
    }

    pub fn listeners(&mut self, all: &[lds::Listener]) -> Result<(), Vec<Rejection>> {
        let all = all.iter().map(|c| (name(&c.name), any(c))).collect();
        self.0.apply(type_url::LISTENER, all, &[])
    }

    pub fn routes(&mut self, all: &[rds::RouteConfiguration]) -> Result<(), Vec<Rejection>> {
        let all = all.iter().map(|c| (name(&c.name), any(c))).collect();
        self.0.apply(type_url::ROUTE, all, &[])
    }

    pub fn runtime(&self) -> Arc<RuntimeConfig> {
        self.0.runtime()
    }
}

/// A request with no headers but those given.
pub struct Request {
    pub method: &'static str,
    pub authority: String,
    pub path: String,
    pub headers: HeaderMap,
}

impl Request {
    pub fn get(url: &str) -> Self {
        let (authority, path) = url.split_once('/').map_or((url, String::new()), |(a, p)| (a, format!("/{p}")));
        Self { method: "GET", authority: authority.to_owned(), path, headers: HeaderMap::new() }
    }

    pub fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.append(header, value.parse().expect("value"));
        self
    }

    pub fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.method,
            path: &self.path,
            authority: &self.authority,
            scheme: "http",
            headers: &self.headers,
        }
    }
}
