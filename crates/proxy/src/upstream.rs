//! Towards endpoints: one worker's state of each cluster, and what new configuration means for it.
//!
//! Invariant: connections are shared only between requests that need the same address, transport and protocol; a
//! cluster that changed starts with new connections, and the old ones end with the requests on them.

pub mod choose;
pub mod cluster;
pub mod connect;
pub mod dns;
mod health;
pub mod pool;

pub use cluster::ClusterState;

use crate::local::Local;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::Name;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// The clusters that this worker has used.
#[derive(Default)]
pub struct Upstreams {
    clusters: RefCell<HashMap<Name, Rc<ClusterState>>>,
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        // Idle connections hold what they are counted in.
        self.clusters.get_mut().values().for_each(|state| state.retire());
    }
}

impl Upstreams {
    /// The state of a cluster; `None` if the configuration does not know it.
    pub(crate) fn get(&self, local: &Rc<Local>, config: &RuntimeConfig, name: &str) -> Option<Rc<ClusterState>> {
        if let Some(state) = self.clusters.borrow().get(name) {
            return Some(Rc::clone(state));
        }
        let cluster = config.clusters.get(name)?;
        let shared = local.shared.joints.get(cluster);
        let state = Rc::new(ClusterState::new(Arc::clone(cluster), local.stats.cluster(&cluster.stat_name), shared));
        self.clusters.borrow_mut().insert(Arc::clone(&cluster.name), Rc::clone(&state));
        if !cluster.health_checks.is_empty() && state.shared.claim_checks() {
            health::start(local, &state);
        }
        Some(state)
    }

    /// Lets go of clusters that are gone or other, and of connections to endpoints that are gone or other.
    pub(crate) fn swap(&self, old: &RuntimeConfig, new: &RuntimeConfig) {
        self.clusters.borrow_mut().retain(|name, state| {
            let same = new.clusters.get(name).is_some_and(|c| Arc::ptr_eq(c, &state.cluster));
            if !same {
                state.retire();
                return false;
            }
            let (before, after) = (old.endpoints.get(name), new.endpoints.get(name));
            if let Some(after) = after
                && !before.is_some_and(|b| Arc::ptr_eq(b, after))
            {
                state.keep_only(after);
            }
            true
        });
    }

    /// Ends connections that have been idle for too long.
    pub(crate) fn sweep(&self, local: &Local) {
        let now = local.millis(std::time::Instant::now());
        for state in self.clusters.borrow().values() {
            state.sweep();
            state.sweep_outliers(now, local.random());
        }
    }
}
