//! Common balancing options, circuit limits and outlier detection of clusters. Policies are in `cluster_policy`.
//!
//! Invariant: Envoy's defaults; bounded-load hashing and limits per host are refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;

use super::bad::{At, Bad, given, only};
use super::basic::{duration, number, percent, port, positive, truth};
use super::headers;
use crate::model::cluster::{CircuitLimits, OriginalDst, OutlierDetection, RetryBudget};
use pb::cluster as inner;

/// What `CommonLbConfig` says.
pub struct CommonLb {
    /// Percent.
    pub panic_threshold: f64,
    /// Locality weights count.
    pub locality_weighted: bool,
    /// Hash host names.
    pub by_hostname: bool,
}

/// `CommonLbConfig`.
pub fn common(value: &Option<inner::CommonLbConfig>) -> Result<CommonLb, Bad> {
    use inner::common_lb_config as c;
    let mut out = CommonLb { panic_threshold: 50.0, locality_weighted: false, by_hostname: false };
    let Some(value) = value else { return Ok(out) };
    only!(value, inner::CommonLbConfig { healthy_panic_threshold, consistent_hashing_lb_config, locality_config_specifier } refuse {
        update_merge_window, ignore_new_hosts_until_first_hc, close_connections_on_host_set_change, override_host_status
    });
    if let Some(threshold) = given("healthy_panic_threshold", &value.healthy_panic_threshold, percent)? {
        out.panic_threshold = threshold;
    }
    if let Some(hashing) = &value.consistent_hashing_lb_config {
        only!(hashing, c::ConsistentHashingLbConfig { use_hostname_for_hashing } refuse { hash_balance_factor });
        out.by_hostname = hashing.use_hostname_for_hashing;
    }
    match &value.locality_config_specifier {
        Some(c::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => out.locality_weighted = true,
        Some(c::LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            only!(zone, c::ZoneAwareLbConfig {} refuse { routing_enabled, min_cluster_size, fail_traffic_on_panic });
        }
        None => {}
    }
    Ok(out)
}

/// Original-destination options.
pub fn original_dst(value: &pb::Cluster) -> Result<OriginalDst, Bad> {
    let Some(inner::LbConfig::OriginalDstLbConfig(config)) = &value.lb_config else {
        return Ok(OriginalDst::default());
    };
    original_dst_config(config).at("original_dst_lb_config")
}

fn original_dst_config(config: &inner::OriginalDstLbConfig) -> Result<OriginalDst, Bad> {
    only!(config, inner::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override } refuse { metadata_key });
    let header = match (config.use_http_header, config.http_header_name.as_str()) {
        (false, "") => None,
        (false, _) => return Err(Bad::field("http_header_name", "use_http_header is off")),
        (true, "") => Some(http::HeaderName::from_static("x-envoy-original-dst-host")),
        (true, name) => Some(headers::name(name).at("http_header_name")?),
    };
    Ok(OriginalDst {
        header,
        port_override: given("upstream_port_override", &config.upstream_port_override, |p| port(p.value))?,
    })
}

/// Limits for default and high priority.
pub fn circuits(value: &Option<pb::CircuitBreakers>) -> Result<(CircuitLimits, CircuitLimits), Bad> {
    let mut out = (CircuitLimits::default(), CircuitLimits::default());
    let Some(value) = value else { return Ok(out) };
    only!(value, pb::CircuitBreakers { thresholds } refuse { per_host_thresholds });
    for (i, entry) in value.thresholds.iter().enumerate() {
        let limits = thresholds(entry).at_index("thresholds", i)?;
        match core::RoutingPriority::try_from(entry.priority) {
            Ok(core::RoutingPriority::Default) => out.0 = limits,
            Ok(core::RoutingPriority::High) => out.1 = limits,
            Err(_) => return Err(Bad::field("priority", "unknown value")).at_index("thresholds", i),
        }
    }
    Ok(out)
}

