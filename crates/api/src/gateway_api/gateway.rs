//! GatewayClass, Gateway, ListenerSet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Reference;
use crate::object::Object;
use crate::scalar::{nullable, nullable_map};

pub type GatewayClass = Object<GatewayClassSpec>;
pub type K8sGateway = Object<GatewaySpec>;
pub type ListenerSet = Object<ListenerSetSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    #[serde(deserialize_with = "nullable")]
    pub controller_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    #[serde(deserialize_with = "nullable")]
    pub gateway_class_name: String,
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<Address>,
    #[serde(deserialize_with = "nullable")]
    pub listeners: Vec<Listener>,
    pub allowed_listeners: Option<Allowed>,
    pub tls: Option<GatewayTls>,
    pub infrastructure: Option<Infrastructure>,
}

/// What becomes of the objects that are made for a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    #[serde(deserialize_with = "nullable_map")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable_map")]
    pub annotations: BTreeMap<String, String>,
    pub parameters_ref: Option<Reference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Absent: any.
    pub hostname: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub port: u16,
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: Option<Allowed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// `Terminate` or `Passthrough`; absent: `Terminate`.
    pub mode: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub certificate_refs: Vec<Reference>,
    #[serde(deserialize_with = "nullable_map")]
    pub options: BTreeMap<String, String>,
}

/// Who may attach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Allowed {
    pub namespaces: Option<AllowedNamespaces>,
    #[serde(deserialize_with = "nullable")]
    pub kinds: Vec<RouteKind>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedNamespaces {
    /// `All`, `Same`, `Selector`, `None`.
    pub from: Option<String>,
    pub selector: Option<Selector>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    #[serde(deserialize_with = "nullable_map")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub match_expressions: Vec<Expression>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Expression {
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub operator: String,
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
}

impl Selector {
    /// Whether labels meet it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|e| {
                let value = labels.get(&e.key);
                match e.operator.as_str() {
                    "In" => value.is_some_and(|v| e.values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !e.values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteKind {
    pub group: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTls {
    pub frontend: Option<Frontend>,
    pub backend: Option<BackendTls>,
}

/// Towards backends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTls {
    /// The certificate that is shown.
    pub client_certificate_ref: Option<Reference>,
}

/// Client certificates, by default and by port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Frontend {
    #[serde(rename = "default")]
    pub all: Option<FrontendTls>,
    #[serde(deserialize_with = "nullable")]
    pub per_port: Vec<PortTls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTls {
    #[serde(deserialize_with = "nullable")]
    pub port: u16,
    pub tls: Option<FrontendTls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendTls {
    pub validation: Option<FrontendValidation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendValidation {
    #[serde(deserialize_with = "nullable")]
    pub ca_certificate_refs: Vec<Reference>,
    /// `AllowValidOnly` or `AllowInsecureFallback`.
    pub mode: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerSetSpec {
    #[serde(deserialize_with = "nullable")]
    pub parent_ref: Reference,
    #[serde(deserialize_with = "nullable")]
    pub listeners: Vec<Listener>,
}
