//! What an agent remembers of a delivery across its own restarts.
//!
//! Invariant: holds nothing secret; what cannot be read is as if it was never written, which costs a reload too many.

use std::path::{Path, PathBuf};

use carrick_pki::pem;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// The set of files that was put in place.
    pub version: String,
    /// Whether the consumer was told of it.
    pub reloaded: bool,
    /// The certificate, PEM.
    pub certificate: String,
}

impl Remembered {
    /// The certificate.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        pem::certificates(self.certificate.as_bytes()).ok()?.into_iter().next()
    }
}

/// The memory's file.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// The memory of a consumer in the agent's folder.
    pub fn of(state_dir: &Path, consumer: &str) -> Self {
        Self { path: state_dir.join("certificates").join(format!("{consumer}.json")) }
    }

    /// What is remembered, if anything.
    pub fn read(&self) -> Option<Remembered> {
        serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()
    }

    /// Remembers it.
    pub fn write(&self, remembered: &Remembered) {
        let done = || -> std::io::Result<()> {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let new = self.path.with_extension("new");
            std::fs::write(&new, serde_json::to_vec_pretty(remembered)?)?;
            std::fs::rename(&new, &self.path)
        };
        if let Err(error) = done() {
            warn!(path = %self.path.display(), %error, "cannot be remembered; after a restart the reload is run once more");
        }
    }
}
