//! Protocol options that listeners and clusters share.
//!
//! Invariant: Envoy's defaults and bounds.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::bad::{At, Bad, given, only};
use super::basic::{duration, limit, number, refuse_false};
use crate::model::hcm::{HeaderCase, Http1Options, Http2Options, Underscores, Upgrade};

/// What `HttpProtocolOptions` says, defaults applied.
pub struct CommonOptions {
    /// Idle connection. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Longest connection.
    pub max_connection_duration: Option<Duration>,
    /// Longest stream.
    pub max_stream_duration: Option<Duration>,
    /// Most headers. Default 100.
    pub max_headers_count: u32,
    /// Most requests per connection.
    pub max_requests_per_connection: Option<u32>,
    /// Headers with `_`.
    pub underscores: Underscores,
}

/// `core.v3.HttpProtocolOptions`.
pub fn common(value: &Option<core::HttpProtocolOptions>) -> Result<CommonOptions, Bad> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as U;
    let unset = core::HttpProtocolOptions::default();
    let value = value.as_ref().unwrap_or(&unset);
    only!(value, core::HttpProtocolOptions {
        idle_timeout, max_connection_duration, max_headers_count, max_stream_duration, headers_with_underscores_action,
        max_requests_per_connection,
    } refuse { max_connection_duration_jitter, max_response_headers_kb });
    Ok(CommonOptions {
        idle_timeout: limit("idle_timeout", &value.idle_timeout, Some(Duration::from_secs(3600)))?,
        max_connection_duration: limit("max_connection_duration", &value.max_connection_duration, None)?,
        max_stream_duration: limit("max_stream_duration", &value.max_stream_duration, None)?,
        max_headers_count: match number(&value.max_headers_count) {
            Some(0) => return Err(Bad::field("max_headers_count", "must be greater than zero")),
            count => count.unwrap_or(100),
        },
        max_requests_per_connection: number(&value.max_requests_per_connection).filter(|n| *n > 0),
        underscores: match U::try_from(value.headers_with_underscores_action) {
            Ok(U::Allow) => Underscores::Allow,
            Ok(U::RejectRequest) => Underscores::Reject,
            Ok(U::DropHeader) => Underscores::Drop,
            Err(_) => return Err(Bad::field("headers_with_underscores_action", "unknown value")),
        },
    })
}

/// `Http1ProtocolOptions`.
pub fn http1(value: &core::Http1ProtocolOptions) -> Result<Http1Options, Bad> {
    use core::http1_protocol_options::header_key_format::HeaderFormat as H;
    only!(value, core::Http1ProtocolOptions {
        allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format
    } refuse {
        enable_trailers, allow_chunked_length,
        override_stream_error_on_invalid_http_message, send_fully_qualified_url, use_balsa_parser, allow_custom_methods,
        ignore_http_11_upgrade,
    });
    refuse_false("allow_absolute_url", &value.allow_absolute_url)?;
    let header_case = given("header_key_format", &value.header_key_format, |format| match &format.header_format {
        Some(H::ProperCaseWords(_)) => Ok(HeaderCase::ProperWords),
        Some(H::StatefulFormatter(extension)) => match &extension.typed_config {
            Some(any) if super::bad::type_name(any).ends_with(".preserve_case.v3.PreserveCaseFormatterConfig") => {
                Ok(HeaderCase::Preserve)
            }
            _ => Err(Bad::unsupported("stateful_formatter")),
        },
        None => Ok(HeaderCase::Lower),
    })?;
    Ok(Http1Options {
        accept_http_10: value.accept_http_10,
        default_host_for_http_10: value.default_host_for_http_10.as_str().into(),
        header_case: header_case.unwrap_or_default(),
    })
}

/// `Http2ProtocolOptions`.
pub fn http2(value: &core::Http2ProtocolOptions) -> Result<Http2Options, Bad> {
    only!(value, core::Http2ProtocolOptions {
        hpack_table_size, max_concurrent_streams, initial_stream_window_size, initial_connection_window_size, allow_connect,
        connection_keepalive,
    } refuse {
        allow_metadata, max_outbound_frames, max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream, max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message, custom_settings_parameters,
        use_oghttp2_codec, max_metadata_size, enable_huffman_encoding, max_header_field_size_kb, disallow_obs_text, stream_reset_burst,
        stream_reset_rate,
    });
    let default = Http2Options::default();
    let keepalive = value.connection_keepalive.as_ref();
    if let Some(keepalive) = keepalive {
        // Jitter only spreads pings.
        only!(keepalive, core::KeepaliveSettings { interval, timeout, interval_jitter } refuse { connection_idle_interval });
    }
    let window = |field: &str, size: Option<u32>, default: u32| match size.unwrap_or(default) {
        size @ 65_535..=2_147_483_647 => Ok(size),
        _ => Err(Bad::field(field, "out of range")),
    };
    Ok(Http2Options {
        hpack_table_size: number(&value.hpack_table_size).unwrap_or(default.hpack_table_size),
        max_concurrent_streams: match number(&value.max_concurrent_streams) {
            Some(0) => return Err(Bad::field("max_concurrent_streams", "must be greater than zero")),
            streams => streams.unwrap_or(default.max_concurrent_streams),
        },
        initial_stream_window: window(
            "initial_stream_window_size",
            number(&value.initial_stream_window_size),
            default.initial_stream_window,
        )?,
        initial_connection_window: window(
            "initial_connection_window_size",
            number(&value.initial_connection_window_size),
            default.initial_connection_window,
        )?,
        allow_connect: value.allow_connect,
        keepalive_interval: keepalive
            .and_then(|k| k.interval.as_ref())
            .map(|i| duration(i).at("connection_keepalive.interval"))
            .transpose()?,
        keepalive_timeout: keepalive
            .and_then(|k| k.timeout.as_ref())
            .map(|i| duration(i).at("connection_keepalive.timeout"))
            .transpose()?
            .unwrap_or(default.keepalive_timeout),
    })
}

/// An upgrade type.
pub fn upgrade_kind(kind: &str, enabled: bool) -> Result<Upgrade, Bad> {
    match kind.to_ascii_lowercase().as_str() {
        "" => Err(Bad::new("empty")),
        "connect-udp" => Err(Bad::new("CONNECT-UDP is not supported")),
        kind => Ok(Upgrade { kind: kind.into(), enabled }),
    }
}
