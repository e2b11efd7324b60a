//! A record as the servers of logs want it: OpenTelemetry's, and Envoy's own.
//!
//! Invariant: functions of the facts and the format alone. Texts in OpenTelemetry's records are always texts, a missing value is `-`, as
//! Envoy has it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::data::accesslog::v3 as data;
use envoy_types::pb::google::protobuf::{Duration as WireDuration, Timestamp, UInt32Value};
use http::{HeaderMap, HeaderName};

use crate::facts::Facts;
use crate::model::access_log::{EntryFormat, JsonNode, OtlpFormat};
use crate::otlp::{AnyValue, KeyValue, KeyValueList, LogRecord, Value};

/// A record of OpenTelemetry. `now` is since 1970.
#[must_use]
pub fn record(format: &OtlpFormat, facts: &Facts<'_>) -> LogRecord {
    let nanos = |at: Option<Duration>| at.and_then(|d| u64::try_from(d.as_nanos()).ok()).unwrap_or(0);
    let (trace, span) = facts.trace.unwrap_or_default();
    LogRecord {
        time_unix_nano: nanos(facts.start),
        body: format.body.as_ref().map(|b| any(b, facts)),
        attributes: pairs(&format.attributes, facts),
        trace_id: unhex(trace),
        span_id: unhex(span),
        ..LogRecord::default()
    }
}

/// Pairs of names and values.
#[must_use]
pub fn pairs<K: AsRef<str>>(pairs: &[(K, JsonNode)], facts: &Facts<'_>) -> Vec<KeyValue> {
    let one = |(key, node): &(K, JsonNode)| KeyValue {
        key: key.as_ref().to_owned(),
        value: Some(any(node, facts)),
        ..KeyValue::default()
    };
    pairs.iter().map(one).collect()
}

