//! `Service`: a name, its addresses and its ports.
//!
//! Invariant: ports are as the user declared them; what protocol a port speaks is `protocol`'s decision.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::IntOrString;
use crate::object::Meta;
use crate::scalar::{nullable, nullable_map};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`; empty before defaulting.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
    /// An address, `None` for a headless service, empty before allocation.
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub external_name: String,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    #[serde(deserialize_with = "nullable_map")]
    pub selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub publish_not_ready_addresses: bool,
    #[serde(deserialize_with = "nullable")]
    pub session_affinity: String,
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub traffic_distribution: String,
}

impl ServiceSpec {
    /// A service without a virtual address, whose name means its endpoints.
    pub fn is_headless(&self) -> bool {
        self.cluster_ip == "None"
    }

    /// The virtual addresses, none for headless and external-name services.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let first = (!self.cluster_ip.is_empty() && !self.is_headless()).then_some(self.cluster_ip.as_str());
        let others = self.cluster_ips.iter().map(String::as_str).filter(move |ip| Some(*ip) != first && *ip != "None");
        first.into_iter().chain(others)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Transport protocol: `TCP` when empty.
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub port: u16,
    /// Absent before defaulting: the same number as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<IntOrString>,
    #[serde(deserialize_with = "nullable")]
    pub node_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
}
