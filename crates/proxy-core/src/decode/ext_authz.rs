//! External authorization.
//!
//! Invariant: what would make the question or the answer mean something else is refused.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network_pb;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use http::{HeaderName, HeaderValue, StatusCode};

use super::bad::{At, Bad, each, given, only};
use super::basic::{positive, runtime_fraction, truth};
use super::{headers, jwt, matcher, steps};
use crate::model::Name;
use crate::model::ext_authz::{BodySettings, ExtAuthz, ExtAuthzHere, HttpService, Service};
use crate::model::filter::StepHere;
use crate::model::matcher::StringMatcher;

/// The filter.
pub fn ext_authz(value: &pb::ExtAuthz) -> Result<ExtAuthz, Bad> {
    only!(value, pb::ExtAuthz {
        transport_api_version, failure_mode_allow, failure_mode_allow_header_add, with_request_body, clear_route_cache,
        status_on_error, metadata_context_namespaces, filter_enabled, filter_enabled_metadata, deny_at_disable,
        include_peer_certificate, stat_prefix, allowed_headers, disallowed_headers, include_tls_session, services,
        charge_cluster_response_stats, bootstrap_metadata_labels_key, emit_client_span, emit_filter_state_stats,
        enable_dynamic_metadata_ingestion,
    } refuse {
        validate_mutations, typed_metadata_context_namespaces, route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces, encode_raw_headers, decoder_header_mutation_rules, filter_metadata,
        max_denied_response_body_bytes, enforce_response_header_limits, shadow_mode,
    });
    let allowed = given("allowed_headers", &value.allowed_headers, texts)?;
    let (service, older) = match &value.services {
        Some(pb::ext_authz::Services::GrpcService(grpc)) => (self::grpc(grpc).at("grpc_service")?, None),
        Some(pb::ext_authz::Services::HttpService(http)) => self::http(http).at("http_service")?,
        None => return Err(Bad::new("no service")),
    };
    if allowed.is_some() && older.is_some() {
        return Err(Bad::field("allowed_headers", "authorization_request.allowed_headers is set too"));
    }
    let deny = given("deny_at_disable", &value.deny_at_disable, |f| Ok(truth(&f.default_value).unwrap_or(false)))?;
    let prefix = if value.stat_prefix.is_empty() { String::new() } else { format!("{}.", value.stat_prefix) };
    let counter = |name: &str| -> Name { format!("ext_authz.{prefix}{name}").into() };
    Ok(ExtAuthz {
        service: Arc::new(service),
        failure_mode_allow: value.failure_mode_allow,
        failure_header: value.failure_mode_allow_header_add,
        body: given("with_request_body", &value.with_request_body, body)?,
        clear_route_cache: value.clear_route_cache,
        status_on_error: given("status_on_error", &value.status_on_error, steps::http_status)?
            .unwrap_or(StatusCode::FORBIDDEN),
        enabled: given("filter_enabled", &value.filter_enabled, runtime_fraction)?.unwrap_or(1_000_000),
        enabled_metadata: given("filter_enabled_metadata", &value.filter_enabled_metadata, matcher::metadata)?,
        deny_at_disable: deny.unwrap_or(false),
        peer_certificate: value.include_peer_certificate,
        tls_session: value.include_tls_session,
        metadata_namespaces: value.metadata_context_namespaces.iter().map(|n| n.as_str().into()).collect(),
        allowed_headers: allowed.or(older),
        disallowed_headers: given("disallowed_headers", &value.disallowed_headers, texts)?.unwrap_or_default(),
        counters: ["ok", "denied", "error", "failure_mode_allowed", "disabled"].map(counter),
    })
}

/// The network filter: what is asked about whole connections. It is always asked by gRPC.
pub fn network(value: &network_pb::ExtAuthz) -> Result<ExtAuthz, Bad> {
    only!(value, network_pb::ExtAuthz {
        stat_prefix, grpc_service, failure_mode_allow, transport_api_version, filter_enabled_metadata, include_tls_session,
        metadata_context_namespaces
    } refuse {
        send_tls_alert_on_denial, bootstrap_metadata_labels_key, include_peer_certificate, typed_metadata_context_namespaces,
        shadow_mode,
    });
    let service =
        given("grpc_service", &value.grpc_service, grpc)?.ok_or_else(|| Bad::field("grpc_service", "missing"))?;
    // Envoy puts nothing between the prefix and the names.
    let counter = |name: &str| -> Name { format!("ext_authz.{}{name}", value.stat_prefix).into() };
    Ok(ExtAuthz {
        service: Arc::new(service),
        failure_mode_allow: value.failure_mode_allow,
        failure_header: false,
        body: None,
        clear_route_cache: false,
        status_on_error: StatusCode::FORBIDDEN,
        enabled: 1_000_000,
        enabled_metadata: given("filter_enabled_metadata", &value.filter_enabled_metadata, matcher::metadata)?,
        deny_at_disable: false,
        peer_certificate: false,
        tls_session: value.include_tls_session,
        metadata_namespaces: value.metadata_context_namespaces.iter().map(|n| n.as_str().into()).collect(),
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        counters: ["ok", "denied", "error", "failure_mode_allowed", "disabled"].map(counter),
    })
}

