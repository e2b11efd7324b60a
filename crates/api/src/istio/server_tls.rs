//! TLS of a server: the block that `Gateway` servers and the ingress listeners of a `Sidecar` share.
//!
//! Invariant: fields are kept as written; which of them go together is `validate`'s, what they mean is decided in `mesh`.

use serde::{Deserialize, Serialize};

use crate::scalar::{nullable, proto_enum};

/// Suites below TLS 1.3 that the engines know, in OpenSSL's names.
pub const CIPHER_SUITES: [&str; 14] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
];

/// TLS settings of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub https_redirect: bool,
    #[serde(deserialize_with = "nullable")]
    pub mode: ServerTlsMode,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub credential_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_cert_credential_name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tls_certificates: Vec<ServerTlsCertificate>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_spki: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_hash: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub min_protocol_version: TlsProtocol,
    #[serde(deserialize_with = "nullable")]
    pub max_protocol_version: TlsProtocol,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
}

/// One of several certificates of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTlsCertificate {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
}

proto_enum! {
    /// Who shows which certificate.
    pub enum ServerTlsMode {
        /// The server name chooses the destination; nothing is terminated.
        Passthrough = 0 "PASSTHROUGH",
        /// The server shows a certificate.
        Simple = 1 "SIMPLE",
        /// Both do.
        Mutual = 2 "MUTUAL",
        /// As PASSTHROUGH, with the destination's name in the server name.
        AutoPassthrough = 3 "AUTO_PASSTHROUGH",
        /// Both do, with the mesh's own certificates.
        IstioMutual = 4 "ISTIO_MUTUAL",
        /// The server does, and verifies a client's if it shows one.
        OptionalMutual = 5 "OPTIONAL_MUTUAL",
    } default Passthrough
}

proto_enum! {
    /// A version of TLS.
    pub enum TlsProtocol {
        /// The implementation's choice.
        Auto = 0 "TLS_AUTO",
        V1_0 = 1 "TLSV1_0",
        V1_1 = 2 "TLSV1_1",
        V1_2 = 3 "TLSV1_2",
        V1_3 = 4 "TLSV1_3",
    } default Auto
}
