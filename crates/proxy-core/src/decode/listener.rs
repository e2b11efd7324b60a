//! Listeners and filter chains.
//!
//! Invariant: a chain ends in exactly one terminal filter, its last.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3 as log;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::envoy::extensions::filters::listener as inspect;
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3 as set_state;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{duration, keepalive, limit, metadata, number, socket, truth};
use super::{access_log, chain_match, filter, hcm, tls};
use crate::model::Name;
use crate::model::filter::{FilterStateKey, FilterStateSet};
use crate::model::listener::{
    ChainKind, Direction, FilterChain, Inspector, Inspectors, Listener, PortPredicate, ProxyHeader, TcpProxy,
    TcpTarget, Tunnel,
};

/// A listener.
pub fn listener(value: &pb::Listener) -> Result<Listener, Bad> {
    only!(value, pb::Listener {
        name, address, additional_addresses, filter_chains, use_original_dst, default_filter_chain,
        metadata, deprecated_v1, listener_filters, listener_filters_timeout, continue_on_listener_filters_timeout, transparent, freebind,
        traffic_direction, access_log, tcp_backlog_size, bind_to_port, tcp_keepalive,
    } refuse {
        stat_prefix, stats_matcher, fcds_config, filter_chain_matcher, per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout, drain_type,
        socket_options, tcp_fast_open_queue_length, udp_listener_config, api_listener, connection_balance_config, reuse_port,
        enable_reuse_port, max_connections_to_accept_per_socket_event, enable_mptcp, ignore_global_conn_limit, bypass_overload_manager,
        listener_specifier,
    });
    let address = value.address.as_ref().ok_or_else(|| Bad::field("address", "missing"))?;
    let mut filters = listener_filters(&value.listener_filters)?;
    if value.filter_chains.iter().any(|chain| truth(&chain.use_proxy_proto) == Some(true)) {
        filters.inspectors.proxy.get_or_insert(ProxyHeader { optional: false, v1: true, v2: true });
    }
    let chains = each("filter_chains", &value.filter_chains, |chain| filter_chain(chain).map(Arc::new))?;
    let default_chain = given("default_filter_chain", &value.default_filter_chain, |c| filter_chain(c).map(Arc::new))?;
    if chains.is_empty() && default_chain.is_none() {
        return Err(Bad::field("filter_chains", "no filter chain"));
    }
    let index = chain_match::index(chains.iter().map(|c| &c.matching))?;
    let old_bind = value.deprecated_v1.as_ref().and_then(|v| truth(&v.bind_to_port));
    Ok(Listener {
        name: value.name.as_str().into(),
        address: socket(address).at("address")?,
        additional_addresses: each("additional_addresses", &value.additional_addresses, additional)?,
        bind_to_port: truth(&value.bind_to_port).or(old_bind).unwrap_or(true),
        use_original_dst: truth(&value.use_original_dst).unwrap_or(false),
        // Envoy adds the filter by itself where connections are to be handed off.
        restore_original_dst: filters.original_dst || truth(&value.use_original_dst).unwrap_or(false),
        direction: match core::TrafficDirection::try_from(value.traffic_direction) {
            Ok(core::TrafficDirection::Unspecified) => Direction::Unspecified,
            Ok(core::TrafficDirection::Inbound) => Direction::Inbound,
            Ok(core::TrafficDirection::Outbound) => Direction::Outbound,
            Err(_) => return Err(Bad::field("traffic_direction", "unknown value")),
        },
        inspectors: filters.inspectors,
        listener_filters_timeout: limit(
            "listener_filters_timeout",
            &value.listener_filters_timeout,
            Some(Duration::from_secs(15)),
        )?,
        continue_on_listener_filters_timeout: value.continue_on_listener_filters_timeout,
        chains,
        default_chain,
        index,
        backlog: number(&value.tcp_backlog_size),
        transparent: truth(&value.transparent).unwrap_or(false),
        freebind: truth(&value.freebind).unwrap_or(false),
        original_src: filters.original_src,
        tcp_keepalive: value.tcp_keepalive.as_ref().map(keepalive),
        access_logs: each("access_log", &value.access_log, failures)?,
        metadata: metadata(&value.metadata).at("metadata")?,
    })
}

/// The filter that only connections pass whose handshake failed.
const REFUSED: &str = "has(connection.transport_failure_reason) && connection.transport_failure_reason != ''";

