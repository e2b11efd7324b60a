//! Private keys: made, read, written; never shown.
//!
//! Invariant: `Debug` and errors hold no key bytes; a key that exists can sign. Where a key may be stored is the
//! caller's decision.

mod forms;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroize as _;

use crate::pem::{self, PemError};

/// The kinds of key that are generated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum KeyAlgorithm {
    /// NIST P-256, the default.
    #[default]
    EcdsaP256,
    /// NIST P-384.
    EcdsaP384,
    /// NIST P-521.
    EcdsaP521,
    /// Edwards curve 25519.
    Ed25519,
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 3072 bits.
    Rsa3072,
    /// RSA, 4096 bits.
    Rsa4096,
}

impl KeyAlgorithm {
    /// The name used in options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::EcdsaP521 => "ecdsa-p521",
            Self::Ed25519 => "ed25519",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyAlgorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.to_ascii_lowercase().as_str() {
            "ecdsa-p256" | "ecdsa" | "p256" => Ok(Self::EcdsaP256),
            "ecdsa-p384" | "p384" => Ok(Self::EcdsaP384),
            "ecdsa-p521" | "p521" => Ok(Self::EcdsaP521),
            "ed25519" => Ok(Self::Ed25519),
            "rsa-2048" | "rsa" => Ok(Self::Rsa2048),
            "rsa-3072" => Ok(Self::Rsa3072),
            "rsa-4096" => Ok(Self::Rsa4096),
            _ => Err(KeyError::Algorithm(text.to_owned())),
        }
    }
}

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An unknown algorithm name.
    #[error("unknown key algorithm {0:?}: ecdsa-p256, ecdsa-p384, ecdsa-p521, ed25519, rsa-2048, rsa-3072 or rsa-4096")]
    Algorithm(String),
    /// The text is no PEM key.
    #[error("private key: {0}")]
    Pem(#[from] PemError),
    /// The bytes are no key of a supported kind.
    #[error("private key of an unsupported kind")]
    Unsupported,
    /// The cryptographic library failed to make one.
    #[error("making a key failed")]
    Generate,
}

/// Key bytes that do not stay in memory when nobody holds them any more.
struct Wiped(PrivateKeyDer<'static>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A private key.
#[derive(Clone)]
pub struct PrivateKey {
    der: Arc<Wiped>,
    signer: Arc<dyn SigningKey>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl PartialEq for PrivateKey {
    /// Whether both are the same bytes; not for comparing with a peer's claim.
    fn eq(&self, other: &Self) -> bool {
        self.der.0.secret_der() == other.der.0.secret_der()
    }
}

impl Eq for PrivateKey {}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// The library has no randomness or no memory.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        let pair = generate_pair(algorithm)?;
        Self::from_der(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der())))
    }

    /// Reads the first key of a PEM text.
    ///
    /// # Errors
    /// No key in it, or one of an unsupported kind.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        Self::from_der(pem::private_key(text)?)
    }

    /// Takes a DER key.
    ///
    /// # Errors
    /// The key is of an unsupported kind.
    pub fn from_der(der: PrivateKeyDer<'static>) -> Result<Self, KeyError> {
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| KeyError::Unsupported)?;
        Ok(Self { der: Arc::new(Wiped(der)), signer })
    }

    /// The key as PEM, for the one file or socket it is meant for.
    pub fn to_pem(&self) -> String {
        let label = match &self.der.0 {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem::encode(label, self.der.0.secret_der())
    }

    /// Its kind; `None` for one that is never made here.
    pub fn algorithm(&self) -> Option<KeyAlgorithm> {
        let pair = self.key_pair().ok()?;
        if pair.algorithm() == &rcgen::PKCS_ED25519 {
            return Some(KeyAlgorithm::Ed25519);
        }
        let spki = self.signer.public_key()?;
        match x509_parser::x509::SubjectPublicKeyInfo::from_der(&spki).ok()?.1.parsed().ok()? {
            PublicKey::RSA(rsa) => match rsa.key_size() {
                2048 => Some(KeyAlgorithm::Rsa2048),
                3072 => Some(KeyAlgorithm::Rsa3072),
                4096 => Some(KeyAlgorithm::Rsa4096),
                _ => None,
            },
            PublicKey::EC(_) if pair.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256 => Some(KeyAlgorithm::EcdsaP256),
            PublicKey::EC(_) if pair.algorithm() == &rcgen::PKCS_ECDSA_P384_SHA384 => Some(KeyAlgorithm::EcdsaP384),
            PublicKey::EC(_) if pair.algorithm() == &rcgen::PKCS_ECDSA_P521_SHA512 => Some(KeyAlgorithm::EcdsaP521),
            _ => None,
        }
    }

    /// The key as DER, for the one file it is meant for.
    pub fn to_der(&self) -> Vec<u8> {
        self.der.0.secret_der().to_vec()
    }

    /// The key as PKCS#8, whatever it was read from; `None` for a kind that cannot be told.
    pub fn to_pkcs8_der(&self) -> Option<Vec<u8>> {
        forms::pkcs8(&self.der.0, self.algorithm()?)
    }

    /// The key as PKCS#8 PEM, for the one file it is meant for.
    pub fn to_pkcs8_pem(&self) -> Option<String> {
        self.to_pkcs8_der().map(|der| pem::encode("PRIVATE KEY", &der))
    }

    /// The key in the form of its kind: PKCS#1 for RSA, SEC1 for elliptic curves. Others have PKCS#8 only.
    pub fn to_traditional_pem(&self) -> Option<String> {
        let (label, der) = forms::traditional(&self.to_pkcs8_der()?, self.algorithm()?)?;
        Some(pem::encode(label, &der))
    }

    /// SHA-256 of the public half (SubjectPublicKeyInfo); `None` for a kind that cannot be told.
    pub fn spki_sha256(&self) -> Option<[u8; 32]> {
        self.signer.public_key().map(|spki| crate::certificate::sha256(&spki))
    }

    pub(crate) fn signer(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signer)
    }

    pub(crate) fn key_pair(&self) -> Result<rcgen::KeyPair, KeyError> {
        rcgen::KeyPair::try_from(&self.der.0).map_err(|_| KeyError::Unsupported)
    }
}

