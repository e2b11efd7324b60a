//! The names that a peer asks for: a set that peers with the same interests share, and where this one differs from it.
//!
//! Invariant: a name is asked for if it is in the shared set and was not given up, or was added. What differs is small: past
//! [`FOLD`] names it becomes a shared set again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, Weak};

type Set = BTreeSet<Arc<str>>;

/// More differences than this are made one with the shared set.
const FOLD: usize = 32;

/// Sets of names that somebody asks for, each once.
#[derive(Debug, Default)]
pub struct NameSets {
    known: Mutex<HashMap<u64, Vec<Weak<Set>>>>,
}

impl NameSets {
    fn shared(&self, set: Set) -> Arc<Set> {
        let mut hasher = DefaultHasher::new();
        set.hash(&mut hasher);
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let alike = known.entry(hasher.finish()).or_default();
        alike.retain(|set| set.strong_count() > 0);
        if let Some(found) = alike.iter().filter_map(Weak::upgrade).find(|found| **found == set) {
            return found;
        }
        let new = Arc::new(set);
        alike.push(Arc::downgrade(&new));
        // Of sets that nobody has any more at most as many are kept as there are others.
        if known.len() > 64 && known.len().is_power_of_two() {
            known.retain(|_, alike| alike.iter().any(|set| set.strong_count() > 0));
        }
        new
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Names {
    shared: Arc<Set>,
    /// Not in the shared set.
    more: Set,
    /// In the shared set, and not asked for any more.
    less: Set,
}

impl Names {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.more.contains(name) || (self.shared.contains(name) && !self.less.contains(name))
    }

    pub(super) fn insert(&mut self, name: Arc<str>) {
        if !self.less.remove(&name) && !self.shared.contains(&name) {
            self.more.insert(name);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if !self.more.remove(name)
            && let Some(name) = self.shared.get(name)
        {
            self.less.insert(name.clone());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shared.len().saturating_add(self.more.len()).saturating_sub(self.less.len())
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.shared.iter().filter(|name| !self.less.contains(*name)).chain(&self.more)
    }

    /// To be called after each change: shares what has become much.
    pub(super) fn share(&mut self, sets: &NameSets) {
        if self.more.len().saturating_add(self.less.len()) > FOLD {
            let whole = self.iter().cloned().collect();
            *self = Self { shared: sets.shared(whole), more: Set::new(), less: Set::new() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Arc<str> {
        format!("name-{n}").into()
    }

    #[test]
    fn it_is_a_set_whatever_is_shared() {
        let sets = NameSets::default();
        let (mut names, mut plain) = (Names::default(), Set::new());
        for step in 0..2000_usize {
            let name = name(step * 7919 % 211);
            if step % 5 < 2 {
                names.remove(&name);
                plain.remove(&name);
            } else {
                names.insert(name.clone());
                plain.insert(name.clone());
            }
            names.share(&sets);
            assert!(names.more.len() + names.less.len() <= FOLD);
            assert_eq!((names.len(), names.contains(&name)), (plain.len(), plain.contains(&name)), "step {step}");
            assert_eq!(names.iter().cloned().collect::<Set>(), plain);
        }
        assert!(!names.shared.is_empty());
    }

    #[test]
    fn equal_interests_are_one_set_and_the_last_takes_it_along() {
        let sets = NameSets::default();
        let of = |count| {
            let mut names = Names::default();
            (0..count).for_each(|n| names.insert(name(n)));
            names.share(&sets);
            names
        };
        let (a, b, c) = (of(100), of(100), of(101));
        assert!(Arc::ptr_eq(&a.shared, &b.shared) && !Arc::ptr_eq(&a.shared, &c.shared));
        let left = Arc::downgrade(&a.shared);
        drop((a, b));
        assert!(left.upgrade().is_none());
        let few = of(FOLD);
        assert!(few.shared.is_empty(), "few are kept as they are");
    }
}
