//! Injection of what people apply: the pod template inside a Deployment, a Job, a list of them.
//!
//! Invariant: everything that is not a pod template says what it said; a kind without one is given back unchanged.

mod typed;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::decide::{Config, PodFacts, required};
use crate::openshift;
use crate::owner::{self, Owner};
use crate::pod::{InjectError, Injection, inject};
use crate::settings::Settings;
use crate::values::{lay, plain};
use crate::written;

/// What `kube-inject` injects with.
#[derive(Debug, Clone, Copy)]
pub struct Offline<'a> {
    pub settings: &'a Settings,
    /// The mesh's configuration as an object.
    pub mesh: &'a Value,
    pub revision: &'a str,
    pub native_sidecars: bool,
    /// Annotations of the cluster's namespaces, where they say which users are free.
    pub namespace_annotations: &'a BTreeMap<String, BTreeMap<String, String>>,
    /// The namespace of an object that names none.
    pub namespace: &'a str,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    pub object: Value,
    /// What people should know: why something was left alone.
    pub warnings: Vec<String>,
}

/// Where the pod template of a kind is, and where the metadata that goes with it.
fn places(object: &Value) -> Option<(&'static str, &'static str)> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
    match (group, text("kind")) {
        ("", "Pod") => Some(("/metadata", "/spec")),
        ("batch", "CronJob") => Some(("/spec/jobTemplate/metadata", "/spec/jobTemplate/spec/template/spec")),
        ("apps" | "extensions", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet")
        | ("batch", "Job")
        | ("", "ReplicationController" | "DeploymentConfig")
        | ("apps.openshift.io", "DeploymentConfig") => Some(("/spec/template/metadata", "/spec/template/spec")),
        _ => None,
    }
}

/// Injects an object, and the objects of a list.
///
/// # Errors
/// [`InjectError`] of a pod that cannot be injected as it asks.
pub fn inject_object(object: &Value, with: &Offline<'_>) -> Result<Injected, InjectError> {
    if object.get("kind") == Some(&"List".into()) && object.get("apiVersion") == Some(&"v1".into()) {
        let (mut list, mut warnings) = (object.clone(), Vec::new());
        for item in list.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            let injected = inject_object(item, with)?;
            *item = injected.object;
            warnings.extend(injected.warnings);
        }
        if let Some(list) = list.as_object_mut() {
            list.entry("metadata").or_insert_with(|| json!({}));
        }
        return Ok(Injected { object: list, warnings });
    }
    let unchanged = || Ok(Injected { object: object.clone(), warnings: Vec::new() });
    let Some((metadata_at, spec_at)) = places(object) else { return unchanged() };
    let Some(spec) = object.pointer(spec_at).filter(|spec| spec.is_object()) else { return unchanged() };
    let metadata =
        object.pointer(metadata_at).filter(|metadata| metadata.is_object()).cloned().unwrap_or_else(|| json!({}));
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind");
    let owner = if kind == "Pod" {
        owner::of_pod(object)
    } else {
        Owner {
            api_version: text("/apiVersion").to_owned(),
            kind: kind.to_owned(),
            name: text("/metadata/name").to_owned(),
            namespace: text("/metadata/namespace").to_owned(),
        }
    };
    let name = metadata.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or(&owner.name);
    let full = if owner.namespace.is_empty() { name.to_owned() } else { format!("{}/{name}", owner.namespace) };
    let skipped = |why: &str| {
        let mut object = object.clone();
        object.pointer_mut(spec_at).into_iter().for_each(written::tidy);
        typed::workload(&mut object);
        Injected { object, warnings: vec![format!("===> Skipping injection because {kind} {full:?} has {why}\n")] }
    };
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        return Ok(skipped("host networking enabled"));
    }
    let strings = |name: &str| -> BTreeMap<String, String> {
        let map = metadata.get(name).and_then(Value::as_object);
        map.into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
    };
    let (labels, annotations) = (strings("labels"), strings("annotations"));
    let own_namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let facts = PodFacts {
        namespace: own_namespace,
        namespace_labels: &BTreeMap::new(),
        labels: &labels,
        annotations: &annotations,
        host_network: false,
    };
    if required(&Config::default(), &facts).is_err() {
        return Ok(skipped("sidecar injection disabled"));
    }
    let mut proxy_config = with.mesh.get("defaultConfig").cloned().unwrap_or_else(|| json!({}));
    if let Some(own) = annotations.get("proxy.istio.io/config")
        && let Ok(mut own) = carrick_api::parse::documents(own.as_bytes())
        && let Some(own) = own.pop()
    {
        lay(&mut proxy_config, &own);
    }
    let nothing = BTreeMap::new();
    let namespace = if owner.namespace.is_empty() { with.namespace } else { &owner.namespace };
    let of_namespace = with.namespace_annotations.get(namespace).unwrap_or(&nothing);
    let before = json!({ "metadata": metadata, "spec": spec });
    let mut pod = inject(&Injection {
        pod: &openshift::with_own_user(&before, of_namespace),
        owner: &owner,
        namespace_annotations: of_namespace,
        settings: with.settings,
        mesh: with.mesh,
        proxy_config: &proxy_config,
        revision: with.revision,
        native_sidecars: with.native_sidecars,
        variables: &nothing,
    })?;
    written::tidy(&mut pod);
    let mut object = object.clone();
    for (at, part) in [(metadata_at, "metadata"), (spec_at, "spec")] {
        let part = pod.get_mut(part).map(Value::take).unwrap_or_default();
        put(&mut object, at, part);
    }
    typed::workload(&mut object);
    Ok(Injected { object, warnings: Vec::new() })
}

/// Puts a value at a pointer whose parents are objects.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let Some((parent, field)) = pointer.rsplit_once('/') else { return };
    if let Some(Value::Object(parent)) = object.pointer_mut(parent) {
        parent.insert(field.to_owned(), value);
    }
}
