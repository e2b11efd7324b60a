//! The certificate authority: the signing set in force, the roots that are published, and the rules of what is signed (spec §19).
//!
//! Invariant: a leaf holds exactly the names of the given [`Subject`], is never a CA, and never outlives its signer. A set
//! comes into force only after a throw-away leaf of it was verified against the published roots, and roots are published
//! only if the set in force leads to one of them; so there is no moment at which a leaf is signed that the published roots
//! do not cover. Who may have which subject, and when sets change, is decided by the caller.

mod canary;
mod check;
mod crl;
mod files;
pub mod key;
mod leaf;
mod root;
mod set;
pub mod texts;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use carrick_base::{SpiffeId, TrustDomain};

pub use self::key::CaKey;
pub(crate) use self::leaf::random_serial;
pub use self::set::CaSet;
pub use self::texts::SetTexts;
use crate::csr::{self, CertificateRequest, CsrError};
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::key::{KeyAlgorithm, KeyError};
use crate::pem;
use crate::trust::TrustBundle;

/// How an authority is made and what it grants.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// Key of a new root.
    pub algorithm: KeyAlgorithm,
    /// CN and O of a new root.
    pub trust_domain: TrustDomain,
    /// Life of a new root.
    pub root_ttl: Duration,
    /// Life of a leaf when the caller names none.
    pub default_ttl: Duration,
    /// Longest life a caller may ask for.
    pub max_ttl: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for CaOptions {
    fn default() -> Self {
        Self {
            algorithm: KeyAlgorithm::default(),
            trust_domain: TrustDomain::default(),
            root_ttl: DAY.saturating_mul(3650),
            default_ttl: DAY,
            max_ttl: DAY.saturating_mul(90),
        }
    }
}

/// How long before it is signed a certificate of such a life begins: for the sake of verifiers whose clocks are behind, two minutes as
/// Istio's, up to an hour for those that live a day and longer.
pub fn backdate(ttl: Duration) -> Duration {
    (ttl / 24).clamp(Duration::from_secs(120), Duration::from_secs(60 * 60))
}

/// Whom a leaf names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A workload: one URI name, no subject.
    Workload(SpiffeId),
    /// A server of ours: DNS names and addresses.
    Server {
        /// DNS names.
        dns: Vec<String>,
        /// Addresses.
        ips: Vec<IpAddr>,
    },
}

/// Why nothing was signed, or why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is at fault.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The caller asks for too long a life.
    #[error("a certificate life of {asked:?} was asked for, at most {max:?} is given")]
    Ttl {
        /// What was asked for.
        asked: Duration,
        /// What is allowed.
        max: Duration,
    },
    /// The signer has expired.
    #[error("the signing certificate is not valid now")]
    SignerExpired,
    /// A name that cannot be written into a certificate.
    #[error("{0:?} cannot be a name in a certificate")]
    Name(String),
    /// The library refused to sign.
    #[error("signing failed: {0}")]
    Sign(String),
    /// The journal of certificates does not take it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A throw-away leaf is not trusted by the roots it was verified with.
    #[error("a throw-away leaf was not trusted: {0}")]
    Canary(String),
    /// A file of the authority cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the authority holds something else.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl CaError {
    /// Whether the caller can mend it by asking differently.
    pub fn is_callers_fault(&self) -> bool {
        matches!(self, Self::Csr(_) | Self::Ttl { .. } | Self::Name(_))
    }
}

impl From<(&Path, KeyError)> for CaError {
    fn from((path, error): (&Path, KeyError)) -> Self {
        Self::File { path: path.display().to_string(), reason: error.to_string() }
    }
}

/// A signed chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedChain {
    /// Leaf, then intermediates, one PEM each.
    pub chain: Vec<String>,
    /// All roots, PEM.
    pub root_bundle: String,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
}

impl IssuedChain {
    /// The list that goes over the wire: the chain, then the root bundle (spec §19.1).
    pub fn into_wire(self) -> Vec<String> {
        let mut list = self.chain;
        list.push(self.root_bundle);
        list
    }
}

/// The authority.
pub struct Authority {
    options: CaOptions,
    force: ArcSwap<Force>,
    journal: OnceLock<Arc<dyn Journal>>,
    /// Other sets that are held, and may have signed what still lives.
    held: ArcSwap<Vec<Arc<CaSet>>>,
}

