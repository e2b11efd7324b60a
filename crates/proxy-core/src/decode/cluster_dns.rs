//! DNS of clusters: the fields of the cluster, and the cluster types of newer configurations.
//!
//! Invariant: a refresh interval is never so short that look-ups would be all we do.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::{
    self as dynamic, cluster_config::ClusterImplementationSpecifier as S,
};
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::google::protobuf as wkt;

use super::bad::{At, Bad, decode, given, only, type_name};
use super::basic::duration;
use crate::model::cluster::{Discovery, DnsFamily, DnsOptions};

const DNS: &str = "envoy.extensions.clusters.dns.v3.DnsCluster";
const DYNAMIC: &str = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";

/// The cluster's own fields.
pub fn plain(value: &pb::Cluster) -> Result<DnsOptions, Bad> {
    use pb::cluster::DnsLookupFamily as F;
    Ok(DnsOptions {
        refresh: refresh("dns_refresh_rate", &value.dns_refresh_rate, Duration::from_secs(5))?,
        jitter: given("dns_jitter", &value.dns_jitter, duration)?.unwrap_or_default(),
        respect_ttl: value.respect_dns_ttl,
        family: old_family(F::try_from(value.dns_lookup_family))?,
    })
}

/// The family as the cluster itself numbers it.
fn old_family<E>(value: Result<pb::cluster::DnsLookupFamily, E>) -> Result<DnsFamily, Bad> {
    use pb::cluster::DnsLookupFamily as F;
    Ok(match value {
        Ok(F::Auto) => DnsFamily::Auto,
        Ok(F::V4Only) => DnsFamily::V4,
        Ok(F::V6Only) => DnsFamily::V6,
        Ok(F::V4Preferred) => DnsFamily::V4Preferred,
        Ok(F::All) => DnsFamily::All,
        Err(_) => return Err(Bad::field("dns_lookup_family", "unknown value")),
    })
}

/// A `cluster_type`.
pub fn custom(value: &pb::cluster::CustomClusterType) -> Result<(Discovery, DnsOptions), Bad> {
    let any = value.typed_config.as_ref().ok_or_else(|| Bad::field("typed_config", "missing"))?;
    match type_name(any) {
        DNS => decode(any).and_then(|c| dns(&c)).at("typed_config"),
        DYNAMIC => decode(any).and_then(|c| dynamic_forward(&c)).at("typed_config"),
        _ => Err(Bad::new(format_args!("unsupported cluster type \"{}\"", value.name))),
    }
}

fn dns(value: &DnsCluster) -> Result<(Discovery, DnsOptions), Bad> {
    only!(value, DnsCluster {
        dns_refresh_rate, respect_dns_ttl, dns_jitter, dns_lookup_family, all_addresses_in_single_endpoint
    } refuse { dns_failure_refresh_rate, typed_dns_resolver_config, dns_min_refresh_rate });
    let options = DnsOptions {
        refresh: refresh("dns_refresh_rate", &value.dns_refresh_rate, Duration::from_secs(5))?,
        jitter: given("dns_jitter", &value.dns_jitter, duration)?.unwrap_or_default(),
        respect_ttl: value.respect_dns_ttl,
        family: family(value.dns_lookup_family)?,
    };
    let logical = value.all_addresses_in_single_endpoint;
    Ok((if logical { Discovery::LogicalDns } else { Discovery::StrictDns }, options))
}

fn dynamic_forward(value: &dynamic::ClusterConfig) -> Result<(Discovery, DnsOptions), Bad> {
    only!(value, dynamic::ClusterConfig { cluster_implementation_specifier } refuse {
        allow_insecure_cluster_options, allow_coalesced_connections
    });
    match &value.cluster_implementation_specifier {
        Some(S::DnsCacheConfig(cache)) => {
            dns_cache(cache).at("dns_cache_config").map(|o| (Discovery::DynamicForward, o))
        }
        Some(S::SubClustersConfig(_)) => Err(Bad::unsupported("sub_clusters_config")),
        None => Err(Bad::field("dns_cache_config", "missing")),
    }
}

fn dns_cache(value: &DnsCacheConfig) -> Result<DnsOptions, Bad> {
    use pb::cluster::DnsLookupFamily as F;
    // Times and bounds of the cache are our own; these fields would send questions elsewhere.
    for (field, set) in [
        ("dns_resolution_config", value.dns_resolution_config.is_some()),
        ("typed_dns_resolver_config", value.typed_dns_resolver_config.is_some()),
        ("use_tcp_for_dns_lookups", value.use_tcp_for_dns_lookups),
    ] {
        if set {
            return Err(Bad::unsupported(field));
        }
    }
    Ok(DnsOptions {
        refresh: refresh("dns_refresh_rate", &value.dns_refresh_rate, Duration::from_secs(60))?,
        jitter: Duration::ZERO,
        respect_ttl: true,
        family: old_family(F::try_from(value.dns_lookup_family))?,
    })
}

fn refresh(field: &str, value: &Option<wkt::Duration>, default: Duration) -> Result<Duration, Bad> {
    Ok(given(field, value, duration)?.unwrap_or(default).max(Duration::from_millis(10)))
}

/// The family as the newer messages number it.
fn family(value: i32) -> Result<DnsFamily, Bad> {
    use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as F;
    Ok(match F::try_from(value) {
        Ok(F::Auto | F::Unspecified) => DnsFamily::Auto,
        Ok(F::V4Only) => DnsFamily::V4,
        Ok(F::V6Only) => DnsFamily::V6,
        Ok(F::V4Preferred) => DnsFamily::V4Preferred,
        Ok(F::All) => DnsFamily::All,
        Err(_) => return Err(Bad::field("dns_lookup_family", "unknown value")),
    })
}
