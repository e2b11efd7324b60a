//! Which Telemetries act on a workload, and what they add up to for each of its sides (semantics §25.1).
//!
//! Invariant: the root namespace's object comes first, then the namespace's, then those that select the workload; of several
//! that select nothing the oldest counts alone. Later ones override what they name and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use carrick_api::istio::telemetry::IstioMetric;
use carrick_base::{Labels, ObjectRef};

use crate::{
    model::Origin,
    parts::telemetry::{self as parts, AccessLog, MetricRule, Stats, StatsRules, TagValue, Telemetry, TracingProvider},
    proxy::Counting,
    security::Subject,
    telemetry_rules::{Fallback, Provider, Providers, Rule},
};

pub use crate::telemetry_rules::Side;

/// All Telemetries by namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TelemetryIndex {
    root: Arc<str>,
    rules: HashMap<Arc<str>, Vec<Rule>>,
    providers: Providers,
    fallback: Fallback,
}

impl TelemetryIndex {
    pub(crate) fn build(all: Vec<Rule>, providers: Providers, fallback: Fallback, root: &Arc<str>) -> Self {
        let mut rules: HashMap<Arc<str>, Vec<Rule>> = HashMap::new();
        for rule in all {
            rules.entry(rule.origin.namespace().clone()).or_default().push(rule);
        }
        rules.values_mut().for_each(|list| list.sort_by(|a, b| a.origin.cmp(&b.origin)));
        Self { root: root.clone(), rules, providers, fallback }
    }

    /// What is told of one side's traffic.
    pub fn of(&self, namespace: &str, labels: &Labels, side: Side, counting: Counting) -> Arc<Telemetry> {
        let rules = self.applicable(namespace, labels);
        Arc::new(Telemetry {
            logs: self.logs(&rules, side).into_iter().map(Arc::new).collect(),
            tracing: self.tracing(&rules, side, (namespace, labels), counting).map(Arc::new),
            stats: self.stats(&rules, side, counting),
        })
    }

    /// From the mesh's to the workload's own.
    fn applicable(&self, namespace: &str, labels: &Labels) -> Vec<&Rule> {
        let of = |namespace: &str| self.rules.get(namespace).map_or(&[][..], Vec::as_slice).iter();
        let general = |rule: &&Rule| rule.selector.is_empty() && rule.gateways.is_none();
        let root = of(&self.root).find(general);
        let own = of(namespace).find(general).filter(|_| *namespace != *self.root);
        let subject = Subject { namespace, labels };
        let selecting = of(namespace)
            .filter(|rule| !general(rule) && subject.is_meant(&rule.origin, &rule.selector, rule.gateways.as_deref()));
        root.into_iter().chain(own).chain(selecting).collect()
    }

    fn logs(&self, rules: &[&Rule], side: Side) -> Vec<AccessLog> {
        let everything = || rules.iter().flat_map(|rule| &rule.logging);
        if everything().next().is_none() && self.fallback.logs.is_empty() {
            return self.fallback.file.iter().map(|sink| AccessLog { sink: sink.clone(), filter: None }).collect();
        }
        // The last level that names providers says who is told at all.
        let mut scope: BTreeSet<&Arc<str>> = self.fallback.logs.iter().collect();
        for rule in rules {
            let named: BTreeSet<_> =
                rule.logging.iter().filter(|l| l.sides.has(side)).flat_map(|l| &l.providers).collect();
            if !named.is_empty() {
                scope = named;
            }
        }
        let mut told: BTreeMap<&Arc<str>, Option<Arc<str>>> = BTreeMap::new();
        if everything().next().is_none() {
            told.extend(scope.iter().map(|name| (*name, None)));
        }
        let mut inherited: &[Arc<str>] = &self.fallback.logs;
        for logging in everything() {
            if !logging.providers.is_empty() {
                inherited = &logging.providers;
            }
            for name in inherited.iter().filter(|name| scope.contains(name) && logging.sides.has(side)) {
                if logging.disabled {
                    told.remove(name);
                } else {
                    told.insert(name, logging.filter.clone());
                }
            }
        }
        let sink = |name: &Arc<str>| match self.providers.get(name) {
            Some(Provider::Log(sink)) => Some(sink.clone()),
            _ => None,
        };
        told.into_iter().filter_map(|(name, filter)| Some(AccessLog { sink: sink(name)?, filter })).collect()
    }

    /// Who gets the spans of a side, how long their tags may be, and the object that says so where one does.
    fn collector<'a>(
        &'a self,
        rules: &[&'a Rule],
        side: Side,
    ) -> Option<(Arc<TracingProvider>, u32, Option<&'a Origin>)> {
        let says = || {
            let all = rules.iter().flat_map(|rule| rule.tracing.iter().map(|tracing| (&rule.origin, tracing)));
            all.filter(|(_, tracing)| tracing.sides.has(side))
        };
        if says().filter_map(|(_, rule)| rule.disabled).next_back() == Some(true) {
            return None;
        }
        let named = says().filter_map(|(origin, rule)| Some((rule.provider.as_ref()?, Some(origin)))).next_back();
        let Some((name, origin)) = named.or(self.fallback.provider.as_ref().map(|name| (name, None))) else {
            return Some((self.fallback.zipkin.clone()?, 0, None));
        };
        match self.providers.get(name) {
            Some(Provider::Trace(provider, longest)) => Some((provider.clone(), *longest, origin)),
            _ => None,
        }
    }

