//! Load balancing policies: the cluster's own fields, and `load_balancing_policy`, which replaces them.
//!
//! Invariant: ORIGINAL_DST and dynamic forward clusters, and only they, have CLUSTER_PROVIDED; table sizes are what Envoy allows.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::load_balancing_policies as typed;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{self as wkt, Any};

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{duration, json, number, percent};
use super::cluster_lb::CommonLb;
use crate::model::cluster::{Discovery, LbPolicy, SlowStart, SubsetFallback, Subsets};
use pb::cluster as inner;

/// How a cluster balances.
pub struct Balancing {
    /// Among hosts.
    pub policy: LbPolicy,
    /// Of new hosts.
    pub slow_start: Option<SlowStart>,
    /// Among localities.
    pub locality_weighted: bool,
    /// Among subsets.
    pub subsets: Option<Subsets>,
}

/// The policy of a cluster.
pub fn balancing(value: &pb::Cluster, discovery: &Discovery, common: &CommonLb) -> Result<Balancing, Bad> {
    let out = match &value.load_balancing_policy {
        Some(policy) => listed(policy, 0).at("load_balancing_policy")?,
        None => own(value, common)?,
    };
    let provided = matches!(discovery, Discovery::OriginalDst | Discovery::DynamicForward);
    if provided != (out.policy == LbPolicy::ClusterProvided) {
        return Err(Bad::field("lb_policy", "ORIGINAL_DST clusters, and only they, have CLUSTER_PROVIDED"));
    }
    Ok(out)
}

fn own(value: &pb::Cluster, common: &CommonLb) -> Result<Balancing, Bad> {
    use inner::{LbConfig as C, LbPolicy as P};
    let kind = P::try_from(value.lb_policy).map_err(|_| Bad::field("lb_policy", "unknown value"))?;
    let by_hostname = common.by_hostname;
    let (policy, slow_start) = match kind {
        P::RoundRobin => {
            let slow = match &value.lb_config {
                Some(C::RoundRobinLbConfig(config)) => {
                    given("round_robin_lb_config.slow_start_config", &config.slow_start_config, |s| {
                        slow_start(&s.slow_start_window, &s.aggression, &s.min_weight_percent)
                    })?
                }
                _ => None,
            };
            (LbPolicy::RoundRobin, slow)
        }
        P::Random => (LbPolicy::Random, None),
        P::ClusterProvided => (LbPolicy::ClusterProvided, None),
        P::LeastRequest => match &value.lb_config {
            Some(C::LeastRequestLbConfig(config)) => {
                let slow = given("least_request_lb_config.slow_start_config", &config.slow_start_config, |s| {
                    slow_start(&s.slow_start_window, &s.aggression, &s.min_weight_percent)
                })?;
                let policy = least_request(number(&config.choice_count), &config.active_request_bias);
                (policy.at("least_request_lb_config")?, slow)
            }
            _ => (LbPolicy::LeastRequest { choices: 2, bias: 1.0 }, None),
        },
        P::RingHash => {
            let policy = match &value.lb_config {
                Some(C::RingHashLbConfig(config)) => {
                    if config.hash_function != i32::from(inner::ring_hash_lb_config::HashFunction::XxHash) {
                        return Err(Bad::field("ring_hash_lb_config.hash_function", "only XX_HASH is supported"));
                    }
                    ring_hash(&config.minimum_ring_size, &config.maximum_ring_size, by_hostname)
                }
                _ => ring_hash(&None, &None, by_hostname),
            };
            (policy.at("ring_hash_lb_config")?, None)
        }
        P::Maglev => {
            let size = match &value.lb_config {
                Some(C::MaglevLbConfig(config)) => &config.table_size,
                _ => &None,
            };
            (maglev(size, by_hostname).at("maglev_lb_config")?, None)
        }
        P::LoadBalancingPolicyConfig => return Err(Bad::field("load_balancing_policy", "missing")),
    };
    let subsets = given("lb_subset_config", &value.lb_subset_config, subsets)?.filter(|s| !s.selectors.is_empty());
    Ok(Balancing { policy, slow_start, locality_weighted: common.locality_weighted, subsets })
}

/// The first policy of a list that we know, as Envoy does.
fn listed(list: &pb::LoadBalancingPolicy, depth: usize) -> Result<Balancing, Bad> {
    if depth > 2 {
        return Err(Bad::new("nested too deeply"));
    }
    for (number, entry) in list.policies.iter().enumerate() {
        let Some(any) = entry.typed_extension_config.as_ref().and_then(|t| t.typed_config.as_ref()) else { continue };
        if let Some(found) = one(any, depth).at("typed_extension_config.typed_config").at_index("policies", number)? {
            return Ok(found);
        }
    }
    let names = list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref()).map(|t| t.name.as_str());
    Err(Bad::new(format_args!("no supported policy among \"{}\"", names.collect::<Vec<_>>().join("\", \""))))
}

