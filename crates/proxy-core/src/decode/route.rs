//! Route configurations, virtual hosts, route matches.
//!
//! Invariant: no domain occurs twice in a table; a domain's wildcard is its first or last character.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;

use super::bad::{At, Bad, each, given, only, unpack};
use super::basic::{metadata, runtime_fraction, truth};
use super::route_action::Inherited;
use super::{filter, headers, matcher, mirror, retry, route_action};
use crate::model::Name;
use crate::model::route::{
    Action, DirectResponse, Domains, Mirror, PathMatch, RequireTls, Route, RouteMatch, RouteTable, VirtualHost,
};
use crate::template::PathTemplate;

/// Longest body of a direct response, as Envoy's own highest default.
const MAX_BODY: usize = 1024 * 1024;

/// A route configuration.
pub fn route_table(value: &pb::RouteConfiguration) -> Result<RouteTable, Bad> {
    only!(value, pb::RouteConfiguration {
        name, virtual_hosts, internal_only_headers, response_headers_to_add, response_headers_to_remove, request_headers_to_add,
        request_headers_to_remove, most_specific_header_mutations_wins, ignore_port_in_host_matching,
        ignore_path_parameters_in_path_matching, request_mirror_policies, typed_per_filter_config,
    } refuse {
        vhds, validate_clusters, max_direct_response_body_size_bytes, cluster_specifier_plugins, vhost_header,
        metadata, route_specifiers,
    });
    let mirrors = mirror::policies(&value.request_mirror_policies)?;
    let virtual_hosts = each("virtual_hosts", &value.virtual_hosts, |v| virtual_host(v, &mirrors).map(Arc::new))?;
    Ok(RouteTable {
        name: value.name.as_str().into(),
        domains: domains(&virtual_hosts)?,
        virtual_hosts,
        ignore_port: value.ignore_port_in_host_matching,
        ignore_path_parameters: value.ignore_path_parameters_in_path_matching,
        most_specific_wins: value.most_specific_header_mutations_wins,
        request: headers::ops("request", &value.request_headers_to_add, &value.request_headers_to_remove)?,
        response: headers::ops("response", &value.response_headers_to_add, &value.response_headers_to_remove)?,
        internal_only_headers: each("internal_only_headers", &value.internal_only_headers, |h| headers::name(h))?,
        per_filter: filter::per_filter(&value.typed_per_filter_config)?,
    })
}

type ByLength = HashMap<usize, HashMap<Box<str>, usize>>;

fn domains(hosts: &[Arc<VirtualHost>]) -> Result<Domains, Bad> {
    let mut out = Domains::default();
    let (mut suffix, mut prefix) = (ByLength::new(), ByLength::new());
    for (number, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            let text: Name = match domain.bytes().any(|b| b.is_ascii_uppercase()) {
                true => domain.to_ascii_lowercase().into(),
                false => Arc::clone(domain),
            };
            let twice = if *text == *"*" {
                out.any.replace(number)
            } else if let Some(tail) = text.strip_prefix('*') {
                suffix.entry(tail.len()).or_default().insert(tail.into(), number)
            } else if let Some(head) = text.strip_suffix('*') {
                prefix.entry(head.len()).or_default().insert(head.into(), number)
            } else {
                out.exact.insert(Arc::clone(&text), number)
            };
            if twice.is_some() || text.is_empty() || text.trim_matches('*').contains('*') {
                let reason = if twice.is_some() { "occurs twice" } else { "is not a domain" };
                return Err(Bad::field(
                    format_args!("virtual_hosts[{number}].domains"),
                    format_args!("`{domain}` {reason}"),
                ));
            }
        }
    }
    out.exact.shrink_to_fit();
    out.suffix = longest_first(suffix);
    out.prefix = longest_first(prefix);
    Ok(out)
}

fn longest_first(map: ByLength) -> Vec<(usize, HashMap<Box<str>, usize>)> {
    let mut list: Vec<_> = map.into_iter().collect();
    list.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    list
}

fn virtual_host(value: &pb::VirtualHost, mirrors: &Arc<[Mirror]>) -> Result<VirtualHost, Bad> {
    only!(value, pb::VirtualHost {
        name, domains, routes, require_tls, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
        response_headers_to_remove, typed_per_filter_config, include_request_attempt_count, include_attempt_count_in_response,
        retry_policy, metadata, request_mirror_policies,
    } refuse {
        matcher, virtual_clusters, rate_limits, cors, retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header,
        per_request_buffer_limit_bytes, request_body_buffer_limit, route_specifiers,
    });
    use pb::virtual_host::TlsRequirementType as T;
    if value.domains.is_empty() {
        return Err(Bad::field("domains", "empty"));
    }
    let policy = given("retry_policy", &value.retry_policy, retry::policy)?.map(Arc::new);
    let own = mirror::policies(&value.request_mirror_policies)?;
    let inherited = Inherited { retry: policy.as_ref(), mirrors: if own.is_empty() { mirrors } else { &own } };
    Ok(VirtualHost {
        name: value.name.as_str().into(),
        domains: value.domains.iter().map(|d| d.as_str().into()).collect(),
        routes: each("routes", &value.routes, |r| route(r, inherited).map(Arc::new))?,
        require_tls: match T::try_from(value.require_tls) {
            Ok(T::None) => RequireTls::None,
            Ok(T::ExternalOnly) => RequireTls::ExternalOnly,
            Ok(T::All) => RequireTls::All,
            Err(_) => return Err(Bad::field("require_tls", "unknown value")),
        },
        request: headers::ops("request", &value.request_headers_to_add, &value.request_headers_to_remove)?,
        response: headers::ops("response", &value.response_headers_to_add, &value.response_headers_to_remove)?,
        include_request_attempt_count: value.include_request_attempt_count,
        include_attempt_count_in_response: value.include_attempt_count_in_response,
        retry: policy,
        per_filter: filter::per_filter(&value.typed_per_filter_config)?,
        metadata: metadata(&value.metadata).at("metadata")?,
    })
}

