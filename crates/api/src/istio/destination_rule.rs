//! `DestinationRule`: how clients reach a host.
//!
//! Invariant: absent and default stay distinguishable (`Option`) wherever the merge rules care. Which rule applies, and how
//! subset and port levels override, is decided in `mesh`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PortSelector;
pub use super::traffic::{ConnectionPool, LoadBalancer, OutlierDetection, ProxyProtocol, RetryBudget, Tunnel};
use crate::object::Object;
use crate::scalar::{nullable, nullable_map, proto_enum};

pub type DestinationRule = Object<DestinationRuleSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    #[serde(deserialize_with = "nullable")]
    pub host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// Empty means the mesh's default.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<super::WorkloadSelector>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// Settings of one *service* port. A matching entry replaces all four blocks as a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// TLS towards the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    #[serde(deserialize_with = "nullable")]
    pub mode: ClientTlsMode,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub sni: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
}

proto_enum! {
    /// How a client secures its connections.
    pub enum ClientTlsMode {
        /// Plaintext.
        Disable = 0 "DISABLE",
        /// The client verifies the server.
        Simple = 1 "SIMPLE",
        /// Both verify, with certificates named in the rule.
        Mutual = 2 "MUTUAL",
        /// Both verify, with the mesh's own certificates.
        IstioMutual = 3 "ISTIO_MUTUAL",
    } default Disable
}

impl DestinationRuleSpec {
    /// The labels that proxies must carry for this rule to apply to them, if it is limited so.
    pub fn workload_labels(&self) -> Option<&BTreeMap<String, String>> {
        self.workload_selector.as_ref().map(|s| &s.match_labels).filter(|l| !l.is_empty())
    }
}
