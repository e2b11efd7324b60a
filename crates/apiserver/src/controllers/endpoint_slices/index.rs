//! Services, pods and slices in memory, by namespace.
//!
//! Invariant: what a write of ours returned is never replaced by older news of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use carrick_api::{Pod, Service, from_value};
use serde_json::Value;
use tracing::warn;

use super::plan::{self, Step};
use crate::store::{name_of, namespace_of, resource_version_of};

/// Namespace and name of a service.
pub(super) type ServiceKey = (String, String);

/// Label that names the service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

#[derive(Default)]
pub(super) struct Index {
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    services: BTreeMap<String, Service>,
    pods: BTreeMap<String, Pod>,
    /// Our slices, by service and by name.
    slices: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Namespace {
    fn selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a str> {
        self.services.iter().filter(|(_, service)| plan::selects(service, pod)).map(|(name, _)| name.as_str())
    }
}

impl Index {
    fn at(&mut self, namespace: &str) -> &mut Namespace {
        self.namespaces.entry(namespace.to_owned()).or_default()
    }

    /// All services known, and those that only have slices left.
    pub(super) fn services(&self) -> BTreeSet<ServiceKey> {
        let all = self.namespaces.iter().flat_map(|(namespace, n)| {
            n.services.keys().chain(n.slices.keys()).map(|name| (namespace.clone(), name.clone()))
        });
        all.collect()
    }

    pub(super) fn clear_pods(&mut self) {
        self.namespaces.values_mut().for_each(|n| n.pods.clear());
    }

    pub(super) fn clear_slices(&mut self) {
        self.namespaces.values_mut().for_each(|n| n.slices.clear());
    }

    /// Forgets the services; returns those that there were.
    pub(super) fn clear_services(&mut self) -> BTreeSet<ServiceKey> {
        let known = self.services();
        self.namespaces.values_mut().for_each(|n| n.services.clear());
        known
    }

    pub(super) fn set_service(&mut self, object: &Value) -> ServiceKey {
        let key = (namespace_of(object).to_owned(), name_of(object).to_owned());
        match from_value::<Service>(object) {
            Ok(service) => _ = self.at(&key.0).services.insert(key.1.clone(), service),
            Err(error) => {
                // Slices of a service that cannot be read would be guesses.
                warn!(namespace = %key.0, service = %key.1, %error, "a service cannot be read");
                self.at(&key.0).services.remove(&key.1);
            }
        }
        key
    }

    pub(super) fn remove_service(&mut self, namespace: &str, name: &str) -> ServiceKey {
        self.at(namespace).services.remove(name);
        (namespace.to_owned(), name.to_owned())
    }

    /// Returns the services whose slices the change may touch.
    pub(super) fn set_pod(&mut self, object: &Value) -> BTreeSet<ServiceKey> {
        let (namespace, name) = (namespace_of(object).to_owned(), name_of(object).to_owned());
        let pod = match from_value::<Pod>(object) {
            Ok(pod) => pod,
            Err(error) => {
                warn!(%namespace, pod = %name, %error, "a pod cannot be read");
                return self.remove_pod(&namespace, &name);
            }
        };
        let at = self.at(&namespace);
        let mut touched: BTreeSet<String> = at.selecting(&pod).map(str::to_owned).collect();
        if let Some(old) = at.pods.insert(name, pod) {
            touched.extend(at.selecting(&old).map(str::to_owned));
        }
        touched.into_iter().map(|service| (namespace.clone(), service)).collect()
    }

    pub(super) fn remove_pod(&mut self, namespace: &str, name: &str) -> BTreeSet<ServiceKey> {
        let at = self.at(namespace);
        let Some(old) = at.pods.remove(name) else { return BTreeSet::new() };
        at.selecting(&old).map(|service| (namespace.to_owned(), service.to_owned())).collect()
    }

    /// Returns the service of the slice, if the slice is ours.
    pub(super) fn set_slice(&mut self, slice: Value) -> Option<ServiceKey> {
        if !plan::is_ours(&slice) {
            // A slice that was ours and was given to another manager: forget it.
            return self.remove_slice(namespace_of(&slice), name_of(&slice), u64::MAX);
        }
        let (namespace, name) = (namespace_of(&slice).to_owned(), name_of(&slice).to_owned());
        let service =
            slice.pointer("/metadata/labels").and_then(|l| l.get(SERVICE_LABEL)).and_then(Value::as_str)?.to_owned();
        let slices = self.at(&namespace).slices.entry(service.clone()).or_default();
        let newer = slices.get(&name).is_none_or(|known| resource_version_of(known) < resource_version_of(&slice));
        if newer {
            slices.insert(name, slice);
        }
        newer.then_some((namespace, service))
    }

    pub(super) fn remove_slice(&mut self, namespace: &str, name: &str, revision: u64) -> Option<ServiceKey> {
        let slices = &mut self.at(namespace).slices;
        let service = slices.iter().find(|(_, of)| of.contains_key(name)).map(|(service, _)| service.clone())?;
        let of = slices.get_mut(&service)?;
        let known = of.get(name).and_then(resource_version_of).unwrap_or(0);
        if known > revision {
            return None;
        }
        of.remove(name);
        if of.is_empty() {
            slices.remove(&service);
        }
        Some((namespace.to_owned(), service))
    }

    /// What has to be written for one service.
    pub(super) fn plan(&self, (namespace, name): &ServiceKey) -> Vec<Step> {
        let Some(at) = self.namespaces.get(namespace) else { return Vec::new() };
        let existing: Vec<&Value> = at.slices.get(name).into_iter().flat_map(BTreeMap::values).collect();
        match at.services.get(name) {
            Some(service) => plan::plan(service, at.pods.values(), &existing),
            None => existing.into_iter().cloned().map(Step::Delete).collect(),
        }
    }
}
