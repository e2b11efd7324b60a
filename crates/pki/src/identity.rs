//! A workload's or server's own certificate chain with its key.
//!
//! Invariant: the key belongs to the leaf, and the chain is not empty. Whether it is still valid is a question of time,
//! which the holder asks; who issued it is not looked at here.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use carrick_base::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::certificate::{CertificateError, CertificateInfo, public_key};
use crate::key::{KeyError, PrivateKey};
use crate::pem::{self, PemError};

/// Why there is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The chain is no list of certificates.
    #[error("certificate chain: {0}")]
    Pem(#[from] PemError),
    /// The leaf is unreadable.
    #[error("certificate chain: {0}")]
    Certificate(#[from] CertificateError),
    /// The key is unreadable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is another certificate's.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// No certificate in the chain.
    #[error("the certificate chain is empty")]
    Empty,
}

/// A certificate chain (leaf first) and its key.
#[derive(Clone)]
pub struct Identity {
    /// Leaf, then intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKey,
    /// The leaf's SPIFFE ID, when it has exactly one URI name and that is one.
    pub spiffe: Option<SpiffeId>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// DNS names of the leaf, lower case; its common name where it has none.
    pub(crate) names: Vec<String>,
    certified: Arc<CertifiedKey>,
}

fn names(info: &CertificateInfo) -> Vec<String> {
    let common = info.subject.split(", ").find_map(|part| part.strip_prefix("CN="));
    let from_subject = common.filter(|_| info.dns.is_empty()).map(str::to_ascii_lowercase);
    info.dns.iter().map(|name| name.to_ascii_lowercase()).chain(from_subject).collect()
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe", &self.spiffe)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Joins a chain and its key.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, IdentityError> {
        let info = CertificateInfo::read(chain.first().ok_or(IdentityError::Empty)?)?;
        let certified = CertifiedKey::new(chain.clone(), key.signer());
        // Compared as bytes, since certificates of version 1 are not parsed by rustls.
        let (own, shown) = (certified.key.public_key(), chain.first().and_then(public_key));
        if own.is_none() || own.as_ref().map(|own| own.as_ref()) != shown.as_deref() {
            return Err(IdentityError::Mismatch);
        }
        let spiffe = match info.uris.as_slice() {
            [uri] => uri.parse().ok(),
            _ => None,
        };
        Ok(Self {
            chain,
            key,
            spiffe,
            not_before: info.not_before,
            not_after: info.not_after,
            names: names(&info),
            serial: info.serial,
            certified: Arc::new(certified),
        })
    }

    /// Reads chain and key from PEM.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        Self::new(pem::certificates(chain)?, PrivateKey::from_pem(key)?)
    }

    /// The same with an OCSP response (DER) to staple where a client asks for one.
    #[must_use]
    pub fn with_ocsp(mut self, response: Vec<u8>) -> Self {
        let mut certified = CertifiedKey::new(self.chain.clone(), self.key.signer());
        certified.ocsp = Some(response).filter(|response| !response.is_empty());
        self.certified = Arc::new(certified);
        self
    }

    /// The OCSP response, DER.
    pub fn ocsp(&self) -> Option<&[u8]> {
        self.certified.ocsp.as_deref()
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(self.chain.iter())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}
