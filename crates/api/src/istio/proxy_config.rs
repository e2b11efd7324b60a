//! `ProxyConfig`: the object, and the block of the same name that `MeshConfig` and pods' annotations carry.
//!
//! Invariant: both are read when a proxy starts; of the block only what the control plane itself follows is typed here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::WorkloadSelector;
use crate::object::Object;
use crate::scalar::{Number, nullable, nullable_map};

pub type ProxyConfig = Object<ProxyConfigSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfigSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Worker threads; 0 is one for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_variables: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ProxyImage>,
}

impl ProxyConfigSpec {
    /// True when a selector with at least one label is present.
    pub fn selects_workloads(&self) -> bool {
        self.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    #[serde(deserialize_with = "nullable")]
    pub image_type: String,
}

/// `meshConfig.defaultConfig`, as far as the control plane follows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProxyConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<ProxyTracing>,
    /// Worker threads of proxies; 0 is one for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy_metadata: BTreeMap<String, String>,
    /// What stands before gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_topology: Option<GatewayTopology>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTopology {
    /// Proxies whose `x-forwarded-for` entries are believed.
    #[serde(deserialize_with = "nullable")]
    pub num_trusted_proxies: u32,
    /// What becomes of `x-forwarded-client-cert`, by Envoy's name.
    #[serde(deserialize_with = "nullable")]
    pub forward_client_cert_details: String,
    /// Connections begin with a PROXY header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Nothing is told of it but that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ProxyProtocol {}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTracing {
    /// Percent of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Number>,
    /// 0: Envoy's limit, 256.
    #[serde(deserialize_with = "nullable")]
    pub max_path_tag_length: u32,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_tags: BTreeMap<String, super::telemetry::CustomTag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<ZipkinAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZipkinAddress {
    /// `host:port`.
    #[serde(deserialize_with = "nullable")]
    pub address: String,
}