#[allow(clippy::cast_possible_truncation)]
fn any(node: &JsonNode, facts: &Facts<'_>) -> AnyValue {
    let value = match node {
        JsonNode::Null => None,
        JsonNode::Bool(value) => Some(Value::BoolValue(*value)),
        JsonNode::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            Some(Value::IntValue(*number as i64))
        }
        JsonNode::Number(number) => Some(Value::DoubleValue(*number)),
        JsonNode::Text(format) => {
            let mut out = String::new();
            format.render(facts, "-", &mut out);
            Some(Value::StringValue(out))
        }
        JsonNode::List(items) => {
            Some(Value::ArrayValue(envoy_types::pb::opentelemetry::proto::common::v1::ArrayValue {
                values: items.iter().map(|i| any(i, facts)).collect(),
            }))
        }
        JsonNode::Object(entries) => Some(Value::KvlistValue(KeyValueList { values: pairs(entries, facts) })),
    };
    AnyValue { value }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| match pair {
        [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect::<Option<_>>().unwrap_or_default()
}

fn address(address: Option<SocketAddr>) -> Option<core::Address> {
    let address = address?;
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

fn wire(duration: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn millis(millis: Option<u64>) -> Option<WireDuration> {
    millis.map(|m| wire(Duration::from_millis(m)))
}

fn common(facts: &Facts<'_>) -> data::AccessLogCommon {
    let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
    let san = |uri: Option<&str>| {
        use data::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name::San};
        let names = uri.map(|u| SubjectAltName { san: Some(San::Uri(u.to_owned())) });
        names.into_iter().collect::<Vec<_>>()
    };
    let tls = facts.tls_version.map(|version| data::TlsProperties {
        tls_version: match version {
            "TLSv1.3" => data::tls_properties::TlsVersion::TlSv13,
            "TLSv1.2" => data::tls_properties::TlsVersion::TlSv12,
            _ => data::tls_properties::TlsVersion::VersionUnspecified,
        }
        .into(),
        tls_sni_hostname: text(facts.server_name),
        local_certificate_properties: Some(data::tls_properties::CertificateProperties {
            subject_alt_name: san(facts.local_uri_san),
            ..Default::default()
        }),
        peer_certificate_properties: Some(data::tls_properties::CertificateProperties {
            subject_alt_name: san(facts.peer_uri_san),
            subject: text(facts.peer_subject),
            ..Default::default()
        }),
        ..Default::default()
    });
    let start = facts.start.map(wire);
    let request_id = facts.request.and_then(|r| r.headers.get("x-request-id")).and_then(|v| v.to_str().ok());
    data::AccessLogCommon {
        downstream_remote_address: address(facts.remote),
        downstream_local_address: address(facts.local),
        downstream_direct_remote_address: address(facts.direct_remote),
        upstream_remote_address: address(facts.upstream),
        upstream_local_address: address(facts.upstream_local),
        tls_properties: tls,
        start_time: start.map(|d| Timestamp { seconds: d.seconds, nanos: d.nanos }),
        time_to_last_rx_byte: millis(facts.request_ms),
        time_to_first_upstream_rx_byte: millis(facts.response_ms),
        time_to_last_downstream_tx_byte: millis(facts.duration_ms),
        duration: millis(facts.duration_ms),
        upstream_cluster: text(facts.cluster),
        response_flags: facts.flags.map(flags),
        upstream_transport_failure_reason: text(facts.upstream_failure),
        route_name: text(facts.route),
        upstream_request_attempt_count: facts.attempts.unwrap_or(0),
        connection_termination_details: text(facts.termination_details),
        downstream_transport_failure_reason: text(facts.downstream_failure),
        stream_id: text(request_id),
        access_log_type: match facts.request {
            Some(_) => data::AccessLogType::DownstreamEnd,
            None => data::AccessLogType::TcpConnectionEnd,
        }
        .into(),
        ..data::AccessLogCommon::default()
    }
}

fn flags(shorts: &str) -> data::ResponseFlags {
    let mut out = data::ResponseFlags::default();
    for short in shorts.split(',') {
        match short {
            "LH" => out.failed_local_healthcheck = true,
            "UH" => out.no_healthy_upstream = true,
            "UT" => out.upstream_request_timeout = true,
            "LR" => out.local_reset = true,
            "UR" => out.upstream_remote_reset = true,
            "UF" => out.upstream_connection_failure = true,
            "UC" => out.upstream_connection_termination = true,
            "UO" => out.upstream_overflow = true,
            "NR" => out.no_route_found = true,
            "DI" => out.delay_injected = true,
            "FI" => out.fault_injected = true,
            "RL" => out.rate_limited = true,
            "UAEX" => {
                let reason = data::response_flags::unauthorized::Reason::ExternalService;
                out.unauthorized_details = Some(data::response_flags::Unauthorized { reason: reason.into() });
            }
            "DC" => out.downstream_connection_termination = true,
            "URX" => out.upstream_retry_limit_exceeded = true,
            "SI" => out.stream_idle_timeout = true,
            "DPE" => out.downstream_protocol_error = true,
            "UMSDR" => out.upstream_max_stream_duration_reached = true,
            "DT" => out.duration_timeout = true,
            "UPE" => out.upstream_protocol_error = true,
            "NC" => out.no_cluster_found = true,
            _ => {}
        }
    }
    out
}

fn chosen(names: &[HeaderName], headers: Option<&HeaderMap>) -> HashMap<String, String> {
    let Some(headers) = headers else { return HashMap::new() };
    let one = |name: &HeaderName| {
        crate::request::joined(headers, name, |v| (name.to_string(), String::from_utf8_lossy(v).into_owned()))
    };
    names.iter().filter_map(one).collect()
}

/// An entry of a request.
#[must_use]
pub fn http_entry(format: &EntryFormat, facts: &Facts<'_>) -> data::HttpAccessLogEntry {
    use core::RequestMethod as M;
    use data::http_access_log_entry::HttpVersion as V;
    let request = facts.request.map(|r| {
        let header = |name: &str| r.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        data::HttpRequestProperties {
            request_method: M::from_str_name(r.method).unwrap_or(M::MethodUnspecified).into(),
            scheme: r.scheme.to_owned(),
            authority: r.authority.to_owned(),
            path: r.path.to_owned(),
            user_agent: header("user-agent").unwrap_or_default(),
            referer: header("referer").unwrap_or_default(),
            forwarded_for: header("x-forwarded-for").unwrap_or_default(),
            request_id: header("x-request-id").unwrap_or_default(),
            original_path: header("x-envoy-original-path").unwrap_or_default(),
            request_body_bytes: facts.bytes_received,
            request_headers: chosen(&format.request_headers, Some(r.headers)),
            ..data::HttpRequestProperties::default()
        }
    });
    data::HttpAccessLogEntry {
        common_properties: Some(common(facts)),
        protocol_version: match facts.protocol {
            Some("HTTP/1.0") => V::Http10,
            Some("HTTP/1.1") => V::Http11,
            Some("HTTP/2") => V::Http2,
            _ => V::ProtocolUnspecified,
        }
        .into(),
        request,
        response: Some(data::HttpResponseProperties {
            response_code: facts.status.filter(|s| *s > 0).map(|s| UInt32Value { value: s.into() }),
            response_body_bytes: facts.bytes_sent,
            response_headers: chosen(&format.response_headers, facts.response),
            response_trailers: chosen(&format.response_trailers, facts.trailers),
            response_code_details: facts.code_details.unwrap_or_default().to_owned(),
            ..data::HttpResponseProperties::default()
        }),
    }
}

/// An entry of a connection.
#[must_use]
pub fn tcp_entry(facts: &Facts<'_>) -> data::TcpAccessLogEntry {
    data::TcpAccessLogEntry {
        common_properties: Some(common(facts)),
        connection_properties: Some(data::ConnectionProperties {
            received_bytes: facts.bytes_received,
            sent_bytes: facts.bytes_sent,
        }),
    }
}
