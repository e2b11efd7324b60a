//! Keys in PKCS#11 tokens (HSMs, smart cards, SoftHSM), as keys that sign certificates.
//!
//! Invariant: a key never leaves its token: what comes out is signatures. A key exists here only after it has signed something
//! that the certificate beside it verifies. A token that somebody has opened is open to nobody who does not know its PIN.
//!
//! Which libraries may be loaded is the caller's decision: loading one runs its code.

mod key;
mod module;
mod uri;

pub use key::{Location, TokenError, TokenKey};
pub use uri::{KeyUri, UriError};
