//! The blocks of a traffic policy, resolved: protobuf's zero means absent (semantics §4.5).
//!
//! Invariant: total: every value has a meaning, so nothing here can fail.

use std::sync::Arc;

use carrick_api::{
    istio::{destination_rule as api, traffic},
    scalar::{Duration, Number},
};

use crate::model::{
    locality::LocalityPolicy,
    policy::{
        Balancing, ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, HashKey, HashTable, Keepalive,
        LoadBalancer, LocalityChoice, OutlierDetection, PortedPolicy, ProxyHeader, RetryBudget, TrafficPolicy, Tunnel,
        Warmup,
    },
};

/// A duration in milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.get().as_millis()).unwrap_or(u64::MAX)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.get().as_secs()).unwrap_or(u32::MAX)
}

/// A limit of which zero (and less) means none.
fn limit(value: i32) -> Option<u32> {
    u32::try_from(value).ok().filter(|v| *v > 0)
}

pub(crate) fn keepalive(from: &traffic::TcpKeepalive) -> Keepalive {
    Keepalive {
        probes: (from.probes > 0).then_some(from.probes),
        time: from.time.map(seconds),
        interval: from.interval.map(seconds),
    }
}

pub(crate) fn connection_pool(from: &traffic::ConnectionPool) -> ConnectionPool {
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = &from.tcp {
        pool.max_connections = limit(tcp.max_connections);
        pool.connect_timeout = tcp.connect_timeout.map(millis);
        pool.tcp_keepalive = tcp.tcp_keepalive.as_ref().map(keepalive);
        pool.max_connection_duration = tcp.max_connection_duration.map(millis);
        pool.tcp_idle_timeout = tcp.idle_timeout.map(millis);
    }
    if let Some(http) = &from.http {
        pool.max_pending_requests = limit(http.http1_max_pending_requests);
        pool.max_requests = limit(http.http2_max_requests);
        pool.max_requests_per_connection = limit(http.max_requests_per_connection);
        pool.max_retries = limit(http.max_retries);
        pool.http_idle_timeout = http.idle_timeout.map(millis);
        pool.h2_upgrade = match http.h2_upgrade_policy {
            traffic::H2UpgradePolicy::Default => None,
            traffic::H2UpgradePolicy::DoNotUpgrade => Some(false),
            traffic::H2UpgradePolicy::Upgrade => Some(true),
        };
        pool.use_client_protocol = http.use_client_protocol;
        pool.max_concurrent_streams = limit(http.max_concurrent_streams);
        let pings = http.http2_keep_alive.as_ref();
        pool.http2_keepalive = pings.and_then(|p| Some((millis(p.interval?), millis(p.timeout?))));
    }
    pool
}

pub(crate) fn outlier_detection(from: &traffic::OutlierDetection) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: from.consecutive_5xx_errors,
        consecutive_gateway: from.consecutive_gateway_errors.or_else(|| limit(from.consecutive_errors)),
        split_local_errors: from.split_external_local_origin_errors,
        consecutive_local: from.consecutive_local_origin_failures,
        interval: from.interval.map_or(10_000, millis),
        base_ejection: from.base_ejection_time.map_or(30_000, millis),
        max_ejection_percent: limit(from.max_ejection_percent).unwrap_or(10).min(100),
        min_health_percent: limit(from.min_health_percent).unwrap_or(0).min(100),
    }
}

fn load_balancer(from: &traffic::LoadBalancer) -> Balancing {
    let simple = match from.simple.unwrap_or_default() {
        traffic::SimpleLb::Unspecified | traffic::SimpleLb::LeastConn | traffic::SimpleLb::LeastRequest => {
            LoadBalancer::LeastRequest
        }
        traffic::SimpleLb::Random => LoadBalancer::Random,
        traffic::SimpleLb::Passthrough => LoadBalancer::Passthrough,
        traffic::SimpleLb::RoundRobin => LoadBalancer::RoundRobin,
    };
    let hash = from.consistent_hash.as_ref().and_then(consistent_hash).map(LoadBalancer::ConsistentHash);
    Balancing {
        algorithm: hash.unwrap_or(simple),
        warmup: warmup(from),
        locality: from.locality_lb_setting.as_ref().map(|setting| {
            locality_policy(setting).map_or(LocalityChoice::Off, |policy| LocalityChoice::Policy(Arc::new(policy)))
        }),
    }
}

/// The block, or the older field that has the duration alone.
fn warmup(from: &traffic::LoadBalancer) -> Option<Warmup> {
    let (duration, block) = match &from.warmup {
        Some(block) => (block.duration?, Some(block)),
        None => (from.warmup_duration_secs?, None),
    };
    Some(Warmup {
        duration: millis(duration),
        minimum_percent: block.and_then(|b| b.minimum_percent).unwrap_or(Number(10.0)),
        aggression: block.and_then(|b| b.aggression).unwrap_or(Number(1.0)),
    })
}

