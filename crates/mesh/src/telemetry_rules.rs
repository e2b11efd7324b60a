//! What Telemetries say, one by one, and what holds where none says anything (semantics §25.1).
//!
//! Invariant: `None` of a field leaves it as the level above has it. How levels add up is `telemetry`'s.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{istio::telemetry::IstioMetric, scalar::Number};
use carrick_base::Labels;

use crate::model::{
    Origin,
    telemetry::{LogSink, TagValue, TracingProvider},
};

/// Which side of a proxy traffic is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the workload asks for; and all that a gateway forwards.
    Client,
    /// What the workload is asked for.
    Server,
}

/// Sides that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sides {
    pub client: bool,
    pub server: bool,
}

impl Sides {
    pub fn has(self, side: Side) -> bool {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub origin: Origin,
    /// Empty selects everything.
    pub selector: Labels,
    /// Gateways of the Gateway API that are meant alone.
    pub gateways: Option<Vec<Arc<str>>>,
    pub logging: Vec<Logging>,
    pub tracing: Vec<Tracing>,
    pub metrics: Vec<Metrics>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logging {
    pub sides: Sides,
    /// Empty: those of the level above.
    pub providers: Vec<Arc<str>>,
    pub disabled: bool,
    pub filter: Option<Arc<str>>,
}

/// `None` of a field leaves it as the level above has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tracing {
    pub sides: Sides,
    pub provider: Option<Arc<str>>,
    pub sampling: Option<Number>,
    pub disabled: Option<bool>,
    pub propagate: Option<bool>,
    pub by_request_id: Option<bool>,
    pub istio_tags: Option<bool>,
    pub tags: Option<Vec<(Arc<str>, TagValue)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// Empty: those of the level above.
    pub providers: Vec<Arc<str>>,
    pub changes: Vec<MetricChange>,
    /// Milliseconds.
    pub interval: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetricChange {
    pub sides: Sides,
    pub metric: IstioMetric,
    pub disabled: Option<bool>,
    /// Labels and their expressions; `None` removes one.
    pub tags: Vec<(Arc<str>, Option<Arc<str>>)>,
}

/// What holds where no object says anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fallback {
    /// `accessLogFile`: where neither objects nor default providers say anything of logs.
    pub file: Option<Arc<LogSink>>,
    pub logs: Vec<Arc<str>>,
    pub provider: Option<Arc<str>>,
    /// `defaultConfig.tracing.zipkin`: where no provider is named.
    pub zipkin: Option<Arc<TracingProvider>>,
    pub sampling: Number,
    pub max_path_length: u32,
    pub tags: Vec<(Arc<str>, TagValue)>,
    pub metrics: bool,
    /// The mesh's id: its trust domain.
    pub mesh: Arc<str>,
}

/// What a provider is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Provider {
    /// Access logs.
    Log(Arc<LogSink>),
    /// Traces; and the longest path in an attribute.
    Trace(Arc<TracingProvider>, u32),
    /// Metrics.
    Metrics,
    /// An external authorizer, which is told of nothing.
    Authorizer,
    /// Its kind is not supported.
    Unsupported(String),
    /// There is no such service, now.
    Missing(String),
}

/// Providers by name.
pub(crate) type Providers = BTreeMap<Arc<str>, Provider>;
