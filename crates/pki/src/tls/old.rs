//! Leaves of X.509 version 1, which `openssl x509 -req` makes and Istio's own tutorials use; webpki does not read them.
//!
//! Invariant: such a leaf is accepted only when a root itself signed it, it is in its time and no revocation list is in
//! force. It has no names and no constraints, so it never passes where a name or a SPIFFE identity is asked for.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, DigitallySignedStruct, Error};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use std::time::{Duration, SystemTime};
use webpki::RawPublicKeyEntity;

use crate::certificate::{CertificateInfo, is_signed_by, public_key};
use crate::trust::TrustBundle;

/// Checks the chain of a leaf that is not of version 3.
pub(super) fn verify(
    roots: &TrustBundle,
    leaf: &CertificateDer<'_>,
    info: &CertificateInfo,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(now.as_secs()));
    let time = time.ok_or(CertificateError::BadEncoding)?;
    if time < info.not_before {
        return Err(CertificateError::NotValidYet);
    }
    if time > info.not_after {
        return Err(CertificateError::Expired);
    }
    if !roots.revocations().is_empty() {
        return Err(CertificateError::UnknownRevocationStatus);
    }
    match roots.roots().iter().any(|root| is_signed_by(leaf, root)) {
        true => Ok(()),
        false => Err(CertificateError::UnknownIssuer),
    }
}

/// The public key of a certificate that webpki does not read because of its version.
pub(super) fn key_of_old(cert: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let old = webpki::EndEntityCert::try_from(cert).err() == Some(webpki::Error::UnsupportedCertVersion);
    public_key(cert).filter(|_| old).map(SubjectPublicKeyInfoDer::from)
}

/// The proof of possession of TLS 1.2 (RFC 5246 §7.4.8), with a bare key.
pub(super) fn verify_tls12_signature(
    message: &[u8],
    key: &SubjectPublicKeyInfoDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = || Error::InvalidCertificate(CertificateError::BadSignature);
    let entity = RawPublicKeyEntity::try_from(key).map_err(|_| bad())?;
    let fitting = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme).flat_map(|(_, all)| all.iter());
    for algorithm in fitting {
        if entity.verify_signature(*algorithm, message, dss.signature()).is_ok() {
            return Ok(HandshakeSignatureValid::assertion());
        }
    }
    Err(bad())
}
