//! Istio's objects in the typed form that the mesh reads, one file per kind.
//!
//! Invariant: all of them are `Eq + Hash`, so that they can be part of a cache key; defaults that depend on the mesh are
//! not filled in here.

pub mod authorization_policy;
pub mod destination_rule;
pub mod envoy_filter;
pub mod extension_provider;
pub mod gateway;
pub mod legacy_policy;
pub mod mesh_config;
pub mod mesh_networks;
pub mod peer_authentication;
pub mod proxy_config;
pub mod request_authentication;
pub mod server_tls;
pub mod service_entry;
pub mod sidecar;
pub mod telemetry;
pub mod telemetry_provider;
pub mod traffic;
pub mod virtual_service;
pub mod workload_entry;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scalar::{nullable, nullable_map};

/// `selector` of the security and telemetry kinds: all labels must be equal; empty selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// `workloadSelector` of the networking kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The object that a policy is attached to, in place of a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetReference {
    #[serde(deserialize_with = "nullable")]
    pub group: String,
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// A port given by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    #[serde(deserialize_with = "nullable")]
    pub number: u32,
}
