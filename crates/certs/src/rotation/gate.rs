//! Whether one proxy lets a step pass, and if not, why.
//!
//! Invariant: only what a proxy said of itself counts. One that has said nothing is in the way, and so is one that is
//! away, until its certificate has ended and it can meet nobody any more.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Fingerprint, Step};

/// What a proxy said of itself last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The roots that its engine trusts.
    pub trusts: BTreeSet<Fingerprint>,
    /// The published roots to which the certificate leads that its engine serves.
    pub leads_to: BTreeSet<Fingerprint>,
    /// That certificate's serial number.
    pub serial: String,
    /// Its end.
    pub not_after: SystemTime,
}

/// One proxy, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// `name.namespace`.
    pub name: String,
    /// Since when it is known.
    pub seen: SystemTime,
    /// Since when it is away; `None` while it is connected.
    pub away: Option<SystemTime>,
    /// What it said last.
    pub told: Option<Told>,
}

/// A proxy that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdup {
    /// `name.namespace`.
    pub proxy: String,
    /// Since when.
    pub since: SystemTime,
    /// In words.
    pub reason: String,
}

pub(super) fn holdup(
    step: Step,
    proxy: &Proxy,
    roots: &BTreeSet<Fingerprint>,
    entered: SystemTime,
    now: SystemTime,
) -> Option<Holdup> {
    let reason = match (&proxy.told, step) {
        // Before it is switched and while nothing is waited for, everybody who proved it still stands to it: the same gate.
        (Some(told), Step::Prove | Step::Switch) => {
            (!told.trusts.is_superset(roots)).then(|| "does not trust the new root yet".to_owned())
        }
        (Some(told), Step::Drain) => told
            .leads_to
            .is_disjoint(roots)
            .then(|| format!("serves a certificate of the old root (serial {})", told.serial)),
        (Some(told), Step::Retire) => (!told.trusts.is_subset(roots)).then(|| "still trusts the old root".to_owned()),
        (None, Step::Prove | Step::Switch | Step::Drain | Step::Retire) => {
            Some("does not say what it trusts and serves".to_owned())
        }
        (_, Step::Prepare | Step::Publish) => None,
    }?;
    let since = entered.max(proxy.seen);
    let Some(away) = proxy.away else { return Some(Holdup { proxy: proxy.name.clone(), since, reason }) };
    let ended = proxy.told.as_ref().is_some_and(|told| told.not_after <= now);
    if ended {
        return None;
    }
    Some(Holdup { proxy: proxy.name.clone(), since, reason: format!("{reason}; not connected for {}", ago(away, now)) })
}

fn ago(then: SystemTime, now: SystemTime) -> String {
    match now.duration_since(then).unwrap_or_default().as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
