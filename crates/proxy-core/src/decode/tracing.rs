//! Tracing of connection managers and routes.
//!
//! Invariant: tracers, samplers and tags that we could not serve are refused.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::config::trace::v3 as trace;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind::Kind;
use envoy_types::pb::envoy::r#type::tracing::v3 as tags;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent};

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{fraction, number, percent, refuse_false, truth};
use super::{collector, headers};
use crate::model::format::{Format, MetadataKind};
use crate::model::tracing::{CustomTag, RouteTracing, TagValue, Tracer, Tracing};

const OPENTELEMETRY: &str = "envoy.config.trace.v3.OpenTelemetryConfig";

/// Tracing of a connection manager.
pub fn tracing(value: &hcm::Tracing) -> Result<Tracing, Bad> {
    only!(value, hcm::Tracing {
        client_sampling, random_sampling, overall_sampling, max_path_tag_length, custom_tags, provider, spawn_upstream_span,
        operation, upstream_operation, no_context_propagation,
    } refuse { verbose });
    Ok(Tracing {
        client: share("client_sampling", &value.client_sampling)?,
        random: share("random_sampling", &value.random_sampling)?,
        overall: share("overall_sampling", &value.overall_sampling)?,
        max_path: number(&value.max_path_tag_length).and_then(|n| usize::try_from(n).ok()).unwrap_or(256),
        tags: each("custom_tags", &value.custom_tags, tag)?,
        spawn_upstream: truth(&value.spawn_upstream_span).unwrap_or(false),
        operation: operation("operation", &value.operation)?,
        upstream_operation: operation("upstream_operation", &value.upstream_operation)?,
        by_request_id: true,
        pack: true,
        no_propagation: value.no_context_propagation,
        tracer: given("provider", &value.provider, provider)?.map(Arc::new),
    })
}

/// Tracing of a route.
pub fn route(tracing: &Option<rds::Tracing>, decorator: &Option<rds::Decorator>) -> Result<RouteTracing, Bad> {
    let decorator =
        given("decorator", decorator, |d| Ok((d.operation.as_str().into(), truth(&d.propagate).unwrap_or(true))))?;
    let Some(tracing) = tracing else { return Ok(RouteTracing { decorator, ..RouteTracing::default() }) };
    only!(tracing, rds::Tracing { client_sampling, random_sampling, overall_sampling, custom_tags } refuse {
        operation, upstream_operation,
    });
    let one = |field: &str, share: &Option<FractionalPercent>| {
        Ok(given(field, share, fraction)?.map_or(10_000, |ppm| ppm / 100))
    };
    let shares = [
        one("tracing.client_sampling", &tracing.client_sampling)?,
        one("tracing.random_sampling", &tracing.random_sampling)?,
        one("tracing.overall_sampling", &tracing.overall_sampling)?,
    ];
    let tags = each("custom_tags", &tracing.custom_tags, tag).at("tracing")?;
    Ok(RouteTracing { shares: Some(shares), tags, decorator })
}

/// In ten-thousandths; unset = all.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn share(field: &str, value: &Option<Percent>) -> Result<u32, Bad> {
    Ok(given(field, value, percent)?.map_or(10_000, |p| (p * 100.0).round() as u32))
}

fn operation(field: &str, text: &str) -> Result<Option<Format>, Bad> {
    if text.is_empty() { Ok(None) } else { headers::format(text).map(Some).at(field) }
}

fn tag(value: &tags::CustomTag) -> Result<CustomTag, Bad> {
    use tags::custom_tag::Type as T;
    if value.tag.is_empty() {
        return Err(Bad::field("tag", "empty"));
    }
    let made = match &value.r#type {
        Some(T::Literal(literal)) => TagValue::Literal(literal.value.as_str().into()),
        Some(T::Environment(env)) => TagValue::Environment(env.name.as_str().into(), env.default_value.as_str().into()),
        Some(T::RequestHeader(header)) => {
            let name = headers::name(&header.name).at("request_header.name")?;
            TagValue::Header(name, header.default_value.as_str().into())
        }
        Some(T::Metadata(metadata)) => {
            let kind = match metadata.kind.as_ref().and_then(|k| k.kind.as_ref()) {
                Some(Kind::Request(_)) => MetadataKind::Dynamic,
                Some(Kind::Route(_)) => MetadataKind::Route,
                Some(Kind::Cluster(_)) => MetadataKind::Cluster,
                Some(Kind::Host(_)) => MetadataKind::Upstream,
                None => return Err(Bad::field("metadata.kind", "missing")),
            };
            let key = metadata.metadata_key.as_ref().ok_or_else(|| Bad::field("metadata.metadata_key", "missing"))?;
            let mut path = vec![key.key.as_str().into()];
            for segment in &key.path {
                use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
                if let Some(Segment::Key(key)) = &segment.segment {
                    path.push(key.as_str().into());
                }
            }
            TagValue::Metadata(kind, path, metadata.default_value.as_str().into())
        }
        Some(T::Value(format)) => TagValue::Format(headers::format(format).at("value")?),
        None => return Err(Bad::new("no value")),
    };
    Ok(CustomTag { name: value.tag.as_str().into(), value: made })
}

fn provider(value: &trace::tracing::Http) -> Result<Tracer, Bad> {
    let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = &value.config_type else {
        return Err(Bad::field("typed_config", "missing"));
    };
    if type_name(any) != OPENTELEMETRY {
        return Err(Bad::field("typed_config", format_args!("unsupported tracer \"{}\"", value.name)));
    }
    decode(any).and_then(|config| opentelemetry(&config)).at("typed_config")
}

fn opentelemetry(value: &trace::OpenTelemetryConfig) -> Result<Tracer, Bad> {
    only!(value, trace::OpenTelemetryConfig {
        grpc_service, http_service, service_name, max_cache_size, set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute, set_instrumentation_scope,
    } refuse { exporter, resource_detectors, sampler });
    refuse_false("set_service_name_resource_attribute", &value.set_service_name_resource_attribute)?;
    let mut collector = match (&value.grpc_service, &value.http_service) {
        (Some(_), Some(_)) => return Err(Bad::field("http_service", "grpc_service is set too")),
        (Some(service), None) => collector::grpc(service, crate::otlp::TRACES).at("grpc_service")?,
        (None, Some(service)) => collector::http(service).at("http_service")?,
        (None, None) => return Err(Bad::field("grpc_service", "missing")),
    };
    // Sooner than Envoy's five seconds; five spans make a batch in any case.
    collector.flush = Duration::from_secs(1);
    collector.counters = "tracing.opentelemetry.".into();
    let service_name = if value.service_name.is_empty() { "unknown_service:envoy" } else { &value.service_name };
    Ok(Tracer { collector: Arc::new(collector), service_name: service_name.into() })
}
