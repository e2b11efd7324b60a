//! One key in a token.
//!
//! Invariant: signatures are of the algorithm that the certificate's key has: ECDSA with P-256 and SHA-256, P-384 and SHA-384, or
//! RSA PKCS#1 with SHA-256. A session that broke is opened anew once for a signature, with the same PIN.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::Session;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::module;

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The library of the token's maker.
    pub module: PathBuf,
    /// `CKA_LABEL` of the token.
    pub token: String,
    /// `CKA_LABEL` of the private key.
    pub key: String,
}

/// Why a token's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The library cannot be loaded.
    #[error("{0}: {1}")]
    Module(PathBuf, String),
    /// No token has the label.
    #[error("there is no token {0:?}")]
    NoToken(String),
    /// The PIN is another one.
    #[error("the PIN of the token {0:?} is wrong")]
    Pin(String),
    /// No private key, or more than one, has the label.
    #[error("the token has {1} private keys {0:?}, one is needed")]
    NoKey(String, usize),
    /// A kind of key that signs nothing here.
    #[error("the certificate's key is none that a token signs with here: ECDSA P-256, P-384 or RSA")]
    Kind,
    /// What was signed does not verify.
    #[error("the token's key is not the certificate's")]
    OtherKey,
    /// The token failed.
    #[error("the token: {0}")]
    Token(#[from] cryptoki::error::Error),
}

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    P256,
    P384,
    Rsa,
}

/// A key in a token. Signing blocks.
pub struct TokenKey {
    location: Location,
    pin: Zeroizing<String>,
    public: SubjectPublicKeyInfo,
    way: Way,
    session: Mutex<Option<Session>>,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").field("location", &self.location).finish_non_exhaustive()
    }
}

impl TokenKey {
    /// Opens a key, and has it sign something that `public_key` (SubjectPublicKeyInfo, DER) verifies. Blocks.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn open(location: Location, pin: &str, public_key: &[u8]) -> Result<Self, TokenError> {
        let public = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| TokenError::Kind)?;
        let algorithm = public.algorithm();
        let way = if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
            Way::P256
        } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
            Way::P384
        } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
            Way::Rsa
        } else {
            return Err(TokenError::Kind);
        };
        let key = Self { location, pin: Zeroizing::new(pin.to_owned()), public, way, session: Mutex::new(None) };
        let message = b"carrick: is this the certificate's key?";
        let signature = key.sign_in_token(message)?;
        let verifier: &dyn VerificationAlgorithm = match way {
            Way::P256 => &ECDSA_P256_SHA256_ASN1,
            Way::P384 => &ECDSA_P384_SHA384_ASN1,
            Way::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        };
        let verified = UnparsedPublicKey::new(verifier, key.public.der_bytes()).verify(message, &signature);
        verified.map_err(|_| TokenError::OtherKey)?;
        Ok(key)
    }

    fn sign_in_token(&self, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let mut held = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = held.as_ref()
            && let Ok(signature) = self.sign_with(session, message)
        {
            return Ok(signature);
        }
        // Dropped first: the last session that goes takes the login with it.
        *held = None;
        let session = module::session(&self.location.module, &self.location.token, &self.pin)?;
        let signature = self.sign_with(&session, message)?;
        *held = Some(session);
        Ok(signature)
    }

    fn sign_with(&self, session: &Session, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let label = self.location.key.clone();
        let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.clone().into_bytes())];
        let found = session.find_objects(&wanted)?;
        let [key] = found[..] else { return Err(TokenError::NoKey(label, found.len())) };
        match self.way {
            Way::Rsa => Ok(session.sign(&Mechanism::Sha256RsaPkcs, key, message)?),
            Way::P256 | Way::P384 => {
                let hash = if self.way == Way::P256 { &SHA256 } else { &SHA384 };
                let raw = session.sign(&Mechanism::Ecdsa, key, digest(hash, message).as_ref())?;
                Ok(encoded(&raw))
            }
        }
    }
}

/// An ECDSA signature as certificates have it (RFC 3279 §2.2.3), from the two numbers side by side that tokens give.
fn encoded(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut numbers = number(r);
    numbers.extend(number(s));
    let mut out = vec![0x30];
    // Two numbers of 48 bytes are 104 bytes at most: one byte tells the length.
    out.push(u8::try_from(numbers.len()).unwrap_or(0x7f));
    out.extend(numbers);
    out
}

fn number(bytes: &[u8]) -> Vec<u8> {
    let mut content: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    if content.first().is_none_or(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    let mut out = vec![0x02, u8::try_from(content.len()).unwrap_or(0x7f)];
    out.extend(content);
    out
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // rcgen has one error for keys elsewhere, without words; the token's own are told to whoever opened it.
        self.sign_in_token(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positive_and_short() {
        assert_eq!(encoded(&[0, 1, 0x80, 2]), [0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 2]);
        assert_eq!(encoded(&[0, 0, 0, 0]), [0x30, 6, 2, 1, 0, 2, 1, 0]);
    }
}
