//! Which endpoint a request or connection goes to: the balancer fed with this worker's load, or the original destination.
//!
//! Invariant: the decision is `proxy-core`'s; here is only what it needs to know. An ORIGINAL_DST cluster has no host for
//! a connection that was not redirected.

use super::cluster::ClusterState;
use super::connect::Target;
use super::dns;
use crate::local::Local;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::balance::{Balancer, Choice};
use carrick_proxy_core::model::EndpointSet;
use carrick_proxy_core::model::cluster::Discovery;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::outlier::Outcome;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

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
        Discovery::StrictDns | Discovery::LogicalDns => {
            let names = config.endpoints.get(&cluster.name)?;
            dns::endpoints(local, state, names).await
        }
        Discovery::Static | Discovery::Eds(_) => Arc::clone(config.endpoints.get(&cluster.name)?),
    };
    let index = pick(local, state, &set, &wish)?;
    let endpoint = set.endpoints.get(index)?;
    let address = set.socket(index)?;
    let transport = Arc::clone(cluster.transport.get(endpoint.transport));
    let target = target(address, Arc::clone(&endpoint.hostname), transport);
    Some(Chosen { target, endpoint: Some((set, index)) })
}

fn pick(local: &Local, state: &ClusterState, set: &Arc<EndpointSet>, wish: &Wish<'_>) -> Option<usize> {
    let mut balancer = state.balancer.borrow_mut();
    let current = balancer.as_ref().is_some_and(|b| Arc::ptr_eq(b.endpoints(), set));
    if !current {
        let mut made = Balancer::new(Arc::clone(set), &state.cluster);
        if state.outlier.borrow().ejected() > 0 {
            let outlier = state.outlier.borrow();
            made.refresh(&|i| set.socket(i).is_some_and(|a| outlier.is_ejected(&a)));
        }
        *balancer = Some(made);
    }
    let balancer = balancer.as_mut()?;
    balancer.choose(&mut Choice {
        random: &mut || local.random(),
        active: &|i| set.socket(i).map_or(0, |a| state.load(a)),
        avoid: &|i| set.socket(i).is_some_and(|a| wish.tried.contains(&a)),
        reselections: wish.reselections,
        hash: wish.hash,
    })
}

impl ClusterState {
    /// Tells outlier detection what became of a request or connection.
    pub(crate) fn outcome(&self, local: &Local, address: SocketAddr, outcome: Outcome, now: Instant) {
        let Some(settings) = &self.cluster.outlier else { return };
        let count = self.balancer.borrow().as_ref().map_or(0, |b| b.endpoints().endpoints.len());
        let millis = local.millis(now);
        let mut changed = self.outlier.borrow_mut().record(settings, &address, outcome, count, millis, local.random());
        let due = self.outlier.borrow().next_sweep(settings).is_none_or(|t| t <= millis);
        if due {
            changed |= self.outlier.borrow_mut().sweep(settings, count, millis, local.random());
        }
        if changed {
            self.refresh_ejections();
        }
    }

    /// Lets ejected hosts back in whose time is over.
    pub(crate) fn sweep_outliers(&self, now: u64, random: u64) {
        let Some(settings) = &self.cluster.outlier else { return };
        if self.outlier.borrow().ejected() == 0 {
            return;
        }
        let count = self.balancer.borrow().as_ref().map_or(0, |b| b.endpoints().endpoints.len());
        if self.outlier.borrow_mut().sweep(settings, count, now, random) {
            self.refresh_ejections();
        }
    }

    fn refresh_ejections(&self) {
        let outlier = self.outlier.borrow();
        if let Some(b) = self.balancer.borrow_mut().as_mut() {
            let set = Arc::clone(b.endpoints());
            b.refresh(&|i| set.socket(i).is_some_and(|a| outlier.is_ejected(&a)));
        }
    }
}
