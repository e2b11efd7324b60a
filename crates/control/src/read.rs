//! All objects of an API at one moment, as a snapshot: what `why` and other questions are asked of.
//!
//! Invariant: the same reading as the running control plane's; an object that cannot be read is left out alone, and told of.

use crate::objects::Known;
use crate::source::kube::list_kind;
use crate::source::{Change, KINDS, Kind};
use carrick_api::MeshConfig;
use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity};
use carrick_mesh::Snapshot;
use serde_json::Value;

/// Objects on their way to a snapshot.
#[derive(Debug, Default)]
pub struct Reading {
    known: Known,
    broken: Vec<Diagnostic>,
}

impl Reading {
    /// Lists everything an API has. Kinds that it does not have count as empty.
    ///
    /// # Errors
    /// When the API does not answer, or refuses.
    pub async fn of(client: &kube::Client) -> Result<Self, kube::Error> {
        let mut reading = Self::default();
        for info in &KINDS {
            if let Some(list) = list_kind(client, info).await? {
                let values = list.items.iter().filter_map(|o| serde_json::to_value(o).ok()).collect();
                reading.take(info.kind, Change::Replace(values));
            }
        }
        Ok(reading)
    }

    /// Adds an object, or puts it in the place of the one of its name. Gives whether it is of a kind that is read.
    pub fn add(&mut self, object: Value) -> bool {
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
        let group = text("apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
        let Some(kind) = KINDS.iter().find(|i| i.name == text("kind") && i.group == group).map(|i| i.kind) else {
            return false;
        };
        self.take(kind, Change::Apply(object));
        true
    }

    fn take(&mut self, kind: Kind, change: Change) {
        for ((namespace, name), reason) in self.known.take(kind, change).broken {
            self.broken.push(Diagnostic {
                code: "IST0106",
                severity: Severity::Error,
                object: ObjectRef::new(kind.info().name, &namespace, &name),
                field: FieldPath::default(),
                message: reason,
            });
        }
    }

    /// Joins everything, and tells what is wrong in it. `keys` are those that a control plane fetched: its page `/debug/keys`, or null.
    pub fn snapshot(self, mesh_config: &MeshConfig, keys: &Value) -> (Snapshot, Vec<Diagnostic>) {
        let keys = crate::debug::keys_page::read(keys);
        let (snapshot, mut found) = Snapshot::build(&self.known.input(mesh_config, keys));
        found.extend(self.broken);
        (snapshot, found)
    }
}
