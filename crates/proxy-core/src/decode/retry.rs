//! Retry policies.
//!
//! Invariant: every token of `retry_on` is known (Envoy ignores unknown ones; we say so instead).

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::bad::{At, Bad, each, given, only, type_name, unpack};
use super::basic::{duration, limit, number, positive};
use super::{headers, matcher};
use crate::model::retry::{RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy};

/// `RetryPolicy`.
pub fn policy(value: &pb::RetryPolicy) -> Result<RetryPolicy, Bad> {
    only!(value, pb::RetryPolicy {
        retry_on, num_retries, per_try_timeout, retry_host_predicate, host_selection_retry_max_attempts,
        retriable_status_codes, retry_back_off, retriable_headers, retriable_request_headers, per_try_idle_timeout, retry_priority,
        rate_limited_retry_back_off,
    } refuse { retry_options_predicates, refresh_cluster_on_retry });
    let mut on = RetryOn::default();
    for token in value.retry_on.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let bit =
            RetryOn::token(token).ok_or_else(|| Bad::field("retry_on", format_args!("unknown condition `{token}`")))?;
        on = on.with(bit);
    }
    let previous_hosts = each("retry_host_predicate", &value.retry_host_predicate, predicate)?;
    let (base, max) = given("retry_back_off", &value.retry_back_off, back_off)?
        .unwrap_or((Duration::from_millis(25), Duration::from_millis(250)));
    Ok(RetryPolicy {
        on,
        num_retries: number(&value.num_retries).unwrap_or(1),
        per_try_timeout: limit("per_try_timeout", &value.per_try_timeout, None)?,
        avoid_previous_hosts: !previous_hosts.is_empty(),
        // Bounded: each attempt is a draw on the worker.
        host_selection_attempts: u32::try_from(value.host_selection_retry_max_attempts.clamp(0, 100))
            .unwrap_or(0)
            .max(1),
        status_codes: each("retriable_status_codes", &value.retriable_status_codes, |code| {
            u16::try_from(*code).ok().filter(|c| (100..600).contains(c)).ok_or_else(|| Bad::new("not a status"))
        })?,
        retriable_headers: each("retriable_headers", &value.retriable_headers, matcher::header)?,
        retriable_request_headers: each(
            "retriable_request_headers",
            &value.retriable_request_headers,
            matcher::header,
        )?,
        backoff_base: base,
        backoff_max: max,
        per_try_idle_timeout: limit("per_try_idle_timeout", &value.per_try_idle_timeout, None)?,
        previous_priorities: given("retry_priority", &value.retry_priority, priority)?,
        rate_limited: given("rate_limited_retry_back_off", &value.rate_limited_retry_back_off, rate_limited)?,
    })
}

/// `previous_priorities`: how often what was tried is forgotten.
fn priority(value: &pb::retry_policy::RetryPriority) -> Result<u32, Bad> {
    use pb::retry_policy::retry_priority::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = &value.config_type else {
        return Err(Bad::new(format_args!("unsupported retry priority \"{}\"", value.name)));
    };
    let config: PreviousPrioritiesConfig =
        unpack(any, "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
            .at("typed_config")?;
    match u32::try_from(config.update_frequency) {
        Ok(frequency @ 1..) => Ok(frequency),
        _ => Err(Bad::field("typed_config.update_frequency", "must be greater than zero")),
    }
}

fn rate_limited(value: &pb::retry_policy::RateLimitedRetryBackOff) -> Result<RateLimitedBackOff, Bad> {
    use pb::retry_policy::ResetHeaderFormat as F;
    if value.reset_headers.is_empty() {
        return Err(Bad::field("reset_headers", "empty"));
    }
    Ok(RateLimitedBackOff {
        headers: each("reset_headers", &value.reset_headers, |header| {
            let format = match F::try_from(header.format) {
                Ok(F::Seconds) => ResetFormat::Seconds,
                Ok(F::UnixTimestamp) => ResetFormat::UnixTimestamp,
                Err(_) => return Err(Bad::field("format", "unknown value")),
            };
            Ok((headers::name(&header.name).at("name")?, format))
        })?,
        max: positive("max_interval", &value.max_interval, Duration::from_secs(300))?,
    })
}

fn predicate(value: &pb::retry_policy::RetryHostPredicate) -> Result<(), Bad> {
    use pb::retry_policy::retry_host_predicate::ConfigType;
    let name = match &value.config_type {
        Some(ConfigType::TypedConfig(any)) => type_name(any),
        None => value.name.as_str(),
    };
    match name {
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        | "envoy.retry_host_predicates.previous_hosts" => Ok(()),
        other => Err(Bad::new(format_args!("unsupported retry host predicate {other}"))),
    }
}

fn back_off(value: &pb::retry_policy::RetryBackOff) -> Result<(Duration, Duration), Bad> {
    let base = value.base_interval.as_ref().ok_or_else(|| Bad::field("base_interval", "missing"))?;
    // Envoy rounds below a millisecond up.
    let base = duration(base).at("base_interval")?.max(Duration::from_millis(1));
    let max = positive("max_interval", &value.max_interval, base.saturating_mul(10))?;
    if max < base { Err(Bad::field("max_interval", "below base_interval")) } else { Ok((base, max)) }
}
