//! What was taken over and what was refused, with version and time: the source of `/config_dump`.
//!
//! Invariant: an entry is here exactly while its resource is in the store; a failure stands until its resource is
//! accepted or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use carrick_proxy_core::ConfigStore;
use carrick_xds::client::Update;
use carrick_xds::{Any, TypeUrl};

/// A resource in force.
#[derive(Debug, Clone)]
pub struct Entry {
    pub version: Arc<str>,
    pub at: SystemTime,
}

/// A resource that was refused.
#[derive(Debug, Clone)]
pub struct Failure {
    pub version: Arc<str>,
    pub at: SystemTime,
    pub details: String,
    pub body: Any,
}

/// The store and its history.
#[derive(Debug, Default)]
pub struct Book {
    pub config: ConfigStore,
    entries: BTreeMap<TypeUrl, BTreeMap<Arc<str>, Entry>>,
    failures: BTreeMap<TypeUrl, BTreeMap<Arc<str>, Failure>>,
}

impl Book {
    /// Takes an update over; gives one text per refusal.
    pub(super) fn take(&mut self, update: Update, now: SystemTime) -> Vec<String> {
        let Update { type_url, upserts, removed } = update;
        let resources = upserts.iter().map(|r| (Arc::clone(&r.name), r.body.clone())).collect();
        let rejections = self.config.apply(type_url.as_str(), resources, &removed).err().unwrap_or_default();
        let mut details: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for rejection in &rejections {
            details.entry(Arc::clone(&rejection.resource)).or_default().push(rejection.to_string());
        }
        let entries = self.entries.entry(type_url.clone()).or_default();
        let failures = self.failures.entry(type_url).or_default();
        for name in &removed {
            entries.remove(name);
            failures.remove(name);
        }
        for resource in upserts {
            match details.get(&resource.name) {
                Some(texts) => {
                    let failure =
                        Failure { version: resource.version, at: now, details: texts.join("; "), body: resource.body };
                    failures.insert(resource.name, failure);
                }
                None => {
                    failures.remove(&resource.name);
                    entries.insert(resource.name, Entry { version: resource.version, at: now });
                }
            }
        }
        rejections.iter().map(ToString::to_string).collect()
    }

    /// Resources of a type in force, by name.
    pub fn resources(&self, type_url: &TypeUrl) -> Vec<(Arc<str>, Any, Entry)> {
        let dump = self.config.dump();
        let all = dump.get(type_url.as_str()).map(Vec::as_slice).unwrap_or_default();
        let unknown = || Entry { version: Arc::from(""), at: SystemTime::UNIX_EPOCH };
        all.iter()
            .map(|(name, body)| {
                let entry = self.entries.get(type_url).and_then(|e| e.get(name)).cloned().unwrap_or_else(unknown);
                (Arc::clone(name), body.clone(), entry)
            })
            .collect()
    }

    /// Refused resources of a type.
    pub fn failures(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&Arc<str>, &Failure)> {
        self.failures.get(type_url).into_iter().flatten()
    }

    /// Names with an entry or a failure.
    pub fn names(&self, type_url: &TypeUrl) -> BTreeSet<Arc<str>> {
        let entries = self.entries.get(type_url).into_iter().flat_map(BTreeMap::keys);
        let failures = self.failures.get(type_url).into_iter().flat_map(BTreeMap::keys);
        entries.chain(failures).cloned().collect()
    }
}
