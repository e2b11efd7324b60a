//! Which certificates there are: what the ledger has written, what proxies say they hold; as a page and as metrics.
//!
//! Invariant: reading only. A certificate that was replaced still lives in the ledger and is no reason for an alarm, so
//! that metrics count what is in use: what proxies hold, and the newest of each other holder.

use crate::metrics::{ByLife, ControlMetrics};
use crate::quarantine::Board;
use carrick_api::timestamp::Timestamp;
use carrick_ledger::{Certificate, Ledger, State};
use carrick_runtime::drain::Drain;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the authority's roots are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks lie between two counts.
const COUNT: u64 = 5;
/// Shares of a life, in percent.
const SHARES: [(u64, &str); 5] = [(0, "0"), (50, "50"), (75, "75"), (90, "90"), (100, "100")];
/// Holders, as the label has them.
const HOLDERS: [&str; 3] = ["proxy", "secret", "control-plane"];

/// Counts, and keeps the lists of a quarantine those of the authority, until drained.
pub(crate) async fn count(ledger: Option<Arc<Ledger>>, board: Arc<Board>, metrics: ControlMetrics, drain: Drain) {
    for look in 1_u64.. {
        tokio::select! {
            () = drain.graceful() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        board.refresh();
        if !look.is_multiple_of(COUNT) {
            continue;
        }
        let living = ledger.as_ref().map(|ledger| ledger.living()).unwrap_or_default();
        let begins: HashMap<&str, u64> = living.iter().map(|c| (c.serial.as_str(), begin(c))).collect();
        let held = board
            .lives()
            .into_iter()
            .map(|(serial, begin, end)| ("proxy", (begins.get(serial.as_str()).copied().unwrap_or(begin), end)));
        let lives = newest(&living).into_iter().chain(held);
        let counts = shares(lives, seconds(SystemTime::now()));
        for holder in HOLDERS {
            for (_, used) in SHARES {
                let n = counts.get(&(holder, used)).copied().unwrap_or_default();
                metrics.lives.get_or_create(&ByLife { holder, used }).set(n);
            }
        }
        let (entries, behind) = board.counts();
        metrics.quarantined.set(i64::try_from(entries).unwrap_or(i64::MAX));
        metrics.quarantine_behind.set(i64::try_from(behind).unwrap_or(i64::MAX));
    }
}

/// When a life really began: certificates are dated back, short ones by more than they live.
fn begin(certificate: &Certificate) -> u64 {
    seconds(certificate.asked_at.max(certificate.not_before))
}

/// Who holds it, if not a proxy: those tell of theirs themselves.
fn holder(certificate: &Certificate) -> Option<&'static str> {
    match certificate.asked_by.as_str() {
        "control plane" => Some("control-plane"),
        other if other.starts_with("CertificateRequest ") => Some("secret"),
        _ => None,
    }
}

/// Life of the newest certificate of each holder that is no proxy.
fn newest(living: &[Certificate]) -> Vec<(&'static str, (u64, u64))> {
    let mut found: BTreeMap<(&'static str, &str, &[String]), (u64, u64)> = BTreeMap::new();
    for certificate in living.iter().filter(|c| c.state != State::Intended) {
        let Some(holder) = holder(certificate) else { continue };
        let life = (begin(certificate), seconds(certificate.not_after));
        let known = found.entry((holder, &certificate.subject, &certificate.names)).or_insert(life);
        *known = (*known).max(life);
    }
    found.into_iter().map(|((holder, ..), life)| (holder, life)).collect()
}

/// How many have used at least each share; 0 counts all.
fn shares(
    lives: impl Iterator<Item = (&'static str, (u64, u64))>,
    now: u64,
) -> BTreeMap<(&'static str, &'static str), i64> {
    let mut counts = BTreeMap::new();
    for (holder, (begin, end)) in lives {
        let (used, whole) = (now.saturating_sub(begin), end.saturating_sub(begin).max(1));
        for (share, label) in SHARES {
            if u128::from(used).saturating_mul(100) >= u128::from(whole).saturating_mul(u128::from(share)) {
                let count: &mut i64 = counts.entry((holder, label)).or_default();
                *count = count.saturating_add(1);
            }
        }
    }
    counts
}

/// `/debug/certificates`.
pub(crate) fn page(ledger: Option<&Ledger>, board: &Board) -> Value {
    let Some(ledger) = ledger else {
        return json!({"ledger": null, "certificates": [], "quarantine": board.page()});
    };
    let status = ledger.status();
    let totals = status.totals;
    json!({
        "ledger": {
            "dir": status.dir.display().to_string(),
            "records": status.seq,
            "head": status.head,
            "intents": totals.intents,
            "issued": totals.issued,
            "failed": totals.failed,
            "imported": totals.imported,
            "revoked": totals.revoked,
            "notes": totals.notes,
        },
        "certificates": ledger.living().iter().map(written).collect::<Vec<_>>(),
        "quarantine": board.page(),
    })
}

fn written(certificate: &Certificate) -> Value {
    let time = |time: SystemTime| Timestamp::from_system(time).to_string();
    json!({
        "serial": certificate.serial,
        "subject": certificate.subject,
        "names": certificate.names,
        "issuer": certificate.issuer,
        "notBefore": time(certificate.not_before),
        "notAfter": time(certificate.not_after),
        "askedBy": certificate.asked_by,
        "askedAt": time(certificate.asked_at),
        "sha256": certificate.sha256,
        "state": match certificate.state {
            State::Intended => "intended",
            State::Issued => "issued",
            State::Imported => "imported",
        },
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(asked_by: &str, name: &str, begin: u64, end: u64) -> Certificate {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        Certificate {
            serial: format!("{begin}"),
            subject: String::new(),
            names: vec![name.to_owned()],
            issuer: String::new(),
            not_before: at(begin),
            not_after: at(end),
            asked_by: asked_by.to_owned(),
            asked_at: at(begin),
            state: State::Issued,
            sha256: String::new(),
        }
    }

    #[test]
    fn what_was_replaced_raises_no_alarm() {
        let living = [
            certificate("CertificateRequest a/web-1", "web", 0, 100),
            certificate("CertificateRequest a/web-2", "web", 50, 150),
            certificate("CertificateRequest a/old-1", "old", 0, 100),
            certificate("control plane", "istiod", 0, 100),
            certificate("spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b", 0, 100),
        ];
        let lives = newest(&living).into_iter().chain([("proxy", (90, 110)), ("proxy", (0, 90))]);
        let counts = shares(lives, 95);
        let of = |holder, used| counts.get(&(holder, used)).copied().unwrap_or_default();
        assert_eq!((of("secret", "0"), of("secret", "50"), of("secret", "90"), of("secret", "100")), (2, 1, 1, 0));
        assert_eq!((of("control-plane", "90"), of("control-plane", "100")), (1, 0));
        assert_eq!((of("proxy", "0"), of("proxy", "50"), of("proxy", "100")), (2, 1, 1));
    }
}
