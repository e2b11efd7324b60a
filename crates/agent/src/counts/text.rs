//! Counted sets as Prometheus' text.
//!
//! Invariant: a metric's name comes once, its lines are sorted, and sets whose labels are alike are one line.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::BuildHasher;

use carrick_proxy::Workload;

use super::Key;
use super::labels::labels;
use carrick_proxy_core::model::stats::BUCKETS;

use super::plan::Labels;

/// A histogram.
#[derive(Debug, Clone, Default)]
struct Sum {
    /// By the lowest bound that holds.
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.count = self.count.wrapping_add(1);
        self.sum += value;
        if let Some((bucket, _)) = self.buckets.iter_mut().zip(BUCKETS).find(|(_, bound)| value <= *bound) {
            *bucket = bucket.wrapping_add(1);
        }
    }

    fn join(&mut self, other: &Self) {
        self.count = self.count.wrapping_add(other.count);
        self.sum += other.sum;
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.wrapping_add(theirs);
        }
    }
}

/// Requests of one set.
#[derive(Debug, Default)]
pub(super) struct Requests {
    millis: Sum,
    request_bytes: Sum,
    response_bytes: Sum,
}

impl Requests {
    /// One more, with bytes of request and response.
    pub fn add(&mut self, millis: f64, sizes: (u64, u64)) {
        // Exact up to 2^53 bytes.
        #[allow(clippy::cast_precision_loss)]
        let (request, response) = (sizes.0 as f64, sizes.1 as f64);
        self.millis.add(millis);
        self.request_bytes.add(request);
        self.response_bytes.add(response);
    }
}

/// Connections of one set.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub opened: u64,
    pub closed: u64,
    pub sent: u64,
    pub received: u64,
}

/// Everything.
pub(super) fn write<S: BuildHasher>(
    own: &Workload,
    requests: &HashMap<Key, Requests, S>,
    connections: &HashMap<Key, Connections, S>,
) -> String {
    let mut out = String::new();
    let rows: Vec<(&Key, Labels, &Requests)> = requests.iter().map(|(k, c)| (k, labels(own, k), c)).collect();
    counters(&mut out, "requests_total", rows.iter().map(|(k, l, c)| (*k, l, c.millis.count)));
    for (metric, of) in [
        ("request_duration_milliseconds", (|c| &c.millis) as fn(&Requests) -> &Sum),
        ("request_bytes", |c| &c.request_bytes),
        ("response_bytes", |c| &c.response_bytes),
    ] {
        histograms(&mut out, metric, rows.iter().map(|(k, l, c)| (*k, l, of(c))));
    }
    let rows: Vec<(&Key, Labels, &Connections)> = connections.iter().map(|(k, c)| (k, labels(own, k), c)).collect();
    for (metric, of) in [
        ("tcp_connections_opened_total", (|c| c.opened) as fn(&Connections) -> u64),
        ("tcp_connections_closed_total", |c| c.closed),
        ("tcp_sent_bytes_total", |c| c.sent),
        ("tcp_received_bytes_total", |c| c.received),
    ] {
        counters(&mut out, metric, rows.iter().map(|(k, l, c)| (*k, l, of(c))));
    }
    out
}

/// The labels as text, after what objects made of them; `None` if the metric is not kept.
fn shown(key: &Key, metric: &str, labels: &Labels) -> Option<String> {
    let mut out = String::new();
    for (name, value) in key.plan.labels(metric, labels, &key.answers)? {
        let comma = if out.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    Some(out)
}

fn counters<'a>(out: &mut String, metric: &str, rows: impl Iterator<Item = (&'a Key, &'a Labels, u64)>) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (key, labels, value) in rows {
        if let Some(labels) = shown(key, metric, labels) {
            let sum = sums.entry(labels).or_default();
            *sum = sum.wrapping_add(value);
        }
    }
    if !sums.is_empty() {
        let _ = writeln!(out, "# TYPE istio_{metric} counter");
    }
    for (labels, value) in sums {
        let _ = writeln!(out, "istio_{metric}{{{labels}}} {value}");
    }
}

fn histograms<'a>(out: &mut String, metric: &str, rows: impl Iterator<Item = (&'a Key, &'a Labels, &'a Sum)>) {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (key, labels, value) in rows {
        if let Some(labels) = shown(key, metric, labels) {
            sums.entry(labels).or_default().join(value);
        }
    }
    if !sums.is_empty() {
        let _ = writeln!(out, "# TYPE istio_{metric} histogram");
    }
    for (labels, sum) in sums {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0_u64;
        for (bound, n) in BUCKETS.iter().zip(sum.buckets) {
            total = total.wrapping_add(n);
            let _ = writeln!(out, "istio_{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "istio_{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", sum.count);
        let _ = writeln!(out, "istio_{metric}_sum{{{labels}}} {}", sum.sum);
        let _ = writeln!(out, "istio_{metric}_count{{{labels}}} {}", sum.count);
    }
}
