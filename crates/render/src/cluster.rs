//! Clusters of both sides, and the three that every proxy has (semantics §2.9, §3.3, §4.5, §6).
//!
//! Invariant: a refused cluster has no endpoints and no way to get any; the built-in clusters never have TLS.

use std::collections::HashMap;

use carrick_mesh::{
    model::{
        Address,
        policy::{ConnectionPool, HashTable, LoadBalancer, OutlierDetection, ProxyHeader, RetryBudget, Warmup},
    },
    names,
    view::{ClientSocket, Cluster, ClusterKind, InboundCluster, InboundTarget, Load, PortClass, UpstreamHttp, UserTls},
};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as api, CircuitBreakers, UpstreamConnectionOptions,
                circuit_breakers::{Thresholds, thresholds},
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
                    LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig,
                    TransportSocketMatch,
                    common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
                },
            },
            core::v3::{
                Address as At, BindConfig, Http1ProtocolOptions, Http2ProtocolOptions,
                HttpProtocolOptions as CommonHttp, KeepaliveSettings, ProxyProtocolConfig, RuntimeDouble, TcpKeepalive,
                TransportSocket, UpstreamHttpProtocolOptions, proxy_protocol_config,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::filters::network::http_connection_manager::v3::HttpFilter,
        extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport,
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                explicit_http_config::ProtocolConfig,
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Any, Struct, Value, value::Kind as ValueKind},
};
use prost::{Message, Name};

