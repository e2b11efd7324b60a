//! Key sets (RFC 7517) and signatures (RFC 7518, 8037).
//!
//! Invariant: the kind of key decides which algorithms it can check, never the token alone: an RSA key checks RS and PS, an EC key the
//! one ES of its curve, an OKP key EdDSA, an oct key HS. A key that says `alg` checks nothing else. Keys that cannot be read are left out.

use std::fmt;

use aws_lc_rs::{digest, hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::Status;
use super::token::Token;

/// Public keys of an issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    kid: String,
    alg: String,
    material: Material,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, point: Vec<u8> },
    Ed25519(Vec<u8>),
    Oct(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl fmt::Debug for Key {
    /// Tells keys apart without showing secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match &self.material {
            Material::Rsa { n, .. } => n,
            Material::Ec { point, .. } => point,
            Material::Ed25519(key) | Material::Oct(key) => key,
        };
        let hash = digest::digest(&digest::SHA256, bytes);
        f.debug_struct("Key").field("kid", &self.kid).field("alg", &self.alg).field("hash", &hash).finish()
    }
}

impl KeySet {
    /// Reads a key set.
    ///
    /// # Errors
    /// It is no JSON, has no `keys`, or none of them can be used.
    pub fn parse(text: &[u8]) -> Result<Self, Status> {
        let json: Value = serde_json::from_slice(text).map_err(|_| Status::JwksJson)?;
        let keys = json.get("keys").and_then(Value::as_array).ok_or(Status::JwksNoKeys)?;
        let keys: Vec<Key> = keys.iter().filter_map(Key::parse).collect();
        if keys.is_empty() { Err(Status::NoValidKeys) } else { Ok(Self { keys }) }
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks a token's signature.
    ///
    /// # Errors
    /// No key fits the token, or none of those that fit has signed it.
    pub fn verify(&self, token: &Token) -> Result<(), Status> {
        if self.keys.is_empty() {
            return Err(Status::NoValidKeys);
        }
        let mut fits = false;
        for key in &self.keys {
            let other = |ours: &str, theirs: &str| !ours.is_empty() && !theirs.is_empty() && ours != theirs;
            if other(&key.kid, &token.kid) || other(&key.alg, &token.alg) {
                continue;
            }
            fits = true;
            // Envoy gives up here, although another key might fit.
            if matches!(key.material, Material::Ed25519(_)) && token.signature.len() != 64 {
                return Err(Status::EdLength);
            }
            if key.material.has_signed(&token.alg, token.signed.as_bytes(), &token.signature) {
                return Ok(());
            }
        }
        Err(if fits { Status::VerificationFails } else { Status::KidAlgMismatch })
    }
}

impl Key {
    fn parse(json: &Value) -> Option<Self> {
        let text = |field: &str| match json.get(field) {
            None => Some(""),
            Some(value) => value.as_str(),
        };
        let bytes = |field: &str| {
            URL_SAFE_NO_PAD.decode(text(field)?.trim_end_matches('=')).ok().filter(|b: &Vec<u8>| !b.is_empty())
        };
        let mut alg = text("alg")?.to_owned();
        let material = match text("kty")? {
            "RSA" if alg.is_empty() || alg.starts_with("RS") || alg.starts_with("PS") => {
                Material::Rsa { n: without_zeros(bytes("n")?), e: without_zeros(bytes("e")?) }
            }
            "EC" => {
                let (curve, of_curve, size) = match text("crv")? {
                    "P-256" | "" => (Curve::P256, "ES256", 32),
                    "P-384" => (Curve::P384, "ES384", 48),
                    "P-521" => (Curve::P521, "ES512", 66),
                    _ => return None,
                };
                if alg.is_empty() {
                    alg = of_curve.to_owned();
                } else if alg != of_curve {
                    return None;
                }
                let mut point = vec![4];
                for coordinate in [bytes("x")?, bytes("y")?] {
                    let coordinate = without_zeros(coordinate);
                    point.resize(point.len().checked_add(usize::checked_sub(size, coordinate.len())?)?, 0);
                    point.extend_from_slice(&coordinate);
                }
                Material::Ec { curve, point }
            }
            "OKP" if text("crv")? == "Ed25519" && (alg.is_empty() || alg == "EdDSA") => {
                Material::Ed25519(bytes("x").filter(|x| x.len() == 32)?)
            }
            "oct" if alg.is_empty() || alg.starts_with("HS") => Material::Oct(bytes("k")?),
            _ => return None,
        };
        Some(Self { kid: text("kid")?.to_owned(), alg, material })
    }
}

fn without_zeros(bytes: Vec<u8>) -> Vec<u8> {
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default().to_vec()
}

impl Material {
    fn has_signed(&self, alg: &str, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let parameters: &signature::RsaParameters = match alg {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            Self::Ec { curve, point } => {
                let algorithm: &dyn signature::VerificationAlgorithm = match (curve, alg) {
                    (Curve::P256, "ES256") => &signature::ECDSA_P256_SHA256_FIXED,
                    (Curve::P384, "ES384") => &signature::ECDSA_P384_SHA384_FIXED,
                    (Curve::P521, "ES512") => &signature::ECDSA_P521_SHA512_FIXED,
                    _ => return false,
                };
                signature::UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
            }
            Self::Ed25519(key) => {
                alg == "EdDSA"
                    && signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            Self::Oct(secret) => {
                let algorithm = match alg {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
            }
        }
    }
}
