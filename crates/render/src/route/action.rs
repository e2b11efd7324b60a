//! What becomes of a request, in Envoy's words (semantics §7.9, §10.5–§10.7).
//!
//! Invariant: every forwarding action names its timeout, and its retries or none.

use carrick_base::NamespacedName;
use carrick_mesh::{
    model::policy::HashKey,
    view::route::{
        Abort, Action as Part, Cors, Destination, Fault, Forward, PathRewrite, Redirect, RedirectPath, Retries,
    },
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, Metadata, RuntimeFractionalPercent, data_source::Specifier},
            route::v3::{
                DirectResponseAction, RedirectAction, RetryPolicy, RouteAction, WeightedCluster,
                redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
                retry_policy::{RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority},
                route::Action,
                route_action::{
                    ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, HostRewriteSpecifier,
                    RequestMirrorPolicy,
                    hash_policy::{
                        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
                    },
                },
                weighted_cluster::{ClusterWeight, cluster_weight},
            },
        },
        extensions::{
            filters::{
                common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                http::{
                    cors::v3::CorsPolicy,
                    fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
                },
            },
            retry::{
                host::previous_hosts::v3::PreviousHostsPredicate,
                priority::previous_priorities::v3::PreviousPrioritiesConfig,
            },
        },
        r#type::{
            matcher::v3::RegexMatchAndSubstitute,
            v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
};

use super::{condition, headers, specifier};
use crate::{filters, wire};

/// Tries to find an endpoint that was not tried.
const OTHER_ENDPOINT_TRIES: i64 = 5;
/// Tries after which other localities are looked at anew.
const LOCALITY_UPDATES: i32 = 2;
/// How much longer the longest pause between tries is than the first.
const MAX_BACKOFF: u64 = 10;

/// The action of a route.
pub fn action(from: &Part) -> Action {
    match from {
        Part::Forward(forward) => Action::Route(self::forward(forward)),
        Part::Redirect(redirect) => Action::Redirect(self::redirect(redirect)),
        Part::Direct { status, body } => Action::DirectResponse(DirectResponseAction {
            status: u32::from(*status),
            body: (!body.is_empty()).then(|| DataSource {
                specifier: Some(Specifier::InlineBytes(body.to_vec())),
                ..DataSource::default()
            }),
            ..DirectResponseAction::default()
        }),
    }
}

fn forward(from: &Forward) -> RouteAction {
    let mut out = super::action(from.timeout);
    let authority = match from.destinations.as_slice() {
        [only] => {
            out.cluster_specifier = specifier(&only.cluster);
            only.authority.as_ref().or(from.authority.as_ref())
        }
        several => {
            out.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: several.iter().map(weighted).collect(),
                ..WeightedCluster::default()
            }));
            from.authority.as_ref()
        }
    };
    out.host_rewrite_specifier = authority.map(|a| HostRewriteSpecifier::HostRewriteLiteral(a.to_string()));
    match &from.path {
        None => {}
        Some(PathRewrite::Matched(path)) => out.prefix_rewrite = path.to_string(),
        Some(PathRewrite::Whole(path)) => {
            let with = path.replace('\\', "\\\\");
            out.regex_rewrite =
                Some(RegexMatchAndSubstitute { pattern: Some(condition::regex("^/.*$")), substitution: with });
        }
        Some(PathRewrite::Regex { pattern, with }) => {
            out.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(condition::regex(pattern)),
                substitution: with.to_string(),
            });
        }
    }
    if from.missing_is_500 {
        out.cluster_not_found_response_code = ClusterNotFoundResponseCode::InternalServerError.into();
    }
    out.retry_policy = from.retries.as_ref().map(retries);
    out.hash_policy = from.hash.iter().map(hash_policy).collect();
    out.request_mirror_policies = from
        .mirrors
        .iter()
        .map(|(cluster, share)| RequestMirrorPolicy {
            cluster: cluster.to_string(),
            runtime_fraction: Some(RuntimeFractionalPercent {
                default_value: percent(*share),
                ..RuntimeFractionalPercent::default()
            }),
            disable_shadow_host_suffix_append: true,
            ..RequestMirrorPolicy::default()
        })
        .collect();
    out
}

fn weighted(from: &Destination) -> ClusterWeight {
    let mut out = ClusterWeight {
        name: from.cluster.to_string(),
        weight: wire::number(from.weight),
        typed_per_filter_config: filters::alpn_override(from.alpn),
        host_rewrite_specifier: from
            .authority
            .as_ref()
            .map(|a| cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(a.to_string())),
        ..ClusterWeight::default()
    };
    (out.request_headers_to_add, out.request_headers_to_remove) = headers(&from.headers.request);
    (out.response_headers_to_add, out.response_headers_to_remove) = headers(&from.headers.response);
    out
}

