//! One Secret as it comes over SDS: certificate, key and what lies beside them.
//!
//! Invariant: a [`Bundle`] has a certificate whose key is beside it; whatever does not fit together is refused whole. Bytes of keys are
//! wiped when dropped, and in no error.

use std::collections::BTreeMap;
use std::time::SystemTime;

use carrick_pki::identity::IdentityError;
use carrick_pki::{Identity, pem};
use carrick_xds::Any;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::config::Content;

/// Why a Secret is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not the message it should be.
    #[error("not a generic Secret of that name")]
    Message,
    /// Certificate and key are no pair.
    #[error(transparent)]
    Pair(#[from] IdentityError),
    /// Something that a file is made of is not in it.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
}

/// A Secret's certificate.
#[derive(Clone)]
pub struct Bundle {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Start of its life.
    pub not_before: SystemTime,
    /// End of its life.
    pub not_after: SystemTime,
    /// The certificate itself, DER.
    pub leaf: CertificateDer<'static>,
    parts: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Bundle {
    /// Reads one.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn read(name: &str, body: &Any) -> Result<Self, BundleError> {
        let message = Secret::decode(body.value.as_slice()).map_err(|_| BundleError::Message)?;
        let Some(Type::GenericSecret(generic)) = message.r#type else { return Err(BundleError::Message) };
        if message.name != name {
            return Err(BundleError::Message);
        }
        let parts = generic.secrets.into_iter().filter_map(|(key, source)| match source.specifier? {
            Specifier::InlineBytes(bytes) => Some((key, Zeroizing::new(bytes))),
            Specifier::InlineString(text) => Some((key, Zeroizing::new(text.into_bytes()))),
            _ => None,
        });
        Self::of(parts.collect())
    }

    /// Puts one together from a Secret's values.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn of(parts: BTreeMap<String, Zeroizing<Vec<u8>>>) -> Result<Self, BundleError> {
        let (chain, key) = pair(&parts);
        let chain = chain.ok_or(BundleError::Missing("certificate (tls.crt)"))?;
        let identity = Identity::from_pem(chain, key.ok_or(BundleError::Missing("private key (tls.key)"))?)?;
        let leaf = identity.chain.first().cloned().ok_or(BundleError::Message)?;
        Ok(Self {
            serial: identity.serial.clone(),
            not_before: identity.not_before,
            not_after: identity.not_after,
            leaf,
            parts,
        })
    }

    /// What a file of this content holds.
    ///
    /// # Errors
    /// [`BundleError::Missing`].
    pub fn content(&self, content: Content) -> Result<Zeroizing<Vec<u8>>, BundleError> {
        let (chain, key) = pair(&self.parts);
        let part = |names: &[&str], what| {
            let found = names.iter().find_map(|name| self.parts.get(*name));
            found.cloned().ok_or(BundleError::Missing(what))
        };
        let chain = || chain.map(ended).ok_or(BundleError::Missing("certificate (tls.crt)"));
        let key = || key.map(ended).ok_or(BundleError::Missing("private key (tls.key)"));
        match content {
            Content::Certificate => Ok(Zeroizing::new(pem::encode_certificate(&self.leaf).into_bytes())),
            Content::Chain => chain(),
            Content::Key => key(),
            Content::Combined => {
                let mut both = chain()?;
                both.extend_from_slice(&key()?);
                Ok(both)
            }
            Content::Ca => part(&["ca.crt", "cacert"], "authority (ca.crt)"),
            Content::Pkcs12 => part(&["keystore.p12"], "keystore.p12 (spec.keystores.pkcs12 of its Certificate)"),
            Content::Jks => part(&["keystore.jks"], "keystore.jks (spec.keystores.jks of its Certificate)"),
            Content::TrustPkcs12 => {
                part(&["truststore.p12"], "truststore.p12 (spec.keystores.pkcs12 of its Certificate)")
            }
            Content::TrustJks => part(&["truststore.jks"], "truststore.jks (spec.keystores.jks of its Certificate)"),
        }
    }
}

/// Certificate and key, of both forms (`kubernetes.io/tls` and generic).
fn pair(parts: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> (Option<&[u8]>, Option<&[u8]>) {
    let of = |name: &str| parts.get(name).map(|bytes| bytes.as_slice());
    match (of("cert"), of("key")) {
        (Some(chain), Some(key)) => (Some(chain), Some(key)),
        _ => (of("tls.crt"), of("tls.key")),
    }
}

/// PEM that another PEM can follow.
fn ended(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(text.to_vec());
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    text
}
