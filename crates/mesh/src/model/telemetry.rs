//! What is logged, traced and counted of the traffic of one side of a proxy (semantics §25).
//!
//! Invariant: the default is nothing at all, and what nobody asked for is not here: no request pays for it.

use std::sync::Arc;

use carrick_api::scalar::Number;

/// What is told of requests and connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Telemetry {
    /// Access logs, sorted by the provider's name.
    pub logs: Vec<Arc<AccessLog>>,
    /// Traces.
    pub tracing: Option<Arc<Tracing>>,
    /// Metrics.
    pub stats: Stats,
}

impl Telemetry {
    /// Without whom the proxy cannot reach: an engine refuses what names a cluster that is not there.
    #[must_use]
    pub fn reaching(self: &Arc<Self>, reached: impl Fn(&str) -> bool) -> Arc<Self> {
        let log = |log: &Arc<AccessLog>| match &*log.sink {
            LogSink::File { .. } => true,
            LogSink::OpenTelemetry { to, .. } | LogSink::Grpc(GrpcLog { to, .. }) => reached(&to.cluster),
        };
        let trace = |tracing: &Arc<Tracing>| match &*tracing.provider {
            TracingProvider::OpenTelemetry { to, .. } | TracingProvider::Zipkin { to, .. } => reached(&to.cluster),
        };
        if self.logs.iter().all(log) && self.tracing.iter().all(trace) {
            return self.clone();
        }
        Arc::new(Self {
            logs: self.logs.iter().filter(|l| log(l)).cloned().collect(),
            tracing: self.tracing.clone().filter(trace),
            stats: self.stats.clone(),
        })
    }
}

/// One access log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessLog {
    /// Where it goes, and as what.
    pub sink: Arc<LogSink>,
    /// What is logged: a CEL expression; `None` for everything.
    pub filter: Option<Arc<str>>,
}

/// Where an access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogSink {
    /// A file, or standard output.
    File {
        /// Its path.
        path: Arc<str>,
        /// A line.
        format: LogFormat,
        /// Values that are not there are left out of JSON.
        omit_empty: bool,
    },
    /// An OpenTelemetry collector.
    OpenTelemetry {
        /// Where it is.
        to: Collector,
        /// The log's name; empty for Istio's.
        name: Arc<str>,
        /// The body; empty for Istio's text.
        body: Arc<str>,
        /// Attributes: a JSON object of formats; empty for none.
        attributes: Arc<str>,
    },
    /// A service of Envoy's access log API.
    Grpc(GrpcLog),
}

/// How a line looks. Empty texts stand for Istio's formats.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// A format string.
    Text(Arc<str>),
    /// A JSON object of format strings.
    Json(Arc<str>),
}

/// A service of Envoy's access log API.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GrpcLog {
    /// Where it is.
    pub to: Collector,
    /// The log's name.
    pub name: Arc<str>,
    /// It is told of connections; of requests otherwise.
    pub connections: bool,
    /// Filter state that is told.
    pub filter_state: Vec<Arc<str>>,
    /// Request headers that are told.
    pub request_headers: Vec<Arc<str>>,
    /// Response headers that are told.
    pub response_headers: Vec<Arc<str>>,
    /// Response trailers that are told.
    pub response_trailers: Vec<Arc<str>>,
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collector {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The host name that requests to it carry.
    pub authority: Arc<str>,
}

/// Traces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tracing {
    /// Who gets the spans.
    pub provider: Arc<TracingProvider>,
    /// Percent of requests that nobody decided on before.
    pub sampling: Number,
    /// What the workload is called.
    pub service: Arc<str>,
    /// More attributes of every span, sorted by name.
    pub tags: Vec<(Arc<str>, TagValue)>,
    /// Longest path in an attribute; 0 for Envoy's limit.
    pub max_path_length: u32,
    /// The request's id says whether it is traced.
    pub by_request_id: bool,
    /// The trace's headers are sent on.
    pub propagate: bool,
}

/// An attribute of a span.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TagValue {
    /// As it is.
    Literal(Arc<str>),
    /// Of an environment variable of the proxy, and what stands for it when it is not there.
    Environment(Arc<str>, Arc<str>),
    /// Of a request's header, likewise.
    Header(Arc<str>, Arc<str>),
    /// By an access log's format.
    Format(Arc<str>),
}

/// Who gets spans.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TracingProvider {
    /// An OpenTelemetry collector.
    OpenTelemetry {
        /// Where it is.
        to: Collector,
        /// Path and milliseconds, by HTTP; by gRPC otherwise.
        http: Option<(Arc<str>, u64)>,
        /// Headers that are sent along.
        headers: Vec<(Arc<str>, Arc<str>)>,
        /// Milliseconds for a call by gRPC.
        timeout: Option<u64>,
        /// Attributes of the environment variable `OTEL_RESOURCE_ATTRIBUTES` are added.
        from_environment: bool,
    },
    /// A collector of Zipkin's.
    Zipkin {
        /// Where it is.
        to: Collector,
        /// Path.
        path: Arc<str>,
        /// Trace ids are 64 bits long rather than 128.
        short_ids: bool,
        /// W3C's headers are read and sent, too.
        w3c: bool,
    },
}

/// Metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Stats {
    /// Nothing is said: the native engine counts as Istio does, another one not at all.
    #[default]
    Unsaid,
    /// The native engine counts, by these rules.
    Engine(StatsRules),
    /// The agent counts, of what Envoy tells it, if it counts at all; what other proxies say of themselves is taken off anyway.
    Agent(StatsRules),
}

/// What is different from Istio's metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StatsRules {
    /// Anything is counted at all.
    pub counts: bool,
    /// Rules, sorted by metric, at most one for each.
    pub metrics: Vec<MetricRule>,
    /// Milliseconds between two counts of connections that go on; 0 for the engine's choice.
    pub interval: u64,
}

/// What is different about one metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MetricRule {
    /// Istio's name without `istio_`; never empty.
    pub name: Arc<str>,
    /// It is not counted.
    pub drop: bool,
    /// Labels that are set, to CEL expressions.
    pub dimensions: Vec<(Arc<str>, Arc<str>)>,
    /// Labels that are left out.
    pub removed: Vec<Arc<str>>,
}
