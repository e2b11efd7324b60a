//! Endpoints given by name: resolved in the background, kept while a refresh fails.
//!
//! Invariant: a request waits for a look-up only when there has never been a result.

use crate::local::Local;
use carrick_proxy_core::model::cluster::{Cluster, Discovery, DnsFamily};
use carrick_proxy_core::model::endpoint::{EndpointAddress, LocalityEndpoints, Priority};
use carrick_proxy_core::model::{Endpoint, EndpointSet};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The names, what they stood for, and when.
type Last = (Arc<EndpointSet>, Arc<EndpointSet>, Instant);

/// The last result of a cluster's names.
#[derive(Default)]
pub struct Resolved {
    last: RefCell<Option<Last>>,
    busy: Cell<bool>,
    /// Of clusters that go wherever is asked: by host.
    named: RefCell<HashMap<Arc<str>, Found>>,
}

/// Addresses, and when they were found.
type Found = (Vec<SocketAddr>, Instant);

/// Hosts remembered by a cluster that goes wherever is asked.
const MAX_NAMED: usize = 1024;

/// Longest wait for the system's resolver.
const LOOKUP: Duration = Duration::from_secs(5);

/// The endpoints of a DNS cluster with addresses. `names`: as configured.
pub(crate) async fn endpoints(
    local: &Rc<Local>,
    state: &Rc<super::ClusterState>,
    names: &Arc<EndpointSet>,
) -> Arc<EndpointSet> {
    let known = match &*state.dns.last.borrow() {
        Some((of, set, at)) if Arc::ptr_eq(of, names) => {
            Some((Arc::clone(set), at.elapsed() >= interval(&state.cluster, local.random())))
        }
        _ => None,
    };
    match known {
        Some((set, false)) => set,
        Some((set, true)) => {
            if !state.dns.busy.replace(true) {
                let (state, names) = (Rc::clone(state), Arc::clone(names));
                local.spawn(async move {
                    refresh(&state, &names).await;
                    state.dns.busy.set(false);
                });
            }
            set
        }
        None => refresh(state, names).await,
    }
}

/// Host and address for an authority (`host[:port]`), for clusters that go wherever is asked.
pub(crate) async fn named(
    local: &Local,
    state: &Rc<super::ClusterState>,
    authority: &str,
) -> Option<(Arc<str>, SocketAddr)> {
    let (host, port) = carrick_proxy_core::routing::split_port(authority);
    let default = if state.cluster.transport.default.tls().is_some() { 443 } else { 80 };
    let port: u16 = port.map_or(Some(default), |p| p.parse().ok())?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let host: Arc<str> = Arc::from(bare);
    if let Ok(ip) = bare.parse::<std::net::IpAddr>() {
        return Some((host, SocketAddr::new(ip, port)));
    }
    let fresh = state.cluster.dns.refresh.max(Duration::from_secs(1));
    let known = state.dns.named.borrow().get(&host).filter(|(_, at)| at.elapsed() < fresh).map(|(a, _)| a.clone());
    let addresses = match known {
        Some(addresses) => addresses,
        None => {
            let found = lookup(bare, port, state.cluster.dns.family).await;
            let mut all = state.dns.named.borrow_mut();
            if found.is_empty() {
                // A failed look-up changes nothing for a host that is known.
                all.get(&host).map(|(a, _)| a.clone()).unwrap_or_default()
            } else {
                if all.len() >= MAX_NAMED {
                    all.retain(|_, (_, at)| at.elapsed() < fresh);
                }
                if all.len() < MAX_NAMED {
                    all.insert(Arc::clone(&host), (found.clone(), Instant::now()));
                }
                found
            }
        }
    };
    let at = local.random().checked_rem(u64::try_from(addresses.len()).ok()?)?;
    let mut address = addresses.get(usize::try_from(at).ok()?).copied()?;
    address.set_port(port);
    Some((host, address))
}

async fn lookup(host: &str, port: u16, family: DnsFamily) -> Vec<SocketAddr> {
    let lookup = tokio::net::lookup_host((host, port));
    match tokio::time::timeout(LOOKUP, lookup).await {
        Ok(Ok(found)) => of_family(found.collect(), family),
        _ => Vec::new(),
    }
}

