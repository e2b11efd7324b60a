//! Clusters.
//!
//! Invariant: a cluster's discovery, policy and endpoints fit together: ORIGINAL_DST with CLUSTER_PROVIDED, one name for LOGICAL_DNS,
//! no names for STATIC.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{ads, bare_socket, json, keepalive, metadata, number, positive};
use super::{cluster_dns, cluster_lb, cluster_policy, cluster_socket, headers, health_check, http_options};
use crate::model::cluster::{Cluster, Discovery, DnsOptions, HttpProtocol, Transport, TransportMatch, TransportSocket};
use crate::model::hcm::{Http1Options, Http2Options};
use crate::model::metadata::Map;
use crate::model::tls::UpstreamTls;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster, and the endpoints that stand in it (STATIC, DNS).
pub fn cluster(value: &pb::Cluster) -> Result<(Cluster, Option<ClusterLoadAssignment>), Bad> {
    only!(value, pb::Cluster {
        transport_socket_matches, name, alt_stat_name, eds_cluster_config, connect_timeout, lb_policy,
        load_assignment, max_requests_per_connection, circuit_breakers, upstream_http_protocol_options, common_http_protocol_options,
        http_protocol_options, http2_protocol_options, typed_extension_protocol_options, dns_refresh_rate, dns_lookup_family, outlier_detection, upstream_bind_config, common_lb_config, transport_socket, metadata, protocol_selection,
        upstream_connection_options, connection_pool_per_downstream_connection,
        cluster_discovery_type, lb_config, respect_dns_ttl, dns_jitter, health_checks, lb_subset_config, load_balancing_policy,
    } refuse {
        per_connection_buffer_limit_bytes, close_connections_on_host_health_failure, transport_socket_matcher, stats_matcher, per_connection_buffer_high_watermark_timeout,
        dns_failure_refresh_rate, dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config,
        wait_for_warm_on_init, cleanup_interval, ignore_health_on_host_removal, filters,
        lrs_server, lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config, track_cluster_stats, preconnect_policy,
        queuing_policies,
    });
    let (discovery, dns) = discovery(value)?;
    let http = http(value)?;
    let bind = given("upstream_bind_config", &value.upstream_bind_config, bind)?.unwrap_or_default();
    let metadata = metadata(&value.metadata).at("metadata")?;
    let common = cluster_lb::common(&value.common_lb_config).at("common_lb_config")?;
    let lb = cluster_policy::balancing(value, &discovery, &common)?;
    let limits = cluster_lb::circuits(&value.circuit_breakers).at("circuit_breakers")?;
    let cluster = Cluster {
        name: value.name.as_str().into(),
        stat_name: if value.alt_stat_name.is_empty() {
            value.name.as_str().into()
        } else {
            value.alt_stat_name.as_str().into()
        },
        connect_timeout: positive("connect_timeout", &value.connect_timeout, Duration::from_secs(5))?,
        lb: lb.policy,
        original_dst: cluster_lb::original_dst(value)?,
        discovery,
        panic_threshold: common.panic_threshold,
        locality_weighted: lb.locality_weighted,
        slow_start: lb.slow_start,
        subsets: lb.subsets,
        health_checks: each("health_checks", &value.health_checks, health_check::health_check)?,
        http: http.protocol,
        http1: http.http1,
        http2: http.http2,
        transport: transport(value, http.auto_san_validation)?,
        auto_sni: http.auto_sni,
        auto_sni_header: http.auto_sni_header,
        limits: limits.0,
        high_limits: limits.1,
        outlier: given("outlier_detection", &value.outlier_detection, cluster_lb::outlier)?,
        max_requests_per_connection: http
            .common
            .max_requests_per_connection
            .or(number(&value.max_requests_per_connection).filter(|n| *n > 0)),
        idle_timeout: http.common.idle_timeout,
        max_connection_duration: http.common.max_connection_duration,
        max_stream_duration: http.common.max_stream_duration,
        tcp_keepalive: given("upstream_connection_options", &value.upstream_connection_options, |o| {
            only!(o, pb::UpstreamConnectionOptions { tcp_keepalive } refuse {
                set_local_interface_name_on_upstream_connections, happy_eyeballs_config
            });
            Ok(o.tcp_keepalive.as_ref().map(keepalive))
        })?
        .flatten(),
        bind: bind.source,
        bind_additional: bind.additional,
        socket_options: bind.options,
        pool_per_downstream: value.connection_pool_per_downstream_connection,
        dns,
        metadata,
    };
    let inline = inline_endpoints(value, &cluster)?;
    Ok((cluster, inline))
}

