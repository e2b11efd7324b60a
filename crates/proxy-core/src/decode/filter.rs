//! HTTP filters, filter state, per-filter configuration of routes.
//!
//! Invariant: the router is there, once, and last.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3 as state;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as rbac_pb;
use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3 as http_state;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::headers::format;
use super::inert::INERT_HTTP_FILTERS;
use super::{ext_authz, jwt, rbac, stats, steps};
use crate::model::filter::{FilterStateKey, FilterStateSet, HttpFilter, Router, Step, StepHere, StepKind};
use crate::model::route::PerFilter;

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const SET_STATE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const RBAC_HERE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const JWT: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const JWT_HERE: &str = "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const EXT_AUTHZ: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const EXT_AUTHZ_HERE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_HERE: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const RATE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const MUTATION_HERE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// The HTTP filters of a connection manager.
pub fn http_filters(filters: &[hcm::HttpFilter]) -> Result<Vec<HttpFilter>, Bad> {
    let all: Vec<_> = each("http_filters", filters, http_filter)?.into_iter().flatten().collect();
    let routers = all.iter().filter(|f| matches!(f, HttpFilter::Router(_))).count();
    if routers == 1 && matches!(all.last(), Some(HttpFilter::Router(_))) {
        Ok(all)
    } else {
        Err(Bad::field("http_filters", "the router must be the last filter, and there only"))
    }
}

fn http_filter(value: &hcm::HttpFilter) -> Result<Option<HttpFilter>, Bad> {
    let any = match &value.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => return Err(Bad::unsupported("config_discovery")),
        None => {
            return Err(Bad::field(
                "typed_config",
                format_args!("unsupported HTTP filter \"{}\" without configuration", value.name),
            ));
        }
    };
    if stats::is_stats(&value.name, any) && !value.disabled {
        return stats::stats(any).at("typed_config").map(|s| Some(HttpFilter::Stats(Arc::new(s))));
    }
    if let Some(kind) = step(any).at("typed_config")? {
        let name = value.name.as_str().into();
        return Ok(Some(HttpFilter::Step(Step { name, disabled: value.disabled, kind })));
    }
    if value.disabled {
        return Err(Bad::unsupported("disabled"));
    }
    match type_name(any) {
        ROUTER => decode(any).and_then(|r| router(&r)).at("typed_config").map(|r| Some(HttpFilter::Router(r))),
        SET_STATE => {
            let on_request = decode(any).and_then(|c| on_request(&c)).at("typed_config")?;
            Ok(Some(HttpFilter::SetFilterState { name: value.name.as_str().into(), on_request }))
        }
        name if INERT_HTTP_FILTERS.iter().any(|(inert, _)| *inert == name) => Ok(None),
        _ => Err(Bad::field("typed_config", format_args!("unsupported HTTP filter \"{}\"", value.name))),
    }
}

/// The filters that take part in requests.
fn step(any: &Any) -> Result<Option<StepKind>, Bad> {
    Ok(Some(match type_name(any) {
        RBAC => StepKind::Rbac(Arc::new(rbac::http(&decode(any)?)?)),
        JWT => StepKind::Jwt(Arc::new(jwt::jwt_authn(&decode(any)?)?)),
        EXT_AUTHZ => StepKind::ExtAuthz(Arc::new(ext_authz::ext_authz(&decode(any)?)?)),
        FAULT => StepKind::Fault(Arc::new(steps::fault(&decode(any)?)?)),
        CORS => StepKind::Cors,
        RATE => StepKind::LocalRateLimit(Arc::new(steps::local_rate_limit(&decode(any)?)?)),
        MUTATION => StepKind::HeaderMutation(Arc::new(steps::header_mutation(&decode(any)?)?)),
        _ => return Ok(None),
    }))
}

/// Their configuration at a route.
fn step_here(any: &Any) -> Result<Option<StepHere>, Bad> {
    Ok(Some(match type_name(any) {
        RBAC_HERE => {
            let here: rbac_pb::RbacPerRoute = decode(any)?;
            given("rbac", &here.rbac, rbac::http)?.map_or(StepHere::Off, |r| StepHere::Rbac(Arc::new(r)))
        }
        JWT_HERE => StepHere::Jwt(jwt::jwt_here(&decode(any)?)?),
        EXT_AUTHZ_HERE => ext_authz::ext_authz_here(&decode(any)?)?,
        FAULT => StepHere::Fault(Arc::new(steps::fault(&decode(any)?)?)),
        CORS_HERE => StepHere::Cors(Arc::new(steps::cors(&decode(any)?)?)),
        RATE => StepHere::LocalRateLimit(Arc::new(steps::local_rate_limit(&decode(any)?)?)),
        MUTATION_HERE => StepHere::HeaderMutation(Arc::new(steps::header_mutation_here(&decode(any)?)?)),
        _ => return Ok(None),
    }))
}

fn router(value: &router::Router) -> Result<Router, Bad> {
    only!(value, router::Router { suppress_envoy_headers, respect_expected_rq_timeout } refuse {
        dynamic_stats, start_child_span, upstream_log, upstream_log_options, strict_check_headers,
        suppress_grpc_request_failure_code_stats, upstream_http_filters, reject_connect_request_early_data,
    });
    Ok(Router {
        suppress_envoy_headers: value.suppress_envoy_headers,
        respect_expected_rq_timeout: value.respect_expected_rq_timeout,
    })
}