fn plain(policy: LbPolicy) -> Balancing {
    Balancing { policy, slow_start: None, locality_weighted: false, subsets: None }
}

fn one(any: &Any, depth: usize) -> Result<Option<Balancing>, Bad> {
    let package = "envoy.extensions.load_balancing_policies.";
    let Some(name) = type_name(any).strip_prefix(package) else { return Ok(None) };
    Ok(Some(match name {
        "round_robin.v3.RoundRobin" => {
            let config: typed::round_robin::v3::RoundRobin = decode(any)?;
            let slow = given("slow_start_config", &config.slow_start_config, typed_slow_start)?;
            let weighted = given("locality_lb_config", &config.locality_lb_config, locality)?.unwrap_or(false);
            Balancing { slow_start: slow, locality_weighted: weighted, ..plain(LbPolicy::RoundRobin) }
        }
        "least_request.v3.LeastRequest" => {
            let config: typed::least_request::v3::LeastRequest = decode(any)?;
            only!(&config, typed::least_request::v3::LeastRequest {
                choice_count, active_request_bias, slow_start_config, locality_lb_config
            } refuse { enable_full_scan, selection_method });
            let slow = given("slow_start_config", &config.slow_start_config, typed_slow_start)?;
            let weighted = given("locality_lb_config", &config.locality_lb_config, locality)?.unwrap_or(false);
            let policy = least_request(number(&config.choice_count), &config.active_request_bias)?;
            Balancing { slow_start: slow, locality_weighted: weighted, ..plain(policy) }
        }
        "random.v3.Random" => {
            let config: typed::random::v3::Random = decode(any)?;
            let weighted = given("locality_lb_config", &config.locality_lb_config, locality)?.unwrap_or(false);
            Balancing { locality_weighted: weighted, ..plain(LbPolicy::Random) }
        }
        "cluster_provided.v3.ClusterProvided" => plain(LbPolicy::ClusterProvided),
        "ring_hash.v3.RingHash" => {
            let config: typed::ring_hash::v3::RingHash = decode(any)?;
            use typed::ring_hash::v3::ring_hash::HashFunction as F;
            if !matches!(F::try_from(config.hash_function), Ok(F::DefaultHash | F::XxHash)) {
                return Err(Bad::field("hash_function", "only XX_HASH is supported"));
            }
            if config.hash_balance_factor.is_some() {
                return Err(Bad::unsupported("hash_balance_factor"));
            }
            let hashing = given("consistent_hashing_lb_config", &config.consistent_hashing_lb_config, hashing)?;
            let by_hostname = config.use_hostname_for_hashing || hashing.unwrap_or(false);
            Balancing {
                locality_weighted: config.locality_weighted_lb_config.is_some(),
                ..plain(ring_hash(&config.minimum_ring_size, &config.maximum_ring_size, by_hostname)?)
            }
        }
        "maglev.v3.Maglev" => {
            let config: typed::maglev::v3::Maglev = decode(any)?;
            let hashing = given("consistent_hashing_lb_config", &config.consistent_hashing_lb_config, hashing)?;
            Balancing {
                locality_weighted: config.locality_weighted_lb_config.is_some(),
                ..plain(maglev(&config.table_size, hashing.unwrap_or(false))?)
            }
        }
        "wrr_locality.v3.WrrLocality" => {
            let config: typed::wrr_locality::v3::WrrLocality = decode(any)?;
            let below = config.endpoint_picking_policy.as_ref();
            let below = below.ok_or_else(|| Bad::field("endpoint_picking_policy", "missing"))?;
            let below = listed(below, depth.saturating_add(1)).at("endpoint_picking_policy")?;
            Balancing { locality_weighted: true, ..below }
        }
        _ => return Ok(None),
    }))
}

fn typed_slow_start(s: &typed::common::v3::SlowStartConfig) -> Result<SlowStart, Bad> {
    slow_start(&s.slow_start_window, &s.aggression, &s.min_weight_percent)
}

/// Whether localities are weighed. Zones are not looked at without a local cluster, in Envoy too.
fn locality(value: &typed::common::v3::LocalityLbConfig) -> Result<bool, Bad> {
    use typed::common::v3::locality_lb_config::LocalityConfigSpecifier as S;
    match &value.locality_config_specifier {
        Some(S::LocalityWeightedLbConfig(_)) => Ok(true),
        Some(S::ZoneAwareLbConfig(zone)) if zone.fail_traffic_on_panic => {
            Err(Bad::unsupported("fail_traffic_on_panic"))
        }
        Some(S::ZoneAwareLbConfig(_)) | None => Ok(false),
    }
}

