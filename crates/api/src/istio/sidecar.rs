//! `Sidecar`: what one workload's proxy listens on and may see.
//!
//! Invariant: `egress`/`ingress` absent and empty are kept apart only where Istio does; hosts are kept as written.

use serde::{Deserialize, Serialize};

use super::LabelSelector;
use super::server_tls::ServerTls;
use super::traffic::ConnectionPool;
use crate::object::Object;
use crate::scalar::{nullable, proto_enum};

pub type Sidecar = Object<SidecarSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<SidecarIngress>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<SidecarEgress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<ConnectionPool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    #[serde(deserialize_with = "nullable")]
    pub number: u32,
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub target_port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarIngress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    #[serde(deserialize_with = "nullable")]
    pub bind: String,
    #[serde(deserialize_with = "nullable")]
    pub capture_mode: CaptureMode,
    #[serde(deserialize_with = "nullable")]
    pub default_endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarEgress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    #[serde(deserialize_with = "nullable")]
    pub bind: String,
    #[serde(deserialize_with = "nullable")]
    pub capture_mode: CaptureMode,
    #[serde(deserialize_with = "nullable")]
    pub hosts: Vec<String>,
}

proto_enum! {
    /// How traffic reaches a listener.
    pub enum CaptureMode {
        Default = 0 "DEFAULT",
        Iptables = 1 "IPTABLES",
        None = 2 "NONE",
    } default Default
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// The enum's zero value, so an empty block means `REGISTRY_ONLY`.
    #[serde(deserialize_with = "nullable")]
    pub mode: OutboundMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
}

proto_enum! {
    /// What happens to traffic for destinations nobody declared.
    pub enum OutboundMode {
        RegistryOnly = 0 "REGISTRY_ONLY",
        AllowAny = 1 "ALLOW_ANY",
        AllowAnyDynamicDns = 2 "ALLOW_ANY_DYNAMIC_DNS",
    } default RegistryOnly
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressProxy {
    #[serde(deserialize_with = "nullable")]
    pub host: String,
    #[serde(deserialize_with = "nullable")]
    pub subset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<super::PortSelector>,
}
