//! Counters: each worker writes its own, readers add them up.
//!
//! Invariant: a counter has one writer; the maps are locked only when a new cluster, listener or label set appears, when
//! a request with new labels ends, and by readers. Names are made when read.

use crate::names::istio;
use crate::options::Workload;
use carrick_proxy_core::RuntimeConfig;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A value that one thread changes and others read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn dec(&self) {
        self.0.store(self.0.load(Relaxed).saturating_sub(1), Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $name { $(pub $field: Counter),* }
        impl $name {
            fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f(stringify!($field), self.$field.get());)*
            }
        }
    };
}

counters! {
    /// `cluster.<name>.`
    ClusterStats {
        upstream_cx_total, upstream_cx_active, upstream_cx_connect_fail, upstream_cx_connect_timeout,
        upstream_cx_destroy, upstream_cx_overflow, upstream_cx_closed_idle, upstream_cx_http1_total, upstream_cx_http2_total,
        upstream_cx_rx_bytes_total, upstream_cx_tx_bytes_total, upstream_cx_none_healthy,
        upstream_rq_total, upstream_rq_active, upstream_rq_completed, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx,
        upstream_rq_5xx, upstream_rq_retry, upstream_rq_retry_success, upstream_rq_retry_limit_exceeded,
        upstream_rq_retry_overflow, upstream_rq_pending_overflow, upstream_rq_timeout, upstream_rq_per_try_timeout,
        upstream_rq_rx_reset, upstream_rq_resent_unseen, upstream_rq_shadow, health_check_success, health_check_failure, ssl_handshake, ssl_connection_error,
    }
}
counters! {
    /// `http.<stat_prefix>.`
    HttpStats {
        downstream_cx_total, downstream_cx_active, downstream_cx_http1_total, downstream_cx_http2_total,
        downstream_cx_ssl_total, downstream_cx_protocol_error, downstream_cx_idle_timeout, downstream_cx_drain_close,
        downstream_cx_upgrades_total, downstream_cx_upgrades_active,
        downstream_rq_total, downstream_rq_active, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx, downstream_rq_5xx,
        downstream_rq_timeout, downstream_rq_idle_timeout, no_route, no_cluster, rq_total,
    }
}
counters! {
    /// `tcp.<stat_prefix>.`
    TcpStats {
        downstream_cx_total, downstream_cx_no_route, downstream_cx_tx_bytes_total, downstream_cx_rx_bytes_total,
        downstream_cx_active, idle_timeout,
    }
}
counters! {
    /// `listener.<address>.`
    ListenerStats {
        downstream_cx_total, downstream_cx_active, downstream_cx_destroy, no_filter_chain_match,
        downstream_pre_cx_timeout, ssl_handshake, ssl_connection_error, ssl_no_certificate,
        ssl_fail_verify_error, loop_refused,
    }
}

/// What distinguishes requests in Istio's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestKey {
    pub outbound: bool,
    pub cluster: Arc<str>,
    pub code: u16,
    pub flags: &'static str,
    pub grpc: Option<i32>,
    pub is_grpc: bool,
    pub peer: Option<Arc<str>>,
    pub mutual: bool,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct RequestCell {
    count: u64,
    millis: f64,
    buckets: [u64; 19],
    request_bytes: u64,
    response_bytes: u64,
}

/// What distinguishes connections in Istio's TCP metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TcpKey {
    pub outbound: bool,
    pub cluster: Arc<str>,
    pub flags: &'static str,
    pub peer: Option<Arc<str>>,
    pub mutual: bool,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct TcpCell {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

/// One worker's counters.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ClusterStats>>>,
    https: Mutex<BTreeMap<Arc<str>, Arc<HttpStats>>>,
    tcps: Mutex<BTreeMap<Arc<str>, Arc<TcpStats>>>,
    listeners: Mutex<BTreeMap<Arc<str>, Arc<ListenerStats>>>,
    requests: Mutex<HashMap<RequestKey, RequestCell>>,
    connections: Mutex<HashMap<TcpKey, TcpCell>>,
    filters: Mutex<BTreeMap<FilterKey, u64>>,
}

