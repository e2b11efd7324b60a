//! What routes do: forward or redirect.
//!
//! Invariant: at most one rewrite of each kind; weights sum to more than zero.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{self as core, RoutingPriority};
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use http::StatusCode;

use super::bad::{At, Bad, each, given, only, unpack};
use super::basic::{duration, limit, metadata, number, port, truth};
use super::cluster_socket::proxy_protocol;
use super::{filter, headers, http_options, matcher, mirror, retry};
use crate::model::retry::RetryPolicy;
use crate::model::route::{
    GrpcTimeout, HashPolicy, HashSource, HostRewrite, Mirror, PathMatch, PathRewrite, Redirect, RedirectPath,
    RouteAction, SubsetLabels, Target, TerminateConnect, WeightedCluster, WeightedClusters,
};
use crate::template::TemplateRewrite;

/// What a route takes from its virtual host and table where it has none of its own.
#[derive(Clone, Copy)]
pub struct Inherited<'a> {
    /// Retries.
    pub retry: Option<&'a Arc<RetryPolicy>>,
    /// Mirrors.
    pub mirrors: &'a Arc<[Mirror]>,
}

/// Forwarding. `matched` is the route's own condition, for rewrites that use what it captured.
pub fn forward(value: &pb::RouteAction, inherited: Inherited<'_>, matched: &PathMatch) -> Result<RouteAction, Bad> {
    only!(value, pb::RouteAction {
        cluster_not_found_response_code, prefix_rewrite, regex_rewrite, append_x_forwarded_host, timeout, idle_timeout, retry_policy,
        priority, hash_policy, max_grpc_timeout, grpc_timeout_offset, upgrade_configs, max_stream_duration, cluster_specifier,
        host_rewrite_specifier, metadata_match, path_rewrite_policy, request_mirror_policies,
    } refuse {
        path_rewrite, flush_timeout, early_data_policy, retry_policy_typed_config,
        rate_limits, include_vh_rate_limits, cors, internal_redirect_policy, internal_redirect_action,
        max_internal_redirects, hedge_policy,
    });
    use pb::route_action::ClusterNotFoundResponseCode as C;
    let own = given("retry_policy", &value.retry_policy, retry::policy)?.map(Arc::new);
    let (max_stream_duration, grpc_timeout) = stream_limits(value)?;
    let mirrors = mirror::policies(&value.request_mirror_policies)?;
    let mut terminate_connect = None;
    let upgrades = each("upgrade_configs", &value.upgrade_configs, |u| {
        let kind = http_options::upgrade_kind(&u.upgrade_type, truth(&u.enabled).unwrap_or(true)).at("upgrade_type")?;
        if u.connect_config.is_some() {
            return Err(Bad::unsupported("connect_config"));
        }
        if let Some(connect) = given("connect_config", &u.connect_config, connect_config)? {
            if &*kind.kind != "connect" {
                return Err(Bad::field("connect_config", "only for upgrade type CONNECT"));
            }
            terminate_connect = kind.enabled.then_some(connect);
        }
        Ok(kind)
    })?;
    Ok(RouteAction {
        target: target(value)?,
        cluster_not_found: match C::try_from(value.cluster_not_found_response_code) {
            Ok(C::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Ok(C::NotFound) => StatusCode::NOT_FOUND,
            Ok(C::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
            Err(_) => return Err(Bad::field("cluster_not_found_response_code", "unknown value")),
        },
        timeout: limit("timeout", &value.timeout, Some(Duration::from_secs(15)))?,
        idle_timeout: given("idle_timeout", &value.idle_timeout, duration)?.map(some_limit),
        grpc_timeout,
        max_stream_duration,
        retry: own.or_else(|| inherited.retry.cloned()),
        path_rewrite: path_rewrite(value, matched)?,
        host_rewrite: host_rewrite(value)?,
        append_x_forwarded_host: value.append_x_forwarded_host,
        high_priority: match RoutingPriority::try_from(value.priority) {
            Ok(RoutingPriority::Default) => false,
            Ok(RoutingPriority::High) => true,
            Err(_) => return Err(Bad::field("priority", "unknown value")),
        },
        hash: each("hash_policy", &value.hash_policy, hash_policy)?,
        upgrades,
        terminate_connect,
        mirrors: if mirrors.is_empty() { Arc::clone(inherited.mirrors) } else { mirrors },
        subset: subset(&value.metadata_match).at("metadata_match")?,
    })
}

fn connect_config(value: &pb::route_action::upgrade_config::ConnectConfig) -> Result<TerminateConnect, Bad> {
    only!(value, pb::route_action::upgrade_config::ConnectConfig { proxy_protocol_config, allow_post } refuse {});
    Ok(TerminateConnect {
        allow_post: value.allow_post,
        proxy_protocol: given("proxy_protocol_config", &value.proxy_protocol_config, proxy_protocol)?,
    })
}

/// Labels of a subset: what stands below `envoy.lb`.
pub fn subset(value: &Option<core::Metadata>) -> Result<SubsetLabels, Bad> {
    let labels = metadata(value)?.namespace("envoy.lb").cloned().unwrap_or_default();
    Ok((!labels.is_empty()).then(|| Arc::new(labels)))
}

fn some_limit(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

type StreamLimits = (Option<Option<Duration>>, Option<GrpcTimeout>);

fn stream_limits(value: &pb::RouteAction) -> Result<StreamLimits, Bad> {
    let offset = given("grpc_timeout_offset", &value.grpc_timeout_offset, duration)?;
    let old = given("max_grpc_timeout", &value.max_grpc_timeout, duration)?;
    let (mut whole, mut max, mut minus) = (None, old, offset);
    let mut of_stream = false;
    if let Some(new) = &value.max_stream_duration {
        whole = given("max_stream_duration.max_stream_duration", &new.max_stream_duration, duration)?.map(some_limit);
        of_stream = new.grpc_timeout_header_max.is_some();
        max = given("max_stream_duration.grpc_timeout_header_max", &new.grpc_timeout_header_max, duration)?.or(max);
        minus = given("max_stream_duration.grpc_timeout_header_offset", &new.grpc_timeout_header_offset, duration)?
            .or(minus);
    }
    let grpc = max.map(|max| GrpcTimeout { max: some_limit(max), offset: minus.unwrap_or_default(), of_stream });
    Ok((whole, grpc))
}

fn target(value: &pb::RouteAction) -> Result<Target, Bad> {
    use pb::route_action::ClusterSpecifier as S;
    match &value.cluster_specifier {
        Some(S::Cluster(name)) if !name.is_empty() => Ok(Target::Cluster(name.as_str().into())),
        Some(S::Cluster(_)) => Err(Bad::field("cluster", "empty")),
        Some(S::ClusterHeader(name)) => Ok(Target::Header(headers::name(name).at("cluster_header")?)),
        Some(S::WeightedClusters(clusters)) => weighted(clusters).at("weighted_clusters").map(Target::Weighted),
        Some(S::ClusterSpecifierPlugin(_)) => Err(Bad::unsupported("cluster_specifier_plugin")),
        Some(S::InlineClusterSpecifierPlugin(_)) => Err(Bad::unsupported("inline_cluster_specifier_plugin")),
        None => Err(Bad::new("no cluster")),
    }
}

fn weighted(value: &pb::WeightedCluster) -> Result<WeightedClusters, Bad> {
    only!(value, pb::WeightedCluster { clusters, total_weight } refuse { runtime_key_prefix, random_value_specifier });
    let clusters = each("clusters", &value.clusters, weighted_cluster)?;
    let total = clusters.iter().try_fold(0_u32, |sum, c| sum.checked_add(c.weight));
    let total = total.filter(|t| *t > 0).ok_or_else(|| Bad::field("clusters", "bad sum of weights"))?;
    if number(&value.total_weight).is_some_and(|t| t != total) {
        return Err(Bad::field("total_weight", "is not the sum of the weights"));
    }
    Ok(WeightedClusters { clusters, total })
}

fn weighted_cluster(value: &pb::weighted_cluster::ClusterWeight) -> Result<WeightedCluster, Bad> {
    only!(value, pb::weighted_cluster::ClusterWeight {
        name, weight, request_headers_to_add, request_headers_to_remove, response_headers_to_add, response_headers_to_remove,
        typed_per_filter_config, host_rewrite_specifier, metadata_match,
    } refuse { cluster_header });
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
    if value.name.is_empty() {
        return Err(Bad::field("name", "empty"));
    }
    Ok(WeightedCluster {
        name: value.name.as_str().into(),
        weight: number(&value.weight).unwrap_or(0),
        request: headers::ops("request", &value.request_headers_to_add, &value.request_headers_to_remove)?,
        response: headers::ops("response", &value.response_headers_to_add, &value.response_headers_to_remove)?,
        host_rewrite: value.host_rewrite_specifier.as_ref().map(|HostRewriteLiteral(host)| host.as_str().into()),
        per_filter: filter::per_filter(&value.typed_per_filter_config)?,
        subset: subset(&value.metadata_match).at("metadata_match")?,
    })
}

fn path_rewrite(value: &pb::RouteAction, matched: &PathMatch) -> Result<Option<PathRewrite>, Bad> {
    if let Some(policy) = &value.path_rewrite_policy {
        if !value.prefix_rewrite.is_empty() || value.regex_rewrite.is_some() {
            return Err(Bad::field("path_rewrite_policy", "another rewrite is set too"));
        }
        return template(policy, matched).at("path_rewrite_policy").map(Some);
    }
    match (value.prefix_rewrite.as_str(), &value.regex_rewrite) {
        ("", None) => Ok(None),
        ("", Some(rewrite)) => Ok(Some(PathRewrite::Regex(matcher::rewrite(rewrite).at("regex_rewrite")?))),
        (prefix, None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        _ => Err(Bad::field("regex_rewrite", "prefix_rewrite is set too")),
    }
}

fn template(policy: &core::TypedExtensionConfig, matched: &PathMatch) -> Result<PathRewrite, Bad> {
    let any = policy.typed_config.as_ref().ok_or_else(|| Bad::field("typed_config", "missing"))?;
    let config: UriTemplateRewriteConfig =
        unpack(any, "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig").at("typed_config")?;
    let PathMatch::Template(matched) = matched else {
        return Err(Bad::new("the route's match is no template"));
    };
    TemplateRewrite::parse(&config.path_template_rewrite, matched)
        .map(PathRewrite::Template)
        .map_err(|e| Bad::field("typed_config.path_template_rewrite", e))
}

fn host_rewrite(value: &pb::RouteAction) -> Result<Option<HostRewrite>, Bad> {
    use pb::route_action::HostRewriteSpecifier as H;
    Ok(match &value.host_rewrite_specifier {
        Some(H::HostRewriteLiteral(host)) => Some(HostRewrite::Literal(host.as_str().into())),
        Some(H::AutoHostRewrite(auto)) => auto.value.then_some(HostRewrite::Auto),
        Some(H::HostRewriteHeader(name)) => Some(HostRewrite::Header(headers::name(name).at("host_rewrite_header")?)),
        Some(H::HostRewritePathRegex(rewrite)) => {
            Some(HostRewrite::PathRegex(matcher::rewrite(rewrite).at("host_rewrite_path_regex")?))
        }
        Some(H::HostRewrite(_)) => return Err(Bad::unsupported("host_rewrite")),
        None => None,
    })
}

/// A hash policy.
pub fn hash_policy(value: &pb::route_action::HashPolicy) -> Result<HashPolicy, Bad> {
    use pb::route_action::hash_policy::PolicySpecifier as S;
    let source = match &value.policy_specifier {
        Some(S::Header(header)) => HashSource::Header {
            name: headers::name(&header.header_name).at("header.header_name")?,
            rewrite: given("header.regex_rewrite", &header.regex_rewrite, matcher::rewrite)?,
        },
        Some(S::Cookie(cookie)) => {
            only!(cookie, pb::route_action::hash_policy::Cookie { name, ttl, path, attributes } refuse {});
            if cookie.name.is_empty() {
                return Err(Bad::field("cookie.name", "empty"));
            }
            let attributes = each("cookie.attributes", &cookie.attributes, |attribute| {
                let text = if attribute.value.is_empty() {
                    format!("; {}", attribute.name)
                } else {
                    format!("; {}={}", attribute.name, attribute.value)
                };
                let good = !attribute.name.is_empty() && http::HeaderValue::from_str(&text).is_ok();
                if good { Ok(text) } else { Err(Bad::new("not an attribute")) }
            })?;
            HashSource::Cookie {
                name: cookie.name.as_str().into(),
                ttl: given("cookie.ttl", &cookie.ttl, duration)?,
                path: cookie.path.as_str().into(),
                attributes: attributes.concat().into(),
            }
        }
        Some(S::ConnectionProperties(properties)) if properties.source_ip => HashSource::SourceIp,
        Some(S::QueryParameter(query)) => HashSource::Query(query.name.as_str().into()),
        Some(S::ConnectionProperties(_)) | None => return Err(Bad::new("empty hash policy")),
        Some(S::FilterState(_)) => return Err(Bad::unsupported("filter_state")),
    };
    Ok(HashPolicy { terminal: value.terminal, source })
}

/// Redirect.
pub fn redirect(value: &pb::RedirectAction) -> Result<Redirect, Bad> {
    only!(value, pb::RedirectAction {
        host_redirect, port_redirect, response_code, strip_query, scheme_rewrite_specifier, path_rewrite_specifier
    } refuse {});
    use pb::redirect_action::{PathRewriteSpecifier as P, RedirectResponseCode as C, SchemeRewriteSpecifier as S};
    let text = |value: &str| -> Option<Arc<str>> { (!value.is_empty()).then(|| value.into()) };
    Ok(Redirect {
        scheme: match &value.scheme_rewrite_specifier {
            Some(S::HttpsRedirect(true)) => Some("https".into()),
            Some(S::SchemeRedirect(scheme)) => text(scheme),
            Some(S::HttpsRedirect(false)) | None => None,
        },
        host: text(&value.host_redirect),
        port: match port(value.port_redirect).at("port_redirect")? {
            0 => None,
            port => Some(port),
        },
        path: match &value.path_rewrite_specifier {
            Some(P::PathRedirect(path)) => Some(RedirectPath::Full(path.as_str().into())),
            Some(P::PrefixRewrite(prefix)) => Some(RedirectPath::Prefix(prefix.as_str().into())),
            Some(P::RegexRewrite(rewrite)) => Some(RedirectPath::Regex(matcher::rewrite(rewrite).at("regex_rewrite")?)),
            Some(P::PathRewrite(_)) => return Err(Bad::unsupported("path_rewrite")),
            None => None,
        },
        status: match C::try_from(value.response_code) {
            Ok(C::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Ok(C::Found) => StatusCode::FOUND,
            Ok(C::SeeOther) => StatusCode::SEE_OTHER,
            Ok(C::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(C::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Err(_) => return Err(Bad::field("response_code", "unknown value")),
        },
        strip_query: value.strip_query,
    })
}