fn thresholds(value: &pb::circuit_breakers::Thresholds) -> Result<CircuitLimits, Bad> {
    only!(value, pb::circuit_breakers::Thresholds {
        priority, max_connections, max_pending_requests, max_requests, max_retries, retry_budget
    } refuse { track_remaining, max_connection_pools });
    let default = CircuitLimits::default();
    let retry_budget = given("retry_budget", &value.retry_budget, |budget| {
        only!(budget, pb::circuit_breakers::thresholds::RetryBudget { budget_percent, min_retry_concurrency } refuse { budget_interval });
        Ok(RetryBudget {
            percent: given("budget_percent", &budget.budget_percent, percent)?.unwrap_or(20.0),
            min_concurrency: number(&budget.min_retry_concurrency).unwrap_or(3),
        })
    })?;
    Ok(CircuitLimits {
        max_connections: number(&value.max_connections).unwrap_or(default.max_connections),
        max_pending_requests: number(&value.max_pending_requests).unwrap_or(default.max_pending_requests),
        max_requests: number(&value.max_requests).unwrap_or(default.max_requests),
        max_retries: number(&value.max_retries).unwrap_or(default.max_retries),
        retry_budget,
    })
}

/// Outlier detection.
pub fn outlier(value: &pb::OutlierDetection) -> Result<OutlierDetection, Bad> {
    only!(value, pb::OutlierDetection {
        consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx, enforcing_success_rate,
        success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor, consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure, split_external_local_origin_errors, consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate, failure_percentage_threshold,
        enforcing_failure_percentage, enforcing_failure_percentage_local_origin, failure_percentage_minimum_hosts,
        failure_percentage_request_volume, max_ejection_time, max_ejection_time_jitter, successful_active_health_check_uneject_host,
        always_eject_one_host,
    } refuse { monitors, detect_degraded_hosts });
    let chance = |field: &str, value: &Option<_>, default: u32| match number(value).unwrap_or(default) {
        percent @ 0..=100 => Ok(percent),
        _ => Err(Bad::field(field, "not a percentage")),
    };
    let base = positive("base_ejection_time", &value.base_ejection_time, Duration::from_secs(30))?;
    Ok(OutlierDetection {
        consecutive_5xx: number(&value.consecutive_5xx).unwrap_or(5),
        consecutive_gateway_failure: number(&value.consecutive_gateway_failure).unwrap_or(5),
        consecutive_local_origin_failure: number(&value.consecutive_local_origin_failure).unwrap_or(5),
        enforcing_consecutive_5xx: chance("enforcing_consecutive_5xx", &value.enforcing_consecutive_5xx, 100)?,
        enforcing_consecutive_gateway_failure: chance(
            "enforcing_consecutive_gateway_failure",
            &value.enforcing_consecutive_gateway_failure,
            0,
        )?,
        enforcing_consecutive_local_origin_failure: chance(
            "enforcing_consecutive_local_origin_failure",
            &value.enforcing_consecutive_local_origin_failure,
            100,
        )?,
        split_external_local_origin_errors: value.split_external_local_origin_errors,
        interval: positive("interval", &value.interval, Duration::from_secs(10))?,
        base_ejection_time: base,
        max_ejection_time: positive("max_ejection_time", &value.max_ejection_time, Duration::from_secs(300).max(base))?
            .max(base),
        max_ejection_percent: chance("max_ejection_percent", &value.max_ejection_percent, 10)?,
        always_eject_one_host: truth(&value.always_eject_one_host).unwrap_or(false),
        enforcing_success_rate: chance("enforcing_success_rate", &value.enforcing_success_rate, 100)?,
        success_rate_minimum_hosts: number(&value.success_rate_minimum_hosts).unwrap_or(5),
        success_rate_request_volume: number(&value.success_rate_request_volume).unwrap_or(100),
        success_rate_stdev_factor: number(&value.success_rate_stdev_factor).unwrap_or(1900),
        enforcing_local_origin_success_rate: chance(
            "enforcing_local_origin_success_rate",
            &value.enforcing_local_origin_success_rate,
            100,
        )?,
        failure_percentage_threshold: chance("failure_percentage_threshold", &value.failure_percentage_threshold, 85)?,
        enforcing_failure_percentage: chance("enforcing_failure_percentage", &value.enforcing_failure_percentage, 0)?,
        enforcing_failure_percentage_local_origin: chance(
            "enforcing_failure_percentage_local_origin",
            &value.enforcing_failure_percentage_local_origin,
            0,
        )?,
        failure_percentage_minimum_hosts: number(&value.failure_percentage_minimum_hosts).unwrap_or(5),
        failure_percentage_request_volume: number(&value.failure_percentage_request_volume).unwrap_or(50),
        max_ejection_time_jitter: given("max_ejection_time_jitter", &value.max_ejection_time_jitter, duration)?
            .unwrap_or_default(),
    })
}
