//! What a certificate needs next.
//!
//! Invariant: steps follow each other so that being stopped between any two loses nothing: the new key is stored before it is
//! asked about, the answer is stored in the request, and the old certificate stays until the new one is written beside its own
//! key. A request or a key that no longer fits the wish is dropped, never used.

use carrick_api::cert_manager::{CertificateStatus, Condition, IssuerRef};
use carrick_api::timestamp::Timestamp;

use crate::renewal::{later, pause, span};
use crate::wish::{KeyKind, Names, Wish};

/// The public half of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its kind; `None` for one that is never made here.
    pub kind: Option<KeyKind>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub digest: [u8; 32],
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its names.
    pub names: Names,
    /// Start of its life.
    pub not_before: Timestamp,
    /// End of its life.
    pub not_after: Timestamp,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub digest: [u8; 32],
    /// Whether it may sign others.
    pub is_ca: bool,
}

/// What the secret holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Its key, if readable.
    pub key: Option<Key>,
    /// Its certificate, if readable.
    pub leaf: Option<Leaf>,
    /// Who signed it, as noted beside it.
    pub issuer: Option<IssuerRef>,
}

/// A request that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Digest of the key it is for.
    pub digest: [u8; 32],
    /// The names it asks for.
    pub names: Names,
    /// Who is asked.
    pub issuer: IssuerRef,
    /// What came of it.
    pub reply: Reply,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing yet.
    Pending,
    /// It was signed.
    Signed(Leaf),
    /// It failed or was denied; in words.
    Failed(String),
}

/// All there is to know.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The time.
    pub now: Timestamp,
    /// What is asked for.
    pub wish: &'a Wish,
    /// `metadata.generation` of the wish.
    pub generation: i64,
    /// What was said before.
    pub status: &'a CertificateStatus,
    /// The secret; `None` when there is none.
    pub held: Option<&'a Held>,
    /// The key that waits for its certificate.
    pub next_key: Option<Key>,
    /// The request of the next revision.
    pub request: Option<&'a Request>,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until the time of the decision's `wake` or a change.
    Rest,
    /// Store a key for the next certificate: a new one, or the one in use.
    StoreNextKey {
        /// Whether the key in use is kept.
        reuse: bool,
    },
    /// Drop the next key, which is of a kind that is no longer wished for.
    DropNextKey,
    /// Ask the issuer.
    Ask {
        /// Number of the certificate to come.
        revision: i64,
    },
    /// Withdraw the request: it asks for something else than is wished for.
    Withdraw,
    /// Write key and certificate to the secret; then the request has done its work.
    Deliver {
        /// Number of the certificate.
        revision: i64,
    },
    /// Note the failure and withdraw the request.
    GiveUp {
        /// Failures in a row, this one included.
        failures: i64,
    },
}

/// What is to be done and said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub step: Step,
    /// What to say; written before the step is taken, but for a delivery, which is written after.
    pub status: CertificateStatus,
    /// When to ask again, if nothing changes before.
    pub wake: Option<Timestamp>,
}

/// Why a certificate is to be replaced.
struct Need {
    reason: &'static str,
    message: String,
    /// Whether what is held is as good as wished for, still.
    ready: bool,
}

/// Decides.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let leaf = facts.held.and_then(|held| held.leaf.as_ref());
    let renewal = leaf.map(|leaf| facts.wish.renew.at(leaf.not_before, leaf.not_after));
    let need = need(facts, renewal);
    let mut status = facts.status.clone();
    status.not_before = leaf.map(|leaf| leaf.not_before);
    status.not_after = leaf.map(|leaf| leaf.not_after);
    status.renewal_time = renewal;
    let (ready, reason, message) = match &need {
        None => (true, "Ready", "Certificate is up to date and has not expired"),
        Some(need) if need.ready => (true, "Ready", "Certificate is up to date and has not expired"),
        Some(need) => (false, need.reason, need.message.as_str()),
    };
    condition(facts, &mut status, "Ready", ready, reason, message);
    let Some(need) = need else {
        settle(&mut status);
        let step = if facts.next_key.is_some() { Step::DropNextKey } else { Step::Rest };
        return Decision { step, status, wake: renewal };
    };
    let (step, wake) = step(facts, &mut status, leaf);
    match (&step, &facts.request) {
        // After a failure, and with what was asked for in hand, all is said already.
        (Step::GiveUp { .. } | Step::Deliver { .. }, _) | (Step::Rest, None) => {}
        _ => condition(facts, &mut status, "Issuing", true, need.reason, &need.message),
    }
    Decision { step, status, wake }
}