use crate::{
    dns, endpoint, stats, tls,
    wire::{
        self,
        stable::{self, Kind},
    },
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// The source address of connections to the workload that must not be captured again.
const LOOP_V4: &str = "127.0.0.6";
const LOOP_V6: &str = "::6";

/// An outbound cluster.
pub fn outbound(cluster: &Cluster) -> Any {
    let mut out = base(&cluster.name, cluster.limits.connect_timeout, &cluster.limits.pool);
    let refused = matches!(cluster.socket, ClientSocket::Refused(_));
    match cluster.kind {
        _ if refused => {
            set_type(&mut out, DiscoveryType::Static);
            out.load_assignment = Some(no_endpoints(&cluster.name));
        }
        ClusterKind::Eds => {
            set_type(&mut out, DiscoveryType::Eds);
            out.eds_cluster_config =
                Some(EdsClusterConfig { eds_config: wire::ads(), service_name: cluster.name.to_string() });
            load_balancer(&mut out, &cluster.load_balancer);
        }
        ClusterKind::OriginalDst => original_dst(&mut out),
        ClusterKind::StrictDns | ClusterKind::LogicalDns => {
            let logical = cluster.kind == ClusterKind::LogicalDns;
            set_type(&mut out, if logical { DiscoveryType::LogicalDns } else { DiscoveryType::StrictDns });
            if let Some(names) = &cluster.names {
                dns::resolve(&mut out, names);
            }
            load_balancer(&mut out, &cluster.load_balancer);
        }
        ClusterKind::DynamicForward => {
            out.cluster_discovery_type = cluster.names.as_ref().map(dns::dynamic);
            out.lb_policy = LbPolicy::ClusterProvided.into();
        }
    }
    if let Some(warmup) = &cluster.warmup {
        slow_start(&mut out, warmup);
    }
    if let Some(budget) = &cluster.retry_budget {
        retry_budget(&mut out, budget);
    }
    let mut user = None;
    match &cluster.socket {
        ClientSocket::Plain(_) | ClientSocket::Refused(_) => {}
        ClientSocket::Auto(mesh) => {
            let marked = Struct { fields: HashMap::from([("tlsMode".to_owned(), text("istio"))]) };
            out.transport_socket_matches = vec![
                TransportSocketMatch {
                    name: "tlsMode-istio".to_owned(),
                    r#match: Some(marked),
                    transport_socket: tls::mesh_client(mesh),
                },
                TransportSocketMatch {
                    name: "tlsMode-disabled".to_owned(),
                    r#match: Some(Struct::default()),
                    transport_socket: tls::plain(),
                },
            ];
        }
        ClientSocket::Mesh(mesh) => out.transport_socket = tls::mesh_client(mesh),
        ClientSocket::User(own) => {
            out.transport_socket = tls::user_client(own, cluster.http);
            user = Some(own);
        }
    }
    if let Some(version) = cluster.proxy_header.filter(|_| !refused) {
        out.transport_socket = proxy_header(out.transport_socket.take(), version);
        for each in &mut out.transport_socket_matches {
            each.transport_socket = proxy_header(each.transport_socket.take(), version);
        }
    }
    if let Some(outlier) = &cluster.outlier_detection {
        outlier_detection(&mut out, outlier);
    }
    if cluster.shares {
        let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
        out.common_lb_config.get_or_insert_default().locality_config_specifier = Some(weighted);
    }
    let filters = if cluster.tells { stats::agent::tell() } else { Vec::new() };
    http_options(&mut out, cluster.http, &cluster.limits.pool, user, filters);
    let endpoints = cluster.endpoints.as_ref().filter(|_| !refused);
    with_metadata(&out, outbound_metadata(cluster), endpoints.map(|load| inline(cluster, load)))
}

/// Endpoints of a cluster that resolves names. A cluster of one name at a time takes no more than one, and none takes paths.
fn inline(cluster: &Cluster, load: &Load) -> stable::ClusterLoadAssignment {
    let mut load = load.clone();
    for group in &mut load.groups {
        group.endpoints.retain(|e| !matches!(e.address, Address::Unix(_)));
    }
    load.groups.retain(|g| !g.endpoints.is_empty());
    if cluster.kind == ClusterKind::LogicalDns {
        load.groups.truncate(1);
        load.groups.iter_mut().for_each(|g| g.endpoints.truncate(1));
    }
    endpoint::message(&load)
}

/// A cluster behind an inbound port.
pub fn inbound(cluster: &InboundCluster) -> Any {
    let unlimited = ConnectionPool::default();
    let pool = cluster.pool.as_ref().unwrap_or(&unlimited);
    let mut out = base(&cluster.name, cluster.connect_timeout, pool);
    match &cluster.to {
        InboundTarget::AsSent => {
            original_dst(&mut out);
            out.upstream_bind_config = bind(cluster.v6);
        }
        InboundTarget::Loopback(port) => {
            let host = if cluster.v6 { "::1" } else { "127.0.0.1" };
            fixed(&mut out, one_endpoint(&cluster.name, wire::address(host, *port)));
        }
        InboundTarget::Pod(ip, port) => {
            fixed(&mut out, one_endpoint(&cluster.name, wire::address(&wire::host(*ip), *port)));
            out.upstream_bind_config = bind(cluster.v6);
        }
        InboundTarget::Unix(path) => fixed(&mut out, one_endpoint(&cluster.name, wire::pipe(path))),
        InboundTarget::Nowhere => fixed(&mut out, no_endpoints(&cluster.name)),
    }
    let http = match cluster.class {
        PortClass::Http { h2: true } => UpstreamHttp::Http2,
        PortClass::Auto => UpstreamHttp::Downstream,
        PortClass::Http { h2: false } | PortClass::Tcp => UpstreamHttp::Http1,
    };
    http_options(&mut out, http, pool, None, Vec::new());
    let service = stable::Struct::from([
        ("host", cluster.service.as_str().into()),
        ("name", (&*cluster.service_name.name).into()),
        ("namespace", (&*cluster.service_name.namespace).into()),
    ]);
    let services = Kind::List(stable::List { values: vec![Kind::Struct(service).into()] });
    with_metadata(&out, stable::Struct::from([("services", services.into())]), None)
}

fn fixed(out: &mut api::Cluster, endpoints: ClusterLoadAssignment) {
    set_type(out, DiscoveryType::Static);
    out.load_assignment = Some(endpoints);
}

/// To where the client wanted to go.
pub fn passthrough(connect_timeout: u64) -> api::Cluster {
    let mut out = base(names::PASSTHROUGH, connect_timeout, &ConnectionPool::default());
    original_dst(&mut out);
    http_options(&mut out, UpstreamHttp::Downstream, &ConnectionPool::default(), None, Vec::new());
    out
}

/// To the workload's port that the client wanted.
pub fn inbound_passthrough(connect_timeout: u64, v6: bool) -> api::Cluster {
    let mut out = base(names::INBOUND_PASSTHROUGH, connect_timeout, &ConnectionPool::default());
    original_dst(&mut out);
    out.upstream_bind_config = bind(v6);
    http_options(&mut out, UpstreamHttp::Downstream, &ConnectionPool::default(), None, Vec::new());
    out
}

/// To nowhere.
pub fn black_hole(connect_timeout: u64) -> api::Cluster {
    let mut out = api::Cluster {
        name: names::BLACK_HOLE.to_owned(),
        connect_timeout: wire::millis(connect_timeout),
        ..Default::default()
    };
    set_type(&mut out, DiscoveryType::Static);
    out
}

fn base(name: &str, connect_timeout: u64, pool: &ConnectionPool) -> api::Cluster {
    let limit = |value: Option<u32>| wire::number(value.unwrap_or(u32::MAX));
    let keepalive = pool.tcp_keepalive.as_ref().map(|k| TcpKeepalive {
        keepalive_probes: k.probes.and_then(wire::number),
        keepalive_time: k.time.and_then(wire::number),
        keepalive_interval: k.interval.and_then(wire::number),
    });
    api::Cluster {
        name: name.to_owned(),
        connect_timeout: wire::millis(connect_timeout),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: limit(pool.max_connections),
                max_pending_requests: limit(pool.max_pending_requests),
                max_requests: limit(pool.max_requests),
                max_retries: limit(pool.max_retries),
                track_remaining: true,
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        upstream_connection_options: keepalive
            .map(|k| UpstreamConnectionOptions { tcp_keepalive: Some(k), ..Default::default() }),
        ..api::Cluster::default()
    }
}

fn set_type(out: &mut api::Cluster, kind: DiscoveryType) {
    out.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
}

fn original_dst(out: &mut api::Cluster) {
    set_type(out, DiscoveryType::OriginalDst);
    out.lb_policy = LbPolicy::ClusterProvided.into();
    out.cleanup_interval = wire::millis(60_000);
}

fn bind(v6: bool) -> Option<BindConfig> {
    let host = if v6 { LOOP_V6 } else { LOOP_V4 };
    Some(BindConfig { source_address: Some(wire::socket_address(host, 0)), ..BindConfig::default() })
}

fn no_endpoints(name: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: name.to_owned(), ..ClusterLoadAssignment::default() }
}

