//! Access logs.
//!
//! Invariant: filters and formats that we could not evaluate are refused.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3 as cel;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3 as als;
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3 as otel;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{self, number, positive};
use super::{collector, filter, headers, matcher};
use crate::expr;
use crate::model::access_log::{AccessLog, Compare, EntryFormat, JsonNode, LogFilter, LogFormat, LogSink, OtlpFormat};
use crate::model::collector::Collector;

/// Envoy's default line.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// One access log.
pub fn access_log(value: &pb::AccessLog) -> Result<AccessLog, Bad> {
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = &value.config_type else {
        return Err(Bad::field("typed_config", "missing"));
    };
    let mut omit_empty = false;
    let mut omits = |format: &core::SubstitutionFormatString| omit_empty = format.omit_empty_values;
    let (sink, format) = match type_name(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let file: file::FileAccessLog = decode(any).at("typed_config")?;
            if let Some(file::file_access_log::AccessLogFormat::LogFormat(format)) = &file.access_log_format {
                omits(format);
            }
            file_log(&file).at("typed_config")?
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let log: stream::StdoutAccessLog = decode(any).at("typed_config")?;
            let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = log
                .access_log_format
                .unwrap_or_else(|| stream::stdout_access_log::AccessLogFormat::LogFormat(default_format()));
            omits(&format);
            (LogSink::Stdout, log_format(&format).at("typed_config.log_format")?)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let log: stream::StderrAccessLog = decode(any).at("typed_config")?;
            let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = log
                .access_log_format
                .unwrap_or_else(|| stream::stderr_access_log::AccessLogFormat::LogFormat(default_format()));
            omits(&format);
            (LogSink::Stderr, log_format(&format).at("typed_config.log_format")?)
        }
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
            decode(any).and_then(|c: otel::OpenTelemetryAccessLogConfig| otlp(&c)).at("typed_config")?
        }
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
            decode(any).and_then(|c: als::HttpGrpcAccessLogConfig| http_entries(&c)).at("typed_config")?
        }
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
            let config: als::TcpGrpcAccessLogConfig = decode(any).at("typed_config")?;
            let common =
                config.common_config.as_ref().ok_or_else(|| Bad::field("typed_config.common_config", "missing"))?;
            entries(common, false, Default::default()).at("typed_config.common_config")?
        }
        _ => return Err(Bad::field("typed_config", format_args!("unsupported access logger \"{}\"", value.name))),
    };
    Ok(AccessLog { sink, format, omit_empty, filter: given("filter", &value.filter, |f| log_filter(f, 0))? })
}

const ENTRIES: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

fn header_names(field: &str, names: &[String]) -> Result<Vec<http::HeaderName>, Bad> {
    each(field, names, |name| headers::name(name))
}

fn http_entries(value: &als::HttpGrpcAccessLogConfig) -> Result<(LogSink, LogFormat), Bad> {
    only!(value, als::HttpGrpcAccessLogConfig {
        common_config, additional_request_headers_to_log, additional_response_headers_to_log,
        additional_response_trailers_to_log,
    } refuse {});
    let common = value.common_config.as_ref().ok_or_else(|| Bad::field("common_config", "missing"))?;
    let request = header_names("additional_request_headers_to_log", &value.additional_request_headers_to_log)?;
    let response = header_names("additional_response_headers_to_log", &value.additional_response_headers_to_log)?;
    let trailers = header_names("additional_response_trailers_to_log", &value.additional_response_trailers_to_log)?;
    entries(common, true, [request, response, trailers]).at("common_config")
}

fn entries(
    common: &als::CommonGrpcAccessLogConfig,
    http: bool,
    [request_headers, response_headers, response_trailers]: [Vec<http::HeaderName>; 3],
) -> Result<(LogSink, LogFormat), Bad> {
    let collector = common_config(common, ENTRIES, "access_logs.grpc_access_log.")?;
    let format = EntryFormat {
        log_name: common.log_name.as_str().into(),
        http,
        request_headers,
        response_headers,
        response_trailers,
    };
    Ok((LogSink::Collector(Arc::new(collector)), LogFormat::Entry(Arc::new(format))))
}

