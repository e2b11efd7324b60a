//! Istio's metrics as Prometheus text.
//!
//! Invariant: the standard labels are always there and in one order, `unknown` for what is not known; what `istio.stats` changed is
//! applied last, and sets that became equal by it are added up.

use super::{Histogram, Key, RequestCell, Service, Sets, TcpCell, lock};
use crate::counter::escape;
use crate::options::Workload;
use carrick_proxy_core::model::stats::BUCKETS;
use carrick_proxy_core::model::stats::{Labels, Metric};
use carrick_proxy_core::peer::Peer;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

/// A histogram added up.
#[derive(Debug, Clone, Default)]
struct Sum {
    count: u64,
    sum: u64,
    buckets: [u64; BUCKETS.len()],
}

impl Sum {
    fn add(&mut self, h: &Histogram) {
        self.count = self.count.wrapping_add(h.count.get());
        self.sum = self.sum.wrapping_add(h.sum.get());
        self.buckets.iter_mut().zip(&h.buckets).for_each(|(a, b)| *a = a.wrapping_add(b.get()));
    }

    fn join(&mut self, other: &Sum) {
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.wrapping_add(other.sum);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(a, b)| *a = a.wrapping_add(b));
    }
}

#[derive(Debug, Clone, Default)]
struct Requests {
    millis: Sum,
    request_bytes: Sum,
    response_bytes: Sum,
    request_messages: u64,
    response_messages: u64,
}

#[derive(Debug, Clone, Default)]
struct Connections {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

/// All workers' cells, added up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cells {
    requests: HashMap<Key, Requests>,
    connections: HashMap<Key, Connections>,
}

impl Cells {
    /// Adds one worker's.
    pub fn add(&mut self, sets: &Sets) {
        for (key, cell) in lock(&sets.requests).iter() {
            let cell: &RequestCell = cell;
            let sum = self.requests.entry(key.clone()).or_default();
            sum.millis.add(&cell.millis);
            sum.request_bytes.add(&cell.request_bytes);
            sum.response_bytes.add(&cell.response_bytes);
            sum.request_messages = sum.request_messages.wrapping_add(cell.request_messages.get());
            sum.response_messages = sum.response_messages.wrapping_add(cell.response_messages.get());
        }
        for (key, cell) in lock(&sets.connections).iter() {
            let cell: &TcpCell = cell;
            let sum = self.connections.entry(key.clone()).or_default();
            sum.opened = sum.opened.wrapping_add(cell.opened.get());
            sum.closed = sum.closed.wrapping_add(cell.closed.get());
            sum.sent = sum.sent.wrapping_add(cell.sent.get());
            sum.received = sum.received.wrapping_add(cell.received.get());
        }
    }

    /// Appends all metrics.
    pub fn write(&self, own: &Workload, out: &mut String) {
        let requests: Vec<(&Key, Labels, &Requests)> =
            self.requests.iter().map(|(k, c)| (k, labels(own, k), c)).collect();
        let grpc = || requests.iter().filter(|(k, ..)| k.protocol == "grpc");
        counters(out, Metric::Requests, requests.iter().map(|(k, l, c)| (*k, l, c.millis.count)));
        histograms(out, Metric::Duration, requests.iter().map(|(k, l, c)| (*k, l, &c.millis)));
        histograms(out, Metric::RequestBytes, requests.iter().map(|(k, l, c)| (*k, l, &c.request_bytes)));
        histograms(out, Metric::ResponseBytes, requests.iter().map(|(k, l, c)| (*k, l, &c.response_bytes)));
        counters(out, Metric::RequestMessages, grpc().map(|(k, l, c)| (*k, l, c.request_messages)));
        counters(out, Metric::ResponseMessages, grpc().map(|(k, l, c)| (*k, l, c.response_messages)));
        let connections: Vec<(&Key, Labels, &Connections)> =
            self.connections.iter().map(|(k, c)| (k, labels(own, k), c)).collect();
        for (metric, get) in [
            (Metric::TcpOpened, (|c| c.opened) as fn(&Connections) -> u64),
            (Metric::TcpClosed, |c| c.closed),
            (Metric::TcpSent, |c| c.sent),
            (Metric::TcpReceived, |c| c.received),
        ] {
            counters(out, metric, connections.iter().map(|(k, l, c)| (*k, l, get(c))));
        }
    }
}

/// The labels as text, after what the configuration makes of them; `None` if the metric is not kept.
fn shown(key: &Key, metric: Metric, labels: &Labels) -> Option<String> {
    let changed;
    let labels = match &key.config.0 {
        None => labels,
        Some(config) => {
            changed = config.labels(metric, labels.clone(), &key.answers)?;
            &changed
        }
    };
    let mut out = String::new();
    for (name, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{}\"", escape(value));
    }
    Some(out)
}

