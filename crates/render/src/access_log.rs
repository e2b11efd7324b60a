//! Access logs (semantics §25.4): to files and standard output as Istio's text line or JSON object, to OpenTelemetry collectors, and
//! to services of Envoy's access log API.
//!
//! Invariant: text and JSON carry the same fields; a log is here only if somebody asked for it.

use carrick_mesh::view::telemetry::{AccessLog, Collector, GrpcLog, LogFormat, LogSink, Telemetry};
use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                self as log, AccessLogFilter, AndFilter, ExtensionFilter, LogTypeFilter, access_log,
                access_log_filter::FilterSpecifier, extension_filter,
            },
            core::v3::{
                ApiVersion, DataSource, GrpcService, SubstitutionFormatString, data_source::Specifier, grpc_service,
                substitution_format_string::Format,
            },
        },
        data::accesslog::v3::AccessLogType,
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
            filters::cel::v3::ExpressionFilter,
            grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
        },
    },
    google::protobuf::Any,
    opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value},
};
use serde_json::Value as Json;

use crate::{
    stats::{self, About, Side},
    wire::{
        self,
        stable::{JsonFileAccessLog, JsonFormat, Kind, Struct, Value},
    },
};

/// The CEL expression of a filter.
const CEL: &str = "envoy.access_loggers.extension_filters.cel";
/// A command of a format that is an extension of its own.
const WITHOUT_QUERY: (&str, &str) = ("REQ_WITHOUT_QUERY", "envoy.formatter.req_without_query");

const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// The access logs of a filter, and what the agent counts by.
pub fn all(from: &Telemetry, side: Side, about: About) -> Vec<log::AccessLog> {
    let only_ends = about == About::Connections && stats::agent::counts(from);
    let mut all: Vec<_> = from.logs.iter().filter_map(|log| one(log, about)).collect();
    for log in all.iter_mut().filter(|_| only_ends) {
        log.filter = Some(ends(log.filter.take()));
    }
    all.extend(stats::agent::access_log(from, side, about));
    all
}

/// Ends of connections, of what another filter lets through.
fn ends(other: Option<AccessLogFilter>) -> AccessLogFilter {
    let types = LogTypeFilter { types: vec![AccessLogType::TcpConnectionEnd.into()], exclude: false };
    let ends = AccessLogFilter { filter_specifier: Some(FilterSpecifier::LogTypeFilter(types)) };
    match other {
        None => ends,
        Some(other) => AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::AndFilter(AndFilter { filters: vec![ends, other] })),
        },
    }
}

/// The expression that holds for connections whose handshake failed, and for no others. One constant, so that an engine whose listeners log
/// nothing but failures can know it by its text.
pub const REFUSED: &str = "has(connection.transport_failure_reason) && connection.transport_failure_reason != ''";

/// The access logs of a listener: a line for each refused handshake, with its reason where a request's line has that of the upstream.
pub fn refused(from: &Telemetry) -> Vec<log::AccessLog> {
    let reason =
        |format: &str| format.replace("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%");
    // A filter asks about requests, of which there is none.
    let logs = from.logs.iter().filter(|log| log.filter.is_none());
    let files = logs.filter_map(|log| match &*log.sink {
        LogSink::File { path, format: LogFormat::Text(own), .. } => Some(text(path, &reason(&line(own)))),
        LogSink::File { path, format: LogFormat::Json(labels), omit_empty } => {
            let standard = || Json::from_iter(JSON).to_string();
            let own = serde_json::from_str::<Json>(labels).is_ok_and(|labels| labels.is_object());
            Some(json(path, &reason(&if own { labels.to_string() } else { standard() }), *omit_empty))
        }
        LogSink::OpenTelemetry { .. } | LogSink::Grpc(_) => None,
    });
    let log = |config| log::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter: Some(filter(REFUSED)),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
    };
    files.map(log).collect()
}

fn one(from: &AccessLog, about: About) -> Option<log::AccessLog> {
    let (name, config) = match &*from.sink {
        LogSink::File { path, format: LogFormat::Text(line), .. } => ("envoy.access_loggers.file", text(path, line)),
        LogSink::File { path, format: LogFormat::Json(labels), omit_empty } => {
            ("envoy.access_loggers.file", json(path, labels, *omit_empty))
        }
        LogSink::OpenTelemetry { to, name, body, attributes } => {
            ("envoy.access_loggers.open_telemetry", wire::any(&open_telemetry(to, name, body, attributes)))
        }
        LogSink::Grpc(log) if log.connections && about == About::Connections => {
            let config = TcpGrpcAccessLogConfig { common_config: Some(common(log)) };
            ("envoy.access_loggers.tcp_grpc", wire::any(&config))
        }
        LogSink::Grpc(log) if !log.connections && about == About::Requests => {
            let texts = |all: &[std::sync::Arc<str>]| all.iter().map(ToString::to_string).collect();
            let config = HttpGrpcAccessLogConfig {
                common_config: Some(common(log)),
                additional_request_headers_to_log: texts(&log.request_headers),
                additional_response_headers_to_log: texts(&log.response_headers),
                additional_response_trailers_to_log: texts(&log.response_trailers),
            };
            ("envoy.access_loggers.http_grpc", wire::any(&config))
        }
        LogSink::Grpc(_) => return None,
    };
    Some(log::AccessLog {
        name: name.to_owned(),
        filter: from.filter.as_deref().map(filter),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
    })
}

