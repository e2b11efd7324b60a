//! The seam behind which an authority's key lies: in memory, or in a device that never gives it out.
//!
//! Invariant: nothing but signatures and the public half comes through here. A device's key implements [`SigningKey`];
//! signing may block, which whoever signs on a runtime has to allow for. Where a device's key is, is said by a PKCS#11 URI
//! (RFC 7512) in the place of the key; devices are opened by whoever implements [`OpenKey`].

use std::fmt;
use std::sync::Arc;

use rcgen::{Error, SignatureAlgorithm};
pub use rcgen::{PublicKeyData, SigningKey};

use crate::key::{KeyError, PrivateKey};

/// How a PKCS#11 URI begins.
pub const TOKEN_SCHEME: &str = "pkcs11:";

/// Opens keys that are kept elsewhere.
pub trait OpenKey: fmt::Debug + Send + Sync {
    /// The key that a PKCS#11 URI names, which is that of `public_key` (SubjectPublicKeyInfo, DER). May block.
    ///
    /// # Errors
    /// Why it cannot be had, in words; without the PIN.
    fn open(&self, uri: &str, public_key: &[u8]) -> Result<CaKey, String>;
}

/// Where keys are in memory only.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTokens;

impl OpenKey for NoTokens {
    fn open(&self, _uri: &str, _public_key: &[u8]) -> Result<CaKey, String> {
        Err("keys in tokens are not used here".to_owned())
    }
}

/// A key that an authority signs with. Cheap to clone.
#[derive(Clone)]
pub struct CaKey(Arc<dyn SigningKey + Send + Sync>);

impl CaKey {
    /// A key that signs somewhere else.
    pub fn new(key: impl SigningKey + Send + Sync + 'static) -> Self {
        Self(Arc::new(key))
    }

    /// A key in memory.
    ///
    /// # Errors
    /// The key is of a kind that signs no certificates.
    pub fn in_memory(key: &PrivateKey) -> Result<Self, KeyError> {
        Ok(Self::new(key.key_pair()?))
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaKey(redacted)")
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(message)
    }
}
