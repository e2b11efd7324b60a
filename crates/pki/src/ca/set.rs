//! One signing set: a signing certificate with its key, what leads from it to a root, and the roots.
//!
//! Invariant: a [`CaSet`] that exists was checked: the key is the certificate's, the chain leads to one of its roots, every
//! link may sign at the time of the check and at its depth, and a throw-away leaf was signed and verified. Which set is in
//! force is decided elsewhere.

use std::time::SystemTime;

use rcgen::Issuer;
use rustls_pki_types::CertificateDer;

use super::key::{CaKey, NoTokens, OpenKey, PublicKeyData as _};
use super::texts::SetTexts;
use super::{CaError, canary, check};
use crate::certificate::{self, CertificateInfo};
use crate::journal;
use crate::key::PrivateKey;
use crate::pem;
use crate::trust::TrustBundle;

/// A checked signing set.
pub struct CaSet {
    pub(super) issuer: Issuer<'static, CaKey>,
    /// The signer and what leads from it towards a root, without roots.
    pub(super) path: Vec<CertificateDer<'static>>,
    signer: CertificateDer<'static>,
    roots: TrustBundle,
    crl: Option<String>,
    info: CertificateInfo,
    id: String,
}

impl std::fmt::Debug for CaSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaSet").field("id", &self.id).field("subject", &self.info.subject).finish_non_exhaustive()
    }
}

impl CaSet {
    /// Reads and checks a set whose key is among the texts.
    ///
    /// # Errors
    /// What is wrong, with the file it is wrong in.
    pub fn check(texts: &SetTexts, now: SystemTime) -> Result<Self, CaError> {
        Self::open(texts, &NoTokens, now)
    }

    /// The same where the key may be in a token: the text of the key is a PKCS#11 URI then. May block.
    ///
    /// # Errors
    /// What is wrong, with the file it is wrong in.
    pub fn open(texts: &SetTexts, tokens: &dyn OpenKey, now: SystemTime) -> Result<Self, CaError> {
        if let Some(uri) = texts.token_uri() {
            let own = pem::certificates(&texts.cert.bytes).map_err(|e| texts.cert.wrong(e))?;
            let public = own.first().and_then(CertificateInfo::public_key);
            let public = public.ok_or_else(|| texts.cert.wrong("has no key that can be read"))?;
            let key = tokens.open(uri, &public).map_err(|why| texts.key.wrong(why))?;
            return Self::with_key(texts, key, now);
        }
        let key = PrivateKey::from_pem(&texts.key.bytes).map_err(|e| texts.key.wrong(e))?;
        let key = CaKey::in_memory(&key).map_err(|e| texts.key.wrong(e))?;
        Self::with_key(texts, key, now)
    }

    /// The same with a key that is kept elsewhere; the key among the texts is not looked at.
    ///
    /// # Errors
    /// What is wrong, with the file it is wrong in.
    pub fn with_key(texts: &SetTexts, key: CaKey, now: SystemTime) -> Result<Self, CaError> {
        let mut own = pem::certificates(&texts.cert.bytes).map_err(|e| texts.cert.wrong(e))?;
        if own.len() > 1 && !texts.chain_in_cert {
            return Err(texts.cert.wrong("one certificate expected"));
        }
        let signer = own.remove(0);
        let info = CertificateInfo::read(&signer).map_err(|e| texts.cert.wrong(e))?;
        if certificate::raw_public_key(&signer).as_deref() != Some(key.der_bytes()) {
            return Err(texts.key.wrong(format!("the key is not that of the certificate in {}", texts.cert.name)));
        }
        let roots = TrustBundle::from_pem(&texts.roots.bytes).map_err(|e| texts.roots.wrong(e))?;
        if let Some(chain) = &texts.chain {
            own.extend(pem::certificates(&chain.bytes).map_err(|e| chain.wrong(e))?);
        }
        let path = check::path(texts, &signer, own, &roots, now)?;
        let crl = match &texts.crl {
            Some(crl) => {
                TrustBundle::default().with_revocations(&crl.bytes).map_err(|e| crl.wrong(e))?;
                Some(String::from_utf8_lossy(&crl.bytes).into_owned())
            }
            None => None,
        };
        let issuer = Issuer::from_ca_cert_der(&signer, key).map_err(|e| texts.cert.wrong(e))?;
        let id = id(&signer, &path, &roots, texts.token_uri());
        let set = Self { issuer, path, signer, roots, crl, info, id };
        canary::prove(&set, set.roots(), now).map_err(|e| match check::constrained(texts, &set.path, &set.roots) {
            Some(text) => text.wrong(format!("its name constraints leave no room for the mesh's names: {e}")),
            None => texts.cert.wrong(e),
        })?;
        Ok(set)
    }

    /// What tells this set from others: hexadecimal, the same for the same certificates with the key at the same place.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The roots its leaves lead to, and whichever others it brings along.
    pub fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// The signing certificate.
    pub fn signer(&self) -> &CertificateDer<'static> {
        &self.signer
    }

    /// What the signing certificate says.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The signer and what leads from it towards a root, without roots: what is sent along with a leaf.
    pub fn path(&self) -> &[CertificateDer<'static>] {
        &self.path
    }

    /// Which key signs, as journals have it.
    pub fn key_id(&self) -> String {
        journal::key_id(self.issuer.key())
    }

    /// The revocation list that came with it, PEM.
    pub fn crl(&self) -> Option<&str> {
        self.crl.as_deref()
    }

    /// Signs a throw-away leaf of each kind and verifies it as proxies would that trust `trust`.
    ///
    /// # Errors
    /// It cannot be signed, or is not trusted.
    pub fn prove(&self, trust: &TrustBundle, now: SystemTime) -> Result<(), CaError> {
        canary::prove(self, trust, now)
    }
}

fn id(signer: &CertificateDer<'_>, path: &[CertificateDer<'_>], roots: &TrustBundle, token: Option<&str>) -> String {
    let mut all = signer.as_ref().to_vec();
    for part in path.iter().chain(roots.roots()) {
        all.extend_from_slice(part);
    }
    // A key that moved into a token makes another set. How the token is reached, and its PIN, does not.
    all.extend_from_slice(token.and_then(|uri| uri.split('?').next()).unwrap_or_default().as_bytes());
    certificate::hex_all(certificate::sha256(&all).get(..8).unwrap_or_default())
}
