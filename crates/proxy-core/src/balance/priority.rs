//! How load is shared among priorities, and when health stops counting (panic).
//!
//! Invariant: Envoy's algorithm: a priority's availability is its healthy share times the overprovisioning factor, at most 100; load
//! spills to the next priority only when the earlier ones together are below 100.

use crate::model::endpoint::{EndpointSet, Health};

/// Load of some hosts of a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which priority.
    pub priority: usize,
    /// Percent of load.
    pub load: u32,
    /// Which hosts take it; `None` = all (panic).
    pub accept: Option<Health>,
}

/// Percent of traffic that `good` of `all` hosts can take.
pub(super) fn availability(good: usize, all: usize, factor: u32) -> u32 {
    let percent = u64::try_from(good).unwrap_or(u64::MAX).saturating_mul(u64::from(factor));
    let percent = percent.checked_div(u64::try_from(all).unwrap_or(u64::MAX)).unwrap_or(0);
    u32::try_from(percent.min(100)).unwrap_or(100)
}

struct Level {
    hosts: usize,
    healthy: u32,
    degraded: u32,
    usable: usize,
}

/// Shares of load, most urgent first; they sum to 100 unless there are no hosts at all.
pub(super) fn shares(set: &EndpointSet, panic_threshold: f64, health: &dyn Fn(usize) -> Health) -> Vec<Share> {
    let levels: Vec<Level> = set
        .priorities
        .iter()
        .map(|priority| {
            let count = |wanted: Health| priority.hosts.iter().filter(|i| health(**i) == wanted).count();
            let (healthy, degraded, hosts) = (count(Health::Healthy), count(Health::Degraded), priority.hosts.len());
            Level {
                hosts,
                healthy: availability(healthy, hosts, set.overprovisioning_factor),
                degraded: availability(degraded, hosts, set.overprovisioning_factor),
                usable: healthy.saturating_add(degraded),
            }
        })
        .collect();
    let total: u32 = levels.iter().map(|l| l.healthy.saturating_add(l.degraded)).fold(0, u32::saturating_add).min(100);
    if total == 0 {
        return all_down(&levels, panic_threshold);
    }
    let panics = |level: &Level| total < 100 && in_panic(level, panic_threshold);
    let mut shares = Vec::new();
    let mut left = 100_u32;
    let mut give = |priority: usize, level: &Level, available: u32, accept: Health, left: &mut u32| {
        let load = (*left).min(available.saturating_mul(100).checked_div(total).unwrap_or(0));
        *left = left.saturating_sub(load);
        if load > 0 {
            shares.push(Share { priority, load, accept: (!panics(level)).then_some(accept) });
        }
    };
    for (i, level) in levels.iter().enumerate() {
        give(i, level, level.healthy, Health::Healthy, &mut left);
    }
    for (i, level) in levels.iter().enumerate() {
        give(i, level, level.degraded, Health::Degraded, &mut left);
    }
    // What rounding left goes to the first that takes load.
    if let Some(first) = shares.first_mut() {
        first.load = first.load.saturating_add(left);
    }
    shares
}

/// No host is usable: all hosts of all priorities in proportion, where panic is allowed; nobody, where it is not.
fn all_down(levels: &[Level], panic_threshold: f64) -> Vec<Share> {
    if panic_threshold <= 0.0 {
        return Vec::new();
    }
    let hosts: usize = levels.iter().map(|l| l.hosts).sum();
    let shares = levels.iter().enumerate().filter(|(_, l)| l.hosts > 0).map(|(priority, level)| {
        let load = level.hosts.saturating_mul(100).checked_div(hosts).unwrap_or(0);
        Share { priority, load: u32::try_from(load).unwrap_or(100).max(1), accept: None }
    });
    shares.collect()
}

fn in_panic(level: &Level, threshold: f64) -> bool {
    if level.hosts == 0 || threshold <= 0.0 {
        return false;
    }
    #[allow(clippy::cast_precision_loss)]
    let percent = 100.0 * level.usable as f64 / level.hosts as f64;
    percent < threshold
}
