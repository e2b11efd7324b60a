//! Consistent hashing: xxHash64, request hashes, the Ketama ring and the Maglev table.
//!
//! Invariant: the same hosts give the same table, whatever the order they were listed in does to their indices.

use crate::matching::{cookie, query_pairs};
use crate::model::cluster::LbPolicy;
use crate::model::endpoint::{EndpointAddress, EndpointSet};
use crate::model::route::{HashPolicy, HashSource};
use crate::request::RequestHead;

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

fn round(acc: u64, lane: u64) -> u64 {
    acc.wrapping_add(lane.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |acc, b| (acc << 8) | u64::from(*b))
}

/// xxHash64, the hash Envoy uses for requests and rings.
#[must_use]
pub fn xxh64(input: &[u8], seed: u64) -> u64 {
    let length = u64::try_from(input.len()).unwrap_or(u64::MAX);
    let mut stripes = input.chunks_exact(32);
    let mut hash = if input.len() >= 32 {
        let mut lanes = [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        for stripe in stripes.by_ref() {
            for (lane, bytes) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, word(bytes));
            }
        }
        let [a, b, c, d] = lanes;
        let mut hash = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        }
        hash
    } else {
        seed.wrapping_add(P5)
    };
    hash = hash.wrapping_add(length);
    let mut words = stripes.remainder().chunks_exact(8);
    for bytes in words.by_ref() {
        hash = (hash ^ round(0, word(bytes))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let mut tail = words.remainder();
    if let Some((four, rest)) = tail.split_at_checked(4) {
        hash = (hash ^ word(four).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        tail = rest;
    }
    for byte in tail {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(P2);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(P3);
    hash ^ (hash >> 32)
}

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
