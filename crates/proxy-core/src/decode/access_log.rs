//! Access logs.
//!
//! Invariant: filters and formats that we could not evaluate are refused.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::{filter, headers, matcher};
use crate::model::access_log::{AccessLog, Compare, JsonNode, LogFilter, LogFormat, LogSink};

/// Envoy's default line.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// One access log.
pub fn access_log(value: &pb::AccessLog) -> Result<AccessLog, Bad> {
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = &value.config_type else {
        return Err(Bad::field("typed_config", "missing"));
    };
    let (sink, format) = match type_name(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            decode(any).and_then(|f: file::FileAccessLog| file_log(&f)).at("typed_config")?
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let log: stream::StdoutAccessLog = decode(any).at("typed_config")?;
            let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = log
                .access_log_format
                .unwrap_or_else(|| stream::stdout_access_log::AccessLogFormat::LogFormat(default_format()));
            (LogSink::Stdout, log_format(&format).at("typed_config.log_format")?)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let log: stream::StderrAccessLog = decode(any).at("typed_config")?;
            let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = log
                .access_log_format
                .unwrap_or_else(|| stream::stderr_access_log::AccessLogFormat::LogFormat(default_format()));
            (LogSink::Stderr, log_format(&format).at("typed_config.log_format")?)
        }
        _ => return Err(Bad::field("typed_config", format_args!("unsupported access logger \"{}\"", value.name))),
    };
    Ok(AccessLog { sink, format, filter: given("filter", &value.filter, |f| log_filter(f, 0))? })
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
            only!(value, core::SubstitutionFormatString { format, json_format_options, omit_empty_values } refuse {
                content_type, formatters,
            });
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
        Some(_) => return Err(Bad::new("unsupported access log filter")),
        None => return Err(Bad::new("empty access log filter")),
    })
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
