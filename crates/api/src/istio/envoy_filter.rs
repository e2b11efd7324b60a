//! `EnvoyFilter`: changes to the configuration that is generated for proxies.
//!
//! Invariant: a patch's value stays JSON; what message it is follows from where it applies, and is read by who applies it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LabelSelector, TargetReference};
use crate::object::Object;
use crate::scalar::{nullable, nullable_map, proto_enum};

pub type EnvoyFilter = Object<EnvoyFilterSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilterSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetReference>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub config_patches: Vec<ConfigPatch>,
    /// Lower ones are applied first.
    #[serde(deserialize_with = "nullable")]
    pub priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPatch {
    #[serde(deserialize_with = "nullable")]
    pub apply_to: ApplyTo,
    #[serde(rename = "match", deserialize_with = "nullable")]
    pub matches: PatchMatch,
    #[serde(deserialize_with = "nullable")]
    pub patch: Patch,
}

proto_enum! {
    /// What a patch changes.
    pub enum ApplyTo {
        Invalid = 0 "INVALID",
        Listener = 1 "LISTENER",
        FilterChain = 2 "FILTER_CHAIN",
        NetworkFilter = 3 "NETWORK_FILTER",
        HttpFilter = 4 "HTTP_FILTER",
        RouteConfiguration = 5 "ROUTE_CONFIGURATION",
        VirtualHost = 6 "VIRTUAL_HOST",
        HttpRoute = 7 "HTTP_ROUTE",
        Cluster = 8 "CLUSTER",
        ExtensionConfig = 9 "EXTENSION_CONFIG",
        Bootstrap = 10 "BOOTSTRAP",
        ListenerFilter = 11 "LISTENER_FILTER",
    } default Invalid
}

proto_enum! {
    /// For which side of which proxies.
    pub enum PatchContext {
        Any = 0 "ANY",
        SidecarInbound = 1 "SIDECAR_INBOUND",
        SidecarOutbound = 2 "SIDECAR_OUTBOUND",
        Gateway = 3 "GATEWAY",
        Waypoint = 4 "WAYPOINT",
    } default Any
}

proto_enum! {
    /// How a patch changes it.
    pub enum PatchOperation {
        Invalid = 0 "INVALID",
        Merge = 1 "MERGE",
        Add = 2 "ADD",
        Remove = 3 "REMOVE",
        InsertBefore = 4 "INSERT_BEFORE",
        InsertAfter = 5 "INSERT_AFTER",
        InsertFirst = 6 "INSERT_FIRST",
        Replace = 7 "REPLACE",
        MergeAndReplaceList = 8 "MERGE_AND_REPLACE_LIST",
    } default Invalid
}

proto_enum! {
    /// What a route does.
    pub enum RouteAction {
        Any = 0 "ANY",
        Route = 1 "ROUTE",
        Redirect = 2 "REDIRECT",
        DirectResponse = 3 "DIRECT_RESPONSE",
    } default Any
}

proto_enum! {
    /// Where among Istio's own filters an added HTTP filter stands.
    pub enum FilterClass {
        Unspecified = 0 "UNSPECIFIED",
        Authn = 1 "AUTHN",
        Authz = 2 "AUTHZ",
        Stats = 3 "STATS",
    } default Unspecified
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchMatch {
    #[serde(deserialize_with = "nullable")]
    pub context: PatchContext,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_configuration: Option<RouteConfigurationMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyMatch {
    /// A regular expression over the proxy's version.
    #[serde(deserialize_with = "nullable")]
    pub proxy_version: String,
    #[serde(deserialize_with = "nullable_map")]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerMatch {
    #[serde(deserialize_with = "nullable")]
    pub port_number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_chain: Option<FilterChainMatch>,
    #[serde(deserialize_with = "nullable")]
    pub listener_filter: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterChainMatch {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub sni: String,
    #[serde(deserialize_with = "nullable")]
    pub transport_protocol: String,
    /// Comma separated; each of them must be among the chain's.
    #[serde(deserialize_with = "nullable")]
    pub application_protocols: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterMatch>,
    #[serde(deserialize_with = "nullable")]
    pub destination_port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterMatch {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_filter: Option<SubFilterMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubFilterMatch {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteConfigurationMatch {
    #[serde(deserialize_with = "nullable")]
    pub port_number: u32,
    #[serde(deserialize_with = "nullable")]
    pub port_name: String,
    /// `namespace/name` of a Gateway.
    #[serde(deserialize_with = "nullable")]
    pub gateway: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost: Option<VirtualHostMatch>,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualHostMatch {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub domain_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub action: RouteAction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterMatch {
    #[serde(deserialize_with = "nullable")]
    pub port_number: u32,
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub subset: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Patch {
    #[serde(deserialize_with = "nullable")]
    pub operation: PatchOperation,
    /// A message in JSON: the whole or the part to merge.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub value: Value,
    #[serde(deserialize_with = "nullable")]
    pub filter_class: FilterClass,
}
