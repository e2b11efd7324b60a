//! What an installation or a Gateway says of the objects that are made for it (`infrastructure.parametersRef`): overlays in ConfigMaps.
//!
//! Invariant: what is for all gateways of a class comes before what is for one; parameters that cannot be read make nothing, and the
//! Gateway says which.

use std::collections::BTreeMap;
use std::sync::Arc;

use carrick_api::gateway_api::K8sGateway;
use carrick_api::{ConfigMap, parse};
use serde_json::Value;

use super::Surroundings;

/// Says that a ConfigMap of the control plane's namespace is for all gateways of a class.
const CLASS_LABEL: &str = "gateway.istio.io/defaults-for-class";

/// Overlays by the kind of the object that they are for.
pub type Overlays = BTreeMap<&'static str, Value>;

/// The overlays of a gateway in the order in which they are laid.
///
/// # Errors
/// Why the parameters cannot be used.
pub(super) fn of(gateway: &K8sGateway, around: &Surroundings<'_>) -> Result<Vec<Overlays>, String> {
    let mut all = Vec::new();
    if let Some(map) = of_class(&gateway.spec.gateway_class_name, around) {
        all.push(overlays(map)?);
    }
    let named = gateway.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref());
    if let Some(to) = named {
        let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or_default());
        if (group, kind) != ("", "ConfigMap") {
            return Err(format!("parameters of kind {group}/{kind} are not understood: only ConfigMap is"));
        }
        let namespace = &gateway.metadata.namespace;
        let is_it = |m: &&Arc<ConfigMap>| m.metadata.name == to.name && m.metadata.namespace == *namespace;
        let map = around.config_maps.iter().find(is_it);
        all.push(overlays(map.ok_or_else(|| format!("ConfigMap {namespace}/{} does not exist", to.name))?)?);
    }
    Ok(all)
}

/// The oldest of those that are for a class.
fn of_class<'a>(class: &str, around: &Surroundings<'a>) -> Option<&'a Arc<ConfigMap>> {
    let mut all: Vec<&Arc<ConfigMap>> = around
        .config_maps
        .iter()
        .filter(|map| map.metadata.namespace == around.root)
        .filter(|map| map.metadata.labels.get(CLASS_LABEL).is_some_and(|of| of == class))
        .collect();
    all.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    all.first().copied()
}

fn overlays(map: &ConfigMap) -> Result<Overlays, String> {
    let data = &map.data;
    let keys = [
        ("deployment", "Deployment", &data.deployment),
        ("service", "Service", &data.service),
        ("serviceAccount", "ServiceAccount", &data.service_account),
        ("horizontalPodAutoscaler", "HorizontalPodAutoscaler", &data.horizontal_pod_autoscaler),
        ("podDisruptionBudget", "PodDisruptionBudget", &data.pod_disruption_budget),
    ];
    let mut all = Overlays::new();
    for (key, kind, text) in keys {
        let Some(text) = text else { continue };
        let wrong = |why: &str| format!("ConfigMap {}/{}, {key}: {why}", map.metadata.namespace, map.metadata.name);
        let mut documents = parse::documents(text.as_bytes()).map_err(|error| wrong(&error.to_string()))?;
        match documents.pop() {
            Some(overlay) if overlay.is_object() && documents.is_empty() => drop(all.insert(kind, overlay)),
            _ => return Err(wrong("expected one object")),
        }
    }
    Ok(all)
}
