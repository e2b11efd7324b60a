//! ReferenceGrant, BackendTLSPolicy.

use serde::{Deserialize, Serialize};

use super::Reference;
use crate::object::Object;
use crate::scalar::nullable;

pub type ReferenceGrant = Object<ReferenceGrantSpec>;
pub type BackendTlsPolicy = Object<BackendTlsPolicySpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrantSpec {
    #[serde(deserialize_with = "nullable")]
    pub from: Vec<Grantee>,
    #[serde(deserialize_with = "nullable")]
    pub to: Vec<Granted>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grantee {
    #[serde(deserialize_with = "nullable")]
    pub group: String,
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Granted {
    #[serde(deserialize_with = "nullable")]
    pub group: String,
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    /// Absent: all of the kind.
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    #[serde(deserialize_with = "nullable")]
    pub target_refs: Vec<Reference>,
    #[serde(deserialize_with = "nullable")]
    pub validation: BackendValidation,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendValidation {
    #[serde(deserialize_with = "nullable")]
    pub ca_certificate_refs: Vec<Reference>,
    /// `System`.
    pub well_known_ca_certificates: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub subject_alt_names: Vec<SubjectAltName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubjectAltName {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub uri: String,
}
