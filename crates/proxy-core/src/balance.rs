//! Choosing an endpoint: priorities, panic, and the policies.
//!
//! Invariant: a [`Balancer`] belongs to one [`EndpointSet`] value; it owns only its turn counter and what it derived from health.
//! Active counts, ejections and randomness are arguments. A host that is not eligible is never chosen, except in panic.

mod hash;
mod priority;

use std::sync::Arc;

pub use hash::hash_request;
pub use priority::Share;

use crate::model::cluster::{Cluster, LbPolicy};
use crate::model::endpoint::{EndpointSet, Health};
use hash::HashTable;

/// Chooses endpoints of one cluster.
#[derive(Debug)]
pub struct Balancer {
    set: Arc<EndpointSet>,
    policy: LbPolicy,
    panic_threshold: f64,
    locality_weighted: bool,
    pools: Vec<Pool>,
    turn: u64,
}

/// What one choice depends on.
pub struct Choice<'a> {
    /// Random numbers.
    pub random: &'a mut dyn FnMut() -> u64,
    /// Requests (or connections) in flight per endpoint index.
    pub active: &'a dyn Fn(usize) -> u32,
    /// Hosts to avoid if others are there (previous hosts of a retry).
    pub avoid: &'a dyn Fn(usize) -> bool,
    /// How often to choose again on a host to avoid; 0 = take the first.
    pub reselections: u32,
    /// Hash of the request for consistent hashing.
    pub hash: Option<u64>,
    /// Priorities to avoid if others are there (previous priorities of a retry).
    pub avoid_priority: &'a dyn Fn(usize) -> bool,
    /// The share of its weight that a host takes now, 0–1, while it starts slowly.
    pub share: Option<&'a dyn Fn(usize) -> f64>,
}

impl<'a> Choice<'a> {
    /// A choice that depends on nothing but randomness.
    pub fn at_random(random: &'a mut dyn FnMut() -> u64) -> Self {
        Self {
            random,
            active: &|_| 0,
            avoid: &|_| false,
            reselections: 0,
            hash: None,
            avoid_priority: &|_| false,
            share: None,
        }
    }
}

/// Draws until a host that starts slowly is taken although its share is small.
const SLOW_START_DRAWS: u32 = 16;

/// Hosts that one draw chooses among: of a priority, healthy or degraded or all, of a locality or all.
#[derive(Debug)]
struct Pool {
    priority: usize,
    share: u32,
    hosts: Vec<usize>,
    weights: Option<Vec<u64>>,
    table: Option<HashTable>,
}

impl Balancer {
    /// A balancer for the endpoints of a cluster, all hosts as healthy as EDS says.
    #[must_use]
    pub fn new(set: Arc<EndpointSet>, cluster: &Cluster) -> Self {
        let mut balancer = Self {
            set,
            policy: cluster.lb.clone(),
            panic_threshold: cluster.panic_threshold,
            locality_weighted: cluster.locality_weighted,
            pools: Vec::new(),
            turn: 0,
        };
        balancer.refresh(&|_| false);
        balancer
    }