fn hashing(value: &typed::common::v3::ConsistentHashingLbConfig) -> Result<bool, Bad> {
    only!(value, typed::common::v3::ConsistentHashingLbConfig { use_hostname_for_hashing } refuse { hash_balance_factor, hash_policy });
    Ok(value.use_hostname_for_hashing)
}

fn slow_start(
    window: &Option<wkt::Duration>,
    aggression: &Option<core::RuntimeDouble>,
    least: &Option<Percent>,
) -> Result<SlowStart, Bad> {
    let window = given("slow_start_window", window, duration)?.unwrap_or(Duration::ZERO);
    let aggression = given("aggression", aggression, runtime_double)?.unwrap_or(1.0);
    if aggression <= 0.0 {
        return Err(Bad::field("aggression", "must be greater than zero"));
    }
    let least = given("min_weight_percent", least, percent)?.unwrap_or(10.0) / 100.0;
    Ok(SlowStart { window, aggression, least })
}

fn runtime_double(value: &core::RuntimeDouble) -> Result<f64, Bad> {
    only!(value, core::RuntimeDouble { default_value } refuse { runtime_key });
    if (0.0..=1e6).contains(&value.default_value) { Ok(value.default_value) } else { Err(Bad::new("out of range")) }
}

fn least_request(choices: Option<u32>, bias: &Option<core::RuntimeDouble>) -> Result<LbPolicy, Bad> {
    let bias = given("active_request_bias", bias, runtime_double)?;
    match choices {
        Some(0 | 1) => Err(Bad::field("choice_count", "must be at least 2")),
        choices => Ok(LbPolicy::LeastRequest { choices: choices.unwrap_or(2).min(64), bias: bias.unwrap_or(1.0) }),
    }
}

fn ring_hash(
    min: &Option<wkt::UInt64Value>,
    max: &Option<wkt::UInt64Value>,
    by_hostname: bool,
) -> Result<LbPolicy, Bad> {
    let (min, max) = (min.as_ref().map_or(1024, |s| s.value), max.as_ref().map_or(8_388_608, |s| s.value));
    if min > max || max > 8_388_608 {
        return Err(Bad::field("minimum_ring_size", "out of range"));
    }
    Ok(LbPolicy::RingHash { min, max, by_hostname })
}

fn maglev(size: &Option<wkt::UInt64Value>, by_hostname: bool) -> Result<LbPolicy, Bad> {
    let table = size.as_ref().map_or(65_537, |s| s.value);
    if !(2..=5_000_011).contains(&table) || !is_prime(table) {
        return Err(Bad::field("table_size", "must be a prime of at most 5000011"));
    }
    Ok(LbPolicy::Maglev { table, by_hostname })
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d: &u64| d.saturating_mul(*d) <= n).all(|d| n.checked_rem(d) != Some(0))
}

fn subsets(value: &inner::LbSubsetConfig) -> Result<Subsets, Bad> {
    only!(value, inner::LbSubsetConfig { fallback_policy, default_subset, subset_selectors } refuse {
        locality_weight_aware, scale_locality_weight, panic_mode_any, list_as_any, metadata_fallback_policy
    });
    use inner::lb_subset_config::{LbSubsetFallbackPolicy as F, LbSubsetSelector};
    Ok(Subsets {
        selectors: each("subset_selectors", &value.subset_selectors, |selector| {
            only!(selector, LbSubsetSelector { keys } refuse { single_host_per_subset, fallback_policy, fallback_keys_subset });
            let mut keys: Vec<_> = selector.keys.iter().map(|k| k.as_str().into()).collect();
            keys.sort();
            Ok(keys)
        })?,
        fallback: match F::try_from(value.fallback_policy) {
            Ok(F::NoFallback) => SubsetFallback::None,
            Ok(F::AnyEndpoint) => SubsetFallback::Any,
            Ok(F::DefaultSubset) => {
                let fields = value.default_subset.iter().flat_map(|s| &s.fields);
                let labels = fields.map(|(k, v)| Ok((k.as_str().into(), json(v, 0)?)));
                SubsetFallback::Default(std::sync::Arc::new(labels.collect::<Result<_, Bad>>().at("default_subset")?))
            }
            Err(_) => return Err(Bad::field("fallback_policy", "unknown value")),
        },
    })
}
