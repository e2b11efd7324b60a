//! What differs, and what kind of difference it is.
//!
//! Invariant: a difference's kind says what differed and not in which words, so that equal causes are counted together and a case may be
//! made smaller without becoming another.

use super::batch::{Ran, Seen};
use super::client::Outcome;

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which request; none when resources were refused.
    pub ask: Option<usize>,
    /// Its kind.
    pub kind: String,
}

/// All of a case.
pub fn differences(ran: &Ran) -> Vec<Difference> {
    let mut all = Vec::new();
    match (&*ran.refused.0, &*ran.refused.1) {
        ([], []) => {}
        (ours, []) => all.push(Difference { ask: None, kind: format!("native refuses: {}", reason(ours)) }),
        ([], theirs) => all.push(Difference { ask: None, kind: format!("Envoy refuses: {}", reason(theirs)) }),
        _ => {}
    }
    // Without some of its resources a case says nothing.
    if !ran.refused.0.is_empty() || !ran.refused.1.is_empty() {
        return all;
    }
    for (index, seen) in ran.seen.iter().enumerate() {
        let mut add = |kind: String| all.push(Difference { ask: Some(index), kind });
        if seen.native != seen.envoy {
            add(format!("engines: {}", between(&seen.native, &seen.envoy)));
        } else if !seen.foreseen.fits(&seen.envoy) {
            add(format!("simulator: {} foreseen, {} seen", foreseen(seen), shape(&seen.envoy)));
        }
    }
    all
}

/// The reason of a refusal without its names.
fn reason(all: &[String]) -> String {
    let text = all.first().map_or("", String::as_str);
    let text = text.split_once(": ").map_or(text, |(_, reason)| reason);
    text.chars().filter(|c| !c.is_ascii_digit()).take(90).collect()
}

fn foreseen(seen: &Seen) -> String {
    use super::simulator::Foreseen;
    match &seen.foreseen {
        Foreseen::Reaches(last) => format!("reaches .{last}"),
        Foreseen::Status(status) => status.to_string(),
        Foreseen::Fails(_) => "no answer".to_owned(),
        Foreseen::Unknown(_) => "unknown".to_owned(),
    }
}

fn shape(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused => "refused".to_owned(),
        Outcome::Closed(None) => "closed".to_owned(),
        Outcome::Closed(Some(alert)) => format!("alert {alert}"),
        Outcome::Answer { status, .. } => match outcome.by() {
            Some(last) => format!("{status} by .{last}"),
            None => status.to_string(),
        },
        Outcome::Bytes(_) => outcome.by().map_or("bytes".to_owned(), |last| format!("bytes by .{last}")),
        Outcome::Silence => "silence".to_owned(),
    }
}

/// How two outcomes differ: native first.
fn between(native: &Outcome, envoy: &Outcome) -> String {
    let (a, b) = (shape(native), shape(envoy));
    if a != b {
        return format!("native {a}, Envoy {b}");
    }
    match (native, envoy) {
        (Outcome::Answer { headers: ours, body: our_body, .. }, Outcome::Answer { headers: theirs, body, .. }) => {
            if ours != theirs {
                let names = ours.keys().chain(theirs.keys()).filter(|n| ours.get(*n) != theirs.get(*n));
                let mut names: Vec<&str> = names.map(String::as_str).collect();
                names.dedup();
                return format!("{a}, headers {}", names.join(" "));
            }
            format!("{a}, body: {}", lines(our_body, body))
        }
        (Outcome::Bytes(ours), Outcome::Bytes(theirs)) => format!("{a}: {}", lines(ours, theirs)),
        _ => a,
    }
}

/// The first words of lines that only one has.
fn lines(ours: &str, theirs: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
    let word = |l: &&str| l.split([':', ' ']).next().unwrap_or_default().to_owned();
    let mut only: Vec<String> = a.iter().filter(|l| !b.contains(l)).map(|l| format!("native {}", word(l))).collect();
    only.extend(b.iter().filter(|l| !a.contains(l)).map(|l| format!("Envoy {}", word(l))));
    only.dedup();
    only.truncate(4);
    if only.is_empty() { "order".to_owned() } else { only.join(", ") }
}

/// An outcome in a word, for counting.
pub fn class(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answer { status, .. } if outcome.by().is_none() => format!("{status} by a proxy"),
        Outcome::Answer { .. } => "reached".to_owned(),
        Outcome::Bytes(_) if outcome.by().is_some() => "reached".to_owned(),
        Outcome::Closed(Some(_)) => "TLS alert".to_owned(),
        other => shape(other),
    }
}
