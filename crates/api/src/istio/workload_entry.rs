//! `WorkloadEntry`: one workload outside the cluster, and the endpoint shape that ServiceEntry embeds.
//!
//! Invariant: the address is kept as written (IP, host name or `unix://` path).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::object::Object;
use crate::scalar::{nullable, nullable_map};

pub type WorkloadEntry = Object<WorkloadEntrySpec>;

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
