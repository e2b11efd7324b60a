//! HTTP connection managers.
//!
//! Invariant: HTTP/3, scoped routes, local reply mapping, early extensions and tracers are refused, not half supported.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3 as uuid;
use http::HeaderValue;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{cidr, limit, number, refuse_true, truth};
use super::{access_log, basic, filter, http_options, route, tracing};
use crate::model::hcm::{
    AddressOptions, Codec, EscapedSlashes, ForwardClientCert, HostOptions, HttpConnectionManager, PathOptions,
    RequestIdOptions, RouteSource, ServerHeader, Upgrade, XfccMode,
};
use pb::http_connection_manager as inner;

/// A connection manager.
pub fn connection_manager(value: &pb::HttpConnectionManager) -> Result<HttpConnectionManager, Bad> {
    only!(value, pb::HttpConnectionManager {
        codec_type, stat_prefix, http_filters, add_user_agent, tracing, common_http_protocol_options, http_protocol_options,
        http2_protocol_options, server_name, server_header_transformation, scheme_header_transformation, max_request_headers_kb,
        stream_idle_timeout, request_headers_timeout, access_log,
        use_remote_address, xff_num_trusted_hops, internal_address_config, skip_xff_append, via, generate_request_id,
        preserve_external_request_id, always_set_request_id_in_response, forward_client_cert_details, set_current_client_cert_details,
        proxy_100_continue, upgrade_configs, normalize_path, merge_slashes, path_with_escaped_slashes_action, request_id_extension,
        strip_matching_host_port, strip_trailing_host_dot, append_x_forwarded_port, route_specifier, strip_port_mode,
    } refuse {
        request_timeout, drain_timeout, delayed_close_timeout, http1_safe_max_connection_duration, http3_protocol_options, stream_flush_timeout, drain_timeout_jitter,
        access_log_flush_interval, flush_access_log_on_new_request, access_log_options, original_ip_detection_extensions,
        early_header_mutation_extensions, forward_client_cert_matcher, represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        local_reply_config, stream_error_on_invalid_http_message, path_normalization_options, proxy_status_config,
        typed_header_validation_config, append_local_overload, add_proxy_protocol_connection_state, forward_proto_config,
    });
    refuse_true("add_user_agent", &value.add_user_agent)?;
    let ids = given("request_id_extension", &value.request_id_extension, request_id_extension)?.unwrap_or((true, true));
    let mut tracing = given("tracing", &value.tracing, tracing::tracing)?;
    if let Some(tracing) = &mut tracing {
        (tracing.pack, tracing.by_request_id) = ids;
    }
    let common = http_options::common(&value.common_http_protocol_options).at("common_http_protocol_options")?;
    let seconds = |s| Some(Duration::from_secs(s));
    Ok(HttpConnectionManager {
        codec: codec(value.codec_type).at("codec_type")?,
        stat_prefix: value.stat_prefix.as_str().into(),
        routes: routes(value)?,
        filters: filter::http_filters(&value.http_filters)?,
        server_name: match &*value.server_name {
            "" => HeaderValue::from_static("envoy"),
            name => HeaderValue::from_str(name).map_err(|e| Bad::field("server_name", e))?,
        },
        server_header: server_header(value.server_header_transformation).at("server_header_transformation")?,
        via: value.via.as_str().into(),
        xfcc: xfcc(value)?,
        path: PathOptions {
            normalize: truth(&value.normalize_path).unwrap_or(false),
            merge_slashes: value.merge_slashes,
            escaped_slashes: escaped(value.path_with_escaped_slashes_action).at("path_with_escaped_slashes_action")?,
        },
        host: host(value),
        addresses: AddressOptions {
            use_remote_address: truth(&value.use_remote_address).unwrap_or(false),
            xff_num_trusted_hops: value.xff_num_trusted_hops,
            skip_xff_append: value.skip_xff_append,
            internal: given("internal_address_config", &value.internal_address_config, |c| {
                only!(c, inner::InternalAddressConfig { cidr_ranges } refuse { unix_sockets });
                each("cidr_ranges", &c.cidr_ranges, cidr)
            })?,
            append_x_forwarded_port: value.append_x_forwarded_port,
        },
        request_id: RequestIdOptions {
            generate: truth(&value.generate_request_id).unwrap_or(true),
            preserve_external: value.preserve_external_request_id,
            always_set_in_response: value.always_set_request_id_in_response,
        },
        scheme_overwrite: given("scheme_header_transformation", &value.scheme_header_transformation, scheme)?.flatten(),
        stream_idle_timeout: limit("stream_idle_timeout", &value.stream_idle_timeout, seconds(300))?,
        request_headers_timeout: limit("request_headers_timeout", &value.request_headers_timeout, None)?,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        max_requests_per_connection: common.max_requests_per_connection,
        max_headers_count: common.max_headers_count,
        max_request_headers_bytes: match number(&value.max_request_headers_kb).unwrap_or(60) {
            kb @ 1..=8192 => kb.saturating_mul(1024),
            _ => return Err(Bad::field("max_request_headers_kb", "out of range")),
        },
        underscores: common.underscores,
        http1: given("http_protocol_options", &value.http_protocol_options, http_options::http1)?.unwrap_or_default(),
        http2: given("http2_protocol_options", &value.http2_protocol_options, http_options::http2)?.unwrap_or_default(),
        upgrades: each("upgrade_configs", &value.upgrade_configs, upgrade)?,
        proxy_100_continue: value.proxy_100_continue,
        tracing: tracing.map(Arc::new),
        access_logs: each("access_log", &value.access_log, access_log::access_log)?,
    })
}