/// `localityLbSetting`; `None` when it is switched off.
pub(crate) fn locality_policy(from: &traffic::LocalityLb) -> Option<LocalityPolicy> {
    let shares =
        |to: &std::collections::BTreeMap<String, u32>| to.iter().map(|(at, w)| (at.as_str().into(), *w)).collect();
    (from.enabled != Some(false)).then(|| LocalityPolicy {
        distribute: from.distribute.iter().map(|d| (d.from.as_str().into(), shares(&d.to))).collect(),
        failover: from.failover.iter().map(|f| (f.from.as_str().into(), f.to.as_str().into())).collect(),
        priority: from.failover_priority.iter().map(|p| p.as_str().into()).collect(),
    })
}

fn consistent_hash(from: &traffic::ConsistentHash) -> Option<ConsistentHash> {
    let key = if let Some(header) = &from.http_header_name {
        HashKey::Header(header.as_str().into())
    } else if let Some(cookie) = &from.http_cookie {
        HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_str().into(),
            ttl: cookie.ttl.map(millis),
            attributes: cookie.attributes.iter().map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect(),
        }
    } else if from.use_source_ip == Some(true) {
        HashKey::SourceIp
    } else {
        HashKey::Query(from.http_query_parameter_name.as_deref()?.into())
    };
    let table = match (&from.maglev, &from.ring_hash) {
        (Some(maglev), _) => HashTable::Maglev(maglev.table_size.map_or(65_537, |c| c.0)),
        (None, Some(ring)) => HashTable::Ring(ring.minimum_ring_size.map_or(1024, |c| c.0)),
        (None, None) => HashTable::Ring(from.minimum_ring_size.map_or(1024, |c| c.0)),
    };
    Some(ConsistentHash { key, table })
}

fn client_tls(from: &api::ClientTls) -> ClientTls {
    ClientTls {
        mode: match from.mode {
            api::ClientTlsMode::Disable => ClientTlsMode::Disable,
            api::ClientTlsMode::Simple => ClientTlsMode::Simple,
            api::ClientTlsMode::Mutual => ClientTlsMode::Mutual,
            api::ClientTlsMode::IstioMutual => ClientTlsMode::IstioMutual,
        },
        sni: from.sni.as_str().into(),
        subject_alt_names: from.subject_alt_names.iter().map(|s| Arc::from(s.as_str())).collect(),
        client_certificate: from.client_certificate.as_str().into(),
        private_key: from.private_key.as_str().into(),
        ca_certificates: from.ca_certificates.as_str().into(),
        ca_crl: from.ca_crl.as_str().into(),
        credential_name: from.credential_name.as_str().into(),
        insecure_skip_verify: from.insecure_skip_verify == Some(true),
    }
}

fn tunnel(from: &traffic::Tunnel) -> Option<Tunnel> {
    Some(Tunnel {
        post: from.protocol.eq_ignore_ascii_case("POST"),
        host: from.target_host.as_str().into(),
        port: u16::try_from(from.target_port).ok().filter(|p| *p > 0)?,
    })
}

/// A traffic policy with its port levels. Of two entries for a port the first counts.
pub(crate) fn policy(from: &api::TrafficPolicy) -> PortedPolicy {
    let mut out = PortedPolicy {
        base: TrafficPolicy {
            load_balancer: from.load_balancer.as_ref().map(load_balancer),
            connection_pool: from.connection_pool.as_ref().map(connection_pool),
            outlier_detection: from.outlier_detection.as_ref().map(outlier_detection),
            tls: from.tls.as_ref().map(client_tls),
            proxy_header: from.proxy_protocol.as_ref().map(|p| match p.version {
                traffic::ProxyProtocolVersion::V1 => ProxyHeader::V1,
                traffic::ProxyProtocolVersion::V2 => ProxyHeader::V2,
            }),
            tunnel: from.tunnel.as_ref().and_then(tunnel),
            retry_budget: from.retry_budget.as_ref().map(|b| RetryBudget {
                percent: b.percent.unwrap_or(Number(20.0)),
                minimum: b.min_retry_concurrency.unwrap_or(3),
            }),
        },
        ports: std::collections::BTreeMap::new(),
    };
    for entry in &from.port_level_settings {
        let Some(port) = entry.port.as_ref().and_then(|p| u16::try_from(p.number).ok()) else { continue };
        out.ports.entry(port).or_insert_with(|| TrafficPolicy {
            load_balancer: entry.load_balancer.as_ref().map(load_balancer),
            connection_pool: entry.connection_pool.as_ref().map(connection_pool),
            outlier_detection: entry.outlier_detection.as_ref().map(outlier_detection),
            tls: entry.tls.as_ref().map(client_tls),
            ..TrafficPolicy::default()
        });
    }
    out
}
