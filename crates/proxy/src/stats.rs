//! Counters: each worker writes its own, readers add them up.
//!
//! Invariant: a counter has one writer; the maps are locked only when a new cluster, listener or label set appears, when
//! a request with new labels ends, and by readers. Names are made when read.

use crate::counter::{Counter, escape, metric_name};
use crate::metrics::{Cells, Sets};
use crate::options::Workload;
use carrick_proxy_core::RuntimeConfig;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
        upstream_rq_rx_reset, upstream_rq_resent_unseen, upstream_rq_shadow, health_check_success, health_check_failure, ssl_handshake, ssl_session_reused, ssl_connection_error,
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
        tracing_random_sampling, tracing_service_forced, tracing_client_enabled, tracing_not_traceable,
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
        downstream_pre_cx_timeout, ssl_handshake, ssl_session_reused, ssl_connection_error, ssl_no_certificate,
        ssl_fail_verify_error, loop_refused,
    }
}

/// One worker's counters.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ClusterStats>>>,
    https: Mutex<BTreeMap<Arc<str>, Arc<HttpStats>>>,
    tcps: Mutex<BTreeMap<Arc<str>, Arc<TcpStats>>>,
    listeners: Mutex<BTreeMap<Arc<str>, Arc<ListenerStats>>>,
    /// Istio's metrics.
    pub sets: Sets,
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
}

/// The counters of an engine at one moment.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    counters: BTreeMap<String, u64>,
    cells: Cells,
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
        let (mut threads, mut refused) = (0, 0);
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
            s.cells.add(&w.sets);
            refused += w.sets.refused();
        }
        for (key, value) in [
            ("server.uptime", uptime.as_secs()),
            ("server.live", 1),
            ("server.concurrency", threads),
            ("server.access_logs_dropped", crate::log::dropped()),
            ("server.metric_sets_refused", refused),
            ("cluster_manager.active_clusters", config.clusters.len() as u64),
            ("listener_manager.total_listeners_active", config.listeners.by_name.len() as u64),
        ] {
            s.counters.insert(key.to_string(), value);
        }
        s
    }

    fn add(&mut self, kind: &str, name: &str, counter: &str, value: u64) {
        let below = ["ssl", "tracing"].into_iter().find_map(|scope| {
            counter.strip_prefix(scope)?.strip_prefix('_').map(|counter| format!("{scope}.{counter}"))
        });
        let counter = below.unwrap_or_else(|| counter.to_string());
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
        self.cells.write(&self.workload, &mut out);
        let mut by_metric: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
        for (key, v) in &self.counters {
            let (metric, label) = prometheus_name(key);
            let metric = metric_name(&metric);
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
}

/// `cluster.NAME.counter` → (`envoy_cluster_counter`, `cluster_name="NAME"`).
fn prometheus_name(key: &str) -> (String, String) {
    let Some((kind, rest)) = key.split_once('.') else { return (format!("envoy_{key}"), String::new()) };
    if kind == "server" || kind.ends_with("_manager") {
        return (format!("envoy_{kind}_{rest}"), String::new());
    }
    if !matches!(kind, "cluster" | "http" | "tcp" | "listener") {
        return (format!("envoy_{}", key.replace('.', "_")), String::new());
    }
    let rest_of = |s: &str| s.rfind(".ssl.").or_else(|| s.rfind(".tracing.")).or_else(|| s.rfind('.'));
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
    use crate::metrics::{KeyRef, Measured, Memo, Service};

    #[test]
    fn workers_are_added_up_under_both_kinds_of_names() {
        let (a, b) = (WorkerStats::default(), WorkerStats::default());
        let name: Arc<str> = "outbound|80||shop.test.svc.cluster.local".into();
        a.cluster(&name).upstream_rq_total.add(2);
        b.cluster(&name).upstream_rq_total.inc();
        b.cluster(&name).ssl_handshake.inc();
        let service = Arc::new(Service {
            host: "shop.test.svc.cluster.local".into(),
            name: "shop".into(),
            namespace: "test".into(),
        });
        let principal: Arc<str> = "spiffe://cluster.local/ns/test/sa/shop".into();
        let key = KeyRef {
            outbound: true,
            service: Some(&service),
            host: None,
            code: 200,
            flags: "-",
            grpc: None,
            protocol: "http",
            mutual: true,
            peer: None,
            peer_principal: Some(&principal),
            own_principal: None,
            config: None,
            answers: &[],
        };
        for (worker, millis) in [(&a, 3), (&b, 30)] {
            let measured = Measured {
                took: Duration::from_millis(millis),
                request_bytes: 1,
                response_bytes: 2,
                request_messages: 0,
                response_messages: 0,
            };
            worker.sets.request(key, &mut Memo::default(), &measured);
        }
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
