//! The secrets the engine may use, by SDS name.
//!
//! Invariant: a name that is not here means "refuse"; nothing falls back to plaintext or to another name. Fetching and
//! rotating are the agent's.

use carrick_pki::{Identity, Quarantine, TrustBundle};
use std::collections::HashMap;
use std::sync::Arc;

/// All secrets at one moment. A rotation is a new value.
#[derive(Debug, Default, Clone)]
pub struct Secrets {
    /// By SDS name: `default`, `ROOTCA`, `file-cert:…`.
    pub by_name: HashMap<String, Secret>,
    /// With whom no connection may be, whatever it shows.
    pub quarantine: Arc<Quarantine>,
}

/// One secret.
#[derive(Debug, Clone)]
pub enum Secret {
    /// Certificate chain and key.
    Identity(Arc<Identity>),
    /// Trusted roots.
    Trust(Arc<TrustBundle>),
}

impl Secrets {
    /// The certificate and key of a name.
    pub fn identity(&self, name: &str) -> Option<&Arc<Identity>> {
        match self.by_name.get(name) {
            Some(Secret::Identity(i)) => Some(i),
            _ => None,
        }
    }

    /// The roots of a name.
    pub fn trust(&self, name: &str) -> Option<&Arc<TrustBundle>> {
        match self.by_name.get(name) {
            Some(Secret::Trust(t)) => Some(t),
            _ => None,
        }
    }
}
