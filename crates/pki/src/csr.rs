//! Certificate signing requests: made by agents, read by the authority.
//!
//! Invariant: a [`CertificateRequest`] has a valid signature by its own key, and that is all that is believed of it.
//! Names and extensions in it are not even looked at, so that no client's habits can make it fail.

use rcgen::{CertificateParams, DistinguishedName, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
use x509_parser::public_key::PublicKey;

use crate::certificate;
use crate::key::{KeyAlgorithm, KeyError, PrivateKey};

/// Longest request read, in bytes of PEM.
const MAX_LEN: usize = 32 << 10;
/// Sizes of RSA keys that are certified, in bits: weak ones are refused, and so are ones that cost others time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a request was refused or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than 32 KiB.
    #[error("the certificate request is too long")]
    TooLong,
    /// No PEM certificate request.
    #[error("not a PEM certificate request")]
    Syntax,
    /// The signature is not by the key inside.
    #[error("the certificate request's signature is not valid")]
    Signature,
    /// A key that is not certified here.
    #[error("the certificate request's key is not supported: {0}")]
    Key(&'static str),
    /// The own key could not be made.
    #[error(transparent)]
    Generate(#[from] KeyError),
    /// The request could not be written.
    #[error("writing the certificate request failed")]
    Write,
}

/// A new key and a PEM request for it. The request names nobody: the authority knows who asks.
///
/// # Errors
/// No key could be made.
pub fn new(algorithm: KeyAlgorithm) -> Result<(PrivateKey, String), CsrError> {
    let key = PrivateKey::generate(algorithm)?;
    let text = of(&key)?;
    Ok((key, text))
}

/// A PEM request for a key that is there already.
///
/// # Errors
/// The key is of a kind that cannot sign requests.
pub fn of(key: &PrivateKey) -> Result<String, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key.key_pair()?).map_err(|_| CsrError::Write)?;
    request.pem().map_err(|_| CsrError::Write)
}

/// A request whose sender has shown to hold the key.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    public_key: SubjectPublicKeyInfo,
}

impl CertificateRequest {
    /// Reads and checks a PEM request.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        if text.len() > MAX_LEN {
            return Err(CsrError::TooLong);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| CsrError::Syntax)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Syntax)?;
        if !rest.is_empty() {
            return Err(CsrError::Syntax);
        }
        let spki = &request.certification_request_info.subject_pki;
        match spki.parsed() {
            Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => {}
            Ok(PublicKey::RSA(_)) => return Err(CsrError::Key("RSA keys need 2048 to 8192 bits")),
            Ok(PublicKey::EC(_)) => {}
            _ if spki.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519 => {}
            _ => return Err(CsrError::Key("RSA, ECDSA or Ed25519 only")),
        }
        let (signed, signature) = (request.certification_request_info.raw, &request.signature_value.data);
        if request.verify_signature().is_err()
            && !certificate::is_p521_signature(spki, &request.signature_algorithm, signed, signature)
        {
            return Err(CsrError::Signature);
        }
        let public_key =
            SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key("an unknown curve or parameter"))?;
        Ok(Self { public_key })
    }

    /// SHA-256 of the key (SubjectPublicKeyInfo), hexadecimal: tells whether two requests are for the same key.
    pub fn key_digest(&self) -> String {
        use rcgen::PublicKeyData as _;
        crate::join::fingerprint(&self.public_key.subject_public_key_info())
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }
}
