//! Trust bundles: the roots a peer's chain may end in, and what those have revoked.
//!
//! Invariant: every certificate in a bundle parses as a trust anchor, and none is there twice. An empty bundle trusts
//! nobody; one with revocation lists wants every certificate below a root to be covered by one. Which bundle applies to which peer is decided elsewhere.

mod domains;

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use crate::certificate;
use crate::pem::{self, PemError};
pub use domains::Domains;

/// The name under which proxies ask for the other trust domains (a validation context).
pub const FEDERATION: &str = "carrick-federation";

/// Why a bundle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The text is no list of certificates.
    #[error("trust bundle: {0}")]
    Pem(#[from] PemError),
    /// One of the certificates cannot be an anchor.
    #[error("trust bundle: certificate {0} is not usable as a root")]
    Anchor(usize),
    /// One of the revocation lists cannot be used (RFC 5280 wants version 2).
    #[error("revocation list {0} is not usable")]
    RevocationList(usize),
}

/// How a revocation list begins.
const LIST: &[u8] = b"-----BEGIN X509 CRL-----";

/// A revocation list with its bytes.
struct Revocations {
    der: CertificateRevocationListDer<'static>,
    list: CertRevocationList<'static>,
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Revocations {}

/// A set of root certificates, in order of first appearance. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    revocations: Arc<[Arc<Revocations>]>,
    domains: Option<Arc<Domains>>,
    /// The lists are those of who signs leaves: of who signed those, nothing is said.
    leaves_only: bool,
}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustBundle({} roots, {} revocation lists", self.roots.len(), self.revocations.len())?;
        let others = self.domains.iter().flat_map(|domains| domains.others.keys());
        others.into_iter().try_for_each(|domain| write!(f, ", {domain}"))?;
        f.write_str(")")
    }
}

impl TrustBundle {
    /// A bundle of these certificates.
    ///
    /// # Errors
    /// One of them cannot be a trust anchor.
    pub fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for certificate in certificates {
            if !roots.contains(&certificate) {
                roots.push(certificate);
            }
        }
        let anchors = roots
            .iter()
            .enumerate()
            .map(|(index, root)| {
                webpki::anchor_from_trusted_cert(root).map(|a| a.to_owned()).map_err(|_| TrustError::Anchor(index))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { roots: roots.into(), anchors, revocations: Arc::default(), domains: None, leaves_only: false })
    }

    /// Reads a PEM list.
    ///
    /// # Errors
    /// Not PEM, no certificate, or one that cannot be an anchor.
    pub fn from_pem(text: &[u8]) -> Result<Self, TrustError> {
        Self::new(pem::certificates(text)?)
    }

    /// Reads a PEM list that may have revocation lists in it too.
    ///
    /// # Errors
    /// As [`Self::from_pem`], and as [`Self::with_revocations`].
    pub fn from_pem_with_lists(text: &[u8]) -> Result<Self, TrustError> {
        let bundle = Self::from_pem(text)?;
        let has_lists = text.windows(LIST.len()).any(|part| part == LIST);
        if has_lists { bundle.with_revocations(text) } else { Ok(bundle) }
    }

    /// The roots and the revocation lists as PEM.
    pub fn to_pem_with_lists(&self) -> String {
        self.to_pem() + &self.revocations_pem()
    }

    /// This bundle with the revocation lists of a PEM text added.
    ///
    /// # Errors
    /// Not PEM, no list, or one that cannot be used.
    pub fn with_revocations(mut self, text: &[u8]) -> Result<Self, TrustError> {
        let mut all = self.revocations.to_vec();
        for (index, der) in pem::revocation_lists(text)?.into_iter().enumerate() {
            let list = OwnedCertRevocationList::from_der(&der).map_err(|_| TrustError::RevocationList(index))?;
            let entry = Revocations { der, list: CertRevocationList::Owned(list) };
            if !all.iter().any(|known| **known == entry) {
                all.push(Arc::new(entry));
            }
        }
        self.revocations = all.into();
        Ok(self)
    }

    /// The same with lists that say something of leaves alone.
    #[must_use]
    pub fn for_leaves_only(mut self) -> Self {
        self.leaves_only = true;
        self
    }