    /// The endpoints it chooses among.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<EndpointSet> {
        &self.set
    }

    /// Recomputes who is eligible. Call it when ejections (outlier detection) change.
    pub fn refresh(&mut self, ejected: &dyn Fn(usize) -> bool) {
        let health = |index: usize| match self.set.endpoints.get(index) {
            Some(_) if ejected(index) => Health::Unhealthy,
            Some(endpoint) => endpoint.health,
            None => Health::Unhealthy,
        };
        let shares = priority::shares(&self.set, self.panic_threshold, &health);
        self.pools = shares.into_iter().flat_map(|share| self.pools_of(&share, &health)).collect();
    }

    fn pools_of(&self, share: &Share, health: &dyn Fn(usize) -> Health) -> Vec<Pool> {
        let Some(priority) = self.set.priorities.get(share.priority) else { return Vec::new() };
        let eligible = |hosts: &[usize]| -> Vec<usize> {
            hosts.iter().copied().filter(|i| share.accept.is_none_or(|wanted| health(*i) == wanted)).collect()
        };
        if !self.locality_weighted || share.accept.is_none() {
            return Vec::from_iter(self.pool(share.priority, share.load, eligible(&priority.hosts)));
        }
        // A locality's effective weight falls with its availability, as priorities' loads do.
        let localities = priority.localities.iter().filter_map(|locality| {
            let hosts = eligible(&locality.hosts);
            let available = priority::availability(hosts.len(), locality.hosts.len(), self.set.overprovisioning_factor);
            let weight = u64::from(locality.weight.unwrap_or(0)).saturating_mul(u64::from(available));
            (weight > 0 && !hosts.is_empty()).then_some((weight, hosts))
        });
        let localities: Vec<_> = localities.collect();
        let total: u64 = localities.iter().map(|(weight, _)| *weight).sum();
        let scale = u64::from(share.load).saturating_mul(10_000);
        let load = |weight: u64| {
            let part = u128::from(weight).saturating_mul(u128::from(scale)).checked_div(u128::from(total)).unwrap_or(0);
            u32::try_from(part).unwrap_or(u32::MAX).max(1)
        };
        localities.into_iter().filter_map(|(weight, hosts)| self.pool(share.priority, load(weight), hosts)).collect()
    }

    fn pool(&self, priority: usize, share: u32, hosts: Vec<usize>) -> Option<Pool> {
        if hosts.is_empty() || share == 0 {
            return None;
        }
        // Loads of whole priorities are brought to the scale of localities' shares.
        let share = if self.locality_weighted { share } else { share.saturating_mul(10_000) };
        let weight = |i: &usize| self.set.endpoints.get(*i).map_or(1, |e| u64::from(e.weight));
        let first = hosts.first().map(weight);
        let uniform = hosts.iter().all(|i| Some(weight(i)) == first);
        let table = HashTable::build(&self.policy, &self.set, &hosts);
        let weights = (!uniform).then(|| hosts.iter().map(weight).collect());
        Some(Pool { priority, share, hosts, weights, table })
    }

    /// An endpoint index, or `None` if no host may take traffic (503, flag UH).
    pub fn choose(&mut self, choice: &mut Choice<'_>) -> Option<usize> {
        let mut chosen = self.draw(choice)?;
        if let Some(share) = choice.share {
            for _ in 0..SLOW_START_DRAWS {
                #[allow(clippy::cast_precision_loss)]
                let drawn = ((choice.random)() >> 11) as f64 / (1_u64 << 53) as f64;
                if drawn < share(chosen) {
                    break;
                }
                chosen = self.draw(choice)?;
            }
        }
        for _ in 0..choice.reselections {
            if !(choice.avoid)(chosen) {
                break;
            }
            // A consistent hash would give the same host again.
            choice.hash = choice.hash.map(|_| (choice.random)());
            chosen = self.draw(choice)?;
        }
        Some(chosen)
    }

    fn draw(&mut self, choice: &mut Choice<'_>) -> Option<usize> {
        let pool = self.pool_for(choice)?;
        let pool = self.pools.get(pool)?;
        let count = u64::try_from(pool.hosts.len()).ok()?;
        let pick = |at: u64| pool.hosts.get(usize::try_from(at.checked_rem(count)?).ok()?).copied();
        match &self.policy {
            LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
                let turn = self.turn;
                self.turn = self.turn.wrapping_add(1);
                match &pool.weights {
                    None => pick(turn),
                    Some(weights) => pool.hosts.get(spread(weights, turn)?).copied(),
                }
            }
            LbPolicy::Random => match &pool.weights {
                None => pick((choice.random)()),
                Some(weights) => pool.hosts.get(weighted(weights, (choice.random)())?).copied(),
            },
            LbPolicy::LeastRequest { choices, bias } => least_request(pool, *choices, *bias, choice),
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => {
                let hash = choice.hash.unwrap_or_else(|| (choice.random)());
                pool.table.as_ref().and_then(|table| table.get(hash)).or_else(|| pick(hash))
            }
        }
    }

    fn pool_for(&self, choice: &mut Choice<'_>) -> Option<usize> {
        match self.pools.len() {
            0 => None,
            1 => Some(0),
            _ => {
                let random = choice.hash.unwrap_or_else(|| (choice.random)());
                let share = |p: &Pool| if (choice.avoid_priority)(p.priority) { 0 } else { u64::from(p.share) };
                let untried: Vec<u64> = self.pools.iter().map(share).collect();
                weighted(&untried, random).or_else(|| {
                    let all: Vec<u64> = self.pools.iter().map(|p| u64::from(p.share)).collect();
                    weighted(&all, random)
                })
            }
        }
    }
}

/// Index by weight for a random number.
fn weighted(weights: &[u64], random: u64) -> Option<usize> {
    let mut at = random.checked_rem(weights.iter().sum())?;
    weights.iter().position(|weight| {
        let taken = at < *weight;
        at = at.saturating_sub(*weight);
        taken
    })
}

/// Index by weight for a turn, evenly spread: the turn's position in the cycle is mixed by a stride coprime to the cycle's length,
/// near its golden section, so that a heavy host's turns do not come in a row.
fn spread(weights: &[u64], turn: u64) -> Option<usize> {
    let cycle: u64 = weights.iter().sum();
    let mut stride = cycle.saturating_mul(618).checked_div(1000)?.max(1);
    while gcd(stride, cycle) != 1 {
        stride = stride.saturating_add(1);
    }
    let step = u128::from(turn).checked_rem(u128::from(cycle))?;
    let at = step.saturating_mul(u128::from(stride)).checked_rem(u128::from(cycle))?;
    weighted(weights, u64::try_from(at).ok()?)
}

fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a.checked_rem(b).unwrap_or(0));
    }
    a
}

/// The least loaded of a few. With equal weights by active requests; else drawn by weight and compared by `(active + 1)^bias / weight`.
fn least_request(pool: &Pool, choices: u32, bias: f64, choice: &mut Choice<'_>) -> Option<usize> {
    let count = u64::try_from(pool.hosts.len()).ok()?;
    if count == 1 {
        return pool.hosts.first().copied();
    }
    let mut best: Option<(f64, usize)> = None;
    for _ in 0..choices.max(2) {
        let random = (choice.random)();
        let (position, weight) = match &pool.weights {
            None => (usize::try_from(random.checked_rem(count)?).ok()?, 1.0),
            Some(weights) => {
                let position = weighted(weights, random)?;
                // Hosts are drawn by weight already; load per unit of weight decides.
                #[allow(clippy::cast_precision_loss)]
                (position, weights.get(position).copied().unwrap_or(1) as f64)
            }
        };
        let host = pool.hosts.get(position).copied()?;
        let active = f64::from((choice.active)(host));
        let load = if pool.weights.is_some() { (active + 1.0).powf(bias) / weight } else { active };
        if best.is_none_or(|(least, _)| load < least) {
            best = Some((load, host));
        }
    }
    best.map(|(_, host)| host)
}
