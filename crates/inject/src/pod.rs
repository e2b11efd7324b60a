//! A pod with what injection adds: templates laid over it, the user's own words over those, and what cannot be written in a template.
//!
//! Invariant: the same input gives the same pod, and injecting an injected pod gives it again. A pod that cannot be injected as it
//! asks is an error that names what; it is never injected half. Order of the steps: spec §16.9, §16.6.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::lists::{find, first, last, list_mut, names, position, proxy_mut};
use crate::owner::Owner;
use crate::settings::Settings;
use crate::template::{self, Context};
use crate::values::{Values, lay, plain};
use crate::{CONTAINER_NAME, annotations, openshift, overlay, probes, prometheus, written};

/// What injection depends on besides the settings.
#[derive(Debug, Clone, Copy)]
pub struct Injection<'a> {
    /// The pod: `metadata` and `spec`. Its namespace is filled in.
    pub pod: &'a Value,
    pub owner: &'a Owner,
    /// Annotations of the pod's namespace, where OpenShift tells the users that are free.
    pub namespace_annotations: &'a BTreeMap<String, String>,
    pub settings: &'a Settings,
    /// The mesh's configuration as an object of the API writes it; `{}` is the default one.
    pub mesh: &'a Value,
    /// What holds for the pod's proxy, the pod's annotation `proxy.istio.io/config` included.
    pub proxy_config: &'a Value,
    pub revision: &'a str,
    /// Whether the cluster's nodes know containers that stay from the pod's start.
    pub native_sidecars: bool,
    /// Variables of the webhook's path: `ISTIO_META_CLUSTER_ID`, `ISTIO_META_NETWORK`.
    pub variables: &'a BTreeMap<String, String>,
}

/// Why a pod is not injected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// Annotations with values that cannot be obeyed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Annotations(Vec<annotations::AnnotationError>),
    /// A template that there is not.
    #[error("requested template {name:?} not found; have {}", .known.join(", "))]
    NoTemplate { name: String, known: Vec<String> },
    /// Something of the pod that a template or a later step cannot use.
    #[error("{0}")]
    Pod(String),
    /// A template or a container of the pod cannot be laid over it.
    #[error("merging {what}: {reason}")]
    Merge { what: String, reason: overlay::OverlayError },
}

const STATUS: &str = "sidecar.istio.io/status";
const OVERRIDES: &str = "proxy.istio.io/overrides";
const NATIVE: &str = "sidecar.istio.io/nativeSidecar";
const TEMPLATES: &str = "inject.istio.io/templates";
const PROXY_CONFIG: &str = "proxy.istio.io/config";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
const NETWORK: &str = "topology.istio.io/network";
/// Containers of the injector that go before or after the pod's own.
const INIT: &str = "istio-init";
const VALIDATION: &str = "istio-validation";
const CORE_DUMP: &str = "enable-core-dump";

/// Injects a pod.
///
/// # Errors
/// [`InjectError`]: the pod must be refused, and told why.
pub fn inject(injection: &Injection<'_>) -> Result<Value, InjectError> {
    let original = injection.pod;
    let annotations_before = strings(original, "annotations");
    let wrong = annotations::validate(&annotations_before);
    if !wrong.is_empty() {
        return Err(InjectError::Annotations(wrong));
    }
    let values = &injection.settings.values;
    let variables = variables(injection, &strings(original, "labels"));
    let agent_port = status_port(injection.mesh);
    let stripped = with_overrides(stripped(original, agent_port))?;
    let (labels, annotations) = (strings(&stripped, "labels"), strings(&stripped, "annotations"));
    let nothing = Value::Null;
    let (uid, gid) = openshift::ids(injection.namespace_annotations);
    let context = Context {
        labels: &labels,
        annotations: &annotations,
        metadata: stripped.get("metadata").unwrap_or(&nothing),
        spec: stripped.get("spec").unwrap_or(&nothing),
        owner: injection.owner,
        proxy_config: injection.proxy_config,
        mesh: injection.mesh,
        values,
        revision: injection.revision,
        native: injection.native_sidecars,
        uid,
        gid,
    };

    let mut merged = original.as_object().cloned().unwrap_or_default();
    let mut added = Map::new();
    let native = match annotations_before.get(NATIVE).map(String::as_str) {
        Some("true") => true,
        Some("false") => false,
        _ => injection.native_sidecars,
    };
    for name in templates(injection.settings, annotations_before.get(TEMPLATES)) {
        let fragment = fragment(injection.settings, &name, &context)?;
        let Some(fragment) = fragment.as_object() else { continue };
        let merge = |reason| InjectError::Merge { what: format!("template {name:?}"), reason };
        overlay::apply(&mut added, fragment).map_err(merge)?;
        // The user's words are in `containers`; the template's container is where containers of the start are.
        if native && position(added.get("spec"), "initContainers", CONTAINER_NAME).is_some() {
            move_proxy(&mut merged);
        }
        let merge = |reason| InjectError::Merge { what: format!("template {name:?}"), reason };
        overlay::apply(&mut merged, fragment).map_err(merge)?;
    }
    let added = Value::Object(added);
    let mut pod = reapply(Value::Object(merged), original, &added, injection.proxy_config)?;
    finish(&mut pod, original, &added, injection, &variables, agent_port)?;
    Ok(pod)
}

