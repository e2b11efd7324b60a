//! Which EnvoyFilters are for which proxy (semantics §24.1). What they do is `carrick-envoy-filter`'s.
//!
//! Invariant: the order is that in which they are applied: priority, the root namespace first, the older first.

use std::sync::Arc;

use carrick_api::EnvoyFilter;
use carrick_base::Labels;

/// All of them, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvoyFilters {
    all: Vec<Arc<EnvoyFilter>>,
    root: Arc<str>,
}

impl EnvoyFilters {
    pub(crate) fn build(all: &[Arc<EnvoyFilter>], root: &Arc<str>) -> Self {
        let mut all = all.to_vec();
        all.sort_by(|a, b| {
            let key = |f: &EnvoyFilter| (f.spec.priority, f.metadata.namespace != **root);
            key(a).cmp(&key(b)).then_with(|| a.metadata.age_order().cmp(&b.metadata.age_order()))
        });
        Self { all, root: root.clone() }
    }

    /// Those of a workload: of the root namespace and of its own, where its labels are selected. `targetRefs` name gateways of the Gateway
    /// API by the label that those carry.
    pub fn of(&self, namespace: &str, labels: &Labels) -> Vec<Arc<EnvoyFilter>> {
        let here = |f: &EnvoyFilter| f.metadata.namespace == *self.root || f.metadata.namespace == namespace;
        let label = |key: &str, value: &str| labels.get(key).is_some_and(|have| *have == *value);
        let selected = |f: &EnvoyFilter| match &f.spec.workload_selector {
            Some(selector) => selector.labels.iter().all(|(k, v)| label(k, v)),
            None if !f.spec.target_refs.is_empty() => f
                .spec
                .target_refs
                .iter()
                .any(|t| t.kind == "Gateway" && label("gateway.networking.k8s.io/gateway-name", &t.name)),
            None => true,
        };
        self.all.iter().filter(|f| here(f) && selected(f)).cloned().collect()
    }
}
