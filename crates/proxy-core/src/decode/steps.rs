//! Faults, CORS policies, local rate limits, header mutations.
//!
//! Invariant: what would limit or change traffic and is not supported refuses the resource.

use std::time::Duration;

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as mutation;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault_pb;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as header_pb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as rate_pb;
use envoy_types::pb::envoy::r#type::v3 as kind;
use http::{HeaderValue, StatusCode};

use super::bad::{At, Bad, each, given, only};
use super::basic::{duration, fraction, number, runtime_fraction, truth};
use super::{headers, matcher};
use crate::model::Name;
use crate::model::headers::HeaderOps;
use crate::model::steps::{Abort, Bucket, CorsPolicy, Fault, FaultKind, HeaderMutations, LocalRateLimit, TokenBucket};

/// `HTTPFault`.
pub fn fault(value: &fault_pb::HttpFault) -> Result<Fault, Bad> {
    only!(value, fault_pb::HttpFault {
        delay, abort, upstream_cluster, headers, downstream_nodes, max_active_faults,
        delay_percent_runtime, abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime, max_active_faults_runtime,
        response_rate_limit_percent_runtime, abort_grpc_status_runtime, disable_downstream_cluster_stats,
    } refuse { response_rate_limit, filter_metadata });
    let abort = value.abort.as_ref();
    Ok(Fault {
        delay: given("delay", &value.delay, delay)?,
        abort: given("abort", &value.abort, one_abort)?,
        body: abort.filter(|a| !a.response_body.is_empty()).map(|a| a.response_body.clone().into()),
        upstream_cluster: value.upstream_cluster.as_str().into(),
        headers: each("headers", &value.headers, matcher::header)?,
        downstream_nodes: value.downstream_nodes.iter().map(|n| Name::from(n.as_str())).collect(),
        max_active: number(&value.max_active_faults),
    })
}

/// An unset percentage is none at all.
fn share(value: &Option<kind::FractionalPercent>) -> Result<u32, Bad> {
    value.as_ref().map_or(Ok(0), fraction).at("percentage")
}

fn delay(value: &common::FaultDelay) -> Result<(FaultKind<Duration>, u32), Bad> {
    use common::fault_delay::FaultDelaySecifier as S;
    let what = match &value.fault_delay_secifier {
        Some(S::FixedDelay(fixed)) => match duration(fixed).at("fixed_delay")? {
            Duration::ZERO => return Err(Bad::field("fixed_delay", "must be greater than zero")),
            fixed => FaultKind::Fixed(fixed),
        },
        Some(S::HeaderDelay(_)) => FaultKind::Header,
        None => return Err(Bad::new("empty")),
    };
    Ok((what, share(&value.percentage)?))
}

fn one_abort(value: &fault_pb::FaultAbort) -> Result<(FaultKind<Abort>, u32), Bad> {
    use fault_pb::fault_abort::ErrorType as E;
    let what = match &value.error_type {
        Some(E::HttpStatus(status)) => FaultKind::Fixed(Abort::Http(code(*status).at("http_status")?)),
        Some(E::GrpcStatus(status)) => FaultKind::Fixed(Abort::Grpc(*status)),
        Some(E::HeaderAbort(_)) => FaultKind::Header,
        None => return Err(Bad::new("empty")),
    };
    Ok((what, share(&value.percentage)?))
}

fn code(status: u32) -> Result<StatusCode, Bad> {
    let status = u16::try_from(status).ok().filter(|s| (200..600).contains(s));
    status.and_then(|s| StatusCode::from_u16(s).ok()).ok_or_else(|| Bad::new("not a status"))
}

/// `HttpStatus`.
pub fn http_status(value: &kind::HttpStatus) -> Result<StatusCode, Bad> {
    code(u32::try_from(value.code).unwrap_or(0)).at("code")
}