fn on_request(value: &http_state::Config) -> Result<Vec<FilterStateSet>, Bad> {
    // Route choice never depends on filter state here, so clearing the route cache changes nothing.
    only!(value, http_state::Config { on_request_headers, clear_route_cache } refuse {});
    each("on_request_headers", &value.on_request_headers, filter_state_set)
}

/// One value of filter state. Sharing with upstream is about internal listeners, and read-only about later writers: there are neither.
pub fn filter_state_set(value: &state::FilterStateValue) -> Result<FilterStateSet, Bad> {
    only!(value, state::FilterStateValue { factory_key, read_only, shared_with_upstream, skip_if_empty, key, value } refuse {});
    let Some(state::filter_state_value::Key::ObjectKey(object)) = &value.key else {
        return Err(Bad::field("object_key", "missing"));
    };
    let factory = if value.factory_key.is_empty() { object.as_str() } else { value.factory_key.as_str() };
    let known = |name: &str, key: FilterStateKey| (object == name && factory == name).then_some(key);
    let key = known("envoy.network.application_protocols", FilterStateKey::ApplicationProtocols)
        .or_else(|| known("envoy.network.upstream_server_name", FilterStateKey::UpstreamServerName))
        .or_else(|| known("envoy.network.upstream_subject_alt_names", FilterStateKey::UpstreamSubjectAltNames))
        .or_else(|| known("envoy.tcp_proxy.cluster", FilterStateKey::TcpCluster))
        .or_else(|| (factory == "envoy.string").then(|| FilterStateKey::Text(object.as_str().into())))
        .ok_or_else(|| {
            Bad::field("object_key", format_args!("unsupported filter state \"{object}\" of factory \"{factory}\""))
        })?;
    let Some(state::filter_state_value::Value::FormatString(text)) = &value.value else {
        return Err(Bad::field("format_string", "missing"));
    };
    Ok(FilterStateSet { key, value: substitution(text).at("format_string")?, skip_if_empty: value.skip_if_empty })
}

/// A text format without extensions.
pub fn substitution(value: &core::SubstitutionFormatString) -> Result<crate::model::format::Format, Bad> {
    use core::substitution_format_string::Format as F;
    only!(value, core::SubstitutionFormatString { omit_empty_values, format, formatters } refuse {
        content_type, json_format_options,
    });
    each("formatters", &value.formatters, formatter)?;
    match &value.format {
        Some(F::TextFormat(text)) => format(text).at("text_format"),
        Some(F::TextFormatSource(source)) => format(&inline(source).at("text_format_source")?).at("text_format_source"),
        Some(F::JsonFormat(_)) => Err(Bad::unsupported("json_format")),
        None => Err(Bad::new("empty format")),
    }
}

/// Commands that Envoy has in extensions; those that are known here need none.
pub fn formatter(value: &core::TypedExtensionConfig) -> Result<(), Bad> {
    let name = value.typed_config.as_ref().map(type_name).unwrap_or_default();
    match name {
        "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"
        | "envoy.extensions.formatter.metadata.v3.Metadata" => Ok(()),
        _ => Err(Bad::field("typed_config", format_args!("unsupported formatter \"{}\"", value.name))),
    }
}

/// The text of an inline data source.
pub fn inline(source: &core::DataSource) -> Result<String, Bad> {
    use core::data_source::Specifier as S;
    match &source.specifier {
        Some(S::InlineString(text)) => Ok(text.clone()),
        Some(S::InlineBytes(bytes)) => {
            String::from_utf8(bytes.clone()).map_err(|_| Bad::field("inline_bytes", "not UTF-8"))
        }
        Some(S::Filename(_)) => Err(Bad::unsupported("filename")),
        Some(S::EnvironmentVariable(_)) => Err(Bad::unsupported("environment_variable")),
        None => Err(Bad::new("empty data source")),
    }
}

/// `typed_per_filter_config`.
pub fn per_filter(map: &HashMap<String, Any>) -> Result<PerFilter, Bad> {
    let mut out = PerFilter::default();
    for (name, any) in map {
        one_filter(name, any, &mut out).at(&format!("typed_per_filter_config[\"{name}\"]"))?;
    }
    Ok(out)
}

fn one_filter(name: &str, any: &Any, out: &mut PerFilter) -> Result<(), Bad> {
    if let Some(here) = step_here(any)? {
        out.steps.push((name.into(), here));
        return Ok(());
    }
    match type_name(any) {
        SET_STATE => {
            out.set_filter_state.push((name.into(), decode(any).and_then(|c| on_request(&c))?));
            Ok(())
        }
        FILTER_CONFIG => {
            let config: rds::FilterConfig = decode(any)?;
            match &config.config {
                _ if config.disabled => {
                    out.disabled.push(name.into());
                    Ok(())
                }
                Some(inner) if type_name(inner) != FILTER_CONFIG => one_filter(name, inner, out).at("config"),
                Some(_) => Err(Bad::field("config", "nested")),
                None => Err(Bad::field("config", "missing")),
            }
        }
        other => Err(Bad::new(format_args!("unsupported per-filter configuration {other}"))),
    }
}
