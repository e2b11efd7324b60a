//! The access log: to a file or standard output, as Istio's text line or JSON object (semantics §25.4).
//!
//! Invariant: text and JSON carry the same fields.

use carrick_mesh::view::AccessLog;
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{self as log, access_log},
        core::v3::{DataSource, SubstitutionFormatString, data_source::Specifier, substitution_format_string::Format},
    },
    extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
};

use crate::wire::{
    self,
    stable::{JsonFileAccessLog, JsonFormat, Struct},
};

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

/// The access logs of a filter; none where the mesh has none.
pub fn all(from: Option<&AccessLog>) -> Vec<log::AccessLog> {
    let Some(from) = from else { return Vec::new() };
    let config = if from.json { json(from) } else { text(from) };
    vec![log::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..log::AccessLog::default()
    }]
}

fn text(from: &AccessLog) -> envoy_types::pb::google::protobuf::Any {
    let mut line = if from.format.is_empty() { TEXT.to_owned() } else { from.format.to_string() };
    if !line.ends_with('\n') {
        line.push('\n');
    }
    let format = SubstitutionFormatString { format: Some(inline(line)), ..SubstitutionFormatString::default() };
    let file =
        FileAccessLog { path: from.path.to_string(), access_log_format: Some(AccessLogFormat::LogFormat(format)) };
    wire::any(&file)
}

fn json(from: &AccessLog) -> envoy_types::pb::google::protobuf::Any {
    let custom = serde_json::from_str::<std::collections::BTreeMap<String, String>>(&from.format).ok();
    let fields = match custom {
        Some(fields) => fields.into_iter().map(|(k, v)| (k, v.as_str().into())).collect(),
        None => JSON.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect(),
    };
    let format = JsonFormat { json_format: Some(Struct { fields }) };
    let file = JsonFileAccessLog { path: from.path.to_string(), log_format: Some(format) };
    wire::any_as("envoy.extensions.access_loggers.file.v3.FileAccessLog", &file)
}

/// A format given in the message.
pub fn inline(text: String) -> Format {
    Format::TextFormatSource(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() })
}
