//! Which fields identify the items of Kubernetes' lists: what a strategic merge patch and server-side apply merge by; and
//! which maps are one whole for server-side apply.
//!
//! Invariant: a list that is not in the table is replaced as a whole. Source: the `patchMergeKey` and `listMapKey` markers
//! of the Kubernetes API, which k8s-openapi's schemas do not carry.

use std::sync::Arc;

use super::ListMerge;

/// Definition, field, keys. No keys: a set of scalars.
const TABLE: &[(&str, &str, &[&str])] = &[
    ("io.k8s.api.core.v1.PodSpec", "containers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "initContainers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "ephemeralContainers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "volumes", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "imagePullSecrets", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "hostAliases", &["ip"]),
    ("io.k8s.api.core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("io.k8s.api.core.v1.PodSpec", "schedulingGates", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "resourceClaims", &["name"]),
    ("io.k8s.api.core.v1.PodStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.PodStatus", "podIPs", &["ip"]),
    ("io.k8s.api.core.v1.PodStatus", "hostIPs", &["ip"]),
    ("io.k8s.api.core.v1.Container", "env", &["name"]),
    ("io.k8s.api.core.v1.Container", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.Container", "volumeMounts", &["mountPath"]),
    ("io.k8s.api.core.v1.Container", "volumeDevices", &["devicePath"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "env", &["name"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeMounts", &["mountPath"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeDevices", &["devicePath"]),
    ("io.k8s.api.core.v1.ResourceRequirements", "claims", &["name"]),
    ("io.k8s.api.core.v1.ServiceSpec", "ports", &["port", "protocol"]),
    ("io.k8s.api.core.v1.ServiceStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.ServiceAccount", "secrets", &["name"]),
    ("io.k8s.api.core.v1.NamespaceStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.NodeSpec", "podCIDRs", &[]),
    ("io.k8s.api.core.v1.NodeStatus", "addresses", &["type"]),
    ("io.k8s.api.core.v1.NodeStatus", "conditions", &["type"]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", &[]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", &["uid"]),
    ("io.k8s.api.apps.v1.DeploymentStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.StatefulSetStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.DaemonSetStatus", "conditions", &["type"]),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "conditions", &["type"]),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetStatus", "conditions", &["type"]),
    ("io.k8s.api.certificates.v1.CertificateSigningRequestStatus", "conditions", &["type"]),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", &["name"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", &["name"]),
];

/// What the names of Kubernetes' own definitions begin with, of its API and its machinery; the Gateway API's do not.
pub(super) const KUBERNETES: &str = "io.k8s.api";

/// Kubernetes' definitions that are marked `mapType=atomic`.
const WHOLE: &[&str] = &[
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1.ParamKind",
    "io.k8s.api.admissionregistration.v1.ParamRef",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
];

/// Fields of plain maps that are.
const WHOLE_FIELDS: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.PodSpec", "nodeSelector"),
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "selector"),
    ("io.k8s.api.core.v1.ServiceSpec", "selector"),
];

/// Fields without which Kubernetes' types write no object, besides those that are required.
const ALWAYS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "template",
    "jobTemplate",
    "strategy",
    "updateStrategy",
    "resources",
    "source",
    "deprecatedSource",
    "eventTime",
    "firstTimestamp",
    "lastTimestamp",
    "reportingComponent",
    "reportingInstance",
    "loadBalancer",
    "nodeInfo",
    "daemonEndpoints",
    "kubeletEndpoint",
];

/// Whether a definition is owned as a whole.
pub(super) fn is_whole(definition: &str) -> bool {
    WHOLE.contains(&definition)
}

/// Whether the map in a field of a definition is.
pub(super) fn is_whole_field(definition: &str, field: &str) -> bool {
    WHOLE_FIELDS.contains(&(definition, field))
}

/// Whether every object of a type that has the field has it.
pub(super) fn is_always(field: &str) -> bool {
    ALWAYS.contains(&field)
}

/// How the list in a field of a definition merges.
pub(super) fn of(definition: &str, field: &str) -> ListMerge {
    match TABLE.iter().find(|(d, f, _)| *d == definition && *f == field) {
        None => ListMerge::Atomic,
        Some((_, _, [])) => ListMerge::Set,
        Some((_, _, keys)) => ListMerge::Map(keys.iter().map(|k| Arc::from(*k)).collect()),
    }
}

/// All places of the table, for the test that each of them exists in the schemas.
#[cfg(test)]
pub(super) fn places() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|(definition, field, _)| (*definition, *field))
}