    /// Whether only leaves have to be covered by a list.
    pub fn lists_leaves_only(&self) -> bool {
        self.leaves_only
    }

    /// The revocation lists alone.
    #[must_use]
    pub fn only_revocations(&self) -> Self {
        Self { revocations: Arc::clone(&self.revocations), leaves_only: self.leaves_only, ..Self::default() }
    }

    /// The revocation lists as PEM; empty when there are none.
    pub fn revocations_pem(&self) -> String {
        self.revocations.iter().map(|entry| pem::encode("X509 CRL", &entry.der)).collect()
    }

    /// The revocation lists, DER.
    pub fn revocations_der(&self) -> Vec<Vec<u8>> {
        self.revocations.iter().map(|entry| entry.der.to_vec()).collect()
    }

    /// The roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as PEM, each ending with a newline.
    pub fn to_pem(&self) -> String {
        pem::encode_certificates(self.roots.iter())
    }

    /// This bundle followed by what `other` has more.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let more: Vec<usize> = (0..other.roots.len())
            .filter(|i| other.roots.get(*i).is_some_and(|root| !self.roots.contains(root)))
            .collect();
        let take = |i: &usize| other.roots.get(*i).cloned();
        let anchor = |i: &usize| other.anchors.get(*i).cloned();
        Self {
            roots: self.roots.iter().cloned().chain(more.iter().filter_map(take)).collect(),
            anchors: self.anchors.iter().cloned().chain(more.iter().filter_map(anchor)).collect(),
            revocations: self
                .revocations
                .iter()
                .chain(other.revocations.iter().filter(|entry| !self.revocations.contains(entry)))
                .cloned()
                .collect(),
            domains: self.domains.clone().or_else(|| other.domains.clone()),
            leaves_only: self.leaves_only || other.leaves_only,
        }
    }

    /// Digests of the roots.
    pub fn fingerprints(&self) -> std::collections::BTreeSet<String> {
        self.roots.iter().map(certificate::fingerprint).collect()
    }

    /// Digests of the roots below which something is believed. With revocation lists those are the roots that have one:
    /// what no list covers is refused.
    pub fn believed(&self) -> std::collections::BTreeSet<String> {
        let listed = |subject: &[u8]| self.revocations.iter().any(|entry| entry.list.issuer() == subject);
        let all = self.roots.iter().zip(self.anchors.iter());
        let believed = all
            .filter(|(_, anchor)| self.revocations.is_empty() || self.leaves_only || listed(anchor.subject.as_ref()));
        believed.map(|(root, _)| certificate::fingerprint(root)).collect()
    }

    /// The digests of those roots that a chain (leaf first) leads to, by its last certificate's signature alone: for telling
    /// certificates apart, never for believing one.
    pub fn led_to(&self, chain: &[CertificateDer<'_>]) -> std::collections::BTreeSet<String> {
        let signed = |root: &&CertificateDer<'static>| chain.iter().any(|link| certificate::is_signed_by(link, root));
        self.roots.iter().filter(signed).map(certificate::fingerprint).collect()
    }

    /// Everything that decides who is believed, for [`crate::tls::TrustDigest`]: bundles that differ give other parts.
    pub fn parts(&self) -> Vec<Vec<u8>> {
        let mut parts = vec![vec![u8::from(self.leaves_only)]];
        let counted = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes().to_vec();
        parts.push(counted(self.roots.len()));
        parts.extend(self.roots.iter().map(|root| root.to_vec()));
        parts.push(counted(self.revocations.len()));
        parts.extend(self.revocations_der());
        for domains in self.domains.iter() {
            parts.extend(domains.own.iter().map(|domain| domain.to_string().into_bytes()));
            for (domain, bundle) in &domains.others {
                parts.push(domain.to_string().into_bytes());
                parts.extend(bundle.parts());
            }
        }
        parts
    }

    /// Whether revocation lists are asked about anybody.
    pub fn has_revocations(&self) -> bool {
        let others = || self.domains.iter().flat_map(|domains| domains.others.values());
        !self.revocations.is_empty() || others().any(|bundle| bundle.has_revocations())
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub(crate) fn revocations(&self) -> Vec<&CertRevocationList<'static>> {
        self.revocations.iter().map(|entry| &entry.list).collect()
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}
