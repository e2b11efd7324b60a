//! Providers of the mesh's configuration that are told of requests (semantics §25): logs, traces, metrics.
//!
//! Invariant: a provider that cannot be used is known as such, with the reason, so that whoever names it can be told.

use std::sync::Arc;

use carrick_api::{
    MeshConfig,
    istio::{
        extension_provider::ExtensionProvider,
        mesh_config::AccessLogEncoding,
        telemetry_provider::{GrpcLog as WrittenGrpc, Header, LogFormat as WrittenFormat, OpenTelemetry, Zipkin},
    },
};
use carrick_base::Hostname;

use super::{authorizer::Target, traffic};
use crate::{
    model::Service,
    model::telemetry::{Collector, GrpcLog, LogFormat, LogSink, TracingProvider},
    telemetry_rules::{Provider, Providers},
};

/// The provider that Istio always has: a file access log to standard output.
const ENVOY: &str = "envoy";
/// The provider that Istio always has: the mesh's own metrics.
pub(crate) const PROMETHEUS: &str = "prometheus";
/// Istio's name of access logs by gRPC that have none.
const LOG_NAME: &str = "otel_envoy_accesslog";

pub(crate) fn read_all<'s>(config: &MeshConfig, service: impl Fn(&Hostname) -> Option<&'s Arc<Service>>) -> Providers {
    let mut all = Providers::new();
    all.insert(PROMETHEUS.into(), Provider::Metrics);
    let standard = LogSink::File { path: "/dev/stdout".into(), format: mesh_format(config), omit_empty: false };
    all.insert(ENVOY.into(), Provider::Log(Arc::new(standard)));
    for written in &config.extension_providers {
        all.insert(written.name.as_str().into(), read(written, config, &service));
    }
    all
}

/// The mesh's own format.
pub(crate) fn mesh_format(config: &MeshConfig) -> LogFormat {
    let format = config.access_log_format.as_str().into();
    match config.access_log_encoding {
        AccessLogEncoding::Json => LogFormat::Json(format),
        AccessLogEncoding::Text => LogFormat::Text(format),
    }
}

/// Where `host:port` of `defaultConfig.tracing.zipkin.address` is.
pub(crate) fn zipkin_at<'s>(
    address: &str,
    domain: &str,
    service: impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<TracingProvider, String> {
    let (host, port) = address.rsplit_once(':').ok_or_else(|| format!("{address} is not of form host:port"))?;
    let port = port.parse().map_err(|_| format!("{address} is not of form host:port"))?;
    let full = [host.to_owned(), format!("{host}.svc.{domain}"), format!("{host}.{domain}")];
    let known = full.iter().find_map(|host| collector(host, port, &service).ok());
    let to = known.ok_or_else(|| format!("there is no service {address}"))?;
    Ok(TracingProvider::Zipkin { to, path: "/api/v2/spans".into(), short_ids: false, w3c: false })
}

