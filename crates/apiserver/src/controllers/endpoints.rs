//! The old kind `Endpoints`, for those who still read it: written from the slices of each service with a selector.
//!
//! Invariant: what is written says what the slices say; `Endpoints` that somebody else wrote (of services without a selector) are left
//! alone. What it leaves to others: which pods stand behind a service (`endpoint_slices`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Intent, Store, WriteOptions, name_of, namespace_of};

const SLICES: &str = "endpointslices.discovery.k8s.io";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// Changes that come together are written together.
const PAUSE: Duration = Duration::from_millis(50);
/// Addresses of one object, at most.
const LARGEST: usize = 1000;

/// Namespace and name of a service.
type Key = (String, String);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    let mut loop_ = Mirror { store, services: BTreeMap::new(), slices: BTreeMap::new(), dirty: BTreeSet::new() };
    if let Err(error) = loop_.run().await {
        debug!(%error, "endpoints loop ended");
    }
}

struct Mirror {
    store: Store,
    /// Labels of the services that have a selector.
    services: BTreeMap<Key, Map<String, Value>>,
    slices: BTreeMap<Key, BTreeMap<String, Value>>,
    dirty: BTreeSet<Key>,
}

impl Mirror {
    async fn run(&mut self) -> ApiResult<()> {
        let mut services = Follower::new(&self.store, "services");
        let mut slices = Follower::new(&self.store, SLICES);
        self.service_news(services.next().await?);
        self.slice_news(slices.next().await?);
        loop {
            while let Some(news) = services.ready()? {
                self.service_news(news);
            }
            while let Some(news) = slices.ready()? {
                self.slice_news(news);
            }
            for key in std::mem::take(&mut self.dirty) {
                match self.write(&key).await {
                    Ok(()) | Err(ApiError::NotFound(_) | ApiError::Forbidden { .. }) => {}
                    Err(error @ ApiError::Unavailable(_)) => return Err(error),
                    Err(error) => warn!(namespace = %key.0, service = %key.1, %error, "endpoints could not be written"),
                }
            }
            tokio::select! {
                news = services.next() => self.service_news(news?),
                news = slices.next() => self.slice_news(news?),
            }
            self.store.clock().sleep(PAUSE).await;
        }
    }

    fn service_news(&mut self, news: News) {
        match news {
            News::All(list) => {
                let known = std::mem::take(&mut self.services);
                self.dirty.extend(known.into_keys());
                list.iter().for_each(|service| self.service(&service));
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                let key = (event.namespace().to_owned(), event.name().to_owned());
                self.services.remove(&key);
                self.dirty.insert(key);
            }
            News::Change(event) => self.service(&event.object),
        }
    }

    fn service(&mut self, service: &Value) {
        let key = (namespace_of(service).to_owned(), name_of(service).to_owned());
        let text = |field: &str| service.pointer(&format!("/spec/{field}")).and_then(Value::as_str).unwrap_or_default();
        let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
        let going = service.pointer("/metadata/deletionTimestamp").is_some();
        if selects && !going && text("type") != "ExternalName" {
            let mut labels =
                service.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
            labels.insert(MANAGED_BY.into(), json!(MANAGER));
            if text("clusterIP") == "None" {
                labels.insert("service.kubernetes.io/headless".into(), json!(""));
            }
            if self.services.insert(key.clone(), labels.clone()).as_ref() == Some(&labels) {
                return;
            }
        } else {
            self.services.remove(&key);
        }
        self.dirty.insert(key);
    }

    fn slice_news(&mut self, news: News) {
        match news {
            News::All(list) => {
                let known = std::mem::take(&mut self.slices);
                self.dirty.extend(known.into_keys());
                list.iter().for_each(|slice| self.slice(slice));
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                if let Some(key) = service_of(&event.object) {
                    self.slices.entry(key.clone()).or_default().remove(event.name());
                    self.dirty.insert(key);
                }
            }
            News::Change(event) => self.slice((*event.object).clone()),
        }
    }

    fn slice(&mut self, slice: Value) {
        if let Some(key) = service_of(&slice) {
            self.slices.entry(key.clone()).or_default().insert(name_of(&slice).to_owned(), slice);
            self.dirty.insert(key);
        }
    }