fn codec(value: i32) -> Result<Codec, Bad> {
    match inner::CodecType::try_from(value) {
        Ok(inner::CodecType::Auto) => Ok(Codec::Auto),
        Ok(inner::CodecType::Http1) => Ok(Codec::Http1),
        Ok(inner::CodecType::Http2) => Ok(Codec::Http2),
        Ok(inner::CodecType::Http3) => Err(Bad::new("HTTP3 is not supported")),
        Err(_) => Err(Bad::new("unknown value")),
    }
}

fn routes(value: &pb::HttpConnectionManager) -> Result<RouteSource, Bad> {
    match &value.route_specifier {
        Some(inner::RouteSpecifier::Rds(rds)) => {
            if rds.route_config_name.is_empty() {
                return Err(Bad::field("rds.route_config_name", "empty"));
            }
            given("rds.config_source", &rds.config_source, basic::ads)?;
            Ok(RouteSource::Rds(rds.route_config_name.as_str().into()))
        }
        Some(inner::RouteSpecifier::RouteConfig(config)) => {
            Ok(RouteSource::Inline(Arc::new(route::route_table(config).at("route_config")?)))
        }
        Some(inner::RouteSpecifier::ScopedRoutes(_)) => Err(Bad::unsupported("scoped_routes")),
        None => Err(Bad::new("no routes")),
    }
}

fn server_header(value: i32) -> Result<ServerHeader, Bad> {
    match inner::ServerHeaderTransformation::try_from(value) {
        Ok(inner::ServerHeaderTransformation::Overwrite) => Ok(ServerHeader::Overwrite),
        Ok(inner::ServerHeaderTransformation::AppendIfAbsent) => Ok(ServerHeader::AppendIfAbsent),
        Ok(inner::ServerHeaderTransformation::PassThrough) => Ok(ServerHeader::PassThrough),
        Err(_) => Err(Bad::new("unknown value")),
    }
}

fn xfcc(value: &pb::HttpConnectionManager) -> Result<ForwardClientCert, Bad> {
    use inner::ForwardClientCertDetails as M;
    let mode = match M::try_from(value.forward_client_cert_details) {
        Ok(M::Sanitize) => XfccMode::Sanitize,
        Ok(M::ForwardOnly) => XfccMode::ForwardOnly,
        Ok(M::AppendForward) => XfccMode::AppendForward,
        Ok(M::SanitizeSet) => XfccMode::SanitizeSet,
        Ok(M::AlwaysForwardOnly) => XfccMode::AlwaysForwardOnly,
        Err(_) => return Err(Bad::field("forward_client_cert_details", "unknown value")),
    };
    let unset = inner::SetCurrentClientCertDetails::default();
    let details = value.set_current_client_cert_details.as_ref().unwrap_or(&unset);
    only!(details, inner::SetCurrentClientCertDetails { subject, cert, chain, dns, uri } refuse { issuer, format });
    Ok(ForwardClientCert {
        mode,
        subject: truth(&details.subject).unwrap_or(false),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
    })
}

fn escaped(value: i32) -> Result<EscapedSlashes, Bad> {
    use inner::PathWithEscapedSlashesAction as A;
    match A::try_from(value) {
        Ok(A::ImplementationSpecificDefault | A::KeepUnchanged) => Ok(EscapedSlashes::Keep),
        Ok(A::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(A::UnescapeAndRedirect) => Ok(EscapedSlashes::UnescapeAndRedirect),
        Ok(A::UnescapeAndForward) => Ok(EscapedSlashes::UnescapeAndForward),
        Err(_) => Err(Bad::new("unknown value")),
    }
}

fn host(value: &pb::HttpConnectionManager) -> HostOptions {
    HostOptions {
        strip_matching_port: value.strip_matching_host_port,
        strip_any_port: matches!(value.strip_port_mode, Some(inner::StripPortMode::StripAnyHostPort(true))),
        strip_trailing_dot: value.strip_trailing_host_dot,
    }
}

fn scheme(value: &core::SchemeHeaderTransformation) -> Result<Option<crate::model::Name>, Bad> {
    only!(value, core::SchemeHeaderTransformation { transformation } refuse { match_upstream });
    match &value.transformation {
        None => Ok(None),
        Some(core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" | "https" => Ok(Some(scheme.as_str().into())),
            _ => Err(Bad::field("scheme_to_overwrite", "neither http nor https")),
        },
    }
}

/// Whether ids are marked with the decision to trace, and whether they make it.
fn request_id_extension(value: &pb::RequestIdExtension) -> Result<(bool, bool), Bad> {
    match &value.typed_config {
        Some(any) if type_name(any) == "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" => {
            let config: uuid::UuidRequestIdConfig = decode(any).at("typed_config")?;
            let on = |value| truth(value).unwrap_or(true);
            Ok((on(&config.pack_trace_reason), on(&config.use_request_id_for_trace_sampling)))
        }
        None => Ok((true, true)),
        Some(any) => {
            Err(Bad::field("typed_config", format_args!("unsupported request id extension {}", type_name(any))))
        }
    }
}

fn upgrade(value: &inner::UpgradeConfig) -> Result<Upgrade, Bad> {
    only!(value, inner::UpgradeConfig { upgrade_type, enabled } refuse { filters });
    http_options::upgrade_kind(&value.upgrade_type, truth(&value.enabled).unwrap_or(true)).at("upgrade_type")
}
