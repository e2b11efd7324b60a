//! `Policy` and `MeshPolicy` of `authentication.istio.io/v1alpha1`, which PeerAuthentication and RequestAuthentication replaced.
//!
//! Invariant: both spellings of a field (`jwksUri`, `jwks_uri`) are one; a peer method given as `mtls: null` is kept apart from none.

use serde::{Deserialize, Deserializer, Serialize};

use crate::object::Object;
use crate::scalar::{nullable, proto_enum};

pub type LegacyPolicy = Object<LegacyPolicySpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyPolicySpec {
    /// Services; none is the whole namespace.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<LegacyTarget>,
    /// No `mtls` among them is plaintext.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<LegacyPeer>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub peer_is_optional: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<LegacyOrigin>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub origin_is_optional: bool,
    #[serde(deserialize_with = "nullable")]
    pub principal_binding: PrincipalBinding,
}

proto_enum! {
    /// Whose identity a request has.
    pub enum PrincipalBinding {
        UsePeer = 0 "USE_PEER",
        UseOrigin = 1 "USE_ORIGIN",
    } default UsePeer
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyTarget {
    /// The service's short name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<LegacyPort>,
}

/// A service port, by number or name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyPort {
    #[serde(deserialize_with = "nullable")]
    pub number: u32,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyPeer {
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub mtls: Option<LegacyMtls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<LegacyJwt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyMtls {
    #[serde(deserialize_with = "nullable", alias = "allow_tls", skip_serializing_if = "std::ops::Not::not")]
    pub allow_tls: bool,
    #[serde(deserialize_with = "nullable")]
    pub mode: LegacyMtlsMode,
}

proto_enum! {
    pub enum LegacyMtlsMode {
        Strict = 0 "STRICT",
        Permissive = 1 "PERMISSIVE",
    } default Strict
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyOrigin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<LegacyJwt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyJwt {
    #[serde(deserialize_with = "nullable")]
    pub issuer: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    #[serde(deserialize_with = "nullable", alias = "jwks_uri", skip_serializing_if = "String::is_empty")]
    pub jwks_uri: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    #[serde(deserialize_with = "nullable", alias = "jwt_headers", skip_serializing_if = "Vec::is_empty")]
    pub jwt_headers: Vec<String>,
    #[serde(deserialize_with = "nullable", alias = "jwt_params", skip_serializing_if = "Vec::is_empty")]
    pub jwt_params: Vec<String>,
    #[serde(deserialize_with = "nullable", alias = "trigger_rules", skip_serializing_if = "Vec::is_empty")]
    pub trigger_rules: Vec<TriggerRule>,
}

/// Paths a token is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TriggerRule {
    #[serde(deserialize_with = "nullable", alias = "excluded_paths", skip_serializing_if = "Vec::is_empty")]
    pub excluded_paths: Vec<PathMatch>,
    /// Empty is every path.
    #[serde(deserialize_with = "nullable", alias = "included_paths", skip_serializing_if = "Vec::is_empty")]
    pub included_paths: Vec<PathMatch>,
}

/// One of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A field that is there, `null` included, counts as its default.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    nullable(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::from_value;
    use serde_json::json;

    #[test]
    fn mtls_null_is_not_no_mtls() {
        let policy = |peers| from_value::<LegacyPolicy>(&json!({"spec": {"peers": peers}})).expect("a policy").spec;
        let mtls = |peers| policy(peers).peers.first().and_then(|p: &LegacyPeer| p.mtls.clone());
        assert_eq!(mtls(json!([{"mtls": null}])), Some(LegacyMtls::default()));
        assert_eq!(mtls(json!([{"mtls": {}}])), Some(LegacyMtls::default()));
        assert_eq!(mtls(json!([{"jwt": {"issuer": "i", "jwks_uri": "u"}}])), None);
        assert_eq!(policy(json!([{"jwt": {"jwks_uri": "u"}}])).peers[0].jwt.as_ref().expect("jwt").jwks_uri, "u");
    }
}