fn filter(expression: &str) -> AccessLogFilter {
    let config = wire::any(&ExpressionFilter { expression: expression.to_owned(), ..Default::default() });
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ExtensionFilter(ExtensionFilter {
            name: CEL.to_owned(),
            config_type: Some(extension_filter::ConfigType::TypedConfig(config)),
        })),
    }
}

fn line(format: &str) -> String {
    let mut line = if format.is_empty() { TEXT.to_owned() } else { format.to_owned() };
    if !line.ends_with('\n') {
        line.push('\n');
    }
    line
}

fn text(path: &str, format: &str) -> Any {
    let formatters = formatters(format);
    let format = SubstitutionFormatString {
        format: Some(inline(line(format))),
        formatters,
        ..SubstitutionFormatString::default()
    };
    wire::any(&FileAccessLog { path: path.to_owned(), access_log_format: Some(AccessLogFormat::LogFormat(format)) })
}

fn formatters(format: &str) -> Vec<envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig> {
    let (command, extension) = WITHOUT_QUERY;
    let config = Any {
        type_url: "type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery".to_owned(),
        value: Vec::new(),
    };
    format.contains(command).then(|| wire::extension(extension, config)).into_iter().collect()
}

fn json(path: &str, labels: &str, omit_empty_values: bool) -> Any {
    let custom = serde_json::from_str::<Json>(labels).ok();
    let fields = match custom.as_ref().and_then(Json::as_object) {
        Some(fields) => fields.iter().map(|(key, value)| (key.clone(), label(value))).collect(),
        None => JSON.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect(),
    };
    let format = JsonFormat { json_format: Some(Struct { fields }), omit_empty_values, formatters: formatters(labels) };
    let file = JsonFileAccessLog { path: path.to_owned(), log_format: Some(format) };
    wire::any_as("envoy.extensions.access_loggers.file.v3.FileAccessLog", &file)
}

/// A format, or formats within.
fn label(value: &Json) -> Value {
    match value {
        Json::String(text) => text.as_str().into(),
        Json::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()).into(),
        Json::Bool(flag) => Kind::Flag(*flag).into(),
        Json::Object(fields) => {
            Kind::Struct(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), label(v))).collect() }).into()
        }
        Json::Array(_) | Json::Null => Value { kind: None },
    }
}

fn open_telemetry(to: &Collector, name: &str, body: &str, attributes: &str) -> OpenTelemetryAccessLogConfig {
    let written = serde_json::from_str::<Json>(attributes).ok();
    let fields = written.as_ref().and_then(Json::as_object).map(attribute_list);
    #[expect(deprecated, reason = "the fields that replace it are not in the generated types")]
    OpenTelemetryAccessLogConfig {
        common_config: Some(CommonGrpcAccessLogConfig {
            log_name: name.to_owned(),
            grpc_service: Some(grpc(to)),
            transport_api_version: ApiVersion::V3.into(),
            ..CommonGrpcAccessLogConfig::default()
        }),
        disable_builtin_labels: true,
        body: Some(any_text(line(body))),
        attributes: fields,
        formatters: formatters(body).into_iter().chain(formatters(attributes)).take(1).collect(),
        ..OpenTelemetryAccessLogConfig::default()
    }
}

fn attribute_list(fields: &serde_json::Map<String, Json>) -> KeyValueList {
    let value = |value: &Json| match value {
        Json::String(text) => any_text(text.clone()),
        Json::Object(fields) => AnyValue { value: Some(any_value::Value::KvlistValue(attribute_list(fields))) },
        other => any_text(other.to_string()),
    };
    let pair = |(key, written): (&String, &Json)| KeyValue {
        key: key.clone(),
        value: Some(value(written)),
        ..KeyValue::default()
    };
    KeyValueList { values: fields.iter().map(pair).collect() }
}

fn any_text(text: String) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text)) }
}

fn common(from: &GrpcLog) -> CommonGrpcAccessLogConfig {
    CommonGrpcAccessLogConfig {
        log_name: from.name.to_string(),
        grpc_service: Some(grpc(&from.to)),
        transport_api_version: ApiVersion::V3.into(),
        filter_state_objects_to_log: from.filter_state.iter().map(ToString::to_string).collect(),
        ..CommonGrpcAccessLogConfig::default()
    }
}

/// A gRPC service in a cluster.
pub fn grpc(to: &Collector) -> GrpcService {
    let target = grpc_service::EnvoyGrpc {
        cluster_name: to.cluster.to_string(),
        authority: to.authority.to_string(),
        ..Default::default()
    };
    GrpcService { target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)), ..GrpcService::default() }
}

/// A format given in the message.
pub fn inline(text: String) -> Format {
    Format::TextFormatSource(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() })
}
