//! `MeshNetworks`: which endpoints are in which network, and the gateways through which a network is reached (semantics §23.3, §23.4).
//!
//! Invariant: reading keeps what was written; what an address or a service name comes to is the mesh's to decide.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scalar::{nullable, nullable_map};

/// All networks, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshNetworks {
    #[serde(deserialize_with = "nullable_map")]
    pub networks: BTreeMap<String, MeshNetwork>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshNetwork {
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<NetworkEndpoints>,
    #[serde(deserialize_with = "nullable")]
    pub gateways: Vec<NetworkGateway>,
}

/// Endpoints of a network: those of a cluster, or those in a range.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkEndpoints {
    #[serde(deserialize_with = "nullable")]
    pub from_cidr: String,
    /// A cluster's id.
    #[serde(deserialize_with = "nullable")]
    pub from_registry: String,
}

/// A gateway of a network: an address, or a service of that name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkGateway {
    #[serde(deserialize_with = "nullable")]
    pub registry_service_name: String,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(deserialize_with = "nullable")]
    pub locality: String,
}
