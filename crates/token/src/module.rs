//! The libraries of tokens: loaded once, and who has shown the PIN of which token.
//!
//! Invariant: a library is initialised once in a process. PKCS#11 logs in a process, not a caller: that a caller knows the PIN is
//! proven by the token at the first time and by the digest of what it accepted afterwards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::TokenError;

#[derive(Default)]
struct Modules {
    loaded: HashMap<PathBuf, Pkcs11>,
    /// Digests of the PINs that were accepted.
    proven: HashMap<(PathBuf, u64), Digest>,
}

fn modules() -> &'static Mutex<Modules> {
    static MODULES: OnceLock<Mutex<Modules>> = OnceLock::new();
    MODULES.get_or_init(Mutex::default)
}

/// A session with a token, logged in.
pub(crate) fn session(path: &Path, label: &str, pin: &str) -> Result<Session, TokenError> {
    let mut modules = modules().lock().unwrap_or_else(PoisonError::into_inner);
    let module = match modules.loaded.get(path) {
        Some(module) => module.clone(),
        None => {
            let module = Pkcs11::new(path).map_err(|e| TokenError::Module(path.to_owned(), e.to_string()))?;
            match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(error) => return Err(TokenError::Module(path.to_owned(), error.to_string())),
            }
            modules.loaded.insert(path.to_owned(), module.clone());
            module
        }
    };
    let slot = slot(&module, label)?;
    let session = module.open_ro_session(slot)?;
    let shown = digest(&SHA256, pin.as_bytes());
    match session.login(UserType::User, Some(&AuthPin::new(pin.into()))) {
        Ok(()) => {
            modules.proven.insert((path.to_owned(), slot.id()), shown);
            Ok(session)
        }
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
            let proven = modules.proven.get(&(path.to_owned(), slot.id()));
            match proven.map(|proven| verify_slices_are_equal(proven.as_ref(), shown.as_ref())) {
                Some(Ok(())) => Ok(session),
                _ => Err(TokenError::Pin(label.to_owned())),
            }
        }
        Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
            Err(TokenError::Pin(label.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

fn slot(module: &Pkcs11, label: &str) -> Result<Slot, TokenError> {
    for slot in module.get_slots_with_initialized_token()? {
        if module.get_token_info(slot)?.label().trim_end() == label {
            return Ok(slot);
        }
    }
    Err(TokenError::NoToken(label.to_owned()))
}
