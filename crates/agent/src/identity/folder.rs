//! Key and certificate of a machine on its disk, so that it comes back by itself after it was switched off.
//!
//! Invariant: files of the agent's user alone (0600 in a folder of 0700); key and chain are one file, replaced as a whole and only when it
//! has reached the disk, so that a machine that loses its power has the old pair or the new one. Pods keep nothing: this is for machines.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use carrick_pki::{Identity, KeyAlgorithm, PrivateKey, TrustBundle, pem};

/// Key and chain.
const IDENTITY: &str = "identity.pem";
/// The roots that came with the last certificate.
const ROOTS: &str = "roots.pem";
/// The key that the first certificate is asked for with, until there is one.
const PENDING: &str = "joining-key.pem";

/// Why the folder is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder that need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What was kept; `None` when nothing was.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn load(&self) -> Result<Option<(Identity, TrustBundle)>, FolderError> {
        let Some(text) = self.read(IDENTITY)? else { return Ok(None) };
        let identity = Identity::from_pem(&text, &text).map_err(|error| self.content(IDENTITY, &error))?;
        let roots = match self.read(ROOTS)? {
            Some(text) => TrustBundle::from_pem(&text).map_err(|error| self.content(ROOTS, &error))?,
            None => TrustBundle::default(),
        };
        Ok(Some((identity, roots)))
    }

    /// Keeps a certificate with its key, and the roots that came with it.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn save(&self, identity: &Identity, roots: &TrustBundle) -> Result<(), FolderError> {
        self.write(ROOTS, roots.to_pem().as_bytes())?;
        let mut text = identity.key.to_pem();
        text.push_str(&pem::encode_certificates(&identity.chain));
        self.write(IDENTITY, text.as_bytes())?;
        match std::fs::remove_file(self.path.join(PENDING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(PENDING)(error)),
            _ => Ok(()),
        }
    }

    /// The key to ask for the first certificate with: the one of a try that was cut off, else a new one. The token was used up for it.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn joining_key(&self, algorithm: KeyAlgorithm) -> Result<PrivateKey, FolderError> {
        if let Some(text) = self.read(PENDING)? {
            return PrivateKey::from_pem(&text).map_err(|error| self.content(PENDING, &error));
        }
        let key = PrivateKey::generate(algorithm).map_err(|error| self.content(PENDING, &error))?;
        self.write(PENDING, key.to_pem().as_bytes())?;
        Ok(key)
    }

    /// Keeps the roots that the authority tells by itself.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn save_roots(&self, roots: &TrustBundle) -> Result<(), FolderError> {
        self.write(ROOTS, roots.to_pem().as_bytes())
    }

    /// Keeps something else under a name of its own.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn keep(&self, name: &'static str, bytes: &[u8]) -> Result<(), FolderError> {
        self.write(name, bytes)
    }

    /// What was kept under that name.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn kept(&self, name: &'static str) -> Result<Option<Vec<u8>>, FolderError> {
        self.read(name)
    }

    fn read(&self, name: &'static str) -> Result<Option<Vec<u8>>, FolderError> {
        match std::fs::read(self.path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io(name)(error)),
        }
    }

    fn write(&self, name: &'static str, text: &[u8]) -> Result<(), FolderError> {
        let written = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            let (path, staged) = (self.path.join(name), self.path.join(format!(".{name}.new")));
            // What a killed predecessor left would keep its mode.
            let _ = std::fs::remove_file(&staged);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
            file.write_all(text)?;
            file.sync_all()?;
            std::fs::rename(&staged, path)?;
            File::open(&self.path)?.sync_all()
        };
        written().map_err(self.io(name))
    }

    fn io(&self, name: &str) -> impl FnOnce(io::Error) -> FolderError + use<> {
        let path = self.path.join(name);
        move |source| FolderError::Io { path, source }
    }

    fn content(&self, name: &str, reason: &dyn std::fmt::Display) -> FolderError {
        FolderError::Content { path: self.path.join(name), reason: reason.to_string() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_base::SpiffeId;
    use carrick_pki::ca::{Authority, CaOptions, Subject};
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    #[test]
    fn what_was_kept_comes_back_and_is_nobody_elses() {
        let base = std::env::temp_dir().join(format!("carrick-folder-{}", std::process::id()));
        let authority = Authority::load_or_create(&base.join("ca"), CaOptions::default(), SystemTime::now()).unwrap();
        let folder = Folder::new(base.join("own"));
        assert!(folder.load().unwrap().is_none());
        let key = folder.joining_key(KeyAlgorithm::default()).unwrap();
        assert_eq!(folder.joining_key(KeyAlgorithm::default()).unwrap(), key, "a second try has the same key");
        let spiffe: SpiffeId = "spiffe://cluster.local/ns/gopay/sa/ledger".parse().unwrap();
        let identity = authority.issue(&Subject::Workload(spiffe), None, SystemTime::now()).unwrap();
        folder.save(&identity, &authority.roots()).unwrap();
        let (read, roots) = folder.load().unwrap().unwrap();
        assert_eq!((&read.chain, &read.key, &read.spiffe), (&identity.chain, &identity.key, &identity.spiffe));
        assert_eq!(roots, authority.roots());
        assert_ne!(folder.joining_key(KeyAlgorithm::default()).unwrap(), key, "the first one has done its work");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&folder.path().join(IDENTITY))), (0o700, 0o600));
        std::fs::write(folder.path().join(IDENTITY), "half").unwrap();
        assert!(matches!(folder.load(), Err(FolderError::Content { .. })));
        std::fs::remove_dir_all(base).unwrap();
    }
}
