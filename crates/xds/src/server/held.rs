//! What a peer holds of one type: a set of resources that many peers share, and where this one differs from it.
//!
//! Invariant: a name is held as the differences say, else as the shared set says. The shared set counts for names that are asked for only:
//! whoever begins to ask for more has to say first what of it is held ([`Held::narrow`]).

use super::names::Names;
use crate::{Resource, TypeMap};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is held under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holding {
    /// A version.
    Version(Arc<str>),
    /// The knowledge that there is no such resource.
    Absence,
    /// Nothing, whatever the shared set says.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    shared: Option<Arc<TypeMap>>,
    own: BTreeMap<Arc<str>, Holding>,
}

impl Held {
    /// The version held, or the knowledge that there is none; `None` where nothing is held.
    pub(super) fn get(&self, name: &str) -> Option<Option<&Arc<str>>> {
        match self.own.get(name) {
            Some(Holding::Version(version)) => Some(Some(version)),
            Some(Holding::Absence) => Some(None),
            Some(Holding::Nothing) => None,
            None => Some(Some(&self.shared.as_ref()?.get(name)?.version)),
        }
    }

    /// The shared set.
    pub(super) fn shared(&self) -> Option<&Arc<TypeMap>> {
        self.shared.as_ref()
    }

    pub(super) fn set(&mut self, name: Arc<str>, holding: Holding) {
        self.own.insert(name, holding);
    }

    /// A resource was sent.
    pub(super) fn sent(&mut self, resource: &Resource) {
        self.own.insert(resource.name.clone(), Holding::Version(resource.version.clone()));
    }

    /// Nothing is held under this name any more. Whether something was.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let was = self.get(name).is_some();
        match self.shared.as_ref().and_then(|shared| shared.get_key_value(name)) {
            Some((name, _)) => {
                self.own.insert(name.clone(), Holding::Nothing);
            }
            None => {
                self.own.remove(name);
            }
        }
        was
    }

    /// Every name that something may be held under.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.shared.iter().flat_map(|shared| shared.keys()).chain(self.own.keys())
    }

    /// How many names are known not to be there.
    pub(super) fn absences(&self) -> usize {
        self.own.values().filter(|holding| **holding == Holding::Absence).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names().all(|name| self.get(name).is_none())
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Only these names are asked for now: the rest is not held, and nothing is shared.
    pub(super) fn narrow(&mut self, asked_for: &Names) {
        let Some(shared) = self.shared.take() else {
            self.own.retain(|name, _| asked_for.contains(name));
            return;
        };
        let own = std::mem::take(&mut self.own);
        let one = |name: &Arc<str>| {
            let of_shared = || Some(Holding::Version(shared.get(name)?.version.clone()));
            let holding = own.get(name).cloned().or_else(of_shared)?;
            (holding != Holding::Nothing).then(|| (name.clone(), holding))
        };
        self.own = asked_for.iter().filter_map(one).collect();
    }

    /// Everything that is asked for is held as it is in `target`, or known not to be there.
    pub(super) fn settle(&mut self, target: &Arc<TypeMap>) {
        self.own.retain(|name, holding| *holding == Holding::Absence && !target.contains_key(name));
        self.shared = Some(target.clone());
    }
}
