//! A secret as the control plane sends it (`envoy.extensions.transport_sockets.tls.v3.Secret`) into one that the engine takes.
//!
//! Invariant: read whole or refused with the field's name; what it holds is never in an error.

use std::sync::Arc;

use carrick_pki::identity::IdentityError;
use carrick_pki::trust::TrustError;
use carrick_pki::{Identity, TrustBundle};
use carrick_proxy::Secret;
use carrick_xds::Any;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use prost::Message as _;
use zeroize::Zeroizing;

/// Why a secret is refused.
#[derive(Debug, thiserror::Error)]
pub enum RemoteSecretError {
    /// Not the message it should be.
    #[error("not a Secret")]
    Message,
    /// The name in it is another.
    #[error("name: {0:?} is not the resource's name")]
    Name(String),
    /// A field that cannot be used.
    #[error("{0}: {1}")]
    Field(&'static str, &'static str),
    /// The pair is not one.
    #[error("tls_certificate: {0}")]
    Identity(#[from] IdentityError),
    /// The roots or lists cannot be used.
    #[error("validation_context: {0}")]
    Trust(#[from] TrustError),
}

/// Reads one.
///
/// # Errors
/// See [`RemoteSecretError`].
pub fn read(name: &str, body: &Any) -> Result<Secret, RemoteSecretError> {
    use RemoteSecretError as E;
    let message = tls::Secret::decode(body.value.as_slice()).map_err(|_| E::Message)?;
    if message.name != name {
        return Err(E::Name(message.name));
    }
    match message.r#type {
        Some(tls::secret::Type::TlsCertificate(pair)) => {
            if pair.password.is_some() || pair.pkcs12.is_some() || pair.private_key_provider.is_some() {
                return Err(E::Field("tls_certificate", "only a PEM key without password is supported"));
            }
            let chain = inline("tls_certificate.certificate_chain", pair.certificate_chain)?;
            let key = Zeroizing::new(inline("tls_certificate.private_key", pair.private_key)?);
            let identity = Identity::from_pem(&chain, &key)?;
            let staple = match pair.ocsp_staple {
                Some(source) => inline("tls_certificate.ocsp_staple", Some(source))?,
                None => Vec::new(),
            };
            Ok(Secret::Identity(Arc::new(identity.with_ocsp(staple))))
        }
        Some(tls::secret::Type::ValidationContext(context)) => {
            let rest = tls::CertificateValidationContext { trusted_ca: None, crl: None, ..context.clone() };
            if rest != tls::CertificateValidationContext::default() {
                return Err(E::Field("validation_context", "only trusted_ca and crl are supported in a secret"));
            }
            let mut bundle = TrustBundle::from_pem(&inline("validation_context.trusted_ca", context.trusted_ca)?)?;
            if let Some(lists) = context.crl {
                bundle = bundle.with_revocations(&inline("validation_context.crl", Some(lists))?)?;
            }
            Ok(Secret::Trust(Arc::new(bundle)))
        }
        Some(tls::secret::Type::SessionTicketKeys(_)) => Err(E::Field("session_ticket_keys", "unsupported field")),
        Some(tls::secret::Type::GenericSecret(_)) => Err(E::Field("generic_secret", "unsupported field")),
        None => Err(E::Field("type", "missing")),
    }
}

fn inline(field: &'static str, source: Option<DataSource>) -> Result<Vec<u8>, RemoteSecretError> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(_) => Err(RemoteSecretError::Field(field, "only inline data is supported")),
        None => Err(RemoteSecretError::Field(field, "missing")),
    }
}