/// Settings of a route.
pub fn ext_authz_here(value: &pb::ExtAuthzPerRoute) -> Result<StepHere, Bad> {
    use pb::ext_authz_per_route::Override as O;
    match &value.r#override {
        Some(O::Disabled(true)) => Ok(StepHere::Off),
        Some(O::Disabled(false)) => Err(Bad::field("disabled", "must be true")),
        Some(O::CheckSettings(settings)) => {
            only!(settings, pb::CheckSettings {
                context_extensions, disable_request_body_buffering, with_request_body, emit_client_span,
            } refuse { service_override });
            Ok(StepHere::ExtAuthz(Arc::new(ExtAuthzHere {
                context: settings.context_extensions.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
                no_body: settings.disable_request_body_buffering,
                body: given("check_settings.with_request_body", &settings.with_request_body, body)?,
            })))
        }
        None => Err(Bad::new("empty")),
    }
}

fn body(value: &pb::BufferSettings) -> Result<BodySettings, Bad> {
    let max = usize::try_from(value.max_request_bytes).unwrap_or(0);
    if max == 0 {
        return Err(Bad::field("max_request_bytes", "must be greater than zero"));
    }
    Ok(BodySettings { max, partial: value.allow_partial_message, raw: value.pack_as_bytes })
}

/// Header names have no case.
fn texts(value: &ListStringMatcher) -> Result<Vec<StringMatcher>, Bad> {
    each("patterns", &value.patterns, matcher::string)
}

fn grpc(value: &core::GrpcService) -> Result<Service, Bad> {
    only!(value, core::GrpcService { timeout, initial_metadata, target_specifier } refuse { retry_policy });
    let envoy = match &value.target_specifier {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
        _ => return Err(Bad::unsupported("target_specifier")),
    };
    only!(envoy, core::grpc_service::EnvoyGrpc { cluster_name, authority, max_receive_message_length, skip_envoy_headers } refuse {
        retry_policy,
    });
    if envoy.cluster_name.is_empty() {
        return Err(Bad::field("envoy_grpc.cluster_name", "empty"));
    }
    Ok(Service::Grpc {
        cluster: envoy.cluster_name.as_str().into(),
        authority: if envoy.authority.is_empty() { &envoy.cluster_name } else { &envoy.authority }.as_str().into(),
        timeout: positive("timeout", &value.timeout, Duration::from_millis(200))?,
        metadata: each("initial_metadata", &value.initial_metadata, literal)?,
    })
}

pub(super) fn literal(value: &core::HeaderValue) -> Result<(HeaderName, HeaderValue), Bad> {
    let text = headers::format(&value.value).at("value")?;
    let text = text.as_literal().ok_or_else(|| Bad::field("value", "operators are not supported here"))?;
    let name = headers::name(&value.key).at("key")?;
    Ok((name, HeaderValue::from_str(text).map_err(|_| Bad::field("value", "not a header value"))?))
}

fn http(value: &pb::HttpService) -> Result<(Service, Option<Vec<StringMatcher>>), Bad> {
    only!(value, pb::HttpService { server_uri, path_prefix, path_override, authorization_request, authorization_response } refuse {
        retry_policy,
    });
    let uri = value.server_uri.as_ref().ok_or_else(|| Bad::field("server_uri", "missing"))?;
    let (cluster, _, _, timeout) = jwt::http_uri(uri).at("server_uri")?;
    for (field, path) in [("path_prefix", &value.path_prefix), ("path_override", &value.path_override)] {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(Bad::field(field, "must start with `/`"));
        }
    }
    if !value.path_prefix.is_empty() && !value.path_override.is_empty() {
        return Err(Bad::field("path_override", "path_prefix is set too"));
    }
    let (request, response) = (value.authorization_request.as_ref(), value.authorization_response.as_ref());
    let list = |field: &str, pick: fn(&pb::AuthorizationResponse) -> &Option<ListStringMatcher>| {
        response.map_or(Ok(None), |r| given(field, pick(r), texts)).at("authorization_response")
    };
    let service = Service::Http(HttpService {
        cluster,
        timeout,
        path_prefix: value.path_prefix.as_str().into(),
        path_override: value.path_override.as_str().into(),
        headers_to_add: request
            .map_or(Ok(Vec::new()), |r| each("headers_to_add", &r.headers_to_add, literal))
            .at("authorization_request")?,
        upstream: list("allowed_upstream_headers", |r| &r.allowed_upstream_headers)?.unwrap_or_default(),
        upstream_append: list("allowed_upstream_headers_to_append", |r| &r.allowed_upstream_headers_to_append)?
            .unwrap_or_default(),
        client: list("allowed_client_headers", |r| &r.allowed_client_headers)?.filter(|l| !l.is_empty()),
        client_on_success: list("allowed_client_headers_on_success", |r| &r.allowed_client_headers_on_success)?
            .unwrap_or_default(),
        metadata: list("dynamic_metadata_from_headers", |r| &r.dynamic_metadata_from_headers)?.unwrap_or_default(),
    });
    let older = request.map_or(Ok(None), |r| given("allowed_headers", &r.allowed_headers, texts));
    Ok((service, older.at("authorization_request")?))
}