/// `CorsPolicy`.
pub fn cors(value: &cors_pb::CorsPolicy) -> Result<CorsPolicy, Bad> {
    only!(value, cors_pb::CorsPolicy {
        allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials, filter_enabled,
        allow_private_network_access, forward_not_matching_preflights, shadow_enabled,
    } refuse {});
    let text = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => HeaderValue::from_str(text).map(Some).map_err(|_| Bad::field(field, "not a header value")),
    };
    Ok(CorsPolicy {
        origins: each("allow_origin_string_match", &value.allow_origin_string_match, matcher::string)?,
        methods: text("allow_methods", &value.allow_methods)?,
        headers: text("allow_headers", &value.allow_headers)?,
        expose: text("expose_headers", &value.expose_headers)?,
        max_age: text("max_age", &value.max_age)?,
        credentials: truth(&value.allow_credentials).unwrap_or(false),
        private_network: truth(&value.allow_private_network_access).unwrap_or(false),
        enabled: given("filter_enabled", &value.filter_enabled, runtime_fraction)?.unwrap_or(1_000_000),
        forward_not_matching: truth(&value.forward_not_matching_preflights).unwrap_or(true),
    })
}

/// `LocalRateLimit`, without descriptors.
pub fn local_rate_limit(value: &rate_pb::LocalRateLimit) -> Result<LocalRateLimit, Bad> {
    only!(value, rate_pb::LocalRateLimit {
        stat_prefix, status, token_bucket, filter_enabled, filter_enforced, request_headers_to_add_when_not_enforced,
        response_headers_to_add, rate_limited_as_resource_exhausted, stage, vh_rate_limits, always_consume_default_token_bucket,
        max_dynamic_descriptors,
    } refuse {
        descriptors, local_rate_limit_per_downstream_connection, local_cluster_rate_limit, enable_x_ratelimit_headers,
        rate_limits, enable_retry_after_header,
    });
    let counter = |name: &str| -> Name { format!("{}.http_local_rate_limit.{name}", value.stat_prefix).into() };
    let status = given("status", &value.status, http_status)?.filter(|s| s.as_u16() >= 400);
    Ok(LocalRateLimit {
        bucket: given("token_bucket", &value.token_bucket, bucket)?,
        enabled: given("filter_enabled", &value.filter_enabled, runtime_fraction)?.unwrap_or(0),
        enforced: given("filter_enforced", &value.filter_enforced, runtime_fraction)?.unwrap_or(0),
        status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        request: headers::ops("request", &value.request_headers_to_add_when_not_enforced, &[])?,
        response: headers::ops("response", &value.response_headers_to_add, &[])?,
        resource_exhausted: value.rate_limited_as_resource_exhausted,
        counters: [counter("enabled"), counter("ok"), counter("rate_limited"), counter("enforced")],
        state: Bucket::default(),
    })
}

fn bucket(value: &kind::TokenBucket) -> Result<TokenBucket, Bad> {
    let interval = value.fill_interval.as_ref().ok_or_else(|| Bad::field("fill_interval", "missing"))?;
    let interval = duration(interval).at("fill_interval")?;
    if interval < Duration::from_millis(50) {
        return Err(Bad::field("fill_interval", "less than 50 ms"));
    }
    Ok(TokenBucket { max: value.max_tokens, fill: number(&value.tokens_per_fill).unwrap_or(1), interval })
}

/// The filter's own mutations.
pub fn header_mutation(value: &header_pb::HeaderMutation) -> Result<HeaderMutations, Bad> {
    only!(value, header_pb::HeaderMutation { mutations } refuse { most_specific_header_mutations_wins });
    Ok(given("mutations", &value.mutations, mutations)?.unwrap_or_default())
}

/// Those of a route.
pub fn header_mutation_here(value: &header_pb::HeaderMutationPerRoute) -> Result<HeaderMutations, Bad> {
    Ok(given("mutations", &value.mutations, mutations)?.unwrap_or_default())
}

fn mutations(value: &header_pb::Mutations) -> Result<HeaderMutations, Bad> {
    only!(value, header_pb::Mutations { request_mutations, response_mutations } refuse {
        query_parameter_mutations, response_trailers_mutations, request_trailers_mutations,
    });
    Ok(HeaderMutations {
        request: each("request_mutations", &value.request_mutations, one_mutation)?,
        response: each("response_mutations", &value.response_mutations, one_mutation)?,
    })
}

fn one_mutation(value: &mutation::HeaderMutation) -> Result<HeaderOps, Bad> {
    use mutation::header_mutation::Action as A;
    match &value.action {
        Some(A::Remove(name)) => headers::ops("remove", &[], std::slice::from_ref(name)),
        Some(A::Append(option)) => headers::ops("append", std::slice::from_ref(option), &[]),
        Some(A::RemoveOnMatch(_)) => Err(Bad::unsupported("remove_on_match")),
        None => Err(Bad::new("empty mutation")),
    }
}