fn read<'s>(
    from: &ExtensionProvider,
    config: &MeshConfig,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Provider {
    let log = |sink: Result<LogSink, String>| match sink {
        Ok(sink) => Provider::Log(Arc::new(sink)),
        Err(reason) => Provider::Missing(reason),
    };
    let trace = |provider: Result<TracingProvider, String>, longest| match provider {
        Ok(provider) => Provider::Trace(Arc::new(provider), longest),
        Err(reason) => Provider::Missing(reason),
    };
    if from.envoy_ext_authz_http.is_some() || from.envoy_ext_authz_grpc.is_some() {
        Provider::Authorizer
    } else if let Some(file) = &from.envoy_file_access_log {
        let path = if file.path.is_empty() { "/dev/stdout" } else { &file.path };
        let format = match &file.log_format {
            // Istio's own provider follows the mesh's format.
            None if from.name == ENVOY => mesh_format(config),
            None => LogFormat::Text("".into()),
            Some(WrittenFormat { labels: Some(labels), .. }) if !labels.0.is_empty() => LogFormat::Json(text(labels)),
            Some(format) => LogFormat::Text(format.text.as_str().into()),
        };
        log(Ok(LogSink::File { path: path.into(), format, omit_empty: file.omit_empty_values }))
    } else if let Some(otel) = &from.envoy_otel_als {
        let format = otel.log_format.clone().unwrap_or_default();
        log(collector(&otel.service, otel.port, service).map(|to| LogSink::OpenTelemetry {
            to,
            name: named(&otel.log_name, LOG_NAME),
            body: format.text.as_str().into(),
            attributes: format.labels.as_ref().map(text).unwrap_or_default(),
        }))
    } else if let Some(http) = &from.envoy_http_als {
        log(grpc_log(http, false, service))
    } else if let Some(tcp) = &from.envoy_tcp_als {
        log(grpc_log(tcp, true, service))
    } else if let Some(otel) = &from.opentelemetry {
        if otel.dynatrace_sampler.is_some() {
            return Provider::Unsupported("opentelemetry.dynatraceSampler is not supported".to_owned());
        }
        let http = otel.http.iter().flat_map(|h| &h.headers);
        let grpc = otel.grpc.iter().flat_map(|g| &g.initial_metadata);
        if http.chain(grpc).any(|header| !header.env_name.is_empty()) {
            return Provider::Unsupported("headers by envName are not supported".to_owned());
        }
        trace(open_telemetry(otel, service), otel.max_tag_length)
    } else if let Some(zipkin) = &from.zipkin {
        trace(self::zipkin(zipkin, service), zipkin.max_tag_length)
    } else if from.prometheus.is_some() {
        Provider::Metrics
    } else {
        let kind = from.others.keys().next().map_or("no kind", String::as_str);
        Provider::Unsupported(format!("providers of kind {kind} are not supported"))
    }
}

fn text(labels: &carrick_api::istio::telemetry_provider::Labels) -> Arc<str> {
    serde_json::Value::Object(labels.0.clone()).to_string().into()
}

fn named(name: &str, otherwise: &str) -> Arc<str> {
    if name.is_empty() { otherwise.into() } else { name.into() }
}

fn grpc_log<'s>(
    from: &WrittenGrpc,
    connections: bool,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<LogSink, String> {
    let texts = |all: &[String]| all.iter().map(|t| t.as_str().into()).collect();
    Ok(LogSink::Grpc(GrpcLog {
        to: collector(&from.service, from.port, service)?,
        name: named(&from.log_name, if connections { "tcp_envoy_accesslog" } else { "http_envoy_accesslog" }),
        connections,
        filter_state: texts(&from.filter_state_objects_to_log),
        request_headers: texts(&from.additional_request_headers_to_log),
        response_headers: texts(&from.additional_response_headers_to_log),
        response_trailers: texts(&from.additional_response_trailers_to_log),
    }))
}

fn open_telemetry<'s>(
    from: &OpenTelemetry,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<TracingProvider, String> {
    let to = collector(&from.service, from.port, service)?;
    let headers = |all: &[Header]| all.iter().map(|h| (h.name.as_str().into(), h.value.as_str().into())).collect();
    let (http, headers, timeout) = match (&from.http, &from.grpc) {
        (Some(http), _) => {
            let timeout = http.timeout.map_or(DEFAULT_TIMEOUT, traffic::millis);
            (Some((http.path.as_str().into(), timeout)), headers(&http.headers), None)
        }
        (None, Some(grpc)) => (None, headers(&grpc.initial_metadata), grpc.timeout.map(traffic::millis)),
        (None, None) => (None, Vec::new(), None),
    };
    let from_environment = from.resource_detectors.as_ref().is_some_and(|d| d.environment.is_some());
    Ok(TracingProvider::OpenTelemetry { to, http, headers, timeout, from_environment })
}

/// Milliseconds for a report by HTTP.
const DEFAULT_TIMEOUT: u64 = 3_000;

fn zipkin<'s>(
    from: &Zipkin,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<TracingProvider, String> {
    Ok(TracingProvider::Zipkin {
        to: collector(&from.service, from.port, service)?,
        path: named(&from.path, "/api/v2/spans"),
        short_ids: from.enable_64bit_trace_id,
        w3c: from.trace_context_option == "USE_B3_WITH_W3C_PROPAGATION",
    })
}

/// A service with that port.
fn collector<'s>(
    written: &str,
    port: u32,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<Collector, String> {
    let Target { cluster, host, .. } = Target::of(written, port, service)?;
    Ok(Collector { cluster, authority: host })
}