/// What is in force, as one value.
struct Force {
    set: Arc<CaSet>,
    trust: TrustBundle,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let force = self.force.load();
        f.debug_struct("Authority").field("set", &force.set).field("trust", &force.trust).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the authority kept in `dir`, or makes a self-signed one there.
    ///
    /// Files: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, optional `cert-chain.pem`; mode 0600 in a folder of 0700.
    ///
    /// # Errors
    /// Unreadable files, a key that is not the certificate's, a certificate that may not sign or leads to no root.
    pub fn load_or_create(dir: &Path, options: CaOptions, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self::new(files::load_or_create(dir, &options, now)?, options))
    }

    /// An authority that signs with `set` and publishes its roots.
    pub fn new(set: impl Into<Arc<CaSet>>, options: CaOptions) -> Self {
        let set = set.into();
        let trust = set.roots().clone();
        Self {
            options,
            force: ArcSwap::from_pointee(Force { set, trust }),
            journal: OnceLock::new(),
            held: ArcSwap::default(),
        }
    }

    /// From now on every certificate is written into `journal`, and none is signed without. The first journal stays.
    pub fn record_in(&self, journal: Arc<dyn Journal>) {
        let _ = self.journal.set(journal);
    }

    /// The roots that are published: those of the set in force, and during a rotation others.
    pub fn roots(&self) -> TrustBundle {
        self.force.load().trust.clone()
    }

    /// The set in force.
    pub fn set(&self) -> Arc<CaSet> {
        Arc::clone(&self.force.load().set)
    }

    /// The options it was opened with.
    pub fn options(&self) -> &CaOptions {
        &self.options
    }

    /// End of the signer's validity.
    pub fn not_after(&self) -> SystemTime {
        self.force.load().set.info().not_after
    }

    /// Publishes other roots. Whoever changes sets and roots does so from one place, one after the other.
    ///
    /// # Errors
    /// The set in force does not lead to any of them; nothing is changed then.
    pub fn publish(&self, trust: TrustBundle, now: SystemTime) -> Result<(), CaError> {
        let set = self.set();
        set.prove(&trust, now)?;
        self.force.store(Arc::new(Force { set, trust }));
        Ok(())
    }

    /// Signs with another set from now on.
    ///
    /// # Errors
    /// It does not lead to any of the published roots; nothing is changed then.
    pub fn switch(&self, set: Arc<CaSet>, now: SystemTime) -> Result<(), CaError> {
        let trust = self.roots();
        set.prove(&trust, now)?;
        self.force.store(Arc::new(Force { set, trust }));
        Ok(())
    }

    /// Signs a leaf for `subject` over the key in `csr_pem`. `ttl` of `None` or zero means the default.
    ///
    /// # Errors
    /// The request, the life asked for, or the names are not acceptable; the signer has expired.
    pub fn sign(
        &self,
        csr_pem: &str,
        subject: &Subject,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<IssuedChain, CaError> {
        let ttl = match ttl {
            None | Some(Duration::ZERO) => self.options.default_ttl,
            Some(asked) if asked > self.options.max_ttl => {
                return Err(CaError::Ttl { asked, max: self.options.max_ttl });
            }
            Some(asked) => asked,
        };
        let force = self.force.load_full();
        let signer = force.set.info();
        if now < signer.not_before || now >= signer.not_after {
            return Err(CaError::SignerExpired);
        }
        let request = CertificateRequest::from_pem(csr_pem)?;
        let (issuer, journal) = (&force.set.issuer, self.journal.get());
        let leaf = leaf::sign(issuer, request.public_key(), subject, ttl, now, signer.not_after, journal)?;
        Ok(IssuedChain {
            chain: std::iter::once(leaf.pem)
                .chain(force.set.path().iter().map(|der| pem::encode_certificate(der)))
                .collect(),
            root_bundle: force.trust.to_pem(),
            not_after: leaf.not_after,
            serial: leaf.serial,
        })
    }

    /// A revocation list of the signer, PEM; `None` where a list of its own would not do: the signer is no root, so that its
    /// own certificate would have to be on a list too, or there are other roots. `number` grows from list to list.
    ///
    /// # Errors
    /// A serial is no number, or the signer may not sign lists.
    pub fn revocation_list(
        &self,
        revoked: &[(String, SystemTime)],
        number: u64,
        now: SystemTime,
    ) -> Result<Option<String>, CaError> {
        let force = self.force.load_full();
        if !force.set.path().is_empty() || force.trust.roots().len() != 1 {
            return Ok(None);
        }
        crl::sign(&force.set.issuer, revoked, number, self.options.max_ttl, now).map(Some)
    }

    /// Tells which sets there are besides the one in force: they sign revocation lists of what they have signed.
    pub fn hold(&self, sets: Vec<Arc<CaSet>>) {
        self.held.store(Arc::new(sets));
    }

    /// What tells those sets from others.
    pub fn held(&self) -> Vec<String> {
        self.held.load().iter().map(|set| set.id().to_owned()).collect()
    }

    /// A list of each set that is held, PEM, for verifiers that look at leaves alone. `issuers` are the keys ([`CaSet::key_id`]) that
    /// signed what lives. `None` where somebody signs whose list we cannot make: one of those keys, or whoever is below a published
    /// root that none of our sets leads to. Verifiers would refuse what no list covers.
    ///
    /// # Errors
    /// As [`Authority::revocation_list`].
    pub fn revocation_lists(
        &self,
        revoked: &[(String, SystemTime)],
        issuers: &BTreeSet<String>,
        number: u64,
        now: SystemTime,
    ) -> Result<Option<String>, CaError> {
        let force = self.force.load_full();
        let held = self.held.load_full();
        let mut sets: Vec<&Arc<CaSet>> = vec![&force.set];
        sets.extend(held.iter().filter(|set| set.key_id() != force.set.key_id() && now < set.info().not_after));
        let keys: BTreeSet<String> = sets.iter().map(|set| set.key_id()).collect();
        let chains = |set: &&Arc<CaSet>| {
            let chain: Vec<_> = std::iter::once(set.signer()).chain(set.path()).cloned().collect();
            force.trust.led_to(&chain)
        };
        let led_to: BTreeSet<String> = sets.iter().flat_map(chains).collect();
        if !keys.is_superset(issuers) || led_to != force.trust.fingerprints() {
            return Ok(None);
        }
        let list = |set: &Arc<CaSet>| crl::sign(&set.issuer, revoked, number, self.options.max_ttl, now);
        sets.into_iter().map(list).collect::<Result<String, CaError>>().map(Some)
    }

    /// A new key and a certificate for it: for servers of the control plane itself.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn issue(&self, subject: &Subject, ttl: Option<Duration>, now: SystemTime) -> Result<Identity, CaError> {
        let (key, request) = csr::new(self.options.algorithm)?;
        let issued = self.sign(&request, subject, ttl, now)?;
        let chain = pem::certificates(issued.chain.concat().as_bytes()).map_err(|e| CaError::Sign(e.to_string()))?;
        Identity::new(chain, key).map_err(|e| CaError::Sign(e.to_string()))
    }
}