/// The connection manager of a filter, if it is one of HTTP, and the counter.
type FilterKey = (Option<Arc<str>>, Arc<str>);

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entry<T: Default>(map: &Mutex<BTreeMap<Arc<str>, Arc<T>>>, name: &Arc<str>) -> Arc<T> {
    Arc::clone(lock(map).entry(Arc::clone(name)).or_default())
}

impl WorkerStats {
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterStats> {
        entry(&self.clusters, name)
    }
    pub fn http(&self, prefix: &Arc<str>) -> Arc<HttpStats> {
        entry(&self.https, prefix)
    }
    pub fn tcp(&self, prefix: &Arc<str>) -> Arc<TcpStats> {
        entry(&self.tcps, prefix)
    }
    pub fn listener(&self, name: &Arc<str>) -> Arc<ListenerStats> {
        entry(&self.listeners, name)
    }

    /// Counts for a filter: below `http.<prefix>.`, or below nothing.
    pub fn filter(&self, prefix: Option<&Arc<str>>, counter: &Arc<str>) {
        let key = (prefix.map(Arc::clone), Arc::clone(counter));
        *lock(&self.filters).entry(key).or_default() += 1;
    }

    /// Counts a finished request.
    pub fn request(&self, key: RequestKey, took: Duration, request_bytes: u64, response_bytes: u64) {
        let mut all = lock(&self.requests);
        let cell = all.entry(key).or_default();
        let millis = took.as_secs_f64() * 1000.0;
        cell.count += 1;
        cell.millis += millis;
        cell.request_bytes = cell.request_bytes.saturating_add(request_bytes);
        cell.response_bytes = cell.response_bytes.saturating_add(response_bytes);
        let at = istio::DURATION_BUCKETS.iter().position(|b| millis <= *b);
        if let Some(bucket) = at.and_then(|i| cell.buckets.get_mut(i)) {
            *bucket += 1;
        }
    }

    /// Counts an opened connection.
    pub fn opened(&self, key: TcpKey) {
        lock(&self.connections).entry(key).or_default().opened += 1;
    }

    /// Counts a closed connection and its bytes.
    pub fn closed(&self, key: TcpKey, sent: u64, received: u64) {
        let mut all = lock(&self.connections);
        let cell = all.entry(key).or_default();
        cell.closed += 1;
        cell.sent = cell.sent.saturating_add(sent);
        cell.received = cell.received.saturating_add(received);
    }
}

/// The counters of an engine at one moment.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    counters: BTreeMap<String, u64>,
    requests: BTreeMap<RequestKey, RequestCell>,
    connections: BTreeMap<TcpKey, TcpCell>,
    workload: Workload,
}

