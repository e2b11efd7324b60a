//! Which endpoint a request or connection goes to: the balancer fed with this worker's load, or the original destination.
//!
//! Invariant: the decision is `proxy-core`'s; here is only what it needs to know. An ORIGINAL_DST cluster has no host for
//! a connection that was not redirected.

use super::cluster::ClusterState;
use super::connect::{Source, Target};
use super::dns;
use crate::local::Local;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::balance::{Balancer, Choice};
use carrick_proxy_core::model::cluster::{Discovery, ProxyProtocol, SubsetChoice};
use carrick_proxy_core::model::endpoint::EndpointAddress;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::metadata::{Map, Value};
use carrick_proxy_core::model::route::SubsetLabels;
use carrick_proxy_core::model::{Cluster, EndpointSet};
use carrick_proxy_core::outlier::Outcome;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Endpoint sets (all, and subsets) that balancers are kept for.
const MAX_BALANCERS: usize = 64;

/// What the choice depends on besides the cluster.
pub struct Wish<'a> {
    /// Original destination of the downstream connection.
    pub restored: Option<SocketAddr>,
    /// From a header, where the cluster reads one.
    pub from_header: Option<SocketAddr>,
    /// Hosts tried before.
    pub tried: &'a [SocketAddr],
    /// How often to choose again on one of them.
    pub reselections: u32,
    /// For consistent hashing.
    pub hash: Option<u64>,
    /// From filter state.
    pub overrides: &'a Rc<UpstreamOverrides>,
    /// Host of the request.
    pub auto_sni: Option<Arc<str>>,
    /// Labels of the subset it is for.
    pub subset: &'a SubsetLabels,
    /// Priorities tried before.
    pub tried_priorities: &'a [usize],
    /// Host of the request, or SNI, with port if it was given, for clusters that go wherever is asked.
    pub authority: Option<&'a str>,
    /// The client and its destination.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// Tell them by the PROXY protocol.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The address that the endpoint is to see.
    pub source: Option<Source>,
}

/// An endpoint.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Where and how.
    pub target: Target,
    /// The endpoint set and index, for its metadata.
    pub endpoint: Option<(Arc<EndpointSet>, usize)>,
}

/// An endpoint for a request; `None` if none may take it.
pub(crate) async fn choose(
    local: &Rc<Local>,
    config: &RuntimeConfig,
    state: &Rc<ClusterState>,
    wish: Wish<'_>,
) -> Option<Chosen> {
    let cluster = &state.cluster;
    let target = |address, hostname, transport| Target {
        address,
        hostname,
        transport,
        overrides: Rc::clone(wish.overrides),
        auto_sni: wish.auto_sni.clone(),
        pipe: None,
        client: wish.client,
        proxy_protocol: wish.proxy_protocol,
        source: wish.source,
    };
    let set = match &cluster.discovery {
        Discovery::OriginalDst => {
            let mut address = wish.from_header.or(wish.restored)?;
            if let Some(port) = cluster.original_dst.port_override {
                address.set_port(port);
            }
            let transport = Arc::clone(&cluster.transport.default);
            return Some(Chosen { target: target(address, Arc::from(""), transport), endpoint: None });
        }
        Discovery::DynamicForward => {
            let (host, address) = dns::named(local, state, wish.authority?).await?;
            let transport = Arc::clone(&cluster.transport.default);
            return Some(Chosen { target: target(address, host, transport), endpoint: None });
        }
        Discovery::StrictDns | Discovery::LogicalDns => {
            let names = config.endpoints.get(&cluster.name)?;
            dns::endpoints(local, state, names).await
        }
        Discovery::Static | Discovery::Eds(_) => Arc::clone(config.endpoints.get(&cluster.name)?),
    };
    let set = match state.subset(&set, wish.subset)? {
        Some(part) => part,
        None => set,
    };
    let index = pick(local, state, &set, &wish)?;
    let endpoint = set.endpoints.get(index)?;
    let address = set.key(index)?;
    let transport = Arc::clone(cluster.transport.get(endpoint.transport));
    let mut target = target(address, Arc::clone(&endpoint.hostname), transport);
    if let EndpointAddress::Pipe(path) = &endpoint.address {
        target.pipe = Some(Arc::clone(path));
    }
    Some(Chosen { target, endpoint: Some((set, index)) })
}

