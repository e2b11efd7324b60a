//! Traces of requests (semantics §25): whose, how many, and where spans go.
//!
//! Invariant: a connection manager has a tracer only if somebody asked for traces.

use carrick_mesh::view::telemetry::{Collector, TagValue, Tracing as Wanted, TracingProvider};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, HttpService, HttpUri, http_uri::HttpUpstreamType},
            trace::v3::{
                OpenTelemetryConfig, ZipkinConfig, tracing as provider,
                zipkin_config::{CollectorEndpointVersion, TraceContextOption},
            },
        },
        extensions::{
            filters::network::http_connection_manager::v3::{RequestIdExtension, http_connection_manager::Tracing},
            request_id::uuid::v3::UuidRequestIdConfig,
            tracers::opentelemetry::resource_detectors::v3::EnvironmentResourceDetectorConfig,
        },
        r#type::{
            tracing::v3::{CustomTag, custom_tag},
            v3::Percent,
        },
    },
    google::protobuf::Any,
};

use crate::{access_log, wire};

/// What a connection manager traces.
pub fn tracing(from: &Wanted) -> Tracing {
    let percent = |value| Some(Percent { value });
    let (name, config) = tracer(from);
    Tracing {
        client_sampling: percent(100.0),
        random_sampling: percent(from.sampling.0),
        overall_sampling: percent(100.0),
        max_path_tag_length: (from.max_path_length > 0).then(|| wire::number(from.max_path_length)).flatten(),
        custom_tags: from.tags.iter().map(|(name, value)| tag(name, value)).collect(),
        provider: Some(provider::Http {
            name: name.to_owned(),
            config_type: Some(provider::http::ConfigType::TypedConfig(config)),
        }),
        no_context_propagation: !from.propagate,
        ..Tracing::default()
    }
}

/// Whether a request's id says that it is traced; `None` for yes, as is Envoy's default.
pub fn request_id(from: &Wanted) -> Option<RequestIdExtension> {
    let config = UuidRequestIdConfig { use_request_id_for_trace_sampling: wire::flag(false), ..Default::default() };
    (!from.by_request_id).then(|| RequestIdExtension { typed_config: Some(wire::any(&config)) })
}

fn tracer(from: &Wanted) -> (&'static str, Any) {
    match &*from.provider {
        TracingProvider::OpenTelemetry { to, http, headers, timeout, from_environment } => {
            let header = |(key, value): &(std::sync::Arc<str>, std::sync::Arc<str>)| HeaderValue {
                key: key.to_string(),
                value: value.to_string(),
                ..HeaderValue::default()
            };
            let service = http.as_ref().map(|(path, timeout)| HttpService {
                http_uri: Some(HttpUri {
                    uri: uri(to, path),
                    timeout: wire::millis(*timeout),
                    http_upstream_type: Some(HttpUpstreamType::Cluster(to.cluster.to_string())),
                }),
                request_headers_to_add: headers
                    .iter()
                    .map(|h| HeaderValueOption { header: Some(header(h)), ..HeaderValueOption::default() })
                    .collect(),
                ..HttpService::default()
            });
            let grpc = http.is_none().then(|| {
                let mut grpc = access_log::grpc(to);
                grpc.timeout = timeout.and_then(wire::millis);
                grpc.initial_metadata = headers.iter().map(header).collect();
                grpc
            });
            let detector = || {
                let config = EnvironmentResourceDetectorConfig::default();
                wire::extension("envoy.tracers.opentelemetry.resource_detectors.environment", wire::any(&config))
            };
            let config = OpenTelemetryConfig {
                grpc_service: grpc,
                http_service: service,
                service_name: from.service.to_string(),
                resource_detectors: from_environment.then(detector).into_iter().collect(),
                ..OpenTelemetryConfig::default()
            };
            ("envoy.tracers.opentelemetry", wire::any(&config))
        }
        TracingProvider::Zipkin { to, path, short_ids, w3c } => {
            let context = if *w3c { TraceContextOption::UseB3WithW3cPropagation } else { TraceContextOption::UseB3 };
            let config = ZipkinConfig {
                collector_cluster: to.cluster.to_string(),
                collector_endpoint: path.to_string(),
                collector_endpoint_version: CollectorEndpointVersion::HttpJson.into(),
                collector_hostname: to.authority.to_string(),
                trace_id_128bit: !short_ids,
                shared_span_context: wire::flag(false),
                trace_context_option: context.into(),
                ..ZipkinConfig::default()
            };
            ("envoy.tracers.zipkin", wire::any(&config))
        }
    }
}

/// Envoy takes the path of it alone, and its host as the request's.
fn uri(to: &Collector, path: &str) -> String {
    format!("http://{}/{}", to.authority, path.trim_start_matches('/'))
}

fn tag(name: &str, value: &TagValue) -> CustomTag {
    let kind = match value {
        TagValue::Literal(value) => custom_tag::Type::Literal(custom_tag::Literal { value: value.to_string() }),
        TagValue::Environment(name, otherwise) => custom_tag::Type::Environment(custom_tag::Environment {
            name: name.to_string(),
            default_value: otherwise.to_string(),
        }),
        TagValue::Header(name, otherwise) => custom_tag::Type::RequestHeader(custom_tag::Header {
            name: name.to_string(),
            default_value: otherwise.to_string(),
        }),
        TagValue::Format(format) => custom_tag::Type::Value(format.to_string()),
    };
    CustomTag { tag: name.to_owned(), r#type: Some(kind) }
}