/// The templates of a pod, aliases resolved.
fn templates(settings: &Settings, asked: Option<&String>) -> Vec<String> {
    let names: Vec<String> = match asked {
        Some(list) => list.split(',').map(|name| name.trim().to_owned()).collect(),
        None => settings.default_templates.clone(),
    };
    names.into_iter().flat_map(|name| settings.aliases.get(&name).cloned().unwrap_or_else(|| vec![name])).collect()
}

fn fragment(settings: &Settings, name: &str, context: &Context<'_>) -> Result<Value, InjectError> {
    if let Some(own) = settings.templates.get(name) {
        return own.render(context).map_err(|reason| InjectError::Pod(format!("template {name:?}: {reason}")));
    }
    template::render(name, context)
        .ok_or_else(|| {
            let mut known: Vec<String> = template::BUILT_IN.iter().map(|name| (*name).to_owned()).collect();
            known.extend(settings.templates.keys().cloned());
            InjectError::NoTemplate { name: name.to_owned(), known }
        })?
        .map_err(InjectError::Pod)
}

/// The variables that say which cluster and network the pod is in: its label, the webhook's path, the installation.
fn variables(injection: &Injection<'_>, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let values: &Values = &injection.settings.values;
    let mut all = injection.variables.clone();
    for (name, value) in [
        ("ISTIO_META_CLUSTER_ID", values.text("global.multiCluster.clusterName")),
        ("ISTIO_META_NETWORK", values.text("global.network")),
    ] {
        let told = all.get(name).is_some_and(|told| !told.is_empty());
        if !told && !value.is_empty() {
            all.insert(name.to_owned(), value);
        }
    }
    if let Some(network) = labels.get(NETWORK).filter(|network| !network.is_empty()) {
        all.insert("ISTIO_META_NETWORK".to_owned(), network.clone());
    }
    all.retain(|_, value| !value.is_empty());
    all
}

/// Port of the agent in this mesh.
fn status_port(mesh: &Value) -> i64 {
    mesh.pointer("/defaultConfig/statusPort").and_then(Value::as_i64).filter(|port| *port != 0).unwrap_or(15020)
}

/// A map of strings in the pod's metadata.
fn strings(pod: &Value, name: &str) -> BTreeMap<String, String> {
    let map = pod.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_object);
    map.into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
}

/// The pod without what an earlier injection added.
fn stripped(original: &Value, agent_port: i64) -> Value {
    let mut pod = original.clone();
    let annotations = strings(original, "annotations");
    let Some(status) = annotations.get(STATUS).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return pod;
    };
    for list in ["containers", "initContainers"] {
        let names = status.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(containers) = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut) {
            containers.retain(|container| !names.iter().any(|name| container.get("name") == Some(name)));
        }
    }
    let mut annotations = annotations;
    if prometheus::points_at(&annotations, agent_port) {
        prometheus::clear(&mut annotations);
    }
    annotations.remove(STATUS);
    set_strings(&mut pod, "annotations", &annotations);
    pod
}

/// The pod with the user's own words about injected containers, which an earlier injection wrote down.
fn with_overrides(mut pod: Value) -> Result<Value, InjectError> {
    let overrides = overrides(&pod)?;
    for list in ["containers", "initContainers"] {
        for container in overrides.get(list).and_then(Value::as_array).into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            if position(pod.get("spec"), list, name).is_none()
                && let Some(spec) = pod.get_mut("spec")
                && let Some(containers) = list_mut(spec, list)
            {
                containers.push(container.clone());
            }
        }
    }
    Ok(pod)
}

fn overrides(pod: &Value) -> Result<Value, InjectError> {
    let Some(text) = strings(pod, "annotations").remove(OVERRIDES) else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| InjectError::Pod(format!("annotation {OVERRIDES}: {error}")))
}

/// Moves a container of the user's that speaks about the proxy to where the proxy will be.
fn move_proxy(pod: &mut Map<String, Value>) {
    let Some(spec) = pod.get_mut("spec") else { return };
    let Some(at) = position(Some(spec), "containers", CONTAINER_NAME) else { return };
    let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) else { return };
    let proxy = containers.remove(at);
    if let Some(list) = list_mut(spec, "initContainers") {
        list.push(proxy);
    }
}

