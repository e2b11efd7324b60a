//! Resources for gRPC libraries that are xDS clients themselves (semantics §20.9, `GENERATOR: grpc`; gRFC A27, A28, A29).
//!
//! Such a client dials `xds:///HOST:PORT` and asks for a listener of that name. What it gets is made of a sidecar's resources, so that
//! both go the same ways. Invariant: a cluster whose TLS cannot be said in these words is left out, never made plaintext; what comes
//! out holds no map with an order by chance, so it is byte-stable as the rest.

use std::{collections::HashMap, sync::Arc};

use carrick_mesh::names::{SECRET_ROOTS, SECRET_WORKLOAD};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster},
            core::v3::TransportSocket,
            endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
                },
            },
            transport_sockets::tls::v3::{
                CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
        },
    },
    google::protobuf::Any,
};
use prost::Name;

use crate::{Rendered, Resource, Resources, wire};

/// The name that a client's bootstrap gives its own certificates and roots.
const PROVIDER: &str = "default";

/// What a gRPC client is told in place of what a sidecar would be.
pub fn resources(from: &Rendered) -> Rendered {
    let tables = tables(&from.routes);
    let (mut clusters, mut endpoints) = (Resources::new(), Resources::new());
    let (mut listeners, mut routes) = (Resources::new(), Resources::new());
    let put = |into: &mut Resources, name: &str, body: Any| {
        let name: Arc<str> = name.into();
        into.insert(name.clone(), Arc::new(Resource::of(name, body)));
    };
    for (name, resource) in from.clusters.iter() {
        let Some((port, subset, host)) = target(name) else { continue };
        if let Some(cluster) = decode::<Cluster>(&resource.body).and_then(cluster) {
            put(&mut clusters, name, wire::any(&cluster));
        }
        if subset.is_empty() {
            let address = format!("{host}:{port}");
            put(&mut listeners, &address, wire::any(&listener(&address, name)));
            let known = [port, &address].into_iter().find_map(|table| tables.get(&(table.to_owned(), address.clone())));
            put(&mut routes, name, wire::any(&table(name, &address, known)));
        }
    }
    for (name, resource) in from.endpoints.iter().filter(|(name, _)| clusters.contains_key(*name)) {
        if let Some(assignment) = decode::<ClusterLoadAssignment>(&resource.body) {
            put(&mut endpoints, name, wire::any(&load(assignment)));
        }
    }
    Rendered {
        clusters: Arc::new(clusters),
        endpoints: Arc::new(endpoints),
        listeners: Arc::new(listeners),
        routes: Arc::new(routes),
        secrets: Arc::default(),
    }
}

fn decode<M: Name + Default>(body: &Any) -> Option<M> {
    M::decode(&*body.value).ok()
}

/// Port, subset and host of an outbound cluster.
fn target(name: &str) -> Option<(&str, &str, &str)> {
    let mut parts = name.strip_prefix("outbound|")?.splitn(3, '|');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// Virtual hosts by the name of their table and each of their domains.
fn tables(routes: &Resources) -> HashMap<(String, String), Arc<VirtualHost>> {
    let mut found = HashMap::new();
    for (name, resource) in routes {
        let hosts = decode::<RouteConfiguration>(&resource.body).map(|table| table.virtual_hosts);
        for mut host in hosts.into_iter().flatten() {
            let domains = std::mem::take(&mut host.domains);
            let host = Arc::new(host);
            found.extend(domains.into_iter().map(|domain| ((name.to_string(), domain), host.clone())));
        }
    }
    found
}

fn listener(address: &str, table: &str) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: address.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: wire::ads(),
            route_config_name: table.to_owned(),
        })),
        http_filters: vec![wire::http_filter("envoy.filters.http.router", wire::any(&Router::default()))],
        ..HttpConnectionManager::default()
    };
    Listener {
        name: address.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(wire::any(&manager)) }),
        ..Listener::default()
    }
}