    /// Objects that ask for spans which the native engine does not make: there nothing is traced.
    pub fn beyond_native(&self, namespace: &str, labels: &Labels) -> Vec<ObjectRef> {
        let rules = self.applicable(namespace, labels);
        let of = |side| {
            let (provider, _, origin) = self.collector(&rules, side)?;
            Some(origin?.object()).filter(|_| !is_native(&provider))
        };
        let mut all: Vec<ObjectRef> = [Side::Client, Side::Server].into_iter().filter_map(of).collect();
        all.dedup();
        all
    }

    fn tracing(
        &self,
        rules: &[&Rule],
        side: Side,
        (namespace, labels): (&str, &Labels),
        counting: Counting,
    ) -> Option<parts::Tracing> {
        let (provider, longest, _) = self.collector(rules, side)?;
        if counting == Counting::Engine && !is_native(&provider) {
            return None;
        }
        let says = || rules.iter().flat_map(|rule| &rule.tracing).filter(|rule| rule.sides.has(side));
        let own = says().filter_map(|rule| rule.tags.as_ref()).next_back().unwrap_or(&self.fallback.tags);
        let (name, revision) = canonical(labels);
        let name = name.unwrap_or("unknown");
        let mut tags: BTreeMap<Arc<str>, TagValue> = BTreeMap::new();
        if says().filter_map(|rule| rule.istio_tags).next_back().unwrap_or(true) {
            let about = [
                ("istio.canonical_service", name),
                ("istio.canonical_revision", revision),
                ("istio.namespace", namespace),
                ("istio.mesh_id", &self.fallback.mesh),
                ("istio.cluster_id", CLUSTER),
            ];
            tags.extend(about.map(|(name, value)| (name.into(), TagValue::Literal(value.into()))));
        }
        tags.extend(own.iter().cloned());
        Some(parts::Tracing {
            provider,
            sampling: says().filter_map(|rule| rule.sampling).next_back().unwrap_or(self.fallback.sampling),
            service: format!("{name}.{namespace}").into(),
            tags: tags.into_iter().collect(),
            max_path_length: if longest > 0 { longest } else { self.fallback.max_path_length },
            by_request_id: says().filter_map(|rule| rule.by_request_id).next_back().unwrap_or(true),
            propagate: says().filter_map(|rule| rule.propagate).next_back().unwrap_or(true),
        })
    }

    fn stats(&self, rules: &[&Rule], side: Side, counting: Counting) -> Stats {
        let named = rules.iter().flat_map(|rule| &rule.metrics).rfind(|m| !m.providers.is_empty());
        let counted = named.map_or(self.fallback.metrics, |m| {
            m.providers.iter().any(|name| self.providers.get(name) == Some(&Provider::Metrics))
        });
        let mut changed: BTreeMap<&'static str, (bool, BTreeMap<_, _>)> = BTreeMap::new();
        let mut interval = 0;
        for metrics in rules.iter().flat_map(|rule| &rule.metrics) {
            interval = metrics.interval.unwrap_or(interval);
            for change in metrics.changes.iter().filter(|c| c.sides.has(side)) {
                for name in names(change.metric) {
                    let (drop, tags) = changed.entry(name).or_default();
                    *drop = change.disabled.unwrap_or(*drop);
                    tags.extend(change.tags.iter().cloned());
                }
            }
        }
        if !counted {
            changed = METRICS.iter().map(|(_, name)| (*name, (true, BTreeMap::new()))).collect();
        }
        changed.retain(|_, (drop, tags)| *drop || !tags.is_empty());
        let metrics: Vec<_> = changed
            .into_iter()
            .map(|(name, (drop, tags))| MetricRule {
                name: name.into(),
                drop,
                removed: tags.iter().filter(|(_, v)| v.is_none()).map(|(tag, _)| tag.clone()).collect(),
                dimensions: tags.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect(),
            })
            .collect();
        let nothing_left = METRICS.iter().all(|(_, name)| metrics.iter().any(|m| m.drop && *m.name == **name));
        let counts = !nothing_left;
        match counting {
            Counting::Nobody => Stats::Unsaid,
            Counting::Agent => Stats::Agent(StatsRules { counts, metrics, interval }),
            Counting::Engine if metrics.is_empty() && interval == 0 => Stats::Unsaid,
            Counting::Engine => Stats::Engine(StatsRules { counts, metrics, interval }),
        }
    }
}

/// Whether the native engine tells such a collector.
fn is_native(provider: &TracingProvider) -> bool {
    matches!(provider, TracingProvider::OpenTelemetry { .. })
}

/// The cluster's id: there is one.
const CLUSTER: &str = "Kubernetes";

/// Name and revision of the service that a workload is part of, by its labels.
pub(crate) fn canonical(labels: &Labels) -> (Option<&str>, &str) {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).map(|value| &**value);
    (
        first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]),
        first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]).unwrap_or("latest"),
    )
}

/// Istio's metrics, without `istio_`.
const METRICS: [(IstioMetric, &str); 10] = [
    (IstioMetric::RequestCount, "requests_total"),
    (IstioMetric::RequestDuration, "request_duration_milliseconds"),
    (IstioMetric::RequestSize, "request_bytes"),
    (IstioMetric::ResponseSize, "response_bytes"),
    (IstioMetric::TcpOpenedConnections, "tcp_connections_opened_total"),
    (IstioMetric::TcpClosedConnections, "tcp_connections_closed_total"),
    (IstioMetric::TcpSentBytes, "tcp_sent_bytes_total"),
    (IstioMetric::TcpReceivedBytes, "tcp_received_bytes_total"),
    (IstioMetric::GrpcRequestMessages, "request_messages_total"),
    (IstioMetric::GrpcResponseMessages, "response_messages_total"),
];

fn names(metric: IstioMetric) -> impl Iterator<Item = &'static str> {
    METRICS.iter().filter(move |(m, _)| metric == IstioMetric::AllMetrics || metric == *m).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests;
