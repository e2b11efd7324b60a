//! Which endpoints come first for a client (semantics §27): groups of endpoints with priorities and shares.
//!
//! Invariant: priorities are consecutive from 0; an endpoint is in at most one group; groups are sorted, so that equal sets are equal values.

use std::{collections::BTreeMap, sync::Arc};

use carrick_base::Labels;

use crate::{
    model::{Endpoint, Locality, locality::LocalityPolicy},
    parts::{LoadEndpoint, LoadGroup},
};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const HOST: &str = "kubernetes.io/hostname";
/// The label of a workload's network.
pub const NETWORK: &str = "topology.istio.io/network";

/// Where a client is, as far as any policy asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its region, zone and subzone.
    pub locality: Locality,
    /// Its labels, those of its place among them.
    pub labels: Labels,
}

/// What decides which endpoints come first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    /// The policy.
    pub policy: Arc<LocalityPolicy>,
    /// The client.
    pub place: Arc<Place>,
}

/// The labels of a place, that policies compare.
pub fn place_labels(labels: &mut Labels, locality: &Locality, node: &str, network: &str) {
    let of = [
        (REGION, &*locality.region),
        (ZONE, &locality.zone),
        (SUBZONE, &locality.subzone),
        (HOST, node),
        (NETWORK, network),
    ];
    for (key, value) in of {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value.to_owned());
        }
    }
}

/// The policy of a service's `trafficDistribution`: always in force.
pub fn of_distribution(distribution: crate::model::service::Distribution) -> LocalityPolicy {
    use crate::model::service::Distribution;
    let keys: &[&str] = match distribution {
        Distribution::SameZone => &[NETWORK, REGION, ZONE],
        Distribution::SameNode => &[NETWORK, REGION, ZONE, SUBZONE, HOST],
    };
    LocalityPolicy { priority: keys.iter().map(|k| Arc::from(*k)).collect(), ..LocalityPolicy::default() }
}

/// Puts endpoints into groups. Each comes with what it was made of.
pub fn arrange(endpoints: Vec<(&Endpoint, LoadEndpoint)>, spread: Option<&Spread>) -> Vec<LoadGroup> {
    let mut groups: BTreeMap<(u32, Locality), Vec<LoadEndpoint>> = BTreeMap::new();
    for (from, endpoint) in endpoints {
        let locality = from.workload.as_ref().map(|w| w.locality.clone()).unwrap_or_default();
        let priority = spread.map_or(0, |s| priority(s, from, &locality));
        groups.entry((priority, locality)).or_default().push(endpoint);
    }
    let mut out: Vec<LoadGroup> = groups
        .into_iter()
        .map(|((priority, locality), mut endpoints)| {
            endpoints.sort();
            endpoints.dedup_by(|a, b| {
                let same = a.address == b.address;
                if same && a.gateway_of.is_some() && a.gateway_of == b.gateway_of {
                    b.weight = b.weight.saturating_add(a.weight);
                }
                same
            });
            LoadGroup { locality, priority, share: None, endpoints }
        })
        .collect();
    compact(&mut out);
    if let Some(spread) = spread {
        distribute(&mut out, spread);
    }
    out
}

/// Makes priorities consecutive.
fn compact(groups: &mut [LoadGroup]) {
    let (mut next, mut last) = (0, None);
    for group in groups {
        if last.is_some_and(|l| l != group.priority) {
            next += 1;
        }
        last = Some(std::mem::replace(&mut group.priority, next));
    }
}

fn priority(spread: &Spread, endpoint: &Endpoint, locality: &Locality) -> u32 {
    let policy = &spread.policy;
    if !policy.distribute.is_empty() {
        return 0;
    }
    let own = &spread.place.locality;
    if policy.priority.is_empty() {
        return by_locality(own, locality, policy);
    }
    let first = by_labels(spread, endpoint, locality);
    // Regions' failover goes on within what labels leave equal.
    if policy.failover.is_empty() { first } else { first * 8 + by_locality(own, locality, policy) }
}

fn by_locality(own: &Locality, other: &Locality, policy: &LocalityPolicy) -> u32 {
    if own.region != other.region {
        let wish = policy.failover.iter().find(|(from, _)| *from == own.region);
        return if wish.is_some_and(|(_, to)| *to != other.region) { 4 } else { 3 };
    }
    match (own.zone == other.zone, own.subzone == other.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// One less for each label, from the first on, that is alike.
fn by_labels(spread: &Spread, endpoint: &Endpoint, locality: &Locality) -> u32 {
    let keys = &spread.policy.priority;
    let mut labels = Labels::new();
    if let Some(workload) = &endpoint.workload {
        labels.extend(workload.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
        place_labels(&mut labels, locality, &workload.node, &workload.network);
    }
    let alike = |key: &&Arc<str>| match key.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
        None => labels.get(&***key) == spread.place.labels.get(&***key),
    };
    let equal = keys.iter().take_while(alike).count();
    u32::try_from(keys.len().saturating_sub(equal)).unwrap_or(u32::MAX)
}

/// Gives localities their shares; those without one lose their endpoints.
fn distribute(groups: &mut Vec<LoadGroup>, spread: &Spread) {
    let own = &spread.place.locality;
    let Some((_, shares)) = spread.policy.distribute.iter().find(|(from, _)| own.is_in(from)) else { return };
    let weight = |g: &LoadGroup| g.endpoints.iter().map(|e| u64::from(e.weight)).sum::<u64>();
    let mut given: Vec<Option<u32>> = vec![None; groups.len()];
    for (pattern, share) in shares {
        let matching: Vec<usize> = (0..groups.len())
            .filter(|i| given.get(*i) == Some(&None) && groups.get(*i).is_some_and(|g| g.locality.is_in(pattern)))
            .collect();
        let total: u64 = matching.iter().filter_map(|i| groups.get(*i)).map(weight).sum();
        for index in matching {
            let (Some(group), Some(slot)) = (groups.get(index), given.get_mut(index)) else { continue };
            // Rounded up, so that nothing that has a share is left without.
            let part = (u64::from(*share) * weight(group)).checked_div(total).unwrap_or(0);
            let rest = (u64::from(*share) * weight(group)).checked_rem(total).unwrap_or(0);
            *slot = u32::try_from(part + u64::from(rest > 0)).ok();
        }
    }
    for (group, share) in groups.iter_mut().zip(given) {
        group.share = share;
    }
    groups.retain(|g| g.share.is_some_and(|s| s > 0));
}
