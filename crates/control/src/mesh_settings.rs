//! The mesh's configuration as it is now: a file's, and over it what the ConfigMap (`istio`) of the root namespace has under `mesh`.
//!
//! Invariant: what is in force was valid as a whole; what is not leaves the last good one in force, and is told. Trust domain, root
//! namespace and domain suffix are those of the start: identities and names that others hold depend on them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use carrick_api::{MeshConfig, parse, validate};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::objects::identify;
use crate::source::Change;

/// The ConfigMap's usual name; a revision's has that of the revision behind it.
pub(crate) const CONFIG_MAP: &str = "istio";
/// The key in it.
const KEY: &str = "mesh";

/// A file's content, as it is and as it becomes.
pub type MeshFile = watch::Receiver<Arc<Value>>;

pub(crate) struct MeshSettings {
    file: Option<MeshFile>,
    /// The ConfigMap's name.
    name: String,
    written: Value,
    /// What the ConfigMap says; null where there is none.
    map: Value,
    current: Arc<ArcSwap<MeshConfig>>,
}

impl MeshSettings {
    /// Starts with `initial`, which follows from the file's present content.
    pub fn new(initial: MeshConfig, file: Option<MeshFile>, name: String) -> Self {
        let written = match &file {
            Some(file) => Value::clone(&file.borrow()),
            None => serde_json::to_value(&initial).unwrap_or_default(),
        };
        Self { file, name, written, map: Value::Null, current: Arc::new(ArcSwap::from_pointee(initial)) }
    }

    /// What is in force.
    pub fn current(&self) -> Arc<MeshConfig> {
        self.current.load_full()
    }

    /// The same, for those that look again and again.
    pub fn shared(&self) -> Arc<ArcSwap<MeshConfig>> {
        Arc::clone(&self.current)
    }

    /// Waits until the file says something else; for ever where there is none. Cancel safe.
    pub async fn file_changed(&mut self) {
        let changed = match &mut self.file {
            Some(file) => file.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            self.file = None;
            std::future::pending::<()>().await;
        }
    }

    /// Takes the file's content over. Gives whether anything is different now.
    pub fn take_file(&mut self) -> bool {
        let Some(file) = &mut self.file else { return false };
        let written = Value::clone(&file.borrow_and_update());
        let map = self.map.clone();
        self.put(written, map, "the file")
    }

    /// Takes a change of config maps over. Gives whether anything is different now.
    pub fn take_maps(&mut self, change: &Change) -> bool {
        let ours = |value: &&Value| {
            let ((namespace, name), _) = identify(value);
            namespace == self.current.load().root_namespace && name == self.name
        };
        let text = |value: &Value| value.pointer("/data/mesh").and_then(Value::as_str).map(str::to_owned);
        let said = match change {
            Change::Apply(value) if ours(&value) => text(value),
            Change::Delete(value) if ours(&value) => None,
            Change::Replace(all) => all.iter().find(ours).and_then(text),
            Change::Apply(_) | Change::Delete(_) => return false,
        };
        let map = match said.as_deref().map(|text| parse::documents(text.as_bytes())) {
            None => Value::Null,
            Some(Ok(documents)) => documents.into_iter().next().unwrap_or_default(),
            Some(Err(error)) => {
                warn!(key = KEY, map = self.name, %error, "the ConfigMap cannot be read; the last good mesh configuration stays");
                return false;
            }
        };
        if map == self.map {
            return false;
        }
        let written = self.written.clone();
        self.put(written, map, "the ConfigMap")
    }

    fn put(&mut self, written: Value, map: Value, whose: &str) -> bool {
        match join(&written, &map, &self.current.load()) {
            Ok(config) => {
                let changed = **self.current.load() != config;
                (self.written, self.map) = (written, map);
                if changed {
                    info!("the mesh configuration follows {whose}");
                    self.current.store(Arc::new(config));
                }
                changed
            }
            Err(reason) => {
                warn!(reason, "{whose} has no valid mesh configuration; the last good one stays");
                false
            }
        }
    }
}

/// Both together, with what cannot change.
fn join(written: &Value, map: &Value, before: &MeshConfig) -> Result<MeshConfig, String> {
    let mut all = written.as_object().cloned().unwrap_or_default();
    match map {
        Value::Null => {}
        Value::Object(fields) => all.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone()))),
        _ => return Err("it is no object".to_owned()),
    }
    let all = Value::Object(all);
    let findings = validate::mesh_config(&all);
    if let Some(error) = findings.iter().find(|d| validate::has_errors(std::slice::from_ref(d))) {
        return Err(format!("{}: {}", error.field.as_str(), error.message));
    }
    let mut config = MeshConfig::read(&all).map_err(|error| error.to_string())?;
    for (field, now, was) in [
        ("trustDomain", &mut config.trust_domain, &before.trust_domain),
        ("rootNamespace", &mut config.root_namespace, &before.root_namespace),
        ("domainSuffix", &mut config.domain_suffix, &before.domain_suffix),
    ] {
        if all.get(field).is_some() && now != was {
            warn!(field, stays = was, "takes effect only when the control plane starts");
        }
        now.clone_from(was);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(namespace: &str, text: &str) -> Value {
        json!({"metadata": {"name": "istio", "namespace": namespace}, "data": {"mesh": text}})
    }

    #[test]
    fn the_config_map_stands_over_the_file_and_a_broken_one_changes_nothing() {
        let (sender, file) = watch::channel(Arc::new(json!({"accessLogFile": "/file", "connectTimeout": "3s"})));
        let initial = MeshConfig::read(&file.borrow()).expect("readable");
        let mut settings = MeshSettings::new(initial, Some(file), CONFIG_MAP.to_owned());
        let seen = |settings: &MeshSettings| {
            let now = settings.current();
            (now.access_log_file.clone(), now.connect_timeout.get().as_secs())
        };
        assert!(!settings.take_maps(&Change::Apply(map("elsewhere", "accessLogFile: /no"))));
        assert!(settings.take_maps(&Change::Apply(map("istio-system", "accessLogFile: /map"))));
        assert_eq!(seen(&settings), ("/map".to_owned(), 3));
        for broken in ["accessLogFile: [", "connectTimeout: never", "- a list", "trustDomain: 'no domain'"] {
            assert!(!settings.take_maps(&Change::Apply(map("istio-system", broken))), "{broken}");
            assert_eq!(seen(&settings), ("/map".to_owned(), 3), "{broken}");
        }
        sender
            .send_replace(Arc::new(json!({"accessLogFile": "/file", "connectTimeout": "5s", "trustDomain": "other"})));
        assert!(settings.take_file());
        assert_eq!(seen(&settings), ("/map".to_owned(), 5));
        assert_eq!(settings.current().trust_domain, "cluster.local", "that of the start");
        sender.send_replace(Arc::new(json!({"proxyListenPort": 99999})));
        assert!(!settings.take_file());
        assert_eq!(seen(&settings), ("/map".to_owned(), 5));
        assert!(settings.take_maps(&Change::Delete(map("istio-system", ""))));
        assert_eq!(seen(&settings), ("/file".to_owned(), 5));
        assert!(settings.take_maps(&Change::Replace(vec![map("istio-system", "accessLogFile: /again")])));
        assert!(settings.take_maps(&Change::Replace(Vec::new())));
        assert_eq!(seen(&settings), ("/file".to_owned(), 5));
    }
}
