//! What a delivery needs next, from what has been done and from the time.
//!
//! Invariant: pure. Files come before the reload, the reload before the proof; but a reload that fails does not keep the proof from being
//! made, since that is how people learn of it. A consumer has one period to serve what was delivered; until then nothing is said against it.
//! One that still serves another certificate after that is told again, ever more rarely: a signal may have come while it was busy with the last.

use std::time::{Duration, SystemTime};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// First and longest pause between looks while a consumer may still be reloading.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest pause between reloads of a consumer that goes on serving another certificate.
const AGAIN: Duration = Duration::from_secs(3600);
/// Pauses while a certificate should have been renewed and has not: this part of its life.
const OVERDUE_PART: u32 = 30;

/// What does not change while an agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Something is run after a change.
    pub reloads: bool,
    /// How often the endpoint is looked at, where one is declared.
    pub proof: Option<Duration>,
}

/// How far the certificate that is held has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// When the files were put in place.
    pub placed: Option<SystemTime>,
    /// The reload has succeeded since, or there was nothing to reload.
    pub reloaded: bool,
    /// When it last did, as far as this process knows.
    pub told: Option<SystemTime>,
    /// How often it did.
    pub tellings: u32,
    /// The last look saw another certificate.
    pub stale: bool,
    /// Failures in a row of what is due now.
    pub failures: u32,
    /// When the last one was.
    pub failed: Option<SystemTime>,
    /// When the endpoint was last looked at.
    pub looked: Option<SystemTime>,
    /// Looks in a row that saw another certificate, or none.
    pub misses: u32,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write the files.
    Place,
    /// Run the reload.
    Reload,
    /// Look at the endpoint.
    Look,
    /// Nothing for this long; nothing at all without a time.
    Wait(Option<Duration>),
}

/// Decides. A clock that went back counts as no time passed.
pub fn decide(now: SystemTime, facts: Facts, progress: Progress) -> Step {
    let retry = left(now, progress.failed, after(RETRY, progress.failures));
    let Some(placed) = progress.placed else {
        return retry.map_or(Step::Place, |left| Step::Wait(Some(left)));
    };
    let reload = facts.reloads && !progress.reloaded;
    if reload && retry.is_none() {
        return Step::Reload;
    }
    let Some(period) = facts.proof else {
        return Step::Wait(retry.filter(|_| reload));
    };
    let again = (facts.reloads && progress.reloaded && progress.stale)
        .then(|| left(now, progress.told, after((period, AGAIN.max(period)), progress.tellings)));
    if again == Some(None) {
        return Step::Reload;
    }
    let looked = progress.looked.unwrap_or(placed);
    let verdict =
        placed.checked_add(period).and_then(|end| end.duration_since(looked).ok()).filter(|left| !left.is_zero());
    let pause = match (progress.misses, verdict) {
        (0, _) | (_, None) => period,
        // At the period's end the verdict is due, so there is a look then.
        (misses, Some(left)) => after(LOOK, misses).min(left),
    };
    match left(now, progress.looked, pause) {
        None => Step::Look,
        Some(look) => {
            let sooner = retry.filter(|_| reload).into_iter().chain(again.flatten());
            Step::Wait(Some(sooner.fold(look, Duration::min)))
        }
    }
}

/// Whether a consumer has had its period.
pub fn had_its_time(now: SystemTime, placed: SystemTime, period: Duration) -> bool {
    left(now, Some(placed), period).is_none()
}

/// When to ask for a certificate again although nothing was pushed: regularly, and often once two thirds of its life have gone without a
/// new one.
pub fn ask_after(now: SystemTime, life: Option<(SystemTime, SystemTime)>, every: Duration) -> Duration {
    let Some((from, to)) = life else { return every.min(Duration::from_secs(30)) };
    let whole = to.duration_since(from).unwrap_or_default();
    let due = from.checked_add(whole / 3 * 2).unwrap_or(to);
    let pause = match due.duration_since(now) {
        Ok(left) if !left.is_zero() => left,
        _ => whole / OVERDUE_PART,
    };
    pause.max(Duration::from_secs(1)).min(every)
}

fn after((first, longest): (Duration, Duration), count: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(count.saturating_sub(1))).min(longest)
}

