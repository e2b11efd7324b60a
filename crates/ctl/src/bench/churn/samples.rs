//! What a process holds, looked at from time to time, and whether that grows.
//!
//! Invariant: only the second half of the time is judged: what is made once and kept is no growth. Nor are pages of the program that are
//! touched for the first time: of memory, what is no file's is judged, and all of it told.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{bench::summary::median, process};

/// Descriptors and threads that the last quarter may have more than the one before the middle.
const DESCRIPTORS: f64 = 20.0;
const THREADS: f64 = 4.0;

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    seconds: f64,
    resident: f64,
    /// What of that is no file's.
    own: f64,
    descriptors: f64,
    threads: f64,
}

impl Sample {
    /// Looks.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32, since: Duration) -> Result<Self> {
        let count = |what: &str| -> Result<f64> {
            let folder = format!("/proc/{pid}/{what}");
            Ok(std::fs::read_dir(&folder).with_context(|| folder.clone())?.count() as f64)
        };
        Ok(Sample {
            seconds: since.as_secs_f64(),
            resident: process::resident(pid)? as f64,
            own: process::anonymous(pid)? as f64,
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }

    /// In words.
    pub fn words(&self) -> String {
        let (all, own) = (self.resident / 1e6, self.own / 1e6);
        format!("{all:.2} MB, {own:.2} its own, {} descriptors, {} threads", self.descriptors, self.threads)
    }
}

/// All looks at one process.
#[derive(Debug, Default)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// One more.
    pub fn add(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    fn part(&self, from: usize, to: usize) -> &[Sample] {
        let at = |eighths: usize| self.0.len() * eighths / 8;
        self.0.get(at(from)..at(to)).unwrap_or_default()
    }

    /// How much more memory of its own in an hour, by the line that fits the second half best (least squares), bytes.
    fn slope(&self) -> f64 {
        let half = self.part(4, 8);
        let mean = |of: fn(&Sample) -> f64| half.iter().map(of).sum::<f64>() / half.len().max(1) as f64;
        let (x, y) = (mean(|s| s.seconds), mean(|s| s.own));
        let both: f64 = half.iter().map(|s| (s.seconds - x) * (s.own - y)).sum();
        let square: f64 = half.iter().map(|s| (s.seconds - x).powi(2)).sum();
        if square > 0.0 { both / square * 3600.0 } else { 0.0 }
    }

    fn middle(part: &[Sample], of: fn(&Sample) -> f64) -> f64 {
        median(&part.iter().map(of).collect::<Vec<_>>())
    }

    /// How much more there is of something in the last quarter than in the one before the middle.
    fn more(&self, of: fn(&Sample) -> f64) -> f64 {
        Self::middle(self.part(6, 8), of) - Self::middle(self.part(2, 4), of)
    }

    /// Whether it grows. `most`: bytes in an hour.
    pub fn grows(&self, most: f64) -> bool {
        // A line through little time is steep for nothing: what it tells for the time there was must be there, too.
        let seconds = self.0.last().map_or(0.0, |s| s.seconds);
        let here = most.min(most * seconds / 3600.0).max(0.3e6);
        (self.slope() > most && self.more(|s| s.own) > here / 2.0)
            || self.more(|s| s.descriptors) > DESCRIPTORS
            || self.more(|s| s.threads) > THREADS
    }

    /// For programs.
    pub fn json(&self, most: f64) -> Value {
        let part = |from, to| {
            let part = self.part(from, to);
            json!({
                "resident": Self::middle(part, |s| s.resident), "own": Self::middle(part, |s| s.own), "descriptors": Self::middle(part, |s| s.descriptors),
                "threads": Self::middle(part, |s| s.threads),
            })
        };
        json!({
            "first_eighth": part(0, 1), "before_the_middle": part(2, 4), "last_quarter": part(6, 8),
            "bytes_an_hour": self.slope(), "grows": self.grows(most), "looks": self.0.len(),
        })
    }

    /// For people.
    pub fn words(&self, most: f64) -> String {
        let mb = |part| Self::middle(part, |s| s.own) / 1e6;
        let last = self.part(6, 8);
        format!(
            "{:.2} MB of its own at first, {:.2} before the middle, {:.2} in the last quarter ({:+.2} MB an hour in the second half), \
             {:.2} with the program's pages; descriptors {} → {}, threads {} → {}: {}",
            mb(self.part(0, 1)),
            mb(self.part(2, 4)),
            mb(last),
            self.slope() / 1e6,
            Self::middle(last, |s| s.resident) / 1e6,
            Self::middle(self.part(2, 4), |s| s.descriptors),
            Self::middle(last, |s| s.descriptors),
            Self::middle(self.part(2, 4), |s| s.threads),
            Self::middle(last, |s| s.threads),
            if self.grows(most) { "GROWS" } else { "does not grow" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(own: impl Fn(f64) -> f64, descriptors: impl Fn(f64) -> f64) -> Samples {
        let one = |n: u32| {
            let seconds = f64::from(n) * 10.0;
            // Pages of its program are touched on and on.
            let (own, resident) = (own(seconds), own(seconds) + seconds * 3000.0);
            Sample { seconds, resident, own, descriptors: descriptors(seconds), threads: 5.0 }
        };
        Samples((0..360).map(one).collect())
    }

    #[test]
    fn what_grows_is_told_from_what_moves() {
        let noise = |s: f64| (s * 0.7).sin() * 4e5;
        let flat = |s: f64| 10e6 + 5e6 * (s / 200.0).min(1.0) + noise(s);
        assert!(!samples(flat, |_| 100.0).grows(2e6));
        let leak = |s: f64| 10e6 + s * 1000.0 + noise(s);
        assert!(samples(leak, |_| 100.0).grows(2e6));
        assert!((samples(leak, |_| 100.0).slope() - 3.6e6).abs() < 0.4e6);
        assert!(samples(flat, |s| 100.0 + s / 60.0).grows(2e6));
        assert!(samples(flat, |_| 1.0).words(2e6).ends_with("does not grow"));
    }
}
