//! What reports of agents come to: the conditions `Delivered` and `Served` of a certificate.
//!
//! Invariant: `True` only if every consumer has, and shows, the serial number that is issued; one that fell silent counts as unknown. The
//! time is an argument. A consumer that may still be at it, right after a renewal, changes nothing yet.

use carrick_xds::delivery::{Report, Verdict};
use std::time::{Duration, SystemTime};

/// The longest period an agent may claim.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Names in a message.
const NAMED: usize = 5;

/// A report with the time it came.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) report: Report,
    pub(super) at: SystemTime,
}

/// A condition that is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What one consumer comes to.
enum One {
    Good,
    /// It may still be at it.
    Pending,
    Bad {
        status: &'static str,
        reason: String,
        message: String,
    },
}

impl Told {
    fn name(&self) -> String {
        format!("{} on {}", self.report.consumer, self.report.agent)
    }

    fn period(&self) -> Duration {
        Duration::from_secs(self.report.period_seconds.max(1)).min(LONGEST)
    }

    fn judge(&self, now: SystemTime, issued: &str, since: SystemTime, verdict: &Verdict) -> One {
        let period = self.period();
        let silent = now.duration_since(self.at).unwrap_or_default();
        if silent > period.saturating_mul(3).saturating_add(Duration::from_secs(5)) {
            let message = format!("{} has not reported for {} s", self.name(), silent.as_secs());
            return One::Bad { status: "Unknown", reason: "NoReport".to_owned(), message };
        }
        let same = verdict.serial == issued;
        if verdict.status == "True" && same {
            return One::Good;
        }
        // A report on the certificate before this one says nothing about this one until there was time for it.
        let recent = now.duration_since(since).is_ok_and(|age| age < period);
        if !same && recent && verdict.reason != "ConsumerDidNotReload" {
            return One::Pending;
        }
        if verdict.status == "True" {
            let message = format!("{} has serial {}, issued is {issued}", self.name(), verdict.serial);
            return One::Bad { status: "False", reason: "NotDelivered".to_owned(), message };
        }
        let status = if verdict.status == "False" { "False" } else { "Unknown" };
        let message = format!("{}: {}", self.name(), verdict.message);
        One::Bad { status, reason: word(&verdict.reason), message }
    }
}

/// A reason as Kubernetes takes it, whatever the agent says.
fn word(reason: &str) -> String {
    let fits = !reason.is_empty() && reason.len() <= 128 && reason.bytes().all(|b| b.is_ascii_alphanumeric());
    if fits { reason.to_owned() } else { "Unknown".to_owned() }
}

/// The conditions, those that are to be said now. `issued` is the serial number in the Secret, which is there `since`.
pub(super) fn conditions<'a>(
    now: SystemTime,
    issued: &str,
    since: SystemTime,
    told: impl Iterator<Item = &'a Told> + Clone,
) -> Vec<Wanted> {
    let delivered = told.clone().filter_map(|t| Some((t, t.report.delivered.as_ref()?)));
    let served = told.filter_map(|t| Some((t, t.report.served.as_ref()?)));
    let of = |kind, good: &str, verdicts: Vec<(&'a Told, &'a Verdict)>| one(kind, good, now, issued, since, &verdicts);
    [of("Delivered", "FilesInPlace", delivered.collect()), of("Served", "ServesIssued", served.collect())]
        .into_iter()
        .flatten()
        .collect()
}

fn one(
    kind: &'static str,
    good: &str,
    now: SystemTime,
    issued: &str,
    since: SystemTime,
    verdicts: &[(&Told, &Verdict)],
) -> Option<Wanted> {
    let mut names = Vec::new();
    let mut worst: Option<Wanted> = None;
    let (mut bad, mut pending) = (0_usize, false);
    for (told, verdict) in verdicts {
        match told.judge(now, issued, since, verdict) {
            One::Good => names.push(told.name()),
            One::Pending => pending = true,
            One::Bad { status, reason, message } => {
                bad = bad.saturating_add(1);
                if worst.as_ref().is_none_or(|w| w.status == "Unknown" && status == "False") {
                    worst = Some(Wanted { kind, status, reason, message });
                }
            }
        }
    }
    if let Some(mut worst) = worst {
        if bad > 1 {
            worst.message = format!("{bad} of {} consumers: {}", verdicts.len(), worst.message);
        }
        return Some(worst);
    }
    if pending || names.is_empty() {
        return None;
    }
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if kind == "Served" { "shown by" } else { "at" };
    let message = format!("serial {issued} {verb} {}{more}", names.join(", "));
    Some(Wanted { kind, status: "True", reason: good.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    fn verdict(status: &str, reason: &str, serial: &str) -> Verdict {
        Verdict { status: status.into(), reason: reason.into(), message: "words".into(), serial: serial.into() }
    }

    fn told(consumer: &str, when: u64, delivered: Verdict, served: Option<Verdict>) -> Told {
        let report = Report {
            consumer: consumer.into(),
            agent: "vm".into(),
            secret: "s".into(),
            delivered: Some(delivered),
            served,
            period_seconds: 10,
        };
        Told { report, at: at(when) }
    }

    fn said(now: u64, since: u64, told: &[Told]) -> Vec<(&'static str, &'static str, String)> {
        conditions(at(now), "b", at(since), told.iter()).into_iter().map(|w| (w.kind, w.status, w.reason)).collect()
    }

    #[test]
    fn both_are_told_apart() {
        let good = || verdict("True", "FilesInPlace", "b");
        let old = || verdict("False", "ConsumerDidNotReload", "a");
        let all = [told("web", 100, good(), Some(good())), told("db", 100, good(), Some(old()))];
        assert_eq!(
            said(101, 90, &all),
            [("Delivered", "True", "FilesInPlace".to_owned()), ("Served", "False", "ConsumerDidNotReload".to_owned())]
        );
        let message = &conditions(at(101), "b", at(90), all.iter())[1].message;
        assert_eq!(message, "db on vm: words");
        assert_eq!(said(101, 90, &all[..1])[1], ("Served", "True", "ServesIssued".to_owned()));
        let no_proof = [told("web", 100, good(), None)];
        assert_eq!(said(101, 90, &no_proof).len(), 1, "where no endpoint is declared nothing is said of it");
    }

    #[test]
    fn a_renewal_has_one_period() {
        let old = [told("web", 100, verdict("True", "FilesInPlace", "a"), Some(verdict("True", "ServesIssued", "a")))];
        assert_eq!(said(105, 100, &old), [], "still at it");
        assert_eq!(said(111, 100, &old)[0], ("Delivered", "False", "NotDelivered".to_owned()));
        assert_eq!(said(200, 100, &old)[0], ("Delivered", "Unknown", "NoReport".to_owned()));
    }

    #[test]
    fn words_of_agents_are_checked() {
        let odd = [told("web", 100, verdict("Maybe", "two words", "b"), None)];
        assert_eq!(said(101, 90, &odd), [("Delivered", "Unknown", "Unknown".to_owned())]);
    }
}
