//! cert-manager's objects (cert-manager.io/v1) in the typed form that the certificate controller reads and writes.
//!
//! Invariant: what is absent stays absent; defaults are filled in where something is decided. No object here ever holds a
//! private key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::Meta;
use crate::scalar::{Duration, nullable, nullable_map};
use crate::timestamp::Timestamp;

/// The API's group.
pub const GROUP: &str = "cert-manager.io";

/// An object with a status of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    default,
    bound(deserialize = "T: Default + Deserialize<'de>, S: Default + Deserialize<'de>")
)]
pub struct WithStatus<T, S> {
    #[serde(deserialize_with = "nullable")]
    pub api_version: String,
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: T,
    #[serde(deserialize_with = "nullable")]
    pub status: S,
}

/// A certificate that is to be in a secret.
pub type Certificate = WithStatus<CertificateSpec, CertificateStatus>;
/// One request to an issuer.
pub type CertificateRequest = WithStatus<CertificateRequestSpec, CertificateRequestStatus>;
/// Who signs: `Issuer` and `ClusterIssuer` alike.
pub type Issuer = WithStatus<IssuerSpec, IssuerStatus>;

/// A reference to an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IssuerRef {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub group: String,
}

impl IssuerRef {
    /// `Issuer`, unless another kind is named.
    pub fn kind(&self) -> &str {
        if self.kind.is_empty() { "Issuer" } else { &self.kind }
    }

    /// Whether it means an issuer of this API; others have controllers of their own.
    pub fn is_ours(&self) -> bool {
        (self.group.is_empty() || self.group == GROUP) && matches!(self.kind(), "Issuer" | "ClusterIssuer")
    }
}

/// A value in a secret of the same namespace; for a cluster's issuer, of the control plane's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretKey {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub key: String,
}

/// A wish for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateSpec {
    pub subject: Option<Subject>,
    #[serde(deserialize_with = "nullable")]
    pub literal_subject: String,
    #[serde(deserialize_with = "nullable")]
    pub common_name: String,
    pub duration: Option<Duration>,
    pub renew_before: Option<Duration>,
    pub renew_before_percentage: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub dns_names: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ip_addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub uris: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub email_addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub secret_name: String,
    #[serde(deserialize_with = "nullable")]
    pub secret_template: SecretTemplate,
    #[serde(deserialize_with = "nullable")]
    pub keystores: Keystores,
    #[serde(deserialize_with = "nullable")]
    pub issuer_ref: IssuerRef,
    #[serde(rename = "isCA", deserialize_with = "nullable")]
    pub is_ca: bool,
    #[serde(deserialize_with = "nullable")]
    pub usages: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub private_key: PrivateKeySpec,
    pub revision_history_limit: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub additional_output_formats: Vec<OutputFormat>,
    #[serde(deserialize_with = "nullable")]
    pub other_names: Vec<Value>,
    pub name_constraints: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    pub signature_algorithm: String,
}

/// Parts of a subject's name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    #[serde(deserialize_with = "nullable")]
    pub organizations: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub countries: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub organizational_units: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub localities: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub provinces: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub street_addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub postal_codes: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub serial_number: String,
}

/// What is copied to the secret's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretTemplate {
    #[serde(deserialize_with = "nullable_map")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable_map")]
    pub labels: BTreeMap<String, String>,
}

/// Forms of the key and certificate for programs that want a file of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Keystores {
    pub jks: Option<Keystore>,
    pub pkcs12: Option<Keystore>,
}

/// One such form.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Keystore {
    #[serde(deserialize_with = "nullable")]
    pub create: bool,
    #[serde(deserialize_with = "nullable")]
    pub alias: String,
    #[serde(deserialize_with = "nullable")]
    pub profile: String,
    pub password_secret_ref: Option<SecretKey>,
    pub password: Option<String>,
}

/// The key that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrivateKeySpec {
    #[serde(deserialize_with = "nullable")]
    pub rotation_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub encoding: String,
    #[serde(deserialize_with = "nullable")]
    pub algorithm: String,
    #[serde(deserialize_with = "nullable")]
    pub size: i32,
}

/// One more key in the secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputFormat {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
}

/// What the controller says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateStatus {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_private_key_secret_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_issuance_attempts: Option<i64>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    /// A condition as of `now`.
    pub fn new(type_: &str, holds: bool, reason: &str, message: &str, now: Timestamp) -> Self {
        Self {
            type_: type_.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(now),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: None,
        }
    }

    /// The same, seen at a generation of its object.
    #[must_use]
    pub fn at(self, generation: i64) -> Self {
        Self { observed_generation: Some(generation), ..self }
    }

    /// Takes the place of the condition of its type. The time of transition stays unless the status changes.
    pub fn set_in(mut self, list: &mut Vec<Self>) {
        match list.iter_mut().find(|c| c.type_ == self.type_) {
            Some(old) => {
                if old.status == self.status {
                    self.last_transition_time = old.last_transition_time.or(self.last_transition_time);
                }
                *old = self;
            }
            None => list.push(self),
        }
    }
}

