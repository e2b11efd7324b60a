//! RBAC and JWT messages with their maps in a stable order, wire-compatible with Envoy's.
//!
//! Invariant: field numbers are those of the messages each type names; fields that are never set are left out.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    config::rbac::v3::{Permission, Principal},
    extensions::filters::http::jwt_authn::v3::{JwtProvider, RequirementRule},
};
use prost::Message;

/// `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub struct Rbac {
    #[prost(int32, tag = "1")]
    pub action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    pub policies: BTreeMap<String, Policy>,
}

/// `envoy.config.rbac.v3.Policy`.
#[derive(Clone, PartialEq, Message)]
pub struct Policy {
    #[prost(message, repeated, tag = "1")]
    pub permissions: Vec<Permission>,
    #[prost(message, repeated, tag = "2")]
    pub principals: Vec<Principal>,
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub struct HttpRbac {
    #[prost(message, optional, tag = "1")]
    pub rules: Option<Rbac>,
    #[prost(message, optional, tag = "2")]
    pub shadow_rules: Option<Rbac>,
    #[prost(string, tag = "3")]
    pub shadow_rules_stat_prefix: String,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
pub struct NetworkRbac {
    #[prost(message, optional, tag = "1")]
    pub rules: Option<Rbac>,
    #[prost(message, optional, tag = "2")]
    pub shadow_rules: Option<Rbac>,
    #[prost(string, tag = "3")]
    pub stat_prefix: String,
    #[prost(string, tag = "5")]
    pub shadow_rules_stat_prefix: String,
}

/// `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`.
#[derive(Clone, PartialEq, Message)]
pub struct JwtAuthentication {
    #[prost(btree_map = "string, message", tag = "1")]
    pub providers: BTreeMap<String, JwtProvider>,
    #[prost(message, repeated, tag = "2")]
    pub rules: Vec<RequirementRule>,
    #[prost(bool, tag = "4")]
    pub bypass_cors_preflight: bool,
}