/// A log of a listener. Nothing but connections that were refused is written to it, so the filter that says this says nothing more.
fn failures(value: &log::AccessLog) -> Result<crate::model::access_log::AccessLog, Bad> {
    let specifier = value.filter.as_ref().and_then(|filter| filter.filter_specifier.as_ref());
    let extension = match specifier {
        Some(log::access_log_filter::FilterSpecifier::ExtensionFilter(filter)) => filter.config_type.as_ref(),
        _ => None,
    };
    let of_refused = extension.is_some_and(|log::extension_filter::ConfigType::TypedConfig(any)| {
        decode::<ExpressionFilter>(any).is_ok_and(|filter| filter.expression == REFUSED)
    });
    let filter = value.filter.clone().filter(|_| !of_refused);
    access_log::access_log(&log::AccessLog { filter, ..value.clone() })
}

fn additional(value: &pb::AdditionalAddress) -> Result<std::net::SocketAddr, Bad> {
    only!(value, pb::AdditionalAddress { address } refuse { socket_options, tcp_keepalive });
    socket(value.address.as_ref().ok_or_else(|| Bad::field("address", "missing"))?).at("address")
}

#[derive(Default)]
struct ListenerFilters {
    original_dst: bool,
    original_src: Option<u32>,
    inspectors: Inspectors,
}

fn listener_filters(filters: &[pb::ListenerFilter]) -> Result<ListenerFilters, Bad> {
    let mut out = ListenerFilters::default();
    each("listener_filters", filters, |filter| listener_filter(filter, &mut out))?;
    Ok(out)
}

fn listener_filter(value: &pb::ListenerFilter, out: &mut ListenerFilters) -> Result<(), Bad> {
    let any = match &value.config_type {
        Some(pb::listener_filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::listener_filter::ConfigType::ConfigDiscovery(_)) => return Err(Bad::unsupported("config_discovery")),
        None => return Err(Bad::field("typed_config", "missing")),
    };
    let disabled = given("filter_disabled", &value.filter_disabled, |p| predicate(p, 0))?.unwrap_or_default();
    match type_name(any) {
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => out.original_dst = true,
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
            out.original_src = Some(original_src(&decode(any).at("typed_config")?).at("typed_config")?);
        }
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            tls_inspector(&decode(any).at("typed_config")?).at("typed_config")?;
            out.inspectors.tls = Some(Inspector { disabled });
            return Ok(());
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            let config = decode(any).and_then(|config| proxy_protocol(&config)).at("typed_config")?;
            out.inspectors.proxy = Some(config);
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            out.inspectors.http = Some(Inspector { disabled });
            return Ok(());
        }
        other => {
            return Err(Bad::field(
                "typed_config",
                format_args!("unsupported listener filter {} ({other})", value.name),
            ));
        }
    }
    if disabled == PortPredicate::Never { Ok(()) } else { Err(Bad::unsupported("filter_disabled")) }
}

fn tls_inspector(value: &inspect::tls_inspector::v3::TlsInspector) -> Result<(), Bad> {
    only!(value, inspect::tls_inspector::v3::TlsInspector {} refuse {
        enable_ja3_fingerprinting, enable_ja4_fingerprinting, initial_read_buffer_size, close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    });
    Ok(())
}

/// The mark of packets to upstreams.
fn original_src(value: &inspect::original_src::v3::OriginalSrc) -> Result<u32, Bad> {
    only!(value, inspect::original_src::v3::OriginalSrc { mark } refuse { bind_port });
    Ok(value.mark)
}

fn proxy_protocol(value: &inspect::proxy_protocol::v3::ProxyProtocol) -> Result<ProxyHeader, Bad> {
    use core::proxy_protocol_config::Version;
    only!(value, inspect::proxy_protocol::v3::ProxyProtocol {
        allow_requests_without_proxy_protocol, disallowed_versions, stat_prefix
    } refuse { rules, pass_through_tlvs, tlv_location });
    let disallowed = |version: Version| value.disallowed_versions.contains(&(version as i32));
    let header = ProxyHeader {
        optional: value.allow_requests_without_proxy_protocol,
        v1: !disallowed(Version::V1),
        v2: !disallowed(Version::V2),
    };
    if header.v1 || header.v2 { Ok(header) } else { Err(Bad::field("disallowed_versions", "no version is left")) }
}