fn route(value: &pb::Route, inherited: Inherited<'_>) -> Result<Route, Bad> {
    only!(value, pb::Route {
        name, r#match, metadata, typed_per_filter_config, request_headers_to_add, request_headers_to_remove,
        response_headers_to_add, response_headers_to_remove, stat_prefix, action, decorator, tracing,
    } refuse { per_request_buffer_limit_bytes, request_body_buffer_limit, route_specifiers });
    let matching = value.r#match.as_ref().ok_or_else(|| Bad::field("match", "missing"))?;
    let matched = route_match(matching).at("match")?;
    let action = match &value.action {
        Some(pb::route::Action::Route(action)) => {
            let forward = route_action::forward(action, inherited, &matched.path).at("route")?;
            Action::Forward(Box::new(forward))
        }
        Some(pb::route::Action::Redirect(action)) => {
            Action::Redirect(Box::new(route_action::redirect(action).at("redirect")?))
        }
        Some(pb::route::Action::DirectResponse(action)) => Action::Direct(direct(action).at("direct_response")?),
        Some(pb::route::Action::FilterAction(_)) => return Err(Bad::unsupported("filter_action")),
        Some(pb::route::Action::NonForwardingAction(_)) => return Err(Bad::unsupported("non_forwarding_action")),
        None => return Err(Bad::new("no action")),
    };
    Ok(Route {
        name: value.name.as_str().into(),
        matching: matched,
        action,
        request: headers::ops("request", &value.request_headers_to_add, &value.request_headers_to_remove)?,
        response: headers::ops("response", &value.response_headers_to_add, &value.response_headers_to_remove)?,
        per_filter: filter::per_filter(&value.typed_per_filter_config)?,
        metadata: metadata(&value.metadata).at("metadata")?,
        stat_prefix: value.stat_prefix.as_str().into(),
        tracing: super::tracing::route(&value.tracing, &value.decorator)?,
    })
}

/// A route match; JWT rules have the same.
pub fn route_match(value: &pb::RouteMatch) -> Result<RouteMatch, Bad> {
    only!(value, pb::RouteMatch {
        case_sensitive, runtime_fraction, headers, query_parameters, cookies, grpc, tls_context, path_specifier, dynamic_metadata
    } refuse { filter_state });
    use pb::route_match::PathSpecifier as P;
    let ignore_case = !truth(&value.case_sensitive).unwrap_or(true);
    let text = |value: &str| -> Box<str> { if ignore_case { value.to_ascii_lowercase().into() } else { value.into() } };
    let path = match &value.path_specifier {
        Some(P::Prefix(prefix)) => PathMatch::Prefix { value: text(prefix), ignore_case },
        Some(P::Path(path)) => PathMatch::Exact { value: text(path), ignore_case },
        Some(P::SafeRegex(regex)) => PathMatch::Regex(matcher::regex(regex).at("safe_regex")?),
        Some(P::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                return Err(Bad::field(
                    "path_separated_prefix",
                    "must start with `/`, not end with it, and hold no query",
                ));
            }
            PathMatch::SeparatedPrefix { value: text(prefix), ignore_case }
        }
        Some(P::ConnectMatcher(_)) => PathMatch::Connect,
        Some(P::PathMatchPolicy(policy)) => PathMatch::Template(template(policy).at("path_match_policy")?),
        None => return Err(Bad::new("no path specifier")),
    };
    let tls = value.tls_context.as_ref();
    Ok(RouteMatch {
        path,
        headers: each("headers", &value.headers, matcher::header)?,
        query: each("query_parameters", &value.query_parameters, matcher::query)?,
        cookies: each("cookies", &value.cookies, matcher::cookie)?,
        grpc: value.grpc.is_some(),
        tls_presented: tls.and_then(|t| truth(&t.presented)),
        tls_validated: tls.and_then(|t| truth(&t.validated)),
        fraction: given("runtime_fraction", &value.runtime_fraction, runtime_fraction)?,
        metadata: each("dynamic_metadata", &value.dynamic_metadata, matcher::metadata)?,
    })
}

fn template(policy: &core::TypedExtensionConfig) -> Result<PathTemplate, Bad> {
    let any = policy.typed_config.as_ref().ok_or_else(|| Bad::field("typed_config", "missing"))?;
    let config: UriTemplateMatchConfig =
        unpack(any, "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig").at("typed_config")?;
    PathTemplate::parse(&config.path_template).map_err(|e| Bad::field("typed_config.path_template", e))
}

fn direct(value: &pb::DirectResponseAction) -> Result<DirectResponse, Bad> {
    only!(value, pb::DirectResponseAction { status, body, body_format } refuse {});
    let status = u16::try_from(value.status).ok().filter(|s| (200..600).contains(s));
    let status =
        status.and_then(|s| http::StatusCode::from_u16(s).ok()).ok_or_else(|| Bad::field("status", "not a status"))?;
    let body = given("body", &value.body, body)?.unwrap_or_default();
    if body.len() > MAX_BODY {
        return Err(Bad::field("body", "too long"));
    }
    Ok(DirectResponse { status, body, format: given("body_format", &value.body_format, filter::substitution)? })
}

fn body(source: &core::DataSource) -> Result<bytes::Bytes, Bad> {
    match &source.specifier {
        Some(core::data_source::Specifier::InlineBytes(bytes)) => Ok(bytes::Bytes::from(bytes.clone())),
        _ => filter::inline(source).map(bytes::Bytes::from),
    }
}