/// What is left of a pause; `None` when it is over.
fn left(now: SystemTime, since: Option<SystemTime>, pause: Duration) -> Option<Duration> {
    let passed = now.duration_since(since?).unwrap_or_default();
    pause.checked_sub(passed).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000) + Duration::from_millis(millis)
    }

    const FULL: Facts = Facts { reloads: true, proof: Some(Duration::from_secs(10)) };

    fn wait(millis: u64) -> Step {
        Step::Wait(Some(Duration::from_millis(millis)))
    }

    #[test]
    fn files_then_reload_then_proof() {
        let mut progress = Progress::default();
        assert_eq!(decide(at(0), FULL, progress), Step::Place);
        progress.placed = Some(at(0));
        assert_eq!(decide(at(0), FULL, progress), Step::Reload);
        progress.reloaded = true;
        assert_eq!(decide(at(0), FULL, progress), Step::Look);
        progress.looked = Some(at(5));
        assert_eq!(decide(at(5), FULL, progress), wait(10_000));
        assert_eq!(decide(at(10_005), FULL, progress), Step::Look);
        let plain = Facts { reloads: false, proof: None };
        assert_eq!(decide(at(5), plain, progress), Step::Wait(None));
    }

    #[test]
    fn a_failing_reload_is_tried_again_and_does_not_hide_what_is_served() {
        let failed =
            Progress { placed: Some(at(0)), failures: 3, failed: Some(at(0)), looked: None, ..Progress::default() };
        assert_eq!(decide(at(1), FULL, failed), Step::Look);
        let looked = Progress { looked: Some(at(1)), ..failed };
        assert_eq!(decide(at(1), FULL, looked), wait(1999));
        assert_eq!(decide(at(2000), FULL, looked), Step::Reload);
        let many = Progress { failures: 40, ..failed };
        assert_eq!(decide(at(59_999), FULL, Progress { looked: Some(at(59_999)), ..many }), wait(1));
        let none = Facts { reloads: true, proof: None };
        assert_eq!(decide(at(1), none, failed), wait(1999));
    }

    #[test]
    fn who_serves_another_certificate_is_told_again_ever_more_rarely() {
        let at_once = Progress {
            placed: Some(at(0)),
            reloaded: true,
            told: Some(at(0)),
            tellings: 1,
            looked: Some(at(9_999)),
            misses: 9,
            stale: true,
            ..Progress::default()
        };
        assert_eq!(decide(at(9_999), FULL, at_once), wait(1), "one period");
        assert_eq!(decide(at(10_000), FULL, at_once), Step::Reload);
        let looked = |second: u64, tellings, stale| Progress {
            told: Some(at(10_000)),
            tellings,
            looked: Some(at(second * 1000)),
            stale,
            ..at_once
        };
        assert_eq!(decide(at(20_000), FULL, looked(20, 2, true)), wait(10_000));
        assert_eq!(decide(at(30_000), FULL, looked(29, 2, true)), Step::Reload, "two periods after");
        assert_eq!(decide(at(30_000), FULL, looked(29, 2, false)), wait(9_000), "nobody answers, or it is served");
        assert_eq!(decide(at(3_610_000), FULL, looked(3_609, 60, true)), Step::Reload, "an hour at most");
        let restarted = Progress { told: None, tellings: 0, ..at_once };
        assert_eq!(decide(at(9_999), FULL, restarted), Step::Reload, "what a process before this one did is long ago");
    }

    #[test]
    fn writing_is_tried_again() {
        let failed = Progress { failures: 1, failed: Some(at(0)), ..Progress::default() };
        assert_eq!(decide(at(100), FULL, failed), wait(400));
        assert_eq!(decide(at(500), FULL, failed), Step::Place);
        assert_eq!(decide(at(0) - Duration::from_secs(9), FULL, failed), wait(500), "a clock that went back");
    }

    #[test]
    fn looks_are_frequent_only_while_a_reload_may_be_under_way() {
        let progress = |looked, misses| Progress {
            placed: Some(at(0)),
            reloaded: true,
            looked: Some(at(looked)),
            misses,
            ..Progress::default()
        };
        assert_eq!(decide(at(10), FULL, progress(10, 1)), wait(100));
        assert_eq!(decide(at(10), FULL, progress(10, 9)), wait(2000));
        assert_eq!(decide(at(9500), FULL, progress(9500, 9)), wait(500), "the verdict is in time");
        assert_eq!(decide(at(10_000), FULL, progress(9500, 9)), Step::Look);
        assert_eq!(decide(at(10_000), FULL, progress(10_000, 9)), wait(10_000));
        assert!(
            !had_its_time(at(9999), at(0), Duration::from_secs(10))
                && had_its_time(at(10_000), at(0), Duration::from_secs(10))
        );
    }

    #[test]
    fn time_left_drives_the_questions() {
        let life = Some((at(0), at(90_000)));
        let ask = |now| ask_after(at(now), life, Duration::from_secs(600)).as_secs();
        assert_eq!((ask(0), ask(59_000), ask(60_000), ask(80_000), ask(200_000)), (60, 1, 3, 3, 3));
        assert_eq!(ask_after(at(0), life, Duration::from_secs(10)).as_secs(), 10);
        assert_eq!(ask_after(at(0), None, Duration::from_secs(600)).as_secs(), 30, "nothing yet");
    }
}