/// An endpoint without a request: for health checks.
pub(super) fn plain_target(cluster: &Cluster, set: &EndpointSet, index: usize) -> Option<Target> {
    let endpoint = set.endpoints.get(index)?;
    Some(Target {
        address: set.key(index)?,
        hostname: Arc::clone(&endpoint.hostname),
        transport: Arc::clone(cluster.transport.get(endpoint.transport)),
        overrides: Rc::default(),
        auto_sni: None,
        pipe: match &endpoint.address {
            EndpointAddress::Pipe(path) => Some(Arc::clone(path)),
            _ => None,
        },
        client: None,
        proxy_protocol: None,
        source: None,
    })
}

fn pick(local: &Local, state: &ClusterState, set: &Arc<EndpointSet>, wish: &Wish<'_>) -> Option<usize> {
    let mut balancers = state.balancers.borrow_mut();
    let version = state.shared.version();
    if state.judged.replace(version) != version {
        for balancer in balancers.iter_mut() {
            let set = Arc::clone(balancer.endpoints());
            state.shared.with_out(|out| balancer.refresh(&|i| set.key(i).is_some_and(|a| out(&a))));
        }
    }
    let at = match balancers.iter().position(|b| Arc::ptr_eq(b.endpoints(), set)) {
        Some(at) => at,
        None => {
            let mut made = Balancer::new(Arc::clone(set), &state.cluster);
            state.shared.with_out(|out| made.refresh(&|i| set.key(i).is_some_and(|a| out(&a))));
            state.note_births(set);
            // Those of endpoints that are no more.
            if balancers.len() >= MAX_BALANCERS {
                balancers.clear();
            }
            balancers.push(made);
            balancers.len().saturating_sub(1)
        }
    };
    let balancer = balancers.get_mut(at)?;
    let now = state.cluster.slow_start.map(|slow| (slow, Instant::now()));
    let share = now.map(|(slow, now)| move |i: usize| set.key(i).map_or(1.0, |a| slow.share(state.age(&a, now))));
    balancer.choose(&mut Choice {
        random: &mut || local.random(),
        active: &|i| set.key(i).map_or(0, |a| state.load(a)),
        avoid: &|i| set.key(i).is_some_and(|a| wish.tried.contains(&a)),
        reselections: wish.reselections,
        hash: wish.hash,
        avoid_priority: &|p| wish.tried_priorities.contains(&p),
        share: share.as_ref().map(|s| s as &dyn Fn(usize) -> f64),
    })
}

impl ClusterState {
    /// The part of the endpoints that a request may go to; inner `None` = all; outer = nowhere.
    fn subset(&self, set: &Arc<EndpointSet>, labels: &SubsetLabels) -> Option<Option<Arc<EndpointSet>>> {
        if self.cluster.subsets.is_none() {
            return Some(None);
        }
        let part = |labels: &Map<Value>| {
            let mut parts = self.parts.borrow_mut();
            parts.retain(|(of, _, _)| Arc::ptr_eq(of, set));
            if let Some((_, _, part)) = parts.iter().find(|(_, l, _)| l == labels) {
                return Arc::clone(part);
            }
            let made = Arc::new(set.with_labels(labels));
            parts.push((Arc::clone(set), labels.clone(), Arc::clone(&made)));
            made
        };
        match self.cluster.subset(labels.as_ref(), &|labels| !part(labels).endpoints.is_empty()) {
            SubsetChoice::Any => Some(None),
            SubsetChoice::Labels(labels) => Some(Some(part(&labels))),
            SubsetChoice::None => None,
        }
    }

    /// Tells outlier detection what became of a request or connection.
    pub(crate) fn outcome(&self, local: &Local, address: SocketAddr, outcome: Outcome, now: Instant) {
        if let Some(settings) = &self.cluster.outlier {
            self.shared.outcome(settings, &address, outcome, local.millis(now), local.random());
        }
    }

    /// Lets ejected hosts back in whose time is over.
    pub(crate) fn sweep_outliers(&self, now: u64, random: u64) {
        if let Some(settings) = &self.cluster.outlier {
            self.shared.sweep(settings, now, random);
        }
    }
}
