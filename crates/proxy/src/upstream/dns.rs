//! Endpoints given by name: resolved in the background, kept while a refresh fails.
//!
//! Invariant: a request waits for a look-up only when there has never been a result.

use crate::local::Local;
use carrick_proxy_core::model::cluster::{Cluster, Discovery, DnsFamily};
use carrick_proxy_core::model::endpoint::{EndpointAddress, LocalityEndpoints, Priority};
use carrick_proxy_core::model::{Endpoint, EndpointSet};
use std::cell::{Cell, RefCell};
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
}

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
            Some((Arc::clone(set), at.elapsed() >= state.cluster.dns.refresh.max(Duration::from_secs(1))))
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

async fn refresh(state: &Rc<super::ClusterState>, names: &Arc<EndpointSet>) -> Arc<EndpointSet> {
    let set = Arc::new(resolve(&state.cluster, names).await);
    let mut last = state.dns.last.borrow_mut();
    let keep = set.endpoints.is_empty();
    match &mut *last {
        // A failed refresh changes nothing.
        Some((of, old, at)) if keep && Arc::ptr_eq(of, names) => {
            *at = Instant::now();
            Arc::clone(old)
        }
        slot => {
            *slot = Some((Arc::clone(names), Arc::clone(&set), Instant::now()));
            set
        }
    }
}

async fn resolve(cluster: &Cluster, names: &EndpointSet) -> EndpointSet {
    let mut set = EndpointSet { overprovisioning_factor: names.overprovisioning_factor, ..EndpointSet::default() };
    for endpoint in &names.endpoints {
        let addresses: Vec<SocketAddr> = match &endpoint.address {
            EndpointAddress::Socket(a) => vec![*a],
            EndpointAddress::Pipe(_) => Vec::new(),
            EndpointAddress::Dns { host, port } => {
                let lookup = tokio::net::lookup_host((host.to_string(), *port));
                match tokio::time::timeout(LOOKUP, lookup).await {
                    Ok(Ok(found)) => of_family(found.collect(), cluster.dns.family),
                    _ => Vec::new(),
                }
            }
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