fn discovery(value: &pb::Cluster) -> Result<(Discovery, DnsOptions), Bad> {
    use pb::cluster::DiscoveryType as T;
    let plain = || cluster_dns::plain(value);
    let kind = match &value.cluster_discovery_type {
        None => T::Static,
        Some(pb::cluster::ClusterDiscoveryType::Type(kind)) => {
            T::try_from(*kind).map_err(|_| Bad::field("type", "unknown value"))?
        }
        Some(pb::cluster::ClusterDiscoveryType::ClusterType(custom)) => {
            return cluster_dns::custom(custom).at("cluster_type");
        }
    };
    if value.eds_cluster_config.is_some() && kind != T::Eds {
        return Err(Bad::field("eds_cluster_config", "the cluster is not of type EDS"));
    }
    let discovery = match kind {
        T::Static => Discovery::Static,
        T::StrictDns => Discovery::StrictDns,
        T::LogicalDns => Discovery::LogicalDns,
        T::OriginalDst => Discovery::OriginalDst,
        T::Eds => {
            let config =
                value.eds_cluster_config.as_ref().ok_or_else(|| Bad::field("eds_cluster_config", "missing"))?;
            given("eds_cluster_config.eds_config", &config.eds_config, ads)?;
            let service = if config.service_name.is_empty() { &value.name } else { &config.service_name };
            Discovery::Eds(service.as_str().into())
        }
    };
    Ok((discovery, plain()?))
}

fn inline_endpoints(value: &pb::Cluster, cluster: &Cluster) -> Result<Option<ClusterLoadAssignment>, Bad> {
    use crate::model::endpoint::EndpointAddress as E;
    let assignment = value.load_assignment.as_ref();
    match (&cluster.discovery, assignment) {
        (Discovery::Eds(_) | Discovery::OriginalDst | Discovery::DynamicForward, None) => Ok(None),
        (Discovery::Eds(_) | Discovery::OriginalDst | Discovery::DynamicForward, Some(_)) => {
            Err(Bad::field("load_assignment", "not for this cluster type"))
        }
        (_, None) => Ok(Some(ClusterLoadAssignment::default())),
        (discovery, Some(assignment)) => {
            let set = super::endpoint::endpoints(assignment, cluster).at("load_assignment")?;
            let named = set.endpoints.iter().filter(|e| matches!(e.address, E::Dns { .. })).count();
            match discovery {
                Discovery::Static if named > 0 => Err(Bad::field("load_assignment", "host names need a DNS cluster")),
                Discovery::LogicalDns if set.endpoints.len() != 1 => {
                    Err(Bad::field("load_assignment", "LOGICAL_DNS needs exactly one endpoint"))
                }
                _ => Ok(Some(assignment.clone())),
            }
        }
    }
}

