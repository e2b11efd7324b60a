//! The order in which objects are applied, so that nothing is needed before it is there.
//!
//! Invariant: definitions of kinds and namespaces first, webhooks last: a webhook that nobody answers yet would refuse the rest.

use serde_json::Value;

const ORDER: [&str; 18] = [
    "CustomResourceDefinition",
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Secret",
    "ConfigMap",
    "ResourceQuota",
    "NetworkPolicy",
    "Service",
    "DaemonSet",
    "Deployment",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];

/// The objects in that order; those of a kind stay as they are among themselves.
pub fn ordered(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| {
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
        ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
    });
    objects
}