fn predicate(value: &pb::ListenerFilterChainMatchPredicate, depth: usize) -> Result<PortPredicate, Bad> {
    use pb::listener_filter_chain_match_predicate::Rule as R;
    if depth > 16 {
        return Err(Bad::new("nested too deeply"));
    }
    let all = |rules: &[pb::ListenerFilterChainMatchPredicate]| {
        each("rules", rules, |r| predicate(r, depth.saturating_add(1)))
    };
    Ok(match &value.rule {
        Some(R::OrMatch(set)) => PortPredicate::Or(all(&set.rules).at("or_match")?),
        Some(R::AndMatch(set)) => PortPredicate::And(all(&set.rules).at("and_match")?),
        Some(R::NotMatch(rule)) => {
            PortPredicate::Not(Box::new(predicate(rule, depth.saturating_add(1)).at("not_match")?))
        }
        Some(R::AnyMatch(true)) => PortPredicate::Always,
        Some(R::AnyMatch(false)) | None => return Err(Bad::new("empty rule")),
        Some(R::DestinationPortRange(range)) => {
            let bound = |n: i32| {
                u32::try_from(n)
                    .ok()
                    .filter(|n| *n <= 65536)
                    .ok_or_else(|| Bad::field("destination_port_range", "out of range"))
            };
            PortPredicate::Range { start: bound(range.start)?, end: bound(range.end)? }
        }
    })
}

fn filter_chain(value: &pb::FilterChain) -> Result<FilterChain, Bad> {
    only!(value, pb::FilterChain {
        filter_chain_match, filters, metadata, transport_socket, transport_socket_connect_timeout, name, use_proxy_proto
    } refuse {});
    let tls = given("transport_socket", &value.transport_socket, tls::downstream_socket)?.flatten();
    let mut on_new_connection = Vec::new();
    let mut rbac = Vec::new();
    let mut ext_authz = Vec::new();
    let mut sni_port = None;
    let mut kind = None;
    let mut stats = None;
    each("filters", &value.filters, |filter| {
        if kind.is_some() {
            return Err(Bad::new("a filter after the terminal filter"));
        }
        if let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type
            && super::stats::is_stats(&filter.name, any)
        {
            stats = Some(Arc::new(super::stats::stats(any).at("typed_config")?));
            return Ok(());
        }
        if let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type
            && type_name(any) == "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
        {
            let asked = decode(any).and_then(|a| super::ext_authz::network(&a)).at("typed_config")?;
            ext_authz.push((rbac.len(), Arc::new(asked)));
            return Ok(());
        }
        kind = network_filter(filter, &mut on_new_connection, &mut rbac, &mut sni_port)?;
        Ok(())
    })?;
    Ok(FilterChain {
        name: value.name.as_str().into(),
        matching: given("filter_chain_match", &value.filter_chain_match, chain_match::chain_match)?.unwrap_or_default(),
        tls,
        transport_socket_connect_timeout: limit(
            "transport_socket_connect_timeout",
            &value.transport_socket_connect_timeout,
            None,
        )?,
        on_new_connection,
        sni_port,
        rbac,
        ext_authz,
        stats,
        kind: kind.ok_or_else(|| Bad::field("filters", "no terminal filter"))?,
        metadata: metadata(&value.metadata).at("metadata")?,
    })
}

fn network_filter(
    value: &pb::Filter,
    state: &mut Vec<FilterStateSet>,
    rbac: &mut Vec<Arc<crate::model::rbac::RbacFilter>>,
    sni_port: &mut Option<u16>,
) -> Result<Option<ChainKind>, Bad> {
    let any = match &value.config_type {
        Some(pb::filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::filter::ConfigType::ConfigDiscovery(_)) => return Err(Bad::unsupported("config_discovery")),
        None => {
            return Err(Bad::field(
                "typed_config",
                format_args!("unsupported network filter \"{}\" without configuration", value.name),
            ));
        }
    };
    match type_name(any) {
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            Ok(Some(ChainKind::Tcp(decode(any).and_then(|p| tcp_proxy(&p)).at("typed_config")?)))
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            let manager = decode(any).and_then(|m| hcm::connection_manager(&m)).at("typed_config")?;
            Ok(Some(ChainKind::Http(Box::new(manager))))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let filter = decode(any).and_then(|r| super::rbac::network(&r)).at("typed_config")?;
            rbac.push(Arc::new(filter));
            Ok(None)
        }
        "envoy.extensions.filters.network.set_filter_state.v3.Config" => {
            let config: set_state::Config = decode(any).at("typed_config")?;
            only!(&config, set_state::Config { on_new_connection } refuse { on_downstream_tls_handshake, on_downstream_data });
            state.extend(
                each("on_new_connection", &config.on_new_connection, filter::filter_state_set).at("typed_config")?,
            );
            Ok(None)
        }
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig" => {
            *sni_port = Some(decode(any).and_then(|config| sni_forward(&config)).at("typed_config")?);
            Ok(None)
        }
        // The cluster is named by the SNI, which is what such filter state says.
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster" => {
            state.push(FilterStateSet {
                key: FilterStateKey::TcpCluster,
                value: super::headers::format("%REQUESTED_SERVER_NAME%")?,
                skip_if_empty: true,
            });
            Ok(None)
        }
        _ => Err(Bad::field("typed_config", format_args!("unsupported network filter \"{}\"", value.name))),
    }
}

