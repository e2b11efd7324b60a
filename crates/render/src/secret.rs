//! Secrets of the cluster as SDS resources (semantics §6.5, §6.6).
//!
//! Invariant: bytes go nowhere but into the resource; a resource's version says nothing of them but that they changed.

use carrick_mesh::view::{
    SecretPart,
    secret::{Bytes, SecretValue},
};
use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{self as tls, CertificateValidationContext, TlsCertificate, secret::Type},
};

/// One secret.
pub fn secret(from: &SecretPart) -> tls::Secret {
    let bytes =
        |from: &Bytes| DataSource { specifier: Some(Specifier::InlineBytes(from.0.to_vec())), ..DataSource::default() };
    let value = match &from.value {
        SecretValue::Certificate { chain, key, staple } => Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(bytes(chain)),
            private_key: Some(bytes(key)),
            ocsp_staple: staple.as_ref().map(bytes),
            ..TlsCertificate::default()
        }),
        SecretValue::Roots { roots, crl } => Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(bytes(roots)),
            crl: crl.as_ref().map(bytes),
            ..CertificateValidationContext::default()
        }),
    };
    tls::Secret { name: from.name.to_string(), r#type: Some(value) }
}