/// Records' lifetimes are not told by the system's resolver: where they count, names are looked up as often as short ones ask for.
const SHORT_LIFE: Duration = Duration::from_secs(5);

fn interval(cluster: &Cluster, random: u64) -> Duration {
    let dns = &cluster.dns;
    let base = if dns.respect_ttl { dns.refresh.min(SHORT_LIFE) } else { dns.refresh };
    let jitter = u64::try_from(dns.jitter.as_millis()).unwrap_or(0);
    let more = random.checked_rem(jitter.saturating_add(1)).unwrap_or(0);
    base.max(Duration::from_secs(1)).saturating_add(Duration::from_millis(more))
}

async fn refresh(state: &Rc<super::ClusterState>, names: &Arc<EndpointSet>) -> Arc<EndpointSet> {
    let set = Arc::new(resolve(&state.cluster, names).await);
    let mut last = state.dns.last.borrow_mut();
    let keep = set.endpoints.is_empty();
    match &mut *last {
        // A failed refresh changes nothing.
        Some((of, old, at)) if (keep || same(old, &set)) && Arc::ptr_eq(of, names) => {
            *at = Instant::now();
            Arc::clone(old)
        }
        slot => {
            *slot = Some((Arc::clone(names), Arc::clone(&set), Instant::now()));
            set
        }
    }
}

/// The same addresses in any order: resolvers turn them round.
fn same(old: &EndpointSet, new: &EndpointSet) -> bool {
    let addresses = |set: &EndpointSet| {
        let mut all: Vec<_> = (0..set.endpoints.len()).filter_map(|i| set.key(i)).collect();
        all.sort();
        all
    };
    addresses(old) == addresses(new)
}

async fn resolve(cluster: &Cluster, names: &EndpointSet) -> EndpointSet {
    let mut set = EndpointSet { overprovisioning_factor: names.overprovisioning_factor, ..EndpointSet::default() };
    for endpoint in &names.endpoints {
        let addresses: Vec<SocketAddr> = match &endpoint.address {
            EndpointAddress::Socket(a) => vec![*a],
            EndpointAddress::Pipe(_) => Vec::new(),
            EndpointAddress::Dns { host, port } => lookup(host, *port, cluster.dns.family).await,
        };
        let most = if cluster.discovery == Discovery::LogicalDns { 1 } else { usize::MAX };
        for address in addresses.into_iter().take(most) {
            set.endpoints.push(Endpoint { address: EndpointAddress::Socket(address), ..endpoint.clone() });
        }
    }
    for (index, endpoint) in set.endpoints.iter().enumerate() {
        let at = usize::try_from(endpoint.priority).unwrap_or(0);
        let from = names.priorities.get(at);
        while set.priorities.len() <= at.min(names.priorities.len()) {
            let of = names.priorities.get(set.priorities.len());
            let localities = of.map(|p| &p.localities).into_iter().flatten();
            set.priorities.push(Priority {
                localities: localities
                    .map(|l| LocalityEndpoints { locality: l.locality.clone(), weight: l.weight, hosts: Vec::new() })
                    .collect(),
                hosts: Vec::new(),
                uniform: from.is_none_or(|p| p.uniform),
            });
        }
        if let Some(priority) = set.priorities.get_mut(at) {
            priority.hosts.push(index);
            if let Some(l) = priority.localities.get_mut(endpoint.locality) {
                l.hosts.push(index);
            }
        }
    }
    set
}

fn of_family(all: Vec<SocketAddr>, family: DnsFamily) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(SocketAddr::is_ipv4);
    match family {
        DnsFamily::V4 => v4,
        DnsFamily::V6 => v6,
        DnsFamily::V4Preferred if v4.is_empty() => v6,
        DnsFamily::V4Preferred => v4,
        DnsFamily::Auto if v6.is_empty() => v4,
        DnsFamily::Auto => v6,
        DnsFamily::All => v4.into_iter().chain(v6).collect(),
    }
}
