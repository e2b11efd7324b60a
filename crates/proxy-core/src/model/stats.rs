//! What `istio.stats` says about Istio's metrics: labels taken away, added, and metrics left out.
//!
//! Invariant: metrics are known ones, expressions parse. Without the filter every metric has its standard labels.

use super::Name;
use super::expr::Expr;

/// Upper bounds of the buckets of Istio's histograms (spec §25.2), in milliseconds or bytes.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Istio's standard metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Metric {
    Requests,
    Duration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Requests,
        Self::Duration,
        Self::RequestBytes,
        Self::ResponseBytes,
        Self::RequestMessages,
        Self::ResponseMessages,
        Self::TcpOpened,
        Self::TcpClosed,
        Self::TcpSent,
        Self::TcpReceived,
    ];

    /// Its name in configuration; in metrics with `istio_` before it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests_total",
            Self::Duration => "request_duration_milliseconds",
            Self::RequestBytes => "request_bytes",
            Self::ResponseBytes => "response_bytes",
            Self::RequestMessages => "request_messages_total",
            Self::ResponseMessages => "response_messages_total",
            Self::TcpOpened => "tcp_connections_opened_total",
            Self::TcpClosed => "tcp_connections_closed_total",
            Self::TcpSent => "tcp_sent_bytes_total",
            Self::TcpReceived => "tcp_received_bytes_total",
        }
    }
}

/// `stats.PluginConfig`.
#[derive(Debug, Default)]
pub struct Stats {
    /// In order; later ones go over earlier ones.
    pub overrides: Vec<Override>,
    /// Expressions that each request is asked, in the order of [`Value::Asked`].
    pub asked: Vec<Expr>,
    /// Services that a cluster does not name are not named by the request's host either.
    pub disable_host_fallback: bool,
}

/// One entry of `metrics`.
#[derive(Debug)]
pub struct Override {
    /// Of which metric; `None` = all.
    pub metric: Option<Metric>,
    /// Labels that are taken away.
    pub remove: Vec<Name>,
    /// Labels that are set.
    pub set: Vec<(Name, Value)>,
    /// The metric is not kept.
    pub drop: bool,
}

/// Value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Always this.
    Literal(Name),
    /// The answer to a question of [`Stats::asked`].
    Asked(usize),
}

impl Stats {
    /// What is left of a metric's labels; `None` if the metric is not kept. `answers` are those to [`Stats::asked`].
    #[must_use]
    pub fn labels(&self, metric: Metric, mut labels: Labels, answers: &[Box<str>]) -> Option<Labels> {
        for one in self.overrides.iter().filter(|o| o.metric.is_none_or(|m| m == metric)) {
            if one.drop {
                return None;
            }
            for (name, value) in &one.set {
                let text: &str = match value {
                    Value::Literal(text) => text,
                    Value::Asked(at) => answers.get(*at).map_or("unknown", |a| a),
                };
                match labels.iter_mut().find(|(n, _)| n == &**name) {
                    Some((_, old)) => text.clone_into(old),
                    None => labels.push((name.to_string(), text.to_owned())),
                }
            }
            labels.retain(|(name, _)| !one.remove.iter().any(|r| &**r == name));
        }
        Some(labels)
    }
}

/// Names and values.
pub type Labels = Vec<(String, String)>;