impl Stats {
    pub(crate) fn merge<'a>(
        workers: impl Iterator<Item = &'a WorkerStats>,
        config: &RuntimeConfig,
        workload: &Workload,
        uptime: Duration,
    ) -> Stats {
        let mut s = Stats { workload: workload.clone(), ..Stats::default() };
        let mut threads = 0;
        for w in workers {
            threads += 1;
            for (name, c) in lock(&w.clusters).iter() {
                c.each(|k, v| s.add("cluster", name, k, v));
            }
            for (name, c) in lock(&w.https).iter() {
                c.each(|k, v| s.add("http", name, k, v));
            }
            for (name, c) in lock(&w.tcps).iter() {
                c.each(|k, v| s.add("tcp", name, k, v));
            }
            for (name, c) in lock(&w.listeners).iter() {
                c.each(|k, v| s.add("listener", name, k, v));
            }
            for ((prefix, counter), n) in lock(&w.filters).iter() {
                let name = match prefix {
                    Some(prefix) => format!("http.{prefix}.{counter}"),
                    None => counter.to_string(),
                };
                *s.counters.entry(name).or_default() += n;
            }
            for (key, c) in lock(&w.requests).iter() {
                let sum = s.requests.entry(key.clone()).or_default();
                sum.count += c.count;
                sum.millis += c.millis;
                sum.request_bytes = sum.request_bytes.saturating_add(c.request_bytes);
                sum.response_bytes = sum.response_bytes.saturating_add(c.response_bytes);
                sum.buckets.iter_mut().zip(c.buckets).for_each(|(a, b)| *a += b);
            }
            for (key, c) in lock(&w.connections).iter() {
                let sum = s.connections.entry(key.clone()).or_default();
                sum.opened += c.opened;
                sum.closed += c.closed;
                sum.sent = sum.sent.saturating_add(c.sent);
                sum.received = sum.received.saturating_add(c.received);
            }
        }
        for (key, value) in [
            ("server.uptime", uptime.as_secs()),
            ("server.live", 1),
            ("server.concurrency", threads),
            ("server.access_logs_dropped", crate::log::dropped()),
            ("cluster_manager.active_clusters", config.clusters.len() as u64),
            ("listener_manager.total_listeners_active", config.listeners.by_name.len() as u64),
        ] {
            s.counters.insert(key.to_string(), value);
        }
        s
    }

    fn add(&mut self, kind: &str, name: &str, counter: &str, value: u64) {
        let counter = counter.strip_prefix("ssl_").map_or_else(|| counter.to_string(), |c| format!("ssl.{c}"));
        *self.counters.entry(format!("{kind}.{name}.{counter}")).or_default() += value;
    }

    /// Counters under Envoy's dotted names, in order.
    pub fn counters(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().map(|(k, v)| (k.as_str(), *v))
    }

    /// A counter by its dotted name; 0 if nothing was counted.
    pub fn get(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Envoy's `/stats` text: `name: value` lines.
    pub fn envoy_text(&self) -> String {
        let mut out = String::new();
        for (k, v) in &self.counters {
            let _ = writeln!(out, "{k}: {v}");
        }
        out
    }

    /// Prometheus text: Istio's metrics and the counters as `envoy_*`.
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        self.istio_http(&mut out);
        self.istio_tcp(&mut out);
        let mut by_metric: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
        for (key, v) in &self.counters {
            let (metric, label) = prometheus_name(key);
            by_metric.entry(metric).or_default().push((label, *v));
        }
        for (metric, rows) in by_metric {
            let kind =
                if metric.ends_with("_active") || metric.starts_with("envoy_server_") { "gauge" } else { "counter" };
            let _ = writeln!(out, "# TYPE {metric} {kind}");
            for (label, v) in rows {
                let _ = writeln!(out, "{metric}{{{label}}} {v}");
            }
        }
        out
    }

    fn istio_http(&self, out: &mut String) {
        if self.requests.is_empty() {
            return;
        }
        let rows: Vec<(String, &RequestCell)> =
            self.requests.iter().map(|(k, c)| (self.request_labels(k), c)).collect();
        let _ = writeln!(out, "# TYPE {} counter", istio::REQUESTS);
        for (labels, c) in &rows {
            let _ = writeln!(out, "{}{{{labels}}} {}", istio::REQUESTS, c.count);
        }
        let _ = writeln!(out, "# TYPE {} histogram", istio::DURATION);
        for (labels, c) in &rows {
            let mut total = 0;
            for (bound, n) in istio::DURATION_BUCKETS.iter().zip(c.buckets) {
                total += n;
                let _ = writeln!(out, "{}_bucket{{{labels},le=\"{bound}\"}} {total}", istio::DURATION);
            }
            let _ = writeln!(out, "{}_bucket{{{labels},le=\"+Inf\"}} {}", istio::DURATION, c.count);
            let _ = writeln!(out, "{}_sum{{{labels}}} {}", istio::DURATION, c.millis);
            let _ = writeln!(out, "{}_count{{{labels}}} {}", istio::DURATION, c.count);
        }
        for (name, get) in [
            (istio::REQUEST_BYTES, (|c| c.request_bytes) as fn(&RequestCell) -> u64),
            (istio::RESPONSE_BYTES, |c| c.response_bytes),
        ] {
            let _ = writeln!(out, "# TYPE {name} histogram");
            for (labels, c) in &rows {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", c.count);
                let _ = writeln!(out, "{name}_sum{{{labels}}} {}", get(c));
                let _ = writeln!(out, "{name}_count{{{labels}}} {}", c.count);
            }
        }
    }

    fn istio_tcp(&self, out: &mut String) {
        for (name, get) in [
            (istio::TCP_OPENED, (|c| c.opened) as fn(&TcpCell) -> u64),
            (istio::TCP_CLOSED, |c| c.closed),
            (istio::TCP_SENT, |c| c.sent),
            (istio::TCP_RECEIVED, |c| c.received),
        ] {
            if self.connections.is_empty() {
                continue;
            }
            let _ = writeln!(out, "# TYPE {name} counter");
            for (k, c) in &self.connections {
                let labels = self.common_labels(k.outbound, &k.cluster, k.peer.as_deref(), k.mutual);
                let _ = writeln!(
                    out,
                    "{name}{{{labels},request_protocol=\"tcp\",response_flags=\"{}\"}} {}",
                    k.flags,
                    get(c)
                );
            }
        }
    }

    fn request_labels(&self, k: &RequestKey) -> String {
        let mut l = self.common_labels(k.outbound, &k.cluster, k.peer.as_deref(), k.mutual);
        let _ = write!(
            l,
            ",request_protocol=\"{}\",response_code=\"{}\",grpc_response_status=\"{}\",response_flags=\"{}\"",
            if k.is_grpc { "grpc" } else { "http" },
            k.code,
            k.grpc.map(|g| g.to_string()).unwrap_or_default(),
            k.flags,
        );
        l
    }

    /// Labels of both sides: what we know of ourselves, and of the other side what its identity and the cluster's
    /// name say.
    fn common_labels(&self, outbound: bool, cluster: &str, peer: Option<&str>, mutual: bool) -> String {
        let w = &self.workload;
        let known = |s: &str| if s.is_empty() { "unknown".to_string() } else { escape(s) };
        let host = cluster.split('|').nth(3).filter(|h| !h.is_empty()).map(str::to_string);
        let own_service = if w.canonical_service.is_empty() { &w.name } else { &w.canonical_service };
        let host = host.unwrap_or_else(|| if outbound { cluster.to_string() } else { own_service.clone() });
        let mut parts = host.split('.');
        let service = parts.next().unwrap_or_default().to_string();
        let service_ns = if host.contains(".svc.") || host.ends_with(".svc") {
            parts.next().unwrap_or_default().to_string()
        } else if outbound {
            String::new()
        } else {
            w.namespace.clone()
        };
        let peer = peer.unwrap_or_default();
        let peer_ns = peer.split_once("/ns/").map(|(_, r)| r.split('/').next().unwrap_or_default()).unwrap_or_default();
        let ours = |side: &str| {
            format!(
                "{side}_workload=\"{}\",{side}_workload_namespace=\"{}\",{side}_app=\"{}\",{side}_version=\"{}\",{side}_canonical_service=\"{}\",{side}_canonical_revision=\"{}\",{side}_cluster=\"{}\"",
                known(&w.name),
                known(&w.namespace),
                known(&w.app),
                known(&w.version),
                known(own_service),
                if w.canonical_revision.is_empty() { "latest".into() } else { escape(&w.canonical_revision) },
                known(&w.cluster),
            )
        };
        let theirs = |side: &str, service: &str, ns: &str| {
            format!(
                "{side}_workload=\"unknown\",{side}_workload_namespace=\"{}\",{side}_app=\"unknown\",{side}_version=\"unknown\",{side}_canonical_service=\"{}\",{side}_canonical_revision=\"latest\",{side}_cluster=\"unknown\"",
                known(ns),
                known(service),
            )
        };
        let (source, destination) = if outbound {
            (ours("source"), theirs("destination", &service, &service_ns))
        } else {
            (theirs("source", "", peer_ns), ours("destination"))
        };
        let principal = |p: &str| if p.is_empty() { "unknown".to_string() } else { escape(p) };
        format!(
            "reporter=\"{}\",{source},source_principal=\"{}\",{destination},destination_principal=\"{}\",destination_service=\"{}\",destination_service_name=\"{}\",destination_service_namespace=\"{}\",connection_security_policy=\"{}\"",
            if outbound { "source" } else { "destination" },
            principal(if outbound { "" } else { peer }),
            principal(if outbound { peer } else { "" }),
            known(&host),
            known(&service),
            known(&service_ns),
            if outbound {
                "unknown"
            } else if mutual {
                "mutual_tls"
            } else {
                "none"
            },
        )
    }
}

