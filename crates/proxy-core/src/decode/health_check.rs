//! Active health checks.
//!
//! Invariant: times are positive, thresholds at least one; custom checkers are refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as kind;

use super::bad::{At, Bad, each, given, only};
use super::basic::{duration, number, port};
use super::headers;
use crate::model::cluster::{HealthCheck, HealthCheckKind};
use pb::health_check as inner;

/// A health check.
pub fn health_check(value: &pb::HealthCheck) -> Result<HealthCheck, Bad> {
    only!(value, pb::HealthCheck {
        timeout, interval, interval_jitter, unhealthy_threshold, healthy_threshold, alt_port, health_checker
    } refuse {
        initial_jitter, interval_jitter_percent, reuse_connection, no_traffic_interval, no_traffic_healthy_interval, unhealthy_interval,
        unhealthy_edge_interval, healthy_edge_interval, event_log_path, event_logger, event_service, always_log_health_check_failures,
        always_log_health_check_success, tls_options, transport_socket_match_criteria,
    });
    let needed = |field: &str, value: &Option<_>| match given(field, value, duration)? {
        Some(time) if !time.is_zero() => Ok(time),
        _ => Err(Bad::field(field, "must be greater than zero")),
    };
    let threshold = |field: &str, value: &Option<_>| match number(value) {
        Some(times @ 1..) => Ok(times),
        _ => Err(Bad::field(field, "must be greater than zero")),
    };
    Ok(HealthCheck {
        timeout: needed("timeout", &value.timeout)?,
        interval: needed("interval", &value.interval)?,
        jitter: given("interval_jitter", &value.interval_jitter, duration)?.unwrap_or(Duration::ZERO),
        unhealthy_threshold: threshold("unhealthy_threshold", &value.unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", &value.healthy_threshold)?,
        port: given("alt_port", &value.alt_port, |p| port(p.value))?,
        kind: match &value.health_checker {
            Some(inner::HealthChecker::HttpHealthCheck(check)) => http(check).at("http_health_check")?,
            Some(inner::HealthChecker::TcpHealthCheck(check)) => tcp(check).at("tcp_health_check")?,
            Some(inner::HealthChecker::GrpcHealthCheck(check)) => grpc(check).at("grpc_health_check")?,
            Some(inner::HealthChecker::CustomHealthCheck(_)) => return Err(Bad::unsupported("custom_health_check")),
            None => return Err(Bad::new("no health checker")),
        },
    })
}

fn http(value: &inner::HttpHealthCheck) -> Result<HealthCheckKind, Bad> {
    only!(value, inner::HttpHealthCheck { host, path, request_headers_to_add, expected_statuses, codec_client_type, method } refuse {
        send, receive, response_buffer_size, request_headers_to_remove, retriable_statuses, service_name_matcher
    });
    if !value.path.starts_with('/') {
        return Err(Bad::field("path", "must start with `/`"));
    }
    let statuses = each("expected_statuses", &value.expected_statuses, |range| {
        let status = |n: i64| u16::try_from(n).ok().filter(|n| (100..=600).contains(n));
        match (status(range.start), status(range.end)) {
            (Some(start), Some(end)) if start < end => Ok((start, end)),
            _ => Err(Bad::new("not a range of statuses")),
        }
    })?;
    use pb::RequestMethod as M;
    Ok(HealthCheckKind::Http {
        method: match M::try_from(value.method) {
            Ok(M::MethodUnspecified | M::Get) => http::Method::GET,
            Ok(M::Head) => http::Method::HEAD,
            Ok(M::Options) => http::Method::OPTIONS,
            Ok(M::Trace) => http::Method::TRACE,
            Ok(M::Post) => http::Method::POST,
            Ok(M::Put) => http::Method::PUT,
            Ok(M::Delete) => http::Method::DELETE,
            Ok(M::Patch) => http::Method::PATCH,
            Ok(M::Connect) | Err(_) => return Err(Bad::field("method", "not for a health check")),
        },
        host: value.host.as_str().into(),
        path: value.path.as_str().into(),
        headers: each("request_headers_to_add", &value.request_headers_to_add, |option| {
            let header = option.header.as_ref().ok_or_else(|| Bad::field("header", "missing"))?;
            let text = http::HeaderValue::from_str(&header.value).map_err(|e| Bad::field("header.value", e))?;
            Ok((headers::name(&header.key).at("header.key")?, text))
        })?,
        statuses: if statuses.is_empty() { vec![(200, 201)] } else { statuses },
        h2: match kind::CodecClientType::try_from(value.codec_client_type) {
            Ok(kind::CodecClientType::Http1) => false,
            Ok(kind::CodecClientType::Http2) => true,
            _ => return Err(Bad::field("codec_client_type", "only HTTP1 and HTTP2 are supported")),
        },
    })
}

fn tcp(value: &inner::TcpHealthCheck) -> Result<HealthCheckKind, Bad> {
    only!(value, inner::TcpHealthCheck { send, receive } refuse { proxy_protocol_config });
    Ok(HealthCheckKind::Tcp {
        send: given("send", &value.send, payload)?.unwrap_or_default(),
        receive: each("receive", &value.receive, payload)?,
    })
}

fn payload(value: &inner::Payload) -> Result<Vec<u8>, Bad> {
    match &value.payload {
        Some(inner::payload::Payload::Binary(bytes)) => Ok(bytes.clone()),
        Some(inner::payload::Payload::Text(text)) => {
            let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
                [high, low] => crate::matching::hex_byte(*high, *low),
                _ => None,
            });
            pairs.collect::<Option<Vec<u8>>>().ok_or_else(|| Bad::field("text", "not hexadecimal"))
        }
        None => Err(Bad::new("empty payload")),
    }
}

fn grpc(value: &inner::GrpcHealthCheck) -> Result<HealthCheckKind, Bad> {
    only!(value, inner::GrpcHealthCheck { service_name, authority } refuse { initial_metadata });
    Ok(HealthCheckKind::Grpc {
        service: value.service_name.as_str().into(),
        authority: value.authority.as_str().into(),
    })
}