fn one_endpoint(name: &str, address: Option<At>) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address, ..Endpoint::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    ClusterLoadAssignment {
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() }],
        ..no_endpoints(name)
    }
}

fn load_balancer(out: &mut api::Cluster, from: &LoadBalancer) {
    let policy = match from {
        LoadBalancer::LeastRequest => LbPolicy::LeastRequest,
        LoadBalancer::RoundRobin => LbPolicy::RoundRobin,
        LoadBalancer::Random => LbPolicy::Random,
        LoadBalancer::Passthrough => LbPolicy::ClusterProvided,
        LoadBalancer::ConsistentHash(hash) => match hash.table {
            HashTable::Ring(size) => {
                let config = RingHashLbConfig { minimum_ring_size: wire::long(size), ..RingHashLbConfig::default() };
                out.lb_config = Some(LbConfig::RingHashLbConfig(config));
                LbPolicy::RingHash
            }
            HashTable::Maglev(size) => {
                out.lb_config = Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: wire::long(size) }));
                LbPolicy::Maglev
            }
        },
    };
    out.lb_policy = policy.into();
}

fn outlier_detection(out: &mut api::Cluster, from: &OutlierDetection) {
    let enforced = |value: Option<u32>| value.and_then(|v| wire::number(if v > 0 { 100 } else { 0 }));
    let counted = |value: Option<u32>| value.filter(|v| *v > 0).and_then(wire::number);
    out.outlier_detection = Some(api::OutlierDetection {
        consecutive_5xx: counted(from.consecutive_5xx),
        enforcing_consecutive_5xx: enforced(from.consecutive_5xx),
        consecutive_gateway_failure: counted(from.consecutive_gateway),
        enforcing_consecutive_gateway_failure: enforced(from.consecutive_gateway),
        split_external_local_origin_errors: from.split_local_errors,
        consecutive_local_origin_failure: counted(from.consecutive_local),
        enforcing_consecutive_local_origin_failure: enforced(from.consecutive_local)
            .filter(|_| from.split_local_errors),
        enforcing_success_rate: wire::number(0),
        enforcing_local_origin_success_rate: from.split_local_errors.then(|| wire::number(0)).flatten(),
        interval: wire::millis(from.interval),
        base_ejection_time: wire::millis(from.base_ejection),
        max_ejection_percent: wire::number(from.max_ejection_percent),
        ..api::OutlierDetection::default()
    });
    out.common_lb_config = Some(CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: f64::from(from.min_health_percent) }),
        ..CommonLbConfig::default()
    });
}

/// New endpoints get their full share step by step, with the two algorithms that can do that.
fn slow_start(out: &mut api::Cluster, from: &Warmup) {
    let config = SlowStartConfig {
        slow_start_window: wire::millis(from.duration),
        aggression: Some(RuntimeDouble {
            default_value: from.aggression.0,
            runtime_key: "carrick.slow_start.aggression".to_owned(),
        }),
        min_weight_percent: Some(Percent { value: from.minimum_percent.0 }),
    };
    out.lb_config = match out.lb_policy() {
        LbPolicy::LeastRequest => Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            slow_start_config: Some(config),
            ..LeastRequestLbConfig::default()
        })),
        LbPolicy::RoundRobin => {
            Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(config) }))
        }
        _ => return,
    };
}