fn escape(s: &str) -> String {
    s.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `cluster.NAME.counter` → (`envoy_cluster_counter`, `cluster_name="NAME"`).
fn prometheus_name(key: &str) -> (String, String) {
    let Some((kind, rest)) = key.split_once('.') else { return (format!("envoy_{key}"), String::new()) };
    if kind == "server" || kind.ends_with("_manager") {
        return (format!("envoy_{kind}_{rest}"), String::new());
    }
    let rest_of = |s: &str| s.rfind(".ssl.").or_else(|| s.rfind('.'));
    let Some(at) = rest_of(rest) else { return (format!("envoy_{kind}_{rest}"), String::new()) };
    let (name, counter) = rest.split_at(at);
    let counter = counter.trim_start_matches('.').replace('.', "_");
    let label = match kind {
        "cluster" => "cluster_name",
        "http" => "http_conn_manager_prefix",
        "tcp" => "tcp_prefix",
        _ => "listener_address",
    };
    (format!("envoy_{kind}_{counter}"), format!("{label}=\"{}\"", escape(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_added_up_under_both_kinds_of_names() {
        let (a, b) = (WorkerStats::default(), WorkerStats::default());
        let name: Arc<str> = "outbound|80||shop.test.svc.cluster.local".into();
        a.cluster(&name).upstream_rq_total.add(2);
        b.cluster(&name).upstream_rq_total.inc();
        b.cluster(&name).ssl_handshake.inc();
        let key = RequestKey {
            outbound: true,
            cluster: name.clone(),
            code: 200,
            flags: "-",
            grpc: None,
            is_grpc: false,
            peer: Some("spiffe://cluster.local/ns/test/sa/shop".into()),
            mutual: true,
        };
        a.request(key.clone(), Duration::from_millis(3), 1, 2);
        b.request(key, Duration::from_millis(30), 1, 2);
        let s = Stats::merge([&a, &b].into_iter(), &RuntimeConfig::default(), &Workload::default(), Duration::ZERO);
        assert_eq!(s.get("cluster.outbound|80||shop.test.svc.cluster.local.upstream_rq_total"), 3);
        assert_eq!(s.get("cluster.outbound|80||shop.test.svc.cluster.local.ssl.handshake"), 1);
        let text = s.prometheus();
        assert!(
            text.contains(
                "envoy_cluster_upstream_rq_total{cluster_name=\"outbound|80||shop.test.svc.cluster.local\"} 3"
            ),
            "{text}"
        );
        assert!(text.contains("envoy_cluster_ssl_handshake{"), "{text}");
        let line = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        assert!(line.ends_with(" 2"), "{line}");
        assert!(
            line.contains("destination_service_namespace=\"test\"")
                && line.contains("destination_principal=\"spiffe://cluster.local/ns/test/sa/shop\""),
            "{line}"
        );
        assert!(text.contains("le=\"5\"} 1\n") && text.contains("le=\"50\"} 2\n"), "{text}");
    }
}