/// Why what is held does not do; `None` when it does.
fn need(facts: &Facts<'_>, renewal: Option<Timestamp>) -> Option<Need> {
    let bad = |reason, message: String| Some(Need { reason, message, ready: false });
    let Some(held) = facts.held else {
        return bad("DoesNotExist", "Issuing certificate as Secret does not exist".to_owned());
    };
    let (Some(key), Some(leaf)) = (held.key, held.leaf.as_ref()) else {
        let what = if held.key.is_none() { "a private key" } else { "a certificate" };
        return bad("MissingData", format!("Issuing certificate as Secret does not contain {what}"));
    };
    if key.digest != leaf.digest {
        return bad("InvalidKeyPair", "Issuing certificate as Secret's key is not the certificate's".to_owned());
    }
    let wish = facts.wish;
    if key.kind != Some(wish.key) && wish.new_keys {
        return bad("SecretMismatch", "Existing private key is not as asked for by spec.privateKey".to_owned());
    }
    if held.issuer.as_ref().is_some_and(|issuer| !same_issuer(issuer, &wish.issuer)) {
        return bad("IncorrectIssuer", "Issuing certificate as Secret was issued by another issuer".to_owned());
    }
    if let Some(name) = wish.names.missing_in(&leaf.names) {
        return bad("RequestChanged", format!("The certificate does not have the name {name:?}"));
    }
    if leaf.is_ca != wish.is_ca {
        return bad(
            "RequestChanged",
            "Fields on existing CertificateRequest resource not up to date: [spec.isCA]".into(),
        );
    }
    if facts.now >= leaf.not_after {
        return bad("Expired", format!("Certificate expired on {}", leaf.not_after));
    }
    renewal.filter(|at| facts.now >= *at).map(|at| Need {
        reason: "Renewing",
        message: format!("Renewing certificate as renewal was scheduled at {at}"),
        ready: true,
    })
}

fn same_issuer(a: &IssuerRef, b: &IssuerRef) -> bool {
    (&a.name, a.kind()) == (&b.name, b.kind())
}

/// The step, and when to look again.
fn step(facts: &Facts<'_>, status: &mut CertificateStatus, leaf: Option<&Leaf>) -> (Step, Option<Timestamp>) {
    let wish = facts.wish;
    let revision = facts.status.revision.unwrap_or(0).saturating_add(1);
    let failures = facts.status.failed_issuance_attempts.unwrap_or(0);
    if let (None, Some(last), true) = (facts.request, facts.status.last_failure_time, failures > 0) {
        let left = leaf.map(|leaf| span(facts.now, leaf.not_after));
        let until = later(last, pause(u32::try_from(failures).unwrap_or(u32::MAX), wish.duration, left));
        if facts.now < until {
            return (Step::Rest, Some(until));
        }
    }
    let reuse = facts.held.and_then(|held| held.key).filter(|_| !wish.new_keys);
    let Some(next) = facts.next_key else {
        return (Step::StoreNextKey { reuse: reuse.is_some() }, None);
    };
    if next.kind != Some(wish.key) && reuse.is_none_or(|used| used.digest != next.digest) {
        return (Step::DropNextKey, None);
    }
    let Some(request) = facts.request else {
        return (Step::Ask { revision }, None);
    };
    let fits = request.digest == next.digest
        && wish.names.missing_in(&request.names).is_none()
        && same_issuer(&request.issuer, &wish.issuer);
    if !fits {
        return (Step::Withdraw, None);
    }
    let why = match &request.reply {
        Reply::Pending => return (Step::Rest, None),
        Reply::Signed(leaf) => match proof(facts, &next, leaf) {
            Ok(()) => {
                settle(status);
                status.revision = Some(revision);
                return (Step::Deliver { revision }, None);
            }
            Err(why) => why,
        },
        Reply::Failed(why) => why.clone(),
    };
    let failures = failures.saturating_add(1);
    status.failed_issuance_attempts = Some(failures);
    status.last_failure_time = Some(facts.now);
    let message = format!("The certificate request has failed to complete and will be retried: {why}");
    condition(facts, status, "Issuing", false, "Failed", &message);
    (Step::GiveUp { failures }, None)
}

/// Whether an answer is what was asked for.
fn proof(facts: &Facts<'_>, key: &Key, leaf: &Leaf) -> Result<(), String> {
    if leaf.digest != key.digest {
        return Err("the issuer signed another key".to_owned());
    }
    if let Some(name) = facts.wish.names.missing_in(&leaf.names) {
        return Err(format!("the issuer left out the name {name:?}"));
    }
    if leaf.is_ca != facts.wish.is_ca {
        return Err("the issuer's certificate may sign others, or may not, unlike asked for".to_owned());
    }
    if facts.wish.renew.at(leaf.not_before, leaf.not_after) <= facts.now {
        return Err(format!("the issuer's certificate ends at {}, too early to be of use", leaf.not_after));
    }
    Ok(())
}

/// No issuing is under way any more.
fn settle(status: &mut CertificateStatus) {
    status.conditions.retain(|c| c.type_ != "Issuing");
    status.failed_issuance_attempts = None;
    status.last_failure_time = None;
}

/// Sets a condition of the certificate.
fn condition(facts: &Facts<'_>, status: &mut CertificateStatus, type_: &str, value: bool, reason: &str, message: &str) {
    Condition::new(type_, value, reason, message, facts.now).at(facts.generation).set_in(&mut status.conditions);
}

#[cfg(test)]
mod tests;