fn common_config(value: &als::CommonGrpcAccessLogConfig, path: &str, counters: &str) -> Result<Collector, Bad> {
    only!(value, als::CommonGrpcAccessLogConfig {
        log_name, grpc_service, transport_api_version, buffer_flush_interval, buffer_size_bytes,
    } refuse { filter_state_objects_to_log, grpc_stream_retry_policy, custom_tags });
    let service = value.grpc_service.as_ref().ok_or_else(|| Bad::field("grpc_service", "missing"))?;
    let mut made = collector::grpc(service, path).at("grpc_service")?;
    (made.flush, made.bytes) = buffer(&value.buffer_flush_interval, &value.buffer_size_bytes)?;
    made.counters = counters.into();
    Ok(made)
}

fn buffer(
    interval: &Option<envoy_types::pb::google::protobuf::Duration>,
    size: &Option<envoy_types::pb::google::protobuf::UInt32Value>,
) -> Result<(Duration, usize), Bad> {
    let bytes = usize::try_from(number(size).unwrap_or(16 * 1024)).unwrap_or(usize::MAX);
    Ok((positive("buffer_flush_interval", interval, Duration::from_secs(1))?, bytes))
}

fn otlp(value: &otel::OpenTelemetryAccessLogConfig) -> Result<(LogSink, LogFormat), Bad> {
    only!(value, otel::OpenTelemetryAccessLogConfig {
        common_config, grpc_service, disable_builtin_labels, resource_attributes, body, attributes, stat_prefix, log_name,
        buffer_flush_interval, buffer_size_bytes, formatters,
    } refuse { http_service, resource_detectors, filter_state_objects_to_log, custom_tags });
    each("formatters", &value.formatters, filter::formatter)?;
    let counters = match value.stat_prefix.as_str() {
        "" => "access_logs.open_telemetry_access_log.".to_owned(),
        prefix => format!("access_logs.open_telemetry_access_log.{prefix}."),
    };
    let collector = match (&value.grpc_service, &value.common_config) {
        (Some(service), _) => {
            let mut made = collector::grpc(service, crate::otlp::LOGS).at("grpc_service")?;
            (made.flush, made.bytes) = buffer(&value.buffer_flush_interval, &value.buffer_size_bytes)?;
            made.counters = counters.as_str().into();
            made
        }
        (None, Some(common)) => common_config(common, crate::otlp::LOGS, &counters).at("common_config")?,
        (None, None) => return Err(Bad::field("grpc_service", "missing")),
    };
    let older = value.common_config.as_ref().map(|c| c.log_name.as_str()).unwrap_or_default();
    let log_name = if value.log_name.is_empty() { older } else { &value.log_name };
    let list = |field: &str, list: &Option<crate::otlp::KeyValueList>| {
        list.as_ref().map_or(Ok(Vec::new()), |l| pairs(&l.values, 0)).at(field)
    };
    let format = OtlpFormat {
        log_name: log_name.into(),
        builtin: !value.disable_builtin_labels,
        resource: list("resource_attributes", &value.resource_attributes)?,
        body: given("body", &value.body, |b| any_value(b, 0))?,
        attributes: list("attributes", &value.attributes)?,
    };
    Ok((LogSink::Collector(Arc::new(collector)), LogFormat::Otlp(Arc::new(format))))
}

fn pairs(values: &[crate::otlp::KeyValue], depth: usize) -> Result<Vec<(crate::model::Name, JsonNode)>, Bad> {
    let one = |kv: &crate::otlp::KeyValue| {
        let value = kv.value.as_ref().map_or(Ok(JsonNode::Null), |v| any_value(v, depth)).at(&kv.key)?;
        Ok((kv.key.as_str().into(), value))
    };
    values.iter().map(one).collect()
}