/// Lays the containers that the pod's author wrote over the injected ones of the same name, and writes them down.
fn reapply(mut pod: Value, original: &Value, added: &Value, proxy_config: &Value) -> Result<Value, InjectError> {
    let existing = overrides(original)?;
    let status = strings(original, "annotations").remove(STATUS);
    let injected: Value = status.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut found = Map::new();
    for list in ["containers", "initContainers"] {
        let names: Vec<String> = names(added.get("spec"), list);
        for name in names {
            let before =
                injected.get(list).and_then(Value::as_array).is_some_and(|all| all.contains(&name.as_str().into()));
            if before {
                continue;
            }
            let written =
                find(Some(&existing), list, &name).or_else(|| find(original.get("spec"), list, &name)).or_else(|| {
                    (list == "initContainers").then(|| find(original.get("spec"), "containers", &name)).flatten()
                });
            let Some(mut container) = written.cloned() else { continue };
            if container.get("image") == Some(&"auto".into())
                && let Some(fields) = container.as_object_mut()
            {
                fields.shift_remove("image");
            }
            let mut fragment = Map::new();
            fragment.insert("spec".to_owned(), json!({ list: [container.clone()] }));
            let fields = pod.as_object_mut().ok_or_else(|| InjectError::Pod("the pod is not an object".to_owned()))?;
            overlay::apply(fields, &fragment)
                .map_err(|reason| InjectError::Merge { what: format!("container {name:?}"), reason })?;
            written::tidy(&mut container);
            written::with_resources(&mut container);
            if let Some(all) = found.entry(list).or_insert_with(|| json!([])).as_array_mut() {
                all.push(container);
            }
        }
    }
    if status.is_none() && !found.is_empty() {
        // In the order of Istio's type: containers, then init containers.
        let parts: Vec<String> = ["containers", "initContainers"]
            .iter()
            .filter_map(|list| Some(format!("{:?}:{}", list, written::json(found.get(*list)?))))
            .collect();
        set_annotation(&mut pod, OVERRIDES, format!("{{{}}}", parts.join(",")));
    }
    match_users(&mut pod, original, proxy_config);
    Ok(pod)
}

/// Makes what sets the rules know the user that the pod's author gave the proxy.
fn match_users(pod: &mut Value, original: &Value, proxy_config: &Value) {
    let spec = original.get("spec");
    let user = find(spec, "containers", CONTAINER_NAME).or_else(|| find(spec, "initContainers", CONTAINER_NAME));
    let Some(security) = user.and_then(|container| container.get("securityContext")) else { return };
    let (user, group) = (security.get("runAsUser").cloned(), security.get("runAsGroup").cloned());
    if user.is_none() && group.is_none() {
        return;
    }
    let annotated = strings(pod, "annotations").remove("sidecar.istio.io/interceptionMode");
    let tproxy =
        proxy_config.get("interceptionMode") == Some(&"TPROXY".into()) || annotated.as_deref() == Some("TPROXY");
    let Some(spec) = pod.get_mut("spec") else { return };
    let (at, validates) =
        match (position(Some(spec), "initContainers", INIT), position(Some(spec), "initContainers", VALIDATION)) {
            (Some(at), _) => (at, false),
            (None, Some(at)) => (at, true),
            (None, None) => return,
        };
    if tproxy
        && user.is_some()
        && let Some(proxy) = proxy_mut(spec)
        && let Some(security) = proxy.pointer_mut("/securityContext").and_then(Value::as_object_mut)
    {
        // Transparent sockets need it.
        security.insert("runAsUser".to_owned(), 0.into());
    }
    let Some(init) = spec.pointer_mut(&format!("/initContainers/{at}")).and_then(Value::as_object_mut) else { return };
    if !tproxy && validates {
        let place = init.entry("securityContext").or_insert_with(|| json!({}));
        for (field, value) in [("runAsUser", &user), ("runAsGroup", &group)] {
            if let (Some(place), Some(value)) = (place.as_object_mut(), value) {
                place.insert(field.to_owned(), value.clone());
            }
        }
    }
    let Some(user) = user.as_ref().and_then(Value::as_i64).filter(|user| *user != 0) else { return };
    let Some(args) = init.get_mut("args").and_then(Value::as_array_mut) else { return };
    if let Some(value) = args.iter().position(|arg| *arg == "-u").and_then(|at| args.get_mut(at.checked_add(1)?)) {
        *value = user.to_string().into();
    }
}