/// The port to which connections go; the name is the one they ask for. The cluster has its own settings of look-ups.
fn sni_forward(value: &sni::FilterConfig) -> Result<u16, Bad> {
    only!(value, sni::FilterConfig { dns_cache_config, port_specifier } refuse { save_upstream_address });
    let Some(sni::filter_config::PortSpecifier::PortValue(port)) = value.port_specifier else { return Ok(443) };
    u16::try_from(port).ok().filter(|p| *p > 0).ok_or_else(|| Bad::field("port_value", "out of range"))
}

fn tunnel(value: &tcp::tcp_proxy::TunnelingConfig) -> Result<Tunnel, Bad> {
    only!(value, tcp::tcp_proxy::TunnelingConfig { hostname, headers_to_add } refuse {
        use_post, post_path, propagate_response_headers, propagate_response_trailers, request_id_extension, request_id_header, request_id_metadata_key, formatters,
    });
    if value.hostname.is_empty() {
        return Err(Bad::field("hostname", "empty"));
    }
    Ok(Tunnel {
        hostname: super::headers::format(&value.hostname).at("hostname")?,
        headers: super::headers::ops("request", &value.headers_to_add, &[]).at("headers_to_add")?,
    })
}

fn tcp_proxy(value: &tcp::TcpProxy) -> Result<TcpProxy, Bad> {
    only!(value, tcp::TcpProxy {
        stat_prefix, idle_timeout, access_log, max_connect_attempts, hash_policy, max_downstream_connection_duration, cluster_specifier,
        metadata_match, tunneling_config
    } refuse {
        on_demand, downstream_idle_timeout, upstream_idle_timeout, backoff_options,
        max_downstream_connection_duration_jitter_percentage, access_log_flush_interval, flush_access_log_on_connected,
        access_log_options, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy, upstream_connect_mode, max_early_data_bytes,
        check_drain_close,
    });
    let cluster = match &value.cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            TcpTarget::Cluster(name.as_str().into())
        }
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(_)) | None => return Err(Bad::field("cluster", "missing")),
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            let clusters = each("weighted_clusters.clusters", &weighted.clusters, |c| {
                only!(c, tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight } refuse { metadata_match });
                if c.weight == 0 {
                    return Err(Bad::field("weight", "must be greater than zero"));
                }
                Ok((Name::from(c.name.as_str()), c.weight))
            })?;
            let total = clusters.iter().try_fold(0_u32, |sum, (_, weight)| sum.checked_add(*weight));
            let total =
                total.filter(|t| *t > 0).ok_or_else(|| Bad::field("weighted_clusters", "bad sum of weights"))?;
            TcpTarget::Weighted { clusters, total }
        }
    };
    let hashes = each("hash_policy", &value.hash_policy, |policy| match &policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(()),
        _ => Err(Bad::unsupported("policy_specifier")),
    })?;
    let attempts = number(&value.max_connect_attempts).unwrap_or(1);
    if attempts == 0 {
        return Err(Bad::field("max_connect_attempts", "must be greater than zero"));
    }
    Ok(TcpProxy {
        tunnel: given("tunneling_config", &value.tunneling_config, tunnel)?.map(Box::new),
        subset: super::route_action::subset(&value.metadata_match).at("metadata_match")?,
        cluster,
        stat_prefix: value.stat_prefix.as_str().into(),
        idle_timeout: limit("idle_timeout", &value.idle_timeout, Some(Duration::from_secs(3600)))?,
        max_connect_attempts: attempts,
        max_connection_duration: given(
            "max_downstream_connection_duration",
            &value.max_downstream_connection_duration,
            duration,
        )?,
        hash_source_ip: !hashes.is_empty(),
        access_logs: each("access_log", &value.access_log, access_log::access_log)?,
    })
}
