//! The Kubernetes objects that the mesh reads, reduced to the fields it reads.
//!
//! Invariant: reading never fails on a field that is not listed here. Full schemas are in `kinds`.

mod endpoint_slice;
mod pod;
mod secret;
mod service;

pub use self::endpoint_slice::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice, SERVICE_NAME_LABEL, TargetRef,
};
pub use self::pod::{Container, ContainerPort, Pod, PodCondition, PodIp, PodSpec, PodStatus};
pub use self::secret::{Secret, decode_base64};
pub use self::service::{LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec, ServiceStatus};

use serde::{Deserialize, Serialize};

use crate::object::Meta;
use crate::scalar::nullable;

/// A namespace: only its labels matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
}

/// A node: only its labels matter, which say where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
}

/// A config map: only roots, and overlays over what is made for gateways, matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMap {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub data: RootsData,
}

/// The keys of a config map that are read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootsData {
    /// Certificates, PEM.
    #[serde(rename = "ca.crt", deserialize_with = "nullable")]
    pub roots: String,
    /// Revocation lists, PEM.
    #[serde(rename = "ca.crl", deserialize_with = "nullable")]
    pub crl: String,
    /// Overlays over what is made for gateways, YAML, each over an object of its kind.
    pub deployment: Option<String>,
    pub service: Option<String>,
    #[serde(rename = "serviceAccount")]
    pub service_account: Option<String>,
    #[serde(rename = "horizontalPodAutoscaler")]
    pub horizontal_pod_autoscaler: Option<String>,
    #[serde(rename = "podDisruptionBudget")]
    pub pod_disruption_budget: Option<String>,
}

/// A service account: only its existence and annotations matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccount {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
}

/// A number or a name, as in `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    Text(String),
}
