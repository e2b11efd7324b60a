//! Telemetry objects, and what the mesh's configuration says in their place (semantics §25.1).
//!
//! Invariant: an object that names a provider that cannot do what is asked is left out, and told of; one whose service is only
//! not there now stays, without that provider.

use std::sync::Arc;

use carrick_api::{
    MeshConfig, Telemetry,
    istio::telemetry::{CustomTag, IstioMetric, Mode, ProviderRef, TagOperation},
    scalar::Number,
};
use carrick_base::{Diagnostic, FieldPath, Hostname, ObjectRef, Severity};

use super::{origin, provider, targets};
use crate::{
    Settings, codes,
    model::telemetry::{LogSink, TagValue, TracingProvider},
    model::{Origin, Service},
    telemetry_rules::{Fallback, Logging, MetricChange, Metrics, Provider, Providers, Rule, Sides, Tracing},
};

/// Percent of requests that are traced where nobody says.
const SAMPLING: Number = Number(1.0);

/// What a provider is named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Logs,
    Traces,
    Metrics,
}

/// Why a provider is not there.
enum Lack {
    /// It never will be.
    Wrong(String),
    /// Its service may yet come.
    Missing(String),
}

fn lack(name: &str, wanted: Use, providers: &Providers) -> Option<Lack> {
    let wrong = |text: String| Some(Lack::Wrong(text));
    match (providers.get(name), wanted) {
        (Some(Provider::Log(_)), Use::Logs)
        | (Some(Provider::Trace(..)), Use::Traces)
        | (Some(Provider::Metrics), Use::Metrics) => None,
        (Some(Provider::Unsupported(reason)), _) => wrong(format!("provider {name:?}: {reason}")),
        (Some(Provider::Missing(reason)), _) => {
            Some(Lack::Missing(format!("provider {name:?}: {reason}; it is told nothing until there is")))
        }
        (None, _) => wrong(format!("the mesh has no provider {name:?}")),
        (Some(_), Use::Logs) => wrong(format!("provider {name:?} takes no access logs")),
        (Some(_), Use::Traces) => wrong(format!("provider {name:?} takes no traces")),
        (Some(_), Use::Metrics) => wrong(format!("provider {name:?} takes no metrics")),
    }
}

struct Reader<'a> {
    origin: Origin,
    providers: &'a Providers,
    found: &'a mut Vec<Diagnostic>,
    broken: bool,
}

impl Reader<'_> {
    fn tell(&mut self, severity: Severity, code: &'static str, field: FieldPath, message: String) {
        self.broken |= severity == Severity::Error;
        self.found.push(Diagnostic { code, severity, object: self.origin.object(), field, message });
    }

    fn providers(&mut self, written: &[ProviderRef], wanted: Use, path: &FieldPath) -> Vec<Arc<str>> {
        for (index, provider) in written.iter().enumerate() {
            let field = || path.field("providers").index(index).field("name");
            match lack(&provider.name, wanted, self.providers) {
                None => {}
                Some(Lack::Wrong(message)) => self.tell(Severity::Error, codes::UNREADABLE, field(), message),
                Some(Lack::Missing(message)) => self.tell(Severity::Warning, codes::UNRESOLVED, field(), message),
            }
        }
        written.iter().map(|p| p.name.as_str().into()).collect()
    }
}

/// An object; `None` for one that is left out.
pub(crate) fn read(from: &Telemetry, providers: &Providers, found: &mut Vec<Diagnostic>) -> Option<Rule> {
    let origin = origin("Telemetry", &from.metadata);
    let mut reader = Reader { origin: origin.clone(), providers, found, broken: false };
    let spec = &from.spec;
    let root = FieldPath::new("spec");
    let (mut logging, mut tracing, mut metrics) = (Vec::new(), Vec::new(), Vec::new());
    for (index, written) in spec.access_logging.iter().enumerate() {
        let path = root.field("accessLogging").index(index);
        logging.push(Logging {
            sides: sides(written.selects.as_ref().map(|m| m.mode)),
            providers: reader.providers(&written.providers, Use::Logs, &path),
            disabled: written.disabled == Some(true),
            filter: written.filter.as_ref().filter(|f| !f.expression.is_empty()).map(|f| f.expression.as_str().into()),
        });
    }
    for (index, written) in spec.tracing.iter().enumerate() {
        let path = root.field("tracing").index(index);
        let named = reader.providers(&written.providers, Use::Traces, &path);
        if named.len() > 1 {
            let message = "only the first provider is sent traces".to_owned();
            reader.tell(Severity::Warning, codes::UNSUPPORTED, path.field("providers").index(1), message);
        }
        tracing.push(Tracing {
            sides: sides(written.selects.as_ref().map(|m| m.mode)),
            provider: named.into_iter().next(),
            sampling: written.random_sampling_percentage,
            disabled: written.disable_span_reporting,
            propagate: written.disable_context_propagation.map(|off| !off),
            by_request_id: written.use_request_id_for_trace_sampling,
            istio_tags: written.enable_istio_tags,
            tags: (!written.custom_tags.is_empty()).then(|| tags(&written.custom_tags)),
        });
    }
    for (index, written) in spec.metrics.iter().enumerate() {
        let path = root.field("metrics").index(index);
        let named = reader.providers(&written.providers, Use::Metrics, &path);
        let mut changes = Vec::new();
        for (index, change) in written.overrides.iter().enumerate() {
            let selects = change.selects.clone().unwrap_or_default();
            if !selects.custom_metric.is_empty() {
                let field = path.field("overrides").index(index).field("match.customMetric");
                let message = "metrics other than Istio's are not supported; it changes nothing".to_owned();
                reader.tell(Severity::Warning, codes::UNSUPPORTED, field, message);
                continue;
            }
            let set = change.tag_overrides.iter();
            changes.push(MetricChange {
                sides: sides(Some(selects.mode)),
                metric: selects.metric.unwrap_or(IstioMetric::AllMetrics),
                disabled: change.disabled,
                tags: set
                    .map(|(tag, to)| {
                        let value = (to.operation == TagOperation::Upsert).then(|| to.value.as_str().into());
                        (tag.as_str().into(), value)
                    })
                    .collect(),
            });
        }
        metrics.push(Metrics {
            providers: named,
            changes,
            interval: written.reporting_interval.map(super::traffic::millis),
        });
    }
    let broken = reader.broken;
    (!broken).then(|| Rule {
        selector: spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default(),
        gateways: targets(spec.target_ref.iter().chain(&spec.target_refs)),
        origin,
        logging,
        tracing,
        metrics,
    })
}

