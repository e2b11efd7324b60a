//! `Gateway`: what the proxies of a gateway listen for, and how TLS is terminated there.
//!
//! Invariant: hosts, secret names and paths are kept as written. Which servers share a port, and which routes belong to them, is
//! decided in `mesh`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::server_tls::{ServerTls, ServerTlsCertificate, ServerTlsMode, TlsProtocol};
use crate::object::Object;
use crate::scalar::{nullable, nullable_map};

pub type Gateway = Object<GatewaySpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
    /// Labels of the gateway's pods, in any namespace.
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<ServerPort>,
    /// An address; empty: all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// `[namespace/]host`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Unused, as in Istio.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub default_endpoint: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerPort {
    #[serde(deserialize_with = "nullable")]
    pub number: u32,
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Refused by validation.
    #[serde(deserialize_with = "nullable")]
    pub target_port: u32,
}