#[allow(clippy::cast_precision_loss)]
fn any_value(value: &crate::otlp::AnyValue, depth: usize) -> Result<JsonNode, Bad> {
    use crate::otlp::Value as V;
    if depth > 16 {
        return Err(Bad::new("nested too deeply"));
    }
    let below = depth.saturating_add(1);
    Ok(match &value.value {
        None => JsonNode::Null,
        Some(V::StringValue(text)) => JsonNode::Text(headers::format(text)?),
        Some(V::BoolValue(value)) => JsonNode::Bool(*value),
        Some(V::IntValue(number)) => JsonNode::Number(*number as f64),
        Some(V::DoubleValue(number)) => JsonNode::Number(*number),
        Some(V::ArrayValue(list)) => {
            JsonNode::List(list.values.iter().map(|v| any_value(v, below)).collect::<Result<_, _>>()?)
        }
        Some(V::KvlistValue(list)) => JsonNode::Object(pairs(&list.values, below)?),
        Some(V::BytesValue(_) | V::StringValueStrindex(_)) => return Err(Bad::new("bytes are not supported")),
    })
}

fn default_format() -> core::SubstitutionFormatString {
    core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::TextFormat(DEFAULT.to_owned())),
        ..Default::default()
    }
}

fn file_log(value: &file::FileAccessLog) -> Result<(LogSink, LogFormat), Bad> {
    use file::file_access_log::AccessLogFormat as F;
    let sink = match value.path.as_str() {
        "" => return Err(Bad::field("path", "empty")),
        "/dev/stdout" => LogSink::Stdout,
        "/dev/stderr" => LogSink::Stderr,
        path => LogSink::File(path.into()),
    };
    let format = match &value.access_log_format {
        None => LogFormat::Text(headers::format(DEFAULT)?),
        Some(F::Format(text)) => LogFormat::Text(headers::format(text).at("format")?),
        Some(F::JsonFormat(object) | F::TypedJsonFormat(object)) => {
            LogFormat::Json(json_object(object, 0).at("json_format")?)
        }
        Some(F::LogFormat(format)) => log_format(format).at("log_format")?,
    };
    Ok((sink, format))
}

fn log_format(value: &core::SubstitutionFormatString) -> Result<LogFormat, Bad> {
    match &value.format {
        Some(core::substitution_format_string::Format::JsonFormat(object)) => {
            // Keys keep the order of the map, which is sorted below in any case.
            only!(value, core::SubstitutionFormatString { format, json_format_options, omit_empty_values, formatters } refuse {
                content_type,
            });
            each("formatters", &value.formatters, filter::formatter)?;
            json_object(object, 0).at("json_format").map(LogFormat::Json)
        }
        _ => filter::substitution(value).map(LogFormat::Text),
    }
}

fn json_object(object: &Struct, depth: usize) -> Result<JsonNode, Bad> {
    let mut keys: Vec<_> = object.fields.iter().collect();
    keys.sort_by(|a, b| a.0.cmp(b.0));
    let entries = keys.into_iter().map(|(k, v)| Ok((k.as_str().into(), json_node(v, depth).at(k)?)));
    Ok(JsonNode::Object(entries.collect::<Result<_, Bad>>()?))
}

fn json_node(value: &Value, depth: usize) -> Result<JsonNode, Bad> {
    if depth > 16 {
        return Err(Bad::new("nested too deeply"));
    }
    let below = depth.saturating_add(1);
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => JsonNode::Null,
        Some(Kind::BoolValue(value)) => JsonNode::Bool(*value),
        Some(Kind::NumberValue(number)) => JsonNode::Number(*number),
        Some(Kind::StringValue(text)) => JsonNode::Text(headers::format(text)?),
        Some(Kind::StructValue(object)) => json_object(object, below)?,
        Some(Kind::ListValue(list)) => {
            JsonNode::List(list.values.iter().map(|v| json_node(v, below)).collect::<Result<_, _>>()?)
        }
    })
}

