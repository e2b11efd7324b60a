//! The certificate that answers a tls-alpn-01 challenge (RFC 8737 §3).
//!
//! Invariant: it names what is challenged and nothing else, signs nothing, and its key is known to nobody who could use it
//! elsewhere: it exists in memory only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, IsCa, SanType};
use rustls::sign::CertifiedKey;

use crate::ca::CaError;
use crate::key::{KeyAlgorithm, PrivateKey};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate for a DNS name with the digest of a key authorization, and its key.
///
/// # Errors
/// The name cannot be written, or there is no randomness.
pub fn answer(name: &str, digest: &[u8; 32], now: SystemTime) -> Result<Arc<CertifiedKey>, CaError> {
    let failed = |error: &dyn std::fmt::Display| CaError::Sign(error.to_string());
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| failed(&e))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(|_| CaError::Name(name.to_owned()))?)];
    params.not_before = now.checked_sub(DAY).unwrap_or(now).into();
    params.not_after = now.checked_add(DAY).unwrap_or(now).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let pair = key.key_pair().map_err(|e| failed(&e))?;
    let certificate = params.self_signed(&pair).map_err(|e| failed(&e))?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key.signer())))
}