fn retry_budget(out: &mut api::Cluster, from: &RetryBudget) {
    let budget = thresholds::RetryBudget {
        budget_percent: Some(Percent { value: from.percent.0 }),
        min_retry_concurrency: wire::number(from.minimum),
        ..thresholds::RetryBudget::default()
    };
    for limits in out.circuit_breakers.iter_mut().flat_map(|b| &mut b.thresholds) {
        limits.retry_budget = Some(budget);
    }
}

/// Connections begin with a PROXY header; whatever they are otherwise follows.
fn proxy_header(inner: Option<TransportSocket>, version: ProxyHeader) -> Option<TransportSocket> {
    let version = match version {
        ProxyHeader::V1 => proxy_protocol_config::Version::V1,
        ProxyHeader::V2 => proxy_protocol_config::Version::V2,
    };
    let config = ProxyProtocolUpstreamTransport {
        config: Some(ProxyProtocolConfig { version: version.into(), ..ProxyProtocolConfig::default() }),
        transport_socket: inner.or_else(tls::plain),
        ..ProxyProtocolUpstreamTransport::default()
    };
    wire::transport_socket("envoy.transport_sockets.upstream_proxy_protocol", wire::any(&config))
}

/// HTTP options of a cluster. HTTP/1.1 without any is Envoy's default and is left out.
fn http_options(
    out: &mut api::Cluster,
    http: UpstreamHttp,
    pool: &ConnectionPool,
    user: Option<&UserTls>,
    http_filters: Vec<HttpFilter>,
) {
    let limited = pool.http_idle_timeout.is_some()
        || pool.max_requests_per_connection.is_some()
        || pool.max_connection_duration.is_some();
    let common = limited.then(|| CommonHttp {
        max_connection_duration: pool.max_connection_duration.and_then(wire::millis),
        idle_timeout: pool.http_idle_timeout.and_then(wire::millis),
        max_requests_per_connection: pool.max_requests_per_connection.and_then(wire::number),
        ..CommonHttp::default()
    });
    let sni = user.filter(|u| u.auto_sni).map(|u| UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: u.auto_san,
        ..UpstreamHttpProtocolOptions::default()
    });
    if http == UpstreamHttp::Http1 && common.is_none() && sni.is_none() && http_filters.is_empty() {
        return;
    }
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: pool.max_concurrent_streams.and_then(wire::number),
        connection_keepalive: pool.http2_keepalive.map(|(interval, timeout)| KeepaliveSettings {
            interval: wire::millis(interval),
            timeout: wire::millis(timeout),
            ..KeepaliveSettings::default()
        }),
        ..Http2ProtocolOptions::default()
    };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let protocol = match http {
        UpstreamHttp::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        UpstreamHttp::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        UpstreamHttp::Downstream => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2),
            ..UseDownstreamHttpConfig::default()
        }),
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_http_protocol_options: sni,
        upstream_protocol_options: Some(protocol),
        http_filters,
        ..HttpProtocolOptions::default()
    };
    out.typed_extension_protocol_options = HashMap::from([(HTTP_OPTIONS.to_owned(), wire::any(&options))]);
}

/// What `proxy-config clusters` reads back: the service, the subset, the rule.
fn outbound_metadata(cluster: &Cluster) -> stable::Struct {
    let service = stable::Struct::from([
        ("host", cluster.hostname.as_str().into()),
        ("name", (&*cluster.service.name).into()),
        ("namespace", (&*cluster.service.namespace).into()),
    ]);
    let services = Kind::List(stable::List { values: vec![Kind::Struct(service).into()] });
    let mut istio = stable::Struct::from([
        ("default_original_port", Kind::Number(f64::from(cluster.port)).into()),
        ("services", services.into()),
    ]);
    if let Some(rule) = &cluster.rule {
        let path = format!("/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}", rule.namespace, rule.name);
        istio.fields.insert("config".to_owned(), path.as_str().into());
    }
    if !cluster.subset.is_empty() {
        istio.fields.insert("subset".to_owned(), (&*cluster.subset).into());
    }
    if let ClientSocket::User(_) = cluster.socket {
        istio.fields.insert("alpn_override".to_owned(), "false".into());
    }
    istio
}

/// Packs a cluster with its `istio` metadata and endpoints, whose maps are appended in a stable order: protobuf messages may be concatenated.
fn with_metadata(
    cluster: &api::Cluster,
    istio: stable::Struct,
    load_assignment: Option<stable::ClusterLoadAssignment>,
) -> Any {
    let metadata = stable::Metadata { filter_metadata: [("istio".to_owned(), istio)].into() };
    let mut value = cluster.encode_to_vec();
    value.extend(stable::ClusterMetadata { load_assignment, metadata: Some(metadata) }.encode_to_vec());
    Any { type_url: api::Cluster::type_url(), value }
}

fn text(value: &str) -> Value {
    Value { kind: Some(ValueKind::StringValue(value.to_owned())) }
}
