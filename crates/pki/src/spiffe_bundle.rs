//! A trust domain's roots as others read them: a SPIFFE bundle (SPIFFE Trust Domain and Bundle §4), a JWK set with `x5c`.
//!
//! Invariant: a bundle is read whole or refused: a key for X.509 identities that cannot be used makes all of it unusable, since a root
//! that is left out would have its identities refused without a word. Keys for other uses are not ours to read. How a bundle travels, and
//! who believes it, is not decided here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use x509_parser::public_key::PublicKey;

use crate::trust::{TrustBundle, TrustError};

/// What a key of an X.509 authority is for.
const USE: &str = "x509-svid";

/// Why a bundle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON, or not of this form.
    #[error("not a SPIFFE bundle: {0}")]
    Form(String),
    /// A key that says that it is a root and holds none.
    #[error("key {0}: {1}")]
    Key(usize, &'static str),
    /// One of the roots cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nothing in it vouches for X.509 identities.
    #[error("no key of it is for {USE}")]
    Empty,
}

/// A bundle with what comes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeBundle {
    /// The roots.
    pub roots: TrustBundle,
    /// Grows with each change.
    pub sequence: Option<u64>,
    /// How often it should be read again.
    pub refresh: Option<Duration>,
}

impl SpiffeBundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let value: Value = serde_json::from_slice(text).map_err(|e| BundleError::Form(e.to_string()))?;
        let keys =
            value.get("keys").and_then(Value::as_array).ok_or_else(|| BundleError::Form("no keys".to_owned()))?;
        let mut roots = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            if key.get("use").and_then(Value::as_str) == Some(USE) {
                roots.push(certificate(key).map_err(|why| BundleError::Key(index, why))?);
            }
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        Ok(Self {
            roots: TrustBundle::new(roots)?,
            sequence: number("spiffe_sequence"),
            refresh: number("spiffe_refresh_hint").map(Duration::from_secs),
        })
    }

    /// Writes it.
    pub fn to_json(&self) -> String {
        let keys: Vec<Value> = self.roots.roots().iter().filter_map(key).collect();
        let mut bundle = Map::new();
        bundle.insert("keys".to_owned(), keys.into());
        if let Some(sequence) = self.sequence {
            bundle.insert("spiffe_sequence".to_owned(), sequence.into());
        }
        if let Some(refresh) = self.refresh {
            bundle.insert("spiffe_refresh_hint".to_owned(), refresh.as_secs().into());
        }
        Value::Object(bundle).to_string()
    }
}

/// The one certificate of a key.
fn certificate(key: &Value) -> Result<CertificateDer<'static>, &'static str> {
    let [text] = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() else {
        return Err("x5c has to hold one certificate");
    };
    let bytes = STANDARD.decode(text.as_str().ok_or("x5c holds no text")?).map_err(|_| "x5c is not base64")?;
    Ok(CertificateDer::from(bytes))
}

/// A root as a key; `None` for kinds of keys that have no form here, which none of our own roots has.
fn key(root: &CertificateDer<'_>) -> Option<Value> {
    let (_, parsed) = x509_parser::parse_x509_certificate(root).ok()?;
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let x5c = json!([STANDARD.encode(root)]);
    match parsed.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            // Uncompressed: a byte 4, then both coordinates.
            let coordinates = point.data().strip_prefix(&[4])?;
            let (x, y) = coordinates.split_at_checked(coordinates.len() / 2)?;
            let curve = match x.len() {
                32 => "P-256",
                48 => "P-384",
                66 => "P-521",
                _ => return None,
            };
            Some(json!({"use": USE, "kty": "EC", "crv": curve, "x": number(x), "y": number(y), "x5c": x5c}))
        }
        PublicKey::RSA(rsa) => {
            let unsigned = |bytes: &[u8]| Some(number(bytes.get(bytes.iter().position(|byte| *byte != 0)?..)?));
            Some(
                json!({"use": USE, "kty": "RSA", "n": unsigned(rsa.modulus)?, "e": unsigned(rsa.exponent)?, "x5c": x5c}),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::ca::{CaOptions, SetTexts};
    use crate::key::KeyAlgorithm;

    fn root(algorithm: KeyAlgorithm) -> TrustBundle {
        let options = CaOptions { algorithm, ..CaOptions::default() };
        let texts = SetTexts::self_signed(&options, "", SystemTime::now()).unwrap();
        TrustBundle::from_pem(&texts.cert.bytes).unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let kinds =
            [(KeyAlgorithm::EcdsaP256, "P-256"), (KeyAlgorithm::EcdsaP384, "P-384"), (KeyAlgorithm::Rsa2048, "AQAB")];
        for (algorithm, has) in kinds {
            let bundle =
                SpiffeBundle { roots: root(algorithm), sequence: Some(7), refresh: Some(Duration::from_secs(60)) };
            let text = bundle.to_json();
            assert!(text.contains(has), "{text}");
            assert_eq!(SpiffeBundle::parse(text.as_bytes()).unwrap(), bundle);
        }
    }

    #[test]
    fn a_bundle_with_a_root_that_cannot_be_used_is_refused_whole() {
        let good = root(KeyAlgorithm::EcdsaP256);
        let good = key(&good.roots()[0]).unwrap();
        let token = json!({"use": "jwt-svid", "kty": "EC", "kid": "a"});
        let read = |keys: Value| {
            SpiffeBundle::parse(json!({"keys": keys}).to_string().as_bytes()).map(|b| b.roots.roots().len())
        };
        assert_eq!(read(json!([token, good])), Ok(1));
        assert_eq!(read(json!([token])), Err(BundleError::Empty));
        assert_eq!(read(json!([])), Err(BundleError::Empty));
        for x5c in [json!([]), json!(["AA==", "AA=="]), json!([7]), json!(["?"]), Value::Null] {
            assert!(matches!(read(json!([good, {"use": USE, "x5c": x5c}])), Err(BundleError::Key(1, _))), "{x5c}");
        }
        assert!(matches!(read(json!([good, {"use": USE, "x5c": ["AA=="]}])), Err(BundleError::Trust(_))));
        for text in ["", "[]", "{}", r#"{"keys": 1}"#] {
            assert!(matches!(SpiffeBundle::parse(text.as_bytes()), Err(BundleError::Form(_))), "{text}");
        }
    }
}
