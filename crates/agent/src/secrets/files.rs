//! Secrets that live in files: `file-cert:<cert>~<key>`, `file-root:<ca>`, `file-root:system` (spec §6.5), `file-crl:<list>`.
//!
//! Invariant: a secret is read whole or not at all, and key bytes never get into an error.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use carrick_pki::identity::IdentityError;
use carrick_pki::trust::TrustError;
use carrick_pki::{Identity, TrustBundle, pem};
use carrick_proxy::Secret;

use zeroize::Zeroizing;

use crate::names::{FILE_CERT, FILE_CRL, FILE_ROOT, SYSTEM_ROOTS};

/// Where distributions keep their roots; the first that exists counts.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a secret in files is not there.
#[derive(Debug, thiserror::Error)]
pub enum FileSecretError {
    /// A file is unreadable.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The pair is not one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The roots are none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// None of the known places has roots.
    #[error("no system roots found")]
    NoSystemRoots,
}

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSecret {
    /// Certificate chain and key.
    Pair {
        /// Chain.
        chain: PathBuf,
        /// Key.
        key: PathBuf,
    },
    /// Roots.
    Roots(PathBuf),
    /// Revocation lists.
    Revocations(PathBuf),
    /// The operating system's roots.
    System,
}

impl FileSecret {
    /// Reads a name; `None` for names of other kinds.
    pub fn parse(name: &str) -> Option<Self> {
        if name == SYSTEM_ROOTS {
            return Some(Self::System);
        }
        if let Some(path) = name.strip_prefix(FILE_ROOT) {
            return (!path.is_empty()).then(|| Self::Roots(path.into()));
        }
        if let Some(path) = name.strip_prefix(FILE_CRL) {
            return (!path.is_empty()).then(|| Self::Revocations(path.into()));
        }
        let (chain, key) = name.strip_prefix(FILE_CERT)?.split_once('~')?;
        (!chain.is_empty() && !key.is_empty()).then(|| Self::Pair { chain: chain.into(), key: key.into() })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// See [`FileSecretError`].
    pub fn read(&self) -> Result<Secret, FileSecretError> {
        match self {
            Self::Pair { chain, key } => {
                let secret = Zeroizing::new(bytes(key)?);
                Ok(Secret::Identity(Arc::new(Identity::from_pem(&bytes(chain)?, &secret)?)))
            }
            Self::Roots(path) => Ok(Secret::Trust(Arc::new(TrustBundle::from_pem(&bytes(path)?)?))),
            Self::Revocations(path) => {
                Ok(Secret::Trust(Arc::new(TrustBundle::default().with_revocations(&bytes(path)?)?)))
            }
            Self::System => {
                let text = bytes(system_bundle().ok_or(FileSecretError::NoSystemRoots)?)?;
                // A distribution's bundle may hold something we cannot use; the rest still counts.
                let usable = pem::certificates(&text)
                    .map_err(TrustError::from)?
                    .into_iter()
                    .filter(|root| TrustBundle::new([root.clone()]).is_ok());
                Ok(Secret::Trust(Arc::new(TrustBundle::new(usable)?)))
            }
        }
    }
}

impl FileSecret {
    /// What changes when one of its files is replaced or written, without reading it. An unreadable file has a mark too.
    pub fn mark(&self) -> Vec<Mark> {
        let of = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()));
        match self {
            Self::Pair { chain, key } => vec![of(chain), of(key)],
            Self::Roots(path) | Self::Revocations(path) => vec![of(path)],
            Self::System => vec![system_bundle().and_then(of)],
        }
    }
}

/// Whether something may still be changing without another mark: the file system's clock moves in steps.
pub fn is_fresh(mark: &[Mark]) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let last =
        |(_, _, seconds, _): &(u64, u64, i64, i64)| u64::try_from(*seconds).unwrap_or(0).saturating_add(1) >= now;
    mark.iter().flatten().any(last)
}

/// Inode, size and change time of a file; `None` when there is none.
pub type Mark = Option<(u64, u64, i64, i64)>;

fn system_bundle() -> Option<&'static Path> {
    SYSTEM_BUNDLES.iter().map(Path::new).find(|p| p.is_file())
}

fn bytes(path: &Path) -> Result<Vec<u8>, FileSecretError> {
    std::fs::read(path).map_err(|source| FileSecretError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let pair = |c: &str, k: &str| Some(FileSecret::Pair { chain: c.into(), key: k.into() });
        for (name, expect) in [
            ("file-cert:/c.pem~/k.pem", pair("/c.pem", "/k.pem")),
            ("file-root:/r.pem", Some(FileSecret::Roots("/r.pem".into()))),
            ("file-root:system", Some(FileSecret::System)),
            ("file-crl:/l.pem", Some(FileSecret::Revocations("/l.pem".into()))),
            ("file-crl:", None),
            ("file-cert:/c.pem", None),
            ("file-cert:~", None),
            ("file-root:", None),
            ("default", None),
            ("kubernetes://x", None),
        ] {
            assert_eq!(FileSecret::parse(name), expect, "{name}");
        }
    }
}
