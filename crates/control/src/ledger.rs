//! The objects that carry a status, with what a status is decided from.
//!
//! Invariant: an entry is there exactly while the object is; `revision` is that of the last change the mesh reads.

use crate::source::{Change, Kind, Name};
use carrick_base::Labels;
use carrick_mesh::gateway_api::GATEWAY_LABEL;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Whether objects of a kind carry a status that is written here.
pub(crate) fn carries(kind: Kind) -> bool {
    kind.info().group.ends_with(".istio.io") || is_gateway_api(kind)
}

/// Kinds whose status is more than conditions: those of the Gateway API.
pub(crate) fn is_gateway_api(kind: Kind) -> bool {
    kind.info().group == "gateway.networking.k8s.io" && kind != Kind::ReferenceGrant
}

/// Kind, namespace and name.
pub(crate) type Key = (Kind, Name);

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    /// `metadata.generation`.
    pub(crate) generation: i64,
    /// The number of changes up to the one that made it what it is.
    pub(crate) revision: u64,
    /// Why it cannot be read.
    pub(crate) broken: Option<String>,
    /// Labels a workload must carry; empty selects all.
    pub(crate) selector: Labels,
    /// Namespaces it is visible in: empty for all, `.` for its own. `None` where the kind knows no visibility.
    pub(crate) export_to: Option<Vec<String>>,
    /// The conditions it has, everybody's.
    pub(crate) conditions: Vec<Value>,
    /// The whole status, of kinds whose status is not conditions alone.
    pub(crate) status: Option<Value>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Ledger {
    objects: BTreeMap<Key, Object>,
    changed: watch::Sender<()>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), changed: watch::channel(()).0 }
    }
}

impl Ledger {
    /// Told whenever an object comes, goes or changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects.iter()
    }

    /// Takes a change over. `revision` counts it if `changed` says that the mesh reads something else now.
    pub(crate) fn take(&mut self, kind: Kind, change: &Change, revision: u64, broken: &[(Name, String)]) {
        match change {
            Change::Apply(value) => self.put(kind, value, revision, broken),
            Change::Delete(value) => {
                self.objects.remove(&(kind, crate::objects::identify(value).0));
            }
            Change::Replace(values) => {
                let there: std::collections::BTreeSet<Name> =
                    values.iter().map(|value| crate::objects::identify(value).0).collect();
                self.objects.retain(|(k, name), _| *k != kind || there.contains(name));
                values.iter().for_each(|value| self.put(kind, value, revision, broken));
            }
        }
        self.changed.send_replace(());
    }

    fn put(&mut self, kind: Kind, value: &Value, revision: u64, broken: &[(Name, String)]) {
        let name = crate::objects::identify(value).0;
        let mut object = read(kind, value, revision);
        object.broken = broken.iter().find(|(n, _)| *n == name).map(|(_, reason)| reason.clone());
        let key = (kind, name);
        // A new status alone does not make a new object.
        if let Some(known) = self.objects.get(&key)
            && known.generation == object.generation
            && known.selector == object.selector
            && known.broken == object.broken
        {
            object.revision = known.revision;
        }
        self.objects.insert(key, object);
    }
}

fn read(kind: Kind, value: &Value, revision: u64) -> Object {
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let selector = match kind.info().name {
        "Gateway" => "/spec/selector",
        "Sidecar" | "EnvoyFilter" => "/spec/workloadSelector/labels",
        "DestinationRule" | "ServiceEntry" => "/spec/none",
        _ => "/spec/selector/matchLabels",
    };
    let texts = |value: &Value| value.as_str().map(str::to_owned);
    let export_to = matches!(kind.info().name, "VirtualService" | "DestinationRule" | "ServiceEntry").then(|| {
        let listed = value.pointer("/spec/exportTo").and_then(Value::as_array);
        listed.map(|all| all.iter().filter_map(texts).collect()).unwrap_or_default()
    });
    let labels = value.pointer(selector).and_then(Value::as_object);
    // A policy with target references is for the first gateway's pods; nobody's where it is for a waypoint.
    let target = value.pointer("/spec/targetRefs/0").or_else(|| value.pointer("/spec/targetRef"));
    let target =
        target.map(|to| match (to.get("kind").and_then(Value::as_str), to.get("name").and_then(Value::as_str)) {
            (Some("Gateway"), Some(name)) => Labels::from([(GATEWAY_LABEL.into(), name.into())]),
            _ => Labels::from([(GATEWAY_LABEL.into(), "".into())]),
        });
    Object {
        generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        revision,
        broken: None,
        selector: target.unwrap_or_else(|| {
            let all = labels.into_iter().flatten();
            all.filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into()))).collect()
        }),
        export_to,
        conditions,
        status: is_gateway_api(kind).then(|| value.get("status").cloned().unwrap_or_default()),
    }
}
