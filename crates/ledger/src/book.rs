//! What the records come to: the certificates that still live, and the revocations in force.
//!
//! Invariant: made of records alone, in their order, so that a restart knows what the process before knew. Certificates
//! that have ended are forgotten here; the files keep them.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use crate::record::{Entry, Record, Target, time};

/// How far a certificate has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its serial is taken; it is being signed.
    Intended,
    /// Signed, and perhaps handed on.
    Issued,
    /// Signed elsewhere, or before there was a ledger.
    Imported,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Lower-case hexadecimal.
    pub serial: String,
    /// The subject; empty for workloads.
    pub subject: String,
    /// All names.
    pub names: Vec<String>,
    /// SHA-256 of the signing key.
    pub issuer: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Who asked for it.
    pub asked_by: String,
    /// When.
    pub asked_at: SystemTime,
    /// How far it has come.
    pub state: State,
    /// SHA-256 of its DER, once it is known.
    pub sha256: String,
}

/// A revocation in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revocation {
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) since: SystemTime,
}

/// Sums over the whole ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Intents written.
    pub intents: u64,
    /// Certificates signed.
    pub issued: u64,
    /// Intents that came to nothing.
    pub failed: u64,
    /// Certificates taken in from elsewhere.
    pub imported: u64,
    /// Revocations written.
    pub revoked: u64,
    /// Notes about the ledger itself.
    pub notes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) certificates: HashMap<String, Certificate>,
    pub(crate) revocations: BTreeMap<Target, Revocation>,
    pub(crate) totals: Totals,
}

impl Book {
    /// Takes a record over.
    pub(crate) fn take(&mut self, record: &Record) {
        let at = time(record.time);
        let add = |n: &mut u64| *n = n.saturating_add(1);
        match &record.entry {
            Entry::Intent { serial, subject, names, issuer, not_before, not_after, asked_by: by }
            | Entry::Imported { serial, subject, names, issuer, not_before, not_after, from: by } => {
                let (state, total) = match &record.entry {
                    Entry::Imported { .. } => (State::Imported, &mut self.totals.imported),
                    _ => (State::Intended, &mut self.totals.intents),
                };
                add(total);
                let certificate = Certificate {
                    serial: serial.clone(),
                    subject: subject.clone(),
                    names: names.clone(),
                    issuer: issuer.clone(),
                    not_before: time(*not_before),
                    not_after: time(*not_after),
                    asked_by: by.clone(),
                    asked_at: at,
                    state,
                    sha256: String::new(),
                };
                self.certificates.insert(serial.clone(), certificate);
            }
            Entry::Issued { serial, sha256 } => {
                add(&mut self.totals.issued);
                if let Some(certificate) = self.certificates.get_mut(serial) {
                    certificate.state = State::Issued;
                    certificate.sha256.clone_from(sha256);
                }
            }
            Entry::Failed { serial, .. } => {
                add(&mut self.totals.failed);
                self.certificates.remove(serial);
            }
            Entry::Revoked { target, reason, by } => {
                add(&mut self.totals.revoked);
                let revocation = Revocation { reason: reason.clone(), by: by.clone(), since: at };
                self.revocations.insert(target.clone(), revocation);
            }
            Entry::Restored { target, .. } => {
                self.revocations.remove(target);
            }
            Entry::Note { .. } => add(&mut self.totals.notes),
        }
    }

    /// Serials whose signing was begun and neither ended nor given up.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let all = self.certificates.values();
        let mut serials: Vec<String> = all.filter(|c| c.state == State::Intended).map(|c| c.serial.clone()).collect();
        serials.sort_unstable();
        serials
    }

    /// Forgets what has ended.
    pub(crate) fn forget(&mut self, now: SystemTime) {
        self.certificates.retain(|_, c| c.not_after > now || c.state == State::Intended);
    }
}