fn generate_pair(algorithm: KeyAlgorithm) -> Result<rcgen::KeyPair, KeyError> {
    use rcgen::{KeyPair, RsaKeySize};
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
    match algorithm {
        KeyAlgorithm::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyAlgorithm::EcdsaP521 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        KeyAlgorithm::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        KeyAlgorithm::Rsa2048 => rsa(RsaKeySize::_2048),
        KeyAlgorithm::Rsa3072 => rsa(RsaKeySize::_3072),
        KeyAlgorithm::Rsa4096 => rsa(RsaKeySize::_4096),
    }
    .map_err(|_| KeyError::Generate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trip_and_redaction() {
        use KeyAlgorithm::{EcdsaP256, EcdsaP384, EcdsaP521, Ed25519, Rsa2048};
        for algorithm in [EcdsaP256, EcdsaP384, EcdsaP521, Ed25519, Rsa2048] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let pem = key.to_pem();
            assert_eq!(PrivateKey::from_pem(pem.as_bytes()).unwrap().to_pem(), pem);
            assert_eq!(key.algorithm(), Some(algorithm));
            assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
            assert_eq!(algorithm.as_str().parse(), Ok(algorithm));
        }
    }

    #[test]
    fn a_key_keeps_what_it_is_in_every_form() {
        for algorithm in
            [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP521, KeyAlgorithm::Ed25519, KeyAlgorithm::Rsa2048]
        {
            let key = PrivateKey::generate(algorithm).unwrap();
            let traditional = key.to_traditional_pem().unwrap();
            let label = match algorithm {
                KeyAlgorithm::Rsa2048 => "-----BEGIN RSA PRIVATE KEY-----",
                KeyAlgorithm::Ed25519 => "-----BEGIN PRIVATE KEY-----",
                _ => "-----BEGIN EC PRIVATE KEY-----",
            };
            assert!(traditional.starts_with(label), "{algorithm}: {traditional}");
            for text in [traditional, key.to_pkcs8_pem().unwrap()] {
                let read = PrivateKey::from_pem(text.as_bytes()).unwrap();
                assert_eq!((read.spki_sha256(), read.algorithm()), (key.spki_sha256(), Some(algorithm)));
                // From either form to the other.
                let again = PrivateKey::from_pem(read.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
                assert_eq!(again.spki_sha256(), key.spki_sha256());
            }
        }
    }

    #[test]
    fn a_bad_key_names_no_bytes() {
        let text = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END PRIVATE KEY-----\n";
        let error = PrivateKey::from_pem(text).unwrap_err();
        assert_eq!(error, KeyError::Unsupported);
        assert!("dsa".parse::<KeyAlgorithm>().is_err());
    }
}
