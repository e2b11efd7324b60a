//! Keys of signing sets that are in PKCS#11 tokens.
//!
//! Invariant: only libraries that the control plane was started with are loaded, since they run in its process, and whoever may write a
//! Secret `cacerts` must not choose what runs here. A key counts once it has signed something that its certificate verifies.

use std::path::PathBuf;
use std::sync::Arc;

use carrick_pki::ca::CaKey;
use carrick_pki::ca::key::OpenKey;
use carrick_token::{KeyUri, TokenKey};

/// The libraries that may be loaded.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    modules: Arc<[PathBuf]>,
}

impl Tokens {
    /// Those whose keys are in these libraries' tokens.
    pub fn new(modules: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { modules: modules.into_iter().collect() }
    }
}

impl OpenKey for Tokens {
    fn open(&self, uri: &str, public_key: &[u8]) -> Result<CaKey, String> {
        let uri = KeyUri::parse(uri).map_err(|e| e.to_string())?;
        let module = &uri.location.module;
        if !self.modules.contains(module) {
            let why = "is not among the libraries that the control plane may load: start it with --pkcs11-module";
            return Err(format!("{} {why}", module.display()));
        }
        let pin = uri.pin().map_err(|e| e.to_string())?;
        let key = TokenKey::open(uri.location.clone(), &pin, public_key).map_err(|e| e.to_string())?;
        Ok(CaKey::new(key))
    }
}