/// With `auto_san`, each verifying socket without names of its own must find the name it sent as SNI in the certificate: the option of
/// the HTTP level becomes one of the socket, where the handshake can see it.
fn transport(value: &pb::Cluster, auto_san: bool) -> Result<Transport, Bad> {
    let read = |socket: &core::TransportSocket| {
        let socket = cluster_socket::upstream(socket)?;
        match socket.as_ref() {
            TransportSocket::Tls(own) if auto_san && own.validation.is_none() => {
                Err(Bad::new("auto_san_validation needs a validation context"))
            }
            TransportSocket::Tls(own) if auto_san => {
                Ok(Arc::new(TransportSocket::Tls(UpstreamTls { auto_san_of_requests: true, ..own.clone() })))
            }
            _ => Ok(socket),
        }
    };
    let default = given("transport_socket", &value.transport_socket, read)?;
    let matches = each("transport_socket_matches", &value.transport_socket_matches, |m| {
        let socket = m.transport_socket.as_ref().ok_or_else(|| Bad::field("transport_socket", "missing"))?;
        let mut criteria = Map::default();
        for (key, value) in m.r#match.iter().flat_map(|s| &s.fields) {
            criteria.insert(key.as_str().into(), json(value, 0).at("match")?);
        }
        Ok(TransportMatch { name: m.name.as_str().into(), criteria, socket: read(socket).at("transport_socket")? })
    })?;
    if matches.len() >= usize::from(u16::MAX) {
        return Err(Bad::field("transport_socket_matches", "too many"));
    }
    let mut matches = matches;
    matches.shrink_to_fit();
    Ok(Transport { matches, default: default.unwrap_or_else(|| Arc::new(TransportSocket::Raw)) })
}

struct Http {
    protocol: HttpProtocol,
    http1: Http1Options,
    http2: Http2Options,
    common: http_options::CommonOptions,
    auto_sni: bool,
    auto_san_validation: bool,
    auto_sni_header: Option<http::HeaderName>,
}

fn http(value: &pb::Cluster) -> Result<Http, Bad> {
    let mut typed: Option<upstream::HttpProtocolOptions> = None;
    for (name, any) in &value.typed_extension_protocol_options {
        let field = format!("typed_extension_protocol_options[\"{name}\"]");
        if type_name(any) != HTTP_OPTIONS {
            return Err(Bad::field(field, format_args!("unsupported protocol options {}", type_name(any))));
        }
        typed = Some(decode(any).at(&field)?);
    }
    match typed {
        Some(options) => typed_http(&options).at(&format!("typed_extension_protocol_options[\"{HTTP_OPTIONS}\"]")),
        None => plain_http(value),
    }
}

/// The fields of the cluster itself, which newer configurations leave alone.
fn plain_http(value: &pb::Cluster) -> Result<Http, Bad> {
    let http2 = given("http2_protocol_options", &value.http2_protocol_options, http_options::http2)?;
    let protocol = match pb::cluster::ClusterProtocolSelection::try_from(value.protocol_selection) {
        Ok(pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol) => HttpProtocol::UseDownstream,
        Ok(pb::cluster::ClusterProtocolSelection::UseConfiguredProtocol) if http2.is_some() => HttpProtocol::Http2,
        Ok(pb::cluster::ClusterProtocolSelection::UseConfiguredProtocol) => HttpProtocol::Http1,
        Err(_) => return Err(Bad::field("protocol_selection", "unknown value")),
    };
    let sni = sni(&value.upstream_http_protocol_options).at("upstream_http_protocol_options")?;
    Ok(Http {
        protocol,
        http1: given("http_protocol_options", &value.http_protocol_options, http_options::http1)?.unwrap_or_default(),
        http2: http2.unwrap_or_default(),
        common: http_options::common(&value.common_http_protocol_options).at("common_http_protocol_options")?,
        auto_sni: sni.0,
        auto_san_validation: sni.1,
        auto_sni_header: sni.2,
    })
}