    async fn write(&self, key: &Key) -> ApiResult<()> {
        let (namespace, name) = (key.0.as_str(), key.1.as_str());
        let Some(labels) = self.services.get(key) else {
            let own =
                |e: &Value| e.pointer("/metadata/labels").and_then(|l| l.get(MANAGED_BY)?.as_str()) == Some(MANAGER);
            if self.store.get("endpoints", namespace, name).is_some_and(|e| own(&e)) {
                self.store.delete("endpoints", namespace, name, &DeleteOptions::default()).await?;
            }
            return Ok(());
        };
        let nothing = BTreeMap::new();
        let slices = self.slices.get(key).unwrap_or(&nothing);
        let Some(first) = slices.values().next().and_then(|s| s.get("addressType")).cloned() else { return Ok(()) };
        // One family: the service's first.
        let subsets = subsets(slices.values().filter(|s| s.get("addressType") == Some(&first)));
        let change = |old: Option<&Value>| {
            let mut new = old.cloned().unwrap_or_else(
                || json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}}),
            );
            if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.insert("labels".into(), Value::Object(labels.clone()));
            }
            if let Some(map) = new.as_object_mut() {
                match subsets.is_empty() {
                    true => drop(map.shift_remove("subsets")),
                    false => drop(map.insert("subsets".into(), json!(subsets))),
                }
            }
            if old == Some(&new) { Ok(Intent::Keep) } else { Ok(Intent::Put(new)) }
        };
        self.store.modify("endpoints", namespace, name, WriteOptions::default(), change).await.map(drop)
    }
}

fn service_of(slice: &Value) -> Option<Key> {
    let service = slice.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str)?;
    Some((namespace_of(slice).to_owned(), service.to_owned()))
}

/// The addresses of slices by their ports; those that are going are left out.
fn subsets<'a>(slices: impl Iterator<Item = &'a Value>) -> Vec<Value> {
    let mut by_ports: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut count = 0_usize;
    for slice in slices {
        let mut ports: Vec<Value> = slice.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            if port.get("name").and_then(Value::as_str) == Some("") {
                port.shift_remove("name");
            }
        }
        let ports = Value::Array(ports);
        let group = by_ports.entry(ports.to_string()).or_insert_with(|| (ports.clone(), Vec::new(), Vec::new()));
        for endpoint in slice.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
            let condition = |name: &str| endpoint.pointer(&format!("/conditions/{name}")).and_then(Value::as_bool);
            let ready = condition("ready") != Some(false);
            if (condition("terminating") == Some(true) && !ready) || count >= LARGEST {
                continue;
            }
            count = count.saturating_add(1);
            let mut address = Map::new();
            for (from, to) in [
                ("/addresses/0", "ip"),
                ("/hostname", "hostname"),
                ("/nodeName", "nodeName"),
                ("/targetRef", "targetRef"),
            ] {
                if let Some(value) = endpoint.pointer(from) {
                    address.insert(to.into(), value.clone());
                }
            }
            if ready { group.1.push(Value::Object(address)) } else { group.2.push(Value::Object(address)) }
        }
    }
    let filled = by_ports.into_values().filter(|(_, ready, not)| !ready.is_empty() || !not.is_empty());
    filled
        .map(|(ports, mut ready, mut not)| {
            let mut subset = Map::new();
            for (name, list) in [("addresses", &mut ready), ("notReadyAddresses", &mut not)] {
                list.sort_by_key(|a| a.get("ip").and_then(Value::as_str).unwrap_or_default().to_owned());
                if !list.is_empty() {
                    subset.insert(name.into(), json!(list));
                }
            }
            subset.insert("ports".into(), ports);
            Value::Object(subset)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_subsets_by_their_ports() {
        let slice = |port: u16, endpoints: Value| json!({"ports": [{"name": "", "port": port, "protocol": "TCP"}], "endpoints": endpoints});
        let slices = [
            slice(
                80,
                json!([
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "nodeName": "n"},
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                    {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "terminating": true}},
                ]),
            ),
            slice(81, json!([])),
        ];
        assert_eq!(
            subsets(slices.iter()),
            [json!({"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2", "nodeName": "n"}],
                "notReadyAddresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 80, "protocol": "TCP"}]})]
        );
    }
}
