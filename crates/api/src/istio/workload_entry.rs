//! `WorkloadEntry`: one workload outside the cluster, and the endpoint shape that ServiceEntry embeds.
//!
//! Invariant: the address is kept as written (IP, host name or `unix://` path).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::object::Meta;
use crate::scalar::{nullable, nullable_map};

/// The object, with what is known of its health.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: WorkloadEntrySpec,
    #[serde(deserialize_with = "nullable")]
    pub status: WorkloadEntryStatus,
}

/// What was reported of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntryStatus {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<WorkloadEntryCondition>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntryCondition {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
    #[serde(deserialize_with = "nullable")]
    pub status: String,
}

impl WorkloadEntry {
    /// Whether the workload is not to be used: its health is checked, and it was not found healthy. A new one is not used before its first
    /// check has passed. Without the annotation nobody checks.
    pub fn is_unhealthy(&self) -> bool {
        let checked = self.metadata.annotations.get("proxy.istio.io/health-checks-enabled");
        let healthy = self.status.conditions.iter().any(|c| c.type_ == "Healthy" && c.status == "True");
        !healthy && checked.is_some_and(|v| v == "true")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port name → number.
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub network: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub locality: String,
    #[serde(deserialize_with = "nullable")]
    pub weight: u32,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}
