//! Chains that passed, so that the same bytes are not judged again with each connection of the same peer.
//!
//! Invariant: what is kept is the outcome of one verifier, with its roots and limits, for exactly these certificates in this order; it
//! counts within the validity of every one of them and no longer. Names, pins and quarantine are not part of it, nor is
//! the proof that the peer has the key: those are asked of every handshake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::certificate::CertificateInfo;

/// Chains kept; when there are more, all are forgotten.
const MOST: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Passed(Mutex<HashMap<[u8; 32], Window>>);

/// Seconds since 1970 in which all certificates of a chain are valid, both included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    from: u64,
    until: u64,
}

impl Window {
    /// `None` where a certificate cannot be read.
    pub(super) fn of(leaf: &CertificateInfo, intermediates: &[CertificateDer<'_>]) -> Option<Self> {
        let one = |info: &CertificateInfo| {
            let seconds = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs());
            Some(Self { from: seconds(info.not_before)?, until: seconds(info.not_after)? })
        };
        intermediates.iter().try_fold(one(leaf)?, |all, der| {
            let more = one(&*CertificateInfo::known(der).ok()?)?;
            Some(Self { from: all.from.max(more.from), until: all.until.min(more.until) })
        })
    }
}

impl Passed {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a chain is known by.
    pub(super) fn key(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for der in std::iter::once(leaf).chain(intermediates) {
            context.update(&u64::try_from(der.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(der);
        }
        let mut out = [0; 32];
        out.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        out
    }

    /// Whether this chain has passed, and could again now.
    pub(super) fn knows(&self, key: &[u8; 32], now: UnixTime) -> bool {
        self.lock().get(key).is_some_and(|window| window.from <= now.as_secs() && now.as_secs() <= window.until)
    }

    /// Keeps a chain that has passed.
    pub(super) fn add(&self, key: [u8; 32], window: Window) {
        let mut all = self.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(key, window);
    }
}
