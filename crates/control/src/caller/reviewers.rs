//! Who says whose a token of another cluster is: that cluster's API (spec §19.2), asked by the account that its Secret holds.
//!
//! Invariant: a cluster is asked only while a Secret names it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{KubeReviewer, TokenReviewer};

/// Who reviews the tokens of a cluster, by its name.
type ByCluster = BTreeMap<Arc<str>, Arc<dyn TokenReviewer>>;

/// Reviewers by the cluster; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Reviewers(Arc<RwLock<ByCluster>>);

impl Reviewers {
    /// The reviewer of a cluster; `None` where no Secret names it.
    pub(crate) fn of(&self, cluster: &str) -> Option<Arc<dyn TokenReviewer>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned()
    }

    pub(crate) fn learn(&self, cluster: &Arc<str>, client: kube::Client) {
        let reviewer = Arc::new(KubeReviewer::new(client));
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(cluster.clone(), reviewer);
    }

    pub(crate) fn forget(&self, cluster: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}