fn log_filter(value: &pb::AccessLogFilter, depth: usize) -> Result<LogFilter, Bad> {
    use pb::access_log_filter::FilterSpecifier as F;
    if depth > 16 {
        return Err(Bad::new("nested too deeply"));
    }
    let all = |filters: &[pb::AccessLogFilter]| each("filters", filters, |f| log_filter(f, depth.saturating_add(1)));
    Ok(match &value.filter_specifier {
        Some(F::StatusCodeFilter(f)) => {
            let (op, value) = comparison(&f.comparison).at("status_code_filter.comparison")?;
            LogFilter::Status(op, value)
        }
        Some(F::DurationFilter(f)) => {
            let (op, value) = comparison(&f.comparison).at("duration_filter.comparison")?;
            LogFilter::Duration(op, value)
        }
        Some(F::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(F::AndFilter(f)) => LogFilter::And(all(&f.filters).at("and_filter")?),
        Some(F::OrFilter(f)) => LogFilter::Or(all(&f.filters).at("or_filter")?),
        Some(F::ResponseFlagFilter(f)) => LogFilter::Flags(f.flags.iter().map(|f| f.as_str().into()).collect()),
        Some(F::GrpcStatusFilter(f)) => LogFilter::Grpc(f.statuses.clone(), f.exclude),
        Some(F::HeaderFilter(f)) => {
            let header = f.header.as_ref().ok_or_else(|| Bad::field("header_filter.header", "missing"))?;
            LogFilter::Header(matcher::header(header).at("header_filter.header")?)
        }
        Some(F::RuntimeFilter(f)) => {
            let share =
                f.percent_sampled.as_ref().map_or(Ok(0), basic::fraction).at("runtime_filter.percent_sampled")?;
            LogFilter::Share(share, f.use_independent_randomness)
        }
        Some(F::TraceableFilter(_)) => return Err(Bad::unsupported("traceable_filter")),
        Some(F::ExtensionFilter(f)) => extension(f).at("extension_filter")?,
        Some(_) => return Err(Bad::new("unsupported access log filter")),
        None => return Err(Bad::new("empty access log filter")),
    })
}

fn extension(value: &pb::ExtensionFilter) -> Result<LogFilter, Bad> {
    let Some(pb::extension_filter::ConfigType::TypedConfig(any)) = &value.config_type else {
        return Err(Bad::field("typed_config", "missing"));
    };
    match type_name(any) {
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter" => {
            let config: cel::ExpressionFilter = decode(any).at("typed_config")?;
            only!(&config, cel::ExpressionFilter { expression } refuse { cel_config });
            let expr = expr::parse(&config.expression).map_err(|e| Bad::field("typed_config.expression", e))?;
            Ok(LogFilter::Expr(expr))
        }
        other => Err(Bad::field("typed_config", format_args!("unsupported access log filter {other}"))),
    }
}

fn comparison(value: &Option<pb::ComparisonFilter>) -> Result<(Compare, u32), Bad> {
    use pb::comparison_filter::Op;
    let value = value.as_ref().ok_or_else(|| Bad::new("missing"))?;
    let op = match Op::try_from(value.op) {
        Ok(Op::Eq) => Compare::Eq,
        Ok(Op::Ge) => Compare::Ge,
        Ok(Op::Le) => Compare::Le,
        Ok(Op::Ne) => Compare::Ne,
        Err(_) => return Err(Bad::field("op", "unknown value")),
    };
    let number = value.value.as_ref().ok_or_else(|| Bad::field("value", "missing"))?;
    only!(number, core::RuntimeUInt32 { default_value } refuse { runtime_key });
    Ok((op, number.default_value))
}