fn typed_http(value: &upstream::HttpProtocolOptions) -> Result<Http, Bad> {
    use upstream::http_protocol_options::{UpstreamProtocolOptions as U, explicit_http_config::ProtocolConfig as P};
    only!(value, upstream::HttpProtocolOptions { common_http_protocol_options, upstream_http_protocol_options, upstream_protocol_options } refuse {
        http_filters, header_validation_config, outlier_detection, request_mirror_policies, hash_policy, retry_policy
    });
    let (protocol, http1, http2) = match &value.upstream_protocol_options {
        Some(U::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(P::HttpProtocolOptions(options)) => (HttpProtocol::Http1, Some(options), None),
            Some(P::Http2ProtocolOptions(options)) => (HttpProtocol::Http2, None, Some(options)),
            Some(P::Http3ProtocolOptions(_)) => {
                return Err(Bad::unsupported("explicit_http_config.http3_protocol_options"));
            }
            None => return Err(Bad::field("explicit_http_config", "empty")),
        },
        Some(U::UseDownstreamProtocolConfig(down)) => {
            only!(down, upstream::http_protocol_options::UseDownstreamHttpConfig { http_protocol_options, http2_protocol_options } refuse {
                http3_protocol_options
            });
            (HttpProtocol::UseDownstream, down.http_protocol_options.as_ref(), down.http2_protocol_options.as_ref())
        }
        Some(U::AutoConfig(auto)) => {
            only!(auto, upstream::http_protocol_options::AutoHttpConfig { http_protocol_options, http2_protocol_options } refuse {
                http3_protocol_options, alternate_protocols_cache_options
            });
            (HttpProtocol::Auto, auto.http_protocol_options.as_ref(), auto.http2_protocol_options.as_ref())
        }
        None => return Err(Bad::field("upstream_protocol_options", "missing")),
    };
    let sni = sni(&value.upstream_http_protocol_options).at("upstream_http_protocol_options")?;
    Ok(Http {
        protocol,
        http1: http1.map(http_options::http1).transpose().at("http_protocol_options")?.unwrap_or_default(),
        http2: http2.map(http_options::http2).transpose().at("http2_protocol_options")?.unwrap_or_default(),
        common: http_options::common(&value.common_http_protocol_options).at("common_http_protocol_options")?,
        auto_sni: sni.0,
        auto_san_validation: sni.1,
        auto_sni_header: sni.2,
    })
}

fn sni(value: &Option<core::UpstreamHttpProtocolOptions>) -> Result<(bool, bool, Option<http::HeaderName>), Bad> {
    let Some(value) = value else { return Ok((false, false, None)) };
    let header = match value.override_auto_sni_header.as_str() {
        "" | ":authority" | "host" => None,
        name => Some(headers::name(name).at("override_auto_sni_header")?),
    };
    Ok((value.auto_sni, value.auto_san_validation, header))
}

#[derive(Default)]
struct Bind {
    source: Option<std::net::SocketAddr>,
    additional: Vec<std::net::SocketAddr>,
    options: Vec<(i32, i32, i32)>,
}

fn bind(value: &core::BindConfig) -> Result<Bind, Bad> {
    only!(value, core::BindConfig { source_address, socket_options, extra_source_addresses, additional_source_addresses } refuse {
        freebind, local_address_selector, validate_network_namespaces
    });
    let mut additional = each("additional_source_addresses", &value.additional_source_addresses, bare_socket)?;
    additional.extend(each("extra_source_addresses", &value.extra_source_addresses, |extra| {
        only!(extra, core::ExtraSourceAddress { address } refuse { socket_options });
        bare_socket(extra.address.as_ref().ok_or_else(|| Bad::field("address", "missing"))?).at("address")
    })?);
    Ok(Bind {
        source: given("source_address", &value.source_address, bare_socket)?,
        additional,
        options: each("socket_options", &value.socket_options, socket_option)?,
    })
}

fn socket_option(value: &core::SocketOption) -> Result<(i32, i32, i32), Bad> {
    // The description is for people; options are set before connecting whatever the state says.
    only!(value, core::SocketOption { description, level, name, state, value } refuse { r#type, ip_version });
    let Some(core::socket_option::Value::IntValue(number)) = &value.value else {
        return Err(Bad::field("value", "only integers are supported"));
    };
    let int = |field: &str, n: i64| i32::try_from(n).map_err(|_| Bad::field(field, "out of range"));
    Ok((int("level", value.level)?, int("name", value.name)?, int("int_value", *number)?))
}
