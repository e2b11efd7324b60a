//! Who is told of each certificate, before it is signed and after.
//!
//! Invariant: with a journal, nothing is signed whose serial it did not take first, and no certificate is handed on that
//! it was not told of; when it cannot be told, nothing is handed on. Where it is written is the journal's affair.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{Certificate, PublicKeyData};

use crate::certificate::sha256;

/// A certificate that is about to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuance {
    /// Lower-case hexadecimal, as certificates' serials are shown everywhere.
    pub serial: String,
    /// The subject; empty for workloads.
    pub subject: String,
    /// All names: URIs, DNS names, addresses, e-mail addresses.
    pub names: Vec<String>,
    /// SHA-256 of the signing key's SubjectPublicKeyInfo, lower-case hexadecimal.
    pub issuer: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Who asked for it.
    pub asked_by: String,
}

/// Why a journal cannot take an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The serial was used before.
    #[error("the serial number {0} was used before")]
    Used(String),
    /// The names are quarantined.
    #[error("{0}")]
    Refused(String),
    /// It cannot be written.
    #[error("the ledger of certificates cannot be written: {0}")]
    Write(String),
}

/// See the module. Calls block until what they say is durable.
pub trait Journal: std::fmt::Debug + Send + Sync {
    /// A certificate is about to be signed; its serial is taken from now on, whatever comes.
    ///
    /// # Errors
    /// It must not be signed.
    fn intent(&self, issuance: &Issuance) -> Result<(), JournalError>;

    /// It was signed; `certificate` is its DER.
    ///
    /// # Errors
    /// It must not be handed on.
    fn issued(&self, serial: &str, certificate: &[u8]) -> Result<(), JournalError>;

    /// It was not signed.
    fn failed(&self, serial: &str, reason: &str);
}

/// A journal, or none.
pub type MaybeJournal = Option<Arc<dyn Journal>>;

/// Signs between the two entries.
pub(crate) fn recorded<E: From<JournalError> + std::fmt::Display>(
    journal: Option<&Arc<dyn Journal>>,
    issuance: &Issuance,
    sign: impl FnOnce() -> Result<Certificate, E>,
) -> Result<Certificate, E> {
    let Some(journal) = journal else { return sign() };
    journal.intent(issuance)?;
    match sign() {
        Ok(certificate) => {
            journal.issued(&issuance.serial, certificate.der())?;
            Ok(certificate)
        }
        Err(error) => {
            journal.failed(&issuance.serial, &error.to_string());
            Err(error)
        }
    }
}

/// What a signing key is called in a journal.
pub(crate) fn key_id(key: &impl PublicKeyData) -> String {
    hex(&sha256(&key.subject_public_key_info()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Names as an entry has them.
pub(crate) fn names<'a>(texts: impl IntoIterator<Item = &'a String>, ips: &[IpAddr]) -> Vec<String> {
    texts.into_iter().cloned().chain(ips.iter().map(ToString::to_string)).collect()
}
