//! What was patched before: resources are shared by many proxies and stay the same over many pushes.
//!
//! Invariant: an entry keeps what it was made from alive, so that an address is never taken for another's.

use std::{collections::HashMap, sync::Arc};

use carrick_api::EnvoyFilter;
use carrick_render::Resource;

use crate::{Finding, Patched, Target};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    resource: usize,
    filters: Vec<usize>,
    target: Target,
}

#[derive(Debug)]
struct Entry {
    _resource: Arc<Resource>,
    _filters: Vec<Arc<EnvoyFilter>>,
    patched: Option<Arc<Resource>>,
    findings: Vec<Finding>,
    used: bool,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Memo {
    known: HashMap<Key, Entry>,
}

impl Memo {
    pub(crate) fn get(
        &mut self,
        resource: &Arc<Resource>,
        filters: &[Arc<EnvoyFilter>],
        target: &Target,
        make: impl FnOnce() -> Patched,
    ) -> Patched {
        let key = Key {
            resource: Arc::as_ptr(resource).addr(),
            filters: filters.iter().map(|f| Arc::as_ptr(f).addr()).collect(),
            target: target.clone(),
        };
        let entry = self.known.entry(key).or_insert_with(|| {
            let made = make();
            Entry {
                _resource: resource.clone(),
                _filters: filters.to_vec(),
                patched: made.resource,
                findings: made.findings,
                used: true,
            }
        });
        entry.used = true;
        Patched { resource: entry.patched.clone(), findings: entry.findings.clone() }
    }

    /// Forgets what was not asked for since the last sweep.
    pub fn sweep(&mut self) {
        self.known.retain(|_, entry| std::mem::take(&mut entry.used));
    }
}