/// The routes of a sidecar's virtual host, for the only authority that this table is asked for.
fn table(cluster: &str, address: &str, known: Option<&Arc<VirtualHost>>) -> RouteConfiguration {
    let routes = match known {
        Some(host) => host.routes.iter().cloned().filter_map(route).collect(),
        None => vec![everything(cluster)],
    };
    let host =
        VirtualHost { name: address.to_owned(), domains: vec!["*".to_owned()], routes, ..VirtualHost::default() };
    RouteConfiguration { name: cluster.to_owned(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

fn everything(cluster: &str) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

/// Match and action. What a client of gRPC does not do (rewrites, mirrors, filters of one route) is left to servers' sidecars.
fn route(from: Route) -> Option<Route> {
    let action = match from.action? {
        Action::Route(mut action) => {
            // Without a number of tries the client refuses the whole table.
            let retries = |policy: &envoy_types::pb::envoy::config::route::v3::RetryPolicy| {
                policy.num_retries.is_none_or(|n| n.value > 0)
            };
            action.retry_policy = action.retry_policy.filter(retries).map(|mut policy| {
                policy.retry_host_predicate.clear();
                policy.retry_priority = None;
                policy
            });
            if let Some(ClusterSpecifier::WeightedClusters(weighted)) = &mut action.cluster_specifier {
                weighted.clusters.iter_mut().for_each(|cluster| {
                    cluster.typed_per_filter_config.clear();
                    cluster.metadata_match = None;
                });
            }
            action.metadata_match = None;
            action.request_mirror_policies.clear();
            Action::Route(action)
        }
        other => other,
    };
    Some(Route { name: from.name, r#match: from.r#match, action: Some(action), ..Route::default() })
}

/// A cluster that a client of gRPC can have: endpoints by EDS, TLS of the mesh by its own certificates, or none.
fn cluster(from: Cluster) -> Option<Cluster> {
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into());
    if from.cluster_discovery_type != Some(eds) {
        return None;
    }
    let transport_socket = match from.transport_socket {
        None => None,
        Some(socket) => Some(mesh_tls(&socket)?),
    };
    Some(Cluster {
        name: from.name,
        cluster_discovery_type: from.cluster_discovery_type,
        eds_cluster_config: from.eds_cluster_config,
        connect_timeout: from.connect_timeout,
        lb_policy: cluster::LbPolicy::RoundRobin.into(),
        circuit_breakers: from.circuit_breakers,
        transport_socket,
        ..Cluster::default()
    })
}

/// Mesh TLS by the client's own provider of certificates (gRFC A29); none for any other TLS.
fn mesh_tls(socket: &TransportSocket) -> Option<TransportSocket> {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    let ConfigType::TypedConfig(config) = socket.config_type.as_ref()?;
    if config.type_url != UpstreamTlsContext::type_url() {
        return None;
    }
    let common = decode::<UpstreamTlsContext>(config)?.common_tls_context?;
    let own = common.tls_certificate_sds_secret_configs.first()?;
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type else {
        return None;
    };
    let roots = combined.validation_context_sds_secret_config?;
    if own.name != SECRET_WORKLOAD || roots.name != SECRET_ROOTS {
        return None;
    }
    let provider = || CertificateProviderPluginInstance {
        instance_name: PROVIDER.to_owned(),
        certificate_name: PROVIDER.to_owned(),
    };
    let names = combined.default_validation_context.map(|c| c.match_typed_subject_alt_names).unwrap_or_default();
    // The newer field, by type of name, is not read by gRPC libraries.
    #[allow(deprecated)]
    let validation = CertificateValidationContext {
        match_subject_alt_names: names.into_iter().filter_map(|name| name.matcher).collect(),
        ca_certificate_provider_instance: Some(provider()),
        ..CertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(provider()),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    wire::transport_socket(&socket.name, wire::any(&context))
}

/// Without the marks for Envoy's choice of a socket.
fn load(mut from: ClusterLoadAssignment) -> ClusterLoadAssignment {
    for endpoint in from.endpoints.iter_mut().flat_map(|group| &mut group.lb_endpoints) {
        endpoint.metadata = None;
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier {
            endpoint.hostname.clear();
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::{
        config::cluster::v3::cluster::EdsClusterConfig,
        extensions::transport_sockets::tls::v3::{SdsSecretConfig, SubjectAltNameMatcher},
    };

    const NAME: &str = "outbound|80||web.shop.svc.cluster.local";
    const ADDRESS: &str = "web.shop.svc.cluster.local:80";

    fn set(name: &str, body: Any) -> Arc<Resources> {
        let name: Arc<str> = name.into();
        Arc::new([(name.clone(), Arc::new(Resource::of(name, body)))].into())
    }

    fn eds() -> Cluster {
        Cluster {
            name: NAME.to_owned(),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: wire::ads(), ..Default::default() }),
            lb_policy: cluster::LbPolicy::LeastRequest.into(),
            ..Cluster::default()
        }
    }

    fn with_secrets(own: &str, roots: &str) -> Cluster {
        let secret = |name: &str| SdsSecretConfig { name: name.to_owned(), ..Default::default() };
        let names = vec![SubjectAltNameMatcher::default()];
        let combined = CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names,
                ..Default::default()
            }),
            validation_context_sds_secret_config: Some(secret(roots)),
            ..Default::default()
        };
        let common = CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![secret(own)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
            ..Default::default()
        };
        let context = UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
        let transport_socket = wire::transport_socket("envoy.transport_sockets.tls", wire::any(&context));
        Cluster { transport_socket, ..eds() }
    }

    fn of(cluster: &Cluster, routes: Arc<Resources>) -> Rendered {
        resources(&Rendered { clusters: set(NAME, wire::any(cluster)), routes, ..Rendered::default() })
    }

    #[test]
    fn a_client_finds_its_way_from_listener_to_cluster() {
        let got = of(&eds(), Arc::default());
        let listener: Listener = decode(&got.listeners[ADDRESS].body).unwrap();
        let manager: HttpConnectionManager = decode(&listener.api_listener.unwrap().api_listener.unwrap()).unwrap();
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("no RDS") };
        let table: RouteConfiguration = decode(&got.routes[&*rds.route_config_name].body).unwrap();
        assert_eq!(table.virtual_hosts[0].routes, [everything(NAME)]);
        let cluster: Cluster = decode(&got.clusters[NAME].body).unwrap();
        // gRPC libraries refuse balancers they have not.
        assert_eq!(cluster.lb_policy(), cluster::LbPolicy::RoundRobin);
        assert!(cluster.transport_socket.is_none());
    }

    #[test]
    fn it_goes_the_ways_of_a_sidecar() {
        let mut own = everything("outbound|80|v2|web.shop.svc.cluster.local");
        own.name = "canary".to_owned();
        let host = VirtualHost { domains: vec![ADDRESS.to_owned()], routes: vec![own], ..VirtualHost::default() };
        let table = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
        let got = of(&eds(), set("80", wire::any(&table)));
        let table: RouteConfiguration = decode(&got.routes[NAME].body).unwrap();
        assert_eq!(table.virtual_hosts[0].routes[0].name, "canary");
        assert_eq!(table.virtual_hosts[0].domains, ["*"]);
    }

    #[test]
    fn tls_is_said_in_its_words_or_the_cluster_is_not() {
        let got = of(&with_secrets("default", "ROOTCA"), Arc::default());
        let cluster: Cluster = decode(&got.clusters[NAME].body).unwrap();
        assert!(mesh_tls(cluster.transport_socket.as_ref().unwrap()).is_none(), "the names of secrets are gone");
        for (own, roots) in [("kubernetes://partner", "ROOTCA"), ("default", "kubernetes://partner-cacert")] {
            assert!(of(&with_secrets(own, roots), Arc::default()).clusters.is_empty(), "{own} {roots}");
        }
        let dns = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::StrictDns.into());
        let dns = Cluster { cluster_discovery_type: Some(dns), ..eds() };
        assert!(of(&dns, Arc::default()).clusters.is_empty());
    }
}