fn counters<'a>(out: &mut String, metric: Metric, rows: impl Iterator<Item = (&'a Key, &'a Labels, u64)>) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (key, labels, value) in rows {
        if let Some(labels) = shown(key, metric, labels) {
            let sum = sums.entry(labels).or_default();
            *sum = sum.wrapping_add(value);
        }
    }
    if sums.is_empty() {
        return;
    }
    let name = metric.name();
    let _ = writeln!(out, "# TYPE istio_{name} counter");
    for (labels, value) in sums {
        let _ = writeln!(out, "istio_{name}{{{labels}}} {value}");
    }
}

fn histograms<'a>(out: &mut String, metric: Metric, rows: impl Iterator<Item = (&'a Key, &'a Labels, &'a Sum)>) {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (key, labels, value) in rows {
        if let Some(labels) = shown(key, metric, labels) {
            sums.entry(labels).or_default().join(value);
        }
    }
    if sums.is_empty() {
        return;
    }
    let name = metric.name();
    let _ = writeln!(out, "# TYPE istio_{name} histogram");
    for (labels, sum) in sums {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0_u64;
        for (bound, n) in BUCKETS.iter().zip(sum.buckets) {
            total = total.wrapping_add(n);
            let _ = writeln!(out, "istio_{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "istio_{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", sum.count);
        let _ = writeln!(out, "istio_{name}_sum{{{labels}}} {}", sum.sum);
        let _ = writeln!(out, "istio_{name}_count{{{labels}}} {}", sum.count);
    }
}

fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// Namespace of a mesh identity.
fn namespace(principal: &str) -> &str {
    principal.split_once("/ns/").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default()
}

/// Labels of both sides. What a proxy knows of itself it says; of the other side it says what that side's metadata say, its namespace
/// rather from its certificate.
fn labels(own: &Workload, key: &Key) -> Labels {
    let nobody = Peer::default();
    let peer = key.peer.as_deref().unwrap_or(&nobody);
    let peer_principal = key.peer_principal.as_deref().unwrap_or_default();
    let own_principal = key.own_principal.as_deref().unwrap_or_default();
    let none = Service::default();
    let service = key.service.as_deref().unwrap_or(&none);
    let canonical = if own.canonical_service.is_empty() { &own.name } else { &own.canonical_service };
    let peer_namespace = match namespace(peer_principal) {
        "" => &peer.namespace,
        proven => proven,
    };
    let mut out: Labels = Vec::with_capacity(28);
    let mut push = |name: &str, value: &str| out.push((name.to_owned(), value.to_owned()));
    push("reporter", if key.outbound { "source" } else { "destination" });
    let sides = if key.outbound {
        [("source", true), ("destination", false)]
    } else {
        [("source", false), ("destination", true)]
    };
    for (side, ours) in sides {
        let values: [(&str, &str); 8] = if ours {
            let revision = if own.canonical_revision.is_empty() { "latest" } else { &own.canonical_revision };
            [
                ("workload", &own.name),
                ("workload_namespace", &own.namespace),
                ("principal", own_principal),
                ("app", &own.app),
                ("version", &own.version),
                ("canonical_service", canonical),
                ("canonical_revision", revision),
                ("cluster", &own.cluster),
            ]
        } else {
            let revision = if peer.canonical_revision.is_empty() { "latest" } else { &*peer.canonical_revision };
            // Of a service without a workload that is known the service is all there is to say.
            [
                ("workload", &peer.workload),
                ("workload_namespace", peer_namespace),
                ("principal", peer_principal),
                ("app", &peer.app),
                ("version", &peer.version),
                ("canonical_service", &peer.canonical_service),
                ("canonical_revision", revision),
                ("cluster", &peer.cluster),
            ]
        };
        for (what, value) in values {
            push(&format!("{side}_{what}"), known(value));
        }
    }
    let host = match (&*service.host, &key.host) {
        ("", Some(host)) => host,
        ("", None) if !key.outbound && service.name.is_empty() => canonical.as_str(),
        (host, _) => host,
    };
    let name = if service.name.is_empty() { host } else { &service.name };
    let space = match &*service.namespace {
        "" if !key.outbound => own.namespace.as_str(),
        space => space,
    };
    push("destination_service", known(host));
    push("destination_service_name", known(name));
    push("destination_service_namespace", known(space));
    push("request_protocol", key.protocol);
    if key.protocol != "tcp" {
        push("response_code", &key.code.to_string());
        push("grpc_response_status", &key.grpc.map(|g| g.to_string()).unwrap_or_default());
    }
    push("response_flags", key.flags);
    let policy = match (key.outbound, key.mutual) {
        (true, _) => "unknown",
        (false, true) => "mutual_tls",
        (false, false) => "none",
    };
    push("connection_security_policy", policy);
    out
}