fn tags(written: &std::collections::BTreeMap<String, CustomTag>) -> Vec<(Arc<str>, TagValue)> {
    let value = |tag: &CustomTag| {
        let source =
            |s: &carrick_api::istio::telemetry::TagSource| (s.name.as_str().into(), s.default_value.as_str().into());
        Some(match tag {
            CustomTag { literal: Some(text), .. } => TagValue::Literal(text.value.as_str().into()),
            CustomTag { environment: Some(from), .. } => {
                let (name, otherwise) = source(from);
                TagValue::Environment(name, otherwise)
            }
            CustomTag { header: Some(from), .. } => {
                let (name, otherwise) = source(from);
                TagValue::Header(name, otherwise)
            }
            CustomTag { formatter: Some(text), .. } => TagValue::Format(text.value.as_str().into()),
            _ => return None,
        })
    };
    written.iter().filter_map(|(name, tag)| Some((name.as_str().into(), value(tag)?))).collect()
}

fn sides(mode: Option<Mode>) -> Sides {
    let mode = mode.unwrap_or_default();
    Sides { client: mode != Mode::Server, server: mode != Mode::Client }
}

/// What the mesh's configuration says where no object does.
pub(crate) fn mesh<'s>(
    config: &MeshConfig,
    settings: &Settings,
    providers: &Providers,
    service: impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
    found: &mut Vec<Diagnostic>,
) -> Fallback {
    let mut tell = |field: FieldPath, message: String| {
        let object = ObjectRef::new("MeshConfig", "", "mesh");
        found.push(Diagnostic { code: codes::UNSUPPORTED, severity: Severity::Warning, object, field, message });
    };
    let mut good = |names: &[String], wanted: Use, field: &str| -> Vec<Arc<str>> {
        let mut kept = Vec::new();
        for (index, name) in names.iter().enumerate() {
            match lack(name, wanted, providers) {
                None => kept.push(name.as_str().into()),
                Some(Lack::Wrong(message) | Lack::Missing(message)) => {
                    tell(FieldPath::new("defaultProviders").field(field).index(index), message);
                }
            }
        }
        kept
    };
    let defaults = &config.default_providers;
    let logs = good(&defaults.access_logging, Use::Logs, "accessLogging");
    let traces = good(&defaults.tracing, Use::Traces, "tracing");
    let prometheus = [provider::PROMETHEUS.to_owned()];
    let metrics = good(defaults.metrics.as_deref().unwrap_or(&prometheus), Use::Metrics, "metrics");
    let tracing = config.default_config.tracing.clone().unwrap_or_default();
    let zipkin = tracing.zipkin.as_ref().filter(|z| config.enable_tracing && !z.address.is_empty());
    let zipkin: Option<Arc<TracingProvider>> =
        zipkin.and_then(|z| match provider::zipkin_at(&z.address, &settings.domain_suffix, &service) {
            Ok(provider) => Some(Arc::new(provider)),
            Err(reason) => {
                let message = format!("{reason}; nothing is traced");
                tell(FieldPath::new("defaultConfig.tracing.zipkin.address"), message);
                None
            }
        });
    if config.enable_envoy_access_log_service {
        tell(
            FieldPath::new("enableEnvoyAccessLogService"),
            "access logs go to providers of kind envoyHttpAls; this switch has no effect".to_owned(),
        );
    }
    Fallback {
        file: (!config.access_log_file.is_empty()).then(|| {
            Arc::new(LogSink::File {
                path: config.access_log_file.as_str().into(),
                format: provider::mesh_format(config),
                omit_empty: false,
            })
        }),
        logs,
        provider: traces.into_iter().next(),
        zipkin,
        sampling: tracing.sampling.unwrap_or(SAMPLING),
        max_path_length: tracing.max_path_tag_length,
        tags: tags(&tracing.custom_tags),
        metrics: !metrics.is_empty(),
        mesh: settings.trust_domain.to_string().into(),
    }
}