/// What is no template's business.
fn finish(
    pod: &mut Value,
    original: &Value,
    added: &Value,
    injection: &Injection<'_>,
    variables: &BTreeMap<String, String>,
    agent_port: i64,
) -> Result<(), InjectError> {
    let before = strings(original, "annotations");
    if let Some(spec) = pod.get_mut("spec")
        && let Some(proxy) = proxy_mut(spec)
        && !variables.is_empty()
        && let Some(env) = list_mut(proxy, "env")
    {
        env.retain(|entry| !entry.get("name").and_then(Value::as_str).is_some_and(|name| variables.contains_key(name)));
        env.extend(variables.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    }

    let mut annotations = strings(pod, "annotations");
    let told = prometheus::merge(&mut annotations, injection.mesh, agent_port).map_err(InjectError::Pod)?;
    let spec = pod.get_mut("spec").ok_or_else(|| InjectError::Pod("the pod has no spec".to_owned()))?;
    if let Some(proxy) = proxy_mut(spec) {
        if let (Some(told), Some(env)) = (told, list_mut(proxy, "env")) {
            env.push(json!({ "name": prometheus::VARIABLE, "value": told }));
        }
        prometheus::secure_port(&mut annotations, proxy);
        let installed = injection.settings.values.get("sidecarInjectorWebhook.rewriteAppHTTPProbe");
        let asked = annotations.get("sidecar.istio.io/rewriteAppHTTPProbers").and_then(|v| prometheus::boolean(v));
        if asked.unwrap_or_else(|| installed.and_then(Value::as_bool).unwrap_or(false)) {
            let port = annotations.get(STATUS_PORT).and_then(|port| port.trim().parse().ok()).unwrap_or(agent_port);
            probes::rewrite(spec, agent_port, port, before.contains_key(STATUS));
        }
    }
    let hold = holds(injection, before.get(PROXY_CONFIG));
    order(spec, hold);

    annotations.insert(STATUS.to_owned(), status(added, injection.revision));
    annotations.extend(injection.settings.injected_annotations.clone());
    set_strings(pod, "annotations", &annotations);
    if let Some(network) = variables.get("ISTIO_META_NETWORK") {
        let mut labels = strings(pod, "labels");
        labels.insert(NETWORK.to_owned(), network.clone());
        set_strings(pod, "labels", &labels);
    }
    Ok(())
}

/// Whether the application waits for its proxy.
fn holds(injection: &Injection<'_>, annotation: Option<&String>) -> bool {
    const HOLD: &str = "holdApplicationUntilProxyStarts";
    let mut config = injection.mesh.get("defaultConfig").cloned().unwrap_or_else(|| json!({}));
    let own = annotation.and_then(|text| carrick_api::parse::documents(text.as_bytes()).ok()?.pop());
    lay(&mut config, &own.unwrap_or_else(|| json!({})));
    config.get(HOLD) == Some(&Value::Bool(true))
        || injection.settings.values.is_set("global.proxy.holdApplicationUntilProxyStarts")
}

/// Containers in the order in which they must start.
fn order(spec: &mut Value, hold: bool) {
    if hold {
        first(spec, "containers", CONTAINER_NAME)
    } else {
        last(spec, "containers", CONTAINER_NAME)
    }
    if position(Some(spec), "initContainers", CONTAINER_NAME).is_some() {
        // What comes after the proxy is in the mesh.
        for name in [CORE_DUMP, CONTAINER_NAME, VALIDATION, INIT] {
            first(spec, "initContainers", name);
        }
    } else {
        // Before there is a proxy, rules would lead nowhere: they come last. Who waits for a plugin's rules comes first.
        first(spec, "initContainers", VALIDATION);
        last(spec, "initContainers", INIT);
        last(spec, "initContainers", CORE_DUMP);
    }
}

/// What was injected, for the next injection and for people.
fn status(added: &Value, revision: &str) -> String {
    let list = |list: &str| -> Value {
        let names = names(added.get("spec"), list);
        if names.is_empty() { Value::Null } else { names.into() }
    };
    let revision = if revision.is_empty() { crate::DEFAULT_REVISION } else { revision };
    json!({
        "initContainers": list("initContainers"),
        "containers": list("containers"),
        "volumes": list("volumes"),
        "imagePullSecrets": list("imagePullSecrets"),
        "revision": revision,
    })
    .to_string()
}

fn set_annotation(pod: &mut Value, name: &str, value: String) {
    let mut all = strings(pod, "annotations");
    all.insert(name.to_owned(), value);
    set_strings(pod, "annotations", &all);
}

/// Writes a map of strings into the pod's metadata, in the order it had, new ones after.
fn set_strings(pod: &mut Value, name: &str, values: &BTreeMap<String, String>) {
    let Some(pod) = pod.as_object_mut() else { return };
    let metadata = pod.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    let place = metadata.entry(name).or_insert_with(|| json!({}));
    if !place.is_object() {
        *place = json!({});
    }
    let Some(map) = place.as_object_mut() else { return };
    map.retain(|key, _| values.contains_key(key));
    for (key, value) in values {
        map.insert(key.clone(), value.as_str().into());
    }
}

#[cfg(test)]
mod tests;
