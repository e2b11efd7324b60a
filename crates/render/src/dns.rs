//! Names that proxies resolve themselves (semantics §6.2): clusters of names, and those of whatever name a request asks for.
//!
//! Invariant: the filter that looks a name up and the cluster that connects to it share one cache, so they give it the same settings.

use carrick_mesh::view::{cluster::NameLookup, inbound::Families};
use envoy_types::pb::envoy::{
    config::cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, CustomClusterType, DnsLookupFamily},
    },
    extensions::{
        clusters::dynamic_forward_proxy::v3::{ClusterConfig, cluster_config},
        common::dynamic_forward_proxy::v3::DnsCacheConfig,
        filters::{
            http::dynamic_forward_proxy::v3::{FilterConfig as HttpFilterConfig, filter_config as http_config},
            network::sni_dynamic_forward_proxy::v3::{FilterConfig as SniFilterConfig, filter_config as sni_config},
        },
    },
};

use crate::wire;

/// Which records are asked for.
pub fn family(families: Families) -> DnsLookupFamily {
    match (families.v4, families.v6) {
        (true, true) => DnsLookupFamily::All,
        (false, true) => DnsLookupFamily::V6Only,
        (_, false) => DnsLookupFamily::V4Only,
    }
}

/// How a cluster's own names are resolved: again when their records run out, and after `refresh` when that failed.
#[expect(deprecated, reason = "what replaces the fields is an extension of its own, which older proxies do not know")]
pub fn resolve(out: &mut Cluster, names: &NameLookup) {
    out.dns_lookup_family = family(names.families).into();
    out.dns_refresh_rate = wire::millis(names.refresh);
    out.respect_dns_ttl = true;
}

fn cache(names: &NameLookup) -> DnsCacheConfig {
    let family = family(names.families);
    DnsCacheConfig {
        name: format!("dynamic_dns_{}", family.as_str_name().to_ascii_lowercase()),
        dns_lookup_family: family.into(),
        dns_refresh_rate: wire::millis(names.refresh),
        ..DnsCacheConfig::default()
    }
}

/// The type of a cluster of whatever name is asked for.
pub fn dynamic(names: &NameLookup) -> ClusterDiscoveryType {
    let config = ClusterConfig {
        // A rule may give one server name for all.
        allow_insecure_cluster_options: true,
        cluster_implementation_specifier: Some(cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(cache(
            names,
        ))),
        ..ClusterConfig::default()
    };
    let name = "envoy.clusters.dynamic_forward_proxy".to_owned();
    ClusterDiscoveryType::ClusterType(CustomClusterType { name, typed_config: Some(wire::any(&config)) })
}

/// The HTTP filter that looks names up.
pub fn http_filter(names: &NameLookup) -> HttpFilterConfig {
    let implementation = http_config::ImplementationSpecifier::DnsCacheConfig(cache(names));
    HttpFilterConfig { implementation_specifier: Some(implementation), ..HttpFilterConfig::default() }
}

/// The network filter that looks server names up.
pub fn sni_filter(names: &NameLookup, port: u16) -> SniFilterConfig {
    SniFilterConfig {
        dns_cache_config: Some(cache(names)),
        port_specifier: Some(sni_config::PortSpecifier::PortValue(u32::from(port))),
        ..SniFilterConfig::default()
    }
}
