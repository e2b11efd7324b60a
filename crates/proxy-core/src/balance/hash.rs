//! Consistent hashing: request hashes, the Ketama ring and the Maglev table.
//!
//! Invariant: the same hosts give the same table, whatever the order they were listed in does to their indices.

use crate::matching::{cookie, query_pairs};
use crate::model::cluster::LbPolicy;
use crate::model::endpoint::{EndpointAddress, EndpointSet};
use crate::model::route::{HashPolicy, HashSource};
use crate::request::RequestHead;
use crate::xxhash::xxh64;

/// The hash of a request under a route's policies, and the cookie to set on the response where one had to be made (name, value,
/// lifetime, path). `fresh` is a random number for such a cookie.
#[must_use]
pub fn hash_request(
    policies: &[HashPolicy],
    request: &RequestHead<'_>,
    source: Option<std::net::IpAddr>,
    fresh: u64,
) -> (Option<u64>, Option<String>) {
    let mut hash: Option<u64> = None;
    let mut set_cookie = None;
    for policy in policies {
        let new = match &policy.source {
            HashSource::Header { name, rewrite } => {
                crate::request::joined(request.headers, name, |value| match rewrite {
                    Some(rewrite) => xxh64(rewrite.apply(&String::from_utf8_lossy(value)).as_bytes(), 0),
                    None => xxh64(value, 0),
                })
            }
            HashSource::Cookie { name, ttl, path, attributes } => match (cookie(request, name), ttl) {
                (Some(value), _) => Some(xxh64(value.as_bytes(), 0)),
                (None, None) => None,
                (None, Some(ttl)) => {
                    let value = format!("{fresh:016x}");
                    let age = if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
                    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
                    set_cookie = Some(format!("{name}=\"{value}\"{age}{path}{attributes}; HttpOnly"));
                    Some(xxh64(value.as_bytes(), 0))
                }
            },
            HashSource::SourceIp => source.map(|ip| xxh64(ip.to_string().as_bytes(), 0)),
            HashSource::Query(name) => {
                let pairs = request.query().into_iter().flat_map(query_pairs);
                pairs.into_iter().find(|(key, _)| **key == **name).map(|(_, value)| xxh64(value.as_bytes(), 0))
            }
        };
        if let Some(new) = new {
            // Rotating makes the order of policies count.
            hash = Some(hash.map_or(new, |old| old.rotate_left(1) ^ new));
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    (hash, set_cookie)
}

/// A table from hash to host.
#[derive(Debug)]
pub(super) enum HashTable {
    Ring(Vec<(u64, usize)>),
    Maglev(Vec<u32>, Vec<usize>),
}

/// Most entries we build whatever the configuration says: tables are rebuilt on the worker.
const MAX_RING: u64 = 1 << 20;

impl HashTable {
    pub(super) fn build(policy: &LbPolicy, set: &EndpointSet, hosts: &[usize]) -> Option<Self> {
        match policy {
            LbPolicy::RingHash { min, max, by_hostname } => {
                Some(ring(set, hosts, *min, (*max).min(MAX_RING), *by_hostname))
            }
            LbPolicy::Maglev { table, by_hostname } => Some(maglev(set, hosts, (*table).min(MAX_RING), *by_hostname)),
            _ => None,
        }
    }

    pub(super) fn get(&self, hash: u64) -> Option<usize> {
        match self {
            Self::Ring(ring) => {
                let at = ring.partition_point(|(h, _)| *h < hash);
                ring.get(at).or_else(|| ring.first()).map(|(_, host)| *host)
            }
            Self::Maglev(table, hosts) => {
                let at = usize::try_from(hash.checked_rem(u64::try_from(table.len()).ok()?)?).ok()?;
                hosts.get(usize::try_from(*table.get(at)?).ok()?).copied()
            }
        }
    }
}

fn key(set: &EndpointSet, host: usize, by_hostname: bool) -> String {
    set.endpoints.get(host).map_or_else(String::new, |endpoint| match &endpoint.address {
        _ if by_hostname && !endpoint.hostname.is_empty() => endpoint.hostname.to_string(),
        EndpointAddress::Socket(address) => address.to_string(),
        EndpointAddress::Dns { host, port } => format!("{host}:{port}"),
        EndpointAddress::Pipe(path) => path.to_string(),
    })
}

fn weight(set: &EndpointSet, host: usize) -> u64 {
    set.endpoints.get(host).map_or(1, |e| u64::from(e.weight))
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn ring(set: &EndpointSet, hosts: &[usize], min: u64, max: u64, by_hostname: bool) -> HashTable {
    let total: u64 = hosts.iter().map(|h| weight(set, *h)).sum::<u64>().max(1);
    let least = hosts.iter().map(|h| weight(set, *h)).min().unwrap_or(1) as f64 / total as f64;
    // Enough entries that the lightest host has a whole number of them.
    let scale = ((least * min as f64).ceil() / least).min(max as f64);
    let mut entries = Vec::new();
    let (mut target, mut current) = (0.0_f64, 0.0_f64);
    for host in hosts {
        let name = key(set, *host, by_hostname);
        target += scale * weight(set, *host) as f64 / total as f64;
        let mut i = 0_u64;
        while current < target && entries.len() < MAX_RING as usize {
            entries.push((xxh64(format!("{name}_{i}").as_bytes(), 0), *host));
            i = i.saturating_add(1);
            current += 1.0;
        }
    }
    entries.sort_unstable();
    HashTable::Ring(entries)
}

#[allow(clippy::cast_precision_loss)]
fn maglev(set: &EndpointSet, hosts: &[usize], size: u64, by_hostname: bool) -> HashTable {
    struct Seat {
        offset: u64,
        skip: u64,
        next: u64,
        weight: f64,
        target: f64,
    }
    let size = size.max(2);
    let most = hosts.iter().map(|h| weight(set, *h)).max().unwrap_or(1).max(1) as f64;
    // Sorted by name so that the table does not depend on the order of endpoints.
    let mut named: Vec<(String, usize)> = hosts.iter().map(|h| (key(set, *h, by_hostname), *h)).collect();
    named.sort();
    let seat = |(name, host): &(String, usize)| Seat {
        offset: xxh64(name.as_bytes(), 0).checked_rem(size).unwrap_or(0),
        skip: xxh64(name.as_bytes(), 1).checked_rem(size.saturating_sub(1)).unwrap_or(0).saturating_add(1),
        next: 0,
        weight: weight(set, *host) as f64,
        target: 0.0,
    };
    let mut seats: Vec<Seat> = named.iter().map(seat).collect();
    let mut table = vec![u32::MAX; usize::try_from(size).unwrap_or(0)];
    let mut left = table.len();
    let mut iteration = 1.0_f64;
    while left > 0 && !seats.is_empty() {
        for (number, seat) in seats.iter_mut().enumerate() {
            // A host of lower weight sits out rounds in proportion.
            if iteration * seat.weight < seat.target {
                continue;
            }
            seat.target += most;
            while seat.next < size {
                let step = u128::from(seat.skip).saturating_mul(u128::from(seat.next));
                let at = u128::from(seat.offset).saturating_add(step).checked_rem(u128::from(size)).unwrap_or(0);
                seat.next = seat.next.saturating_add(1);
                let slot = usize::try_from(at).ok().and_then(|at| table.get_mut(at));
                if let Some(slot) = slot.filter(|s| **s == u32::MAX) {
                    *slot = u32::try_from(number).unwrap_or(0);
                    left = left.saturating_sub(1);
                    break;
                }
            }
            if left == 0 {
                break;
            }
        }
        iteration += 1.0;
        if seats.iter().all(|s| s.next >= size) {
            break;
        }
    }
    HashTable::Maglev(table, named.into_iter().map(|(_, host)| host).collect())
}