/// A request to an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRequestSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    #[serde(deserialize_with = "nullable")]
    pub issuer_ref: IssuerRef,
    /// PEM in base64.
    #[serde(deserialize_with = "nullable")]
    pub request: String,
    #[serde(rename = "isCA", deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub is_ca: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub usages: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub username: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRequestStatus {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// PEM of leaf and intermediates, in base64.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub certificate: String,
    /// PEM of the root, in base64.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_time: Option<Timestamp>,
}

/// Who signs; exactly one is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IssuerSpec {
    pub self_signed: Option<Value>,
    pub ca: Option<CaIssuer>,
    pub acme: Option<AcmeIssuer>,
    pub vault: Option<VaultIssuer>,
    pub pkcs11: Option<Pkcs11Issuer>,
    pub kubernetes: Option<KubernetesIssuer>,
}

/// A signing certificate in a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaIssuer {
    #[serde(deserialize_with = "nullable")]
    pub secret_name: String,
}

/// An RFC 8555 server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeIssuer {
    #[serde(deserialize_with = "nullable")]
    pub email: String,
    #[serde(deserialize_with = "nullable")]
    pub server: String,
    #[serde(deserialize_with = "nullable")]
    pub preferred_chain: String,
    /// PEM in base64.
    #[serde(deserialize_with = "nullable")]
    pub ca_bundle: String,
    #[serde(rename = "skipTLSVerify", deserialize_with = "nullable")]
    pub skip_tls_verify: bool,
    #[serde(deserialize_with = "nullable")]
    pub private_key_secret_ref: SecretKey,
    #[serde(deserialize_with = "nullable")]
    pub disable_account_key_generation: bool,
    pub external_account_binding: Option<AcmeAccountBinding>,
    #[serde(deserialize_with = "nullable")]
    pub solvers: Vec<AcmeSolver>,
}

/// An account known to the server by other means.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeAccountBinding {
    #[serde(rename = "keyID", deserialize_with = "nullable")]
    pub key_id: String,
    #[serde(deserialize_with = "nullable")]
    pub key_secret_ref: SecretKey,
}

/// How the server is shown that a name is ours.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeSolver {
    pub selector: Option<AcmeSelector>,
    pub http01: Option<Value>,
    pub tls_alpn01: Option<Value>,
    pub dns01: Option<AcmeDns01>,
}

/// The names a solver is for; all when nothing is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeSelector {
    #[serde(deserialize_with = "nullable_map")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub dns_names: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub dns_zones: Vec<String>,
}

/// Records of the domain name system, written by a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeDns01 {
    pub webhook: Option<AcmeWebhook>,
}

/// The webhook: an API service that takes cert-manager's `ChallengePayload`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeWebhook {
    #[serde(deserialize_with = "nullable")]
    pub group_name: String,
    #[serde(deserialize_with = "nullable")]
    pub solver_name: String,
    pub config: Option<Value>,
}

/// Vault's PKI API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultIssuer {
    #[serde(deserialize_with = "nullable")]
    pub auth: VaultAuth,
    #[serde(deserialize_with = "nullable")]
    pub server: String,
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    /// PEM in base64.
    #[serde(deserialize_with = "nullable")]
    pub ca_bundle: String,
    pub ca_bundle_secret_ref: Option<SecretKey>,
}

/// How we show who we are; exactly one is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultAuth {
    pub token_secret_ref: Option<SecretKey>,
    pub app_role: Option<VaultAppRole>,
    pub kubernetes: Option<VaultKubernetes>,
}

/// A role's id and secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultAppRole {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub role_id: String,
    #[serde(deserialize_with = "nullable")]
    pub secret_ref: SecretKey,
}

/// A service account's token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultKubernetes {
    #[serde(deserialize_with = "nullable")]
    pub mount_path: String,
    #[serde(deserialize_with = "nullable")]
    pub role: String,
    pub secret_ref: Option<SecretKey>,
    pub service_account_ref: Option<ServiceAccountRef>,
}

/// A service account whose tokens are asked of the API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccountRef {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Audiences beside the issuer's own.
    #[serde(deserialize_with = "nullable")]
    pub audiences: Vec<String>,
}

/// A key in a hardware token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pkcs11Issuer {
    #[serde(deserialize_with = "nullable")]
    pub module: String,
    #[serde(deserialize_with = "nullable")]
    pub token_label: String,
    #[serde(deserialize_with = "nullable")]
    pub key_label: String,
    #[serde(deserialize_with = "nullable")]
    pub pin_secret_ref: SecretKey,
    #[serde(deserialize_with = "nullable")]
    pub certificate_secret_ref: SecretKey,
}

/// Kubernetes' own signing requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubernetesIssuer {
    #[serde(deserialize_with = "nullable")]
    pub signer_name: String,
}

/// What the controller says of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IssuerStatus {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<AcmeStatus>,
}

/// The account of an issuer behind ACME.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AcmeStatus {
    /// The account's URL.
    #[serde(deserialize_with = "nullable")]
    pub uri: String,
    #[serde(deserialize_with = "nullable")]
    pub last_registered_email: String,
    /// The directory it was made at.
    #[serde(deserialize_with = "nullable")]
    pub server: String,
}