fn retries(from: &Retries) -> RetryPolicy {
    let predicate = || RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(wire::any(&PreviousHostsPredicate {}))),
    };
    let priority = || {
        let config = PreviousPrioritiesConfig { update_frequency: LOCALITY_UPDATES };
        RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(wire::any(&config))),
        }
    };
    RetryPolicy {
        retry_on: from.on.to_string(),
        num_retries: wire::number(from.attempts),
        retriable_status_codes: from.codes.clone(),
        per_try_timeout: from.per_try_timeout.and_then(wire::millis),
        retry_back_off: from.backoff.map(|base| RetryBackOff {
            base_interval: wire::millis(base),
            max_interval: wire::millis(base.saturating_mul(MAX_BACKOFF)),
        }),
        retry_priority: from.other_localities.then(priority),
        retry_host_predicate: from.other_endpoints.then(predicate).into_iter().collect(),
        host_selection_retry_max_attempts: if from.other_endpoints { OTHER_ENDPOINT_TRIES } else { 0 },
        ..RetryPolicy::default()
    }
}

fn redirect(from: &Redirect) -> RedirectAction {
    let code = match from.status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    RedirectAction {
        host_redirect: from.authority.to_string(),
        port_redirect: u32::from(from.port.unwrap_or(0)),
        response_code: code.into(),
        scheme_rewrite_specifier: (!from.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(from.scheme.to_string())),
        path_rewrite_specifier: from.path.as_ref().map(|path| match path {
            RedirectPath::Whole(path) => PathRewriteSpecifier::PathRedirect(path.to_string()),
            RedirectPath::Matched(path) => PathRewriteSpecifier::PrefixRewrite(path.to_string()),
        }),
        ..RedirectAction::default()
    }
}

/// Parts of a million.
fn percent(share: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: share, denominator: DenominatorType::Million.into() })
}

/// The fault filter's settings for a route, under the filter's name.
pub fn fault(from: &Fault) -> (String, Any) {
    let config = HttpFault {
        delay: from.delay.map(|(ms, share)| FaultDelay {
            percentage: percent(share),
            fault_delay_secifier: wire::millis(ms).map(FaultDelaySecifier::FixedDelay),
        }),
        abort: from.abort.map(|(abort, share)| FaultAbort {
            percentage: percent(share),
            error_type: Some(match abort {
                Abort::Http(status) => ErrorType::HttpStatus(u32::from(status)),
                Abort::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    };
    (filters::FAULT_FILTER.to_owned(), wire::any(&config))
}

/// The CORS filter's settings for a route, under the filter's name.
pub fn cors(from: &Cors) -> (String, Any) {
    let config = CorsPolicy {
        allow_origin_string_match: from.origins.iter().filter_map(condition::text).collect(),
        allow_methods: from.methods.to_string(),
        allow_headers: from.headers.to_string(),
        expose_headers: from.expose.to_string(),
        max_age: from.max_age.map_or(String::new(), |seconds| seconds.to_string()),
        allow_credentials: from.credentials.and_then(wire::flag),
        forward_not_matching_preflights: from.forward_unmatched.and_then(wire::flag),
        ..CorsPolicy::default()
    };
    (filters::CORS_FILTER.to_owned(), wire::any(&config))
}

/// What `proxy-config routes` reads back: the VirtualService.
pub fn source(name: &NamespacedName) -> Metadata {
    let path = format!("/apis/networking.istio.io/v1/namespaces/{}/virtual-service/{}", name.namespace, name.name);
    let value = Value { kind: Some(Kind::StringValue(path)) };
    let istio = Struct { fields: [("config".to_owned(), value)].into() };
    Metadata { filter_metadata: [("istio".to_owned(), istio)].into(), ..Metadata::default() }
}

fn hash_policy(key: &HashKey) -> HashPolicy {
    let specifier = match key {
        HashKey::Header(name) => PolicySpecifier::Header(Header { header_name: name.to_string(), ..Header::default() }),
        HashKey::Cookie { name, path, ttl, attributes } => PolicySpecifier::Cookie(Cookie {
            name: name.to_string(),
            path: path.to_string(),
            ttl: ttl.and_then(wire::millis),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute { name: name.to_string(), value: value.to_string() })
                .collect(),
        }),
        HashKey::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashKey::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.to_string() }),
    };
    HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}
