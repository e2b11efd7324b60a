//! Rounds of measurements, their medians, spreads and ratios.
//!
//! Invariant: a ratio is taken within a round and the median over rounds; medians of absolute figures are shown
//! beside it but never divided by each other.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value, json};

/// Whom ratios are to, with what they are called in tables.
pub const REFERENCES: [(&str, &str); 3] = [("bare-envoy", "/E"), ("envoy", "/Istio's E"), ("floor", "/F")];

/// Figures of one subject in one mode, by name, one for each round.
type Figures = BTreeMap<String, Vec<f64>>;

/// Everything measured: mode → subject → figure → rounds.
#[derive(Debug, Default)]
pub struct Summary {
    modes: BTreeMap<String, BTreeMap<String, Figures>>,
    /// Measurements that failed once.
    pub repeated: Vec<String>,
}

impl Summary {
    /// Adds a round's figure. Every subject of a mode gets the same figures in every round.
    pub fn add(&mut self, mode: &str, subject: &str, figure: &str, value: f64) {
        let subjects = self.modes.entry(mode.to_owned()).or_default();
        let figures = subjects.entry(subject.to_owned()).or_default();
        figures.entry(figure.to_owned()).or_default().push(value);
    }

    /// The machine's form: mode → subject → figure → `{median, min, max, rounds}`, with the ratios to each reference that took part.
    pub fn json(&self) -> Map<String, Value> {
        let subject = |subjects: &BTreeMap<String, Figures>, name: &str, figures: &Figures| {
            let figure = |(what, rounds): (&String, &Vec<f64>)| {
                let mut shown = spread(rounds);
                for (reference, _) in REFERENCES.iter().filter(|(reference, _)| *reference != name) {
                    if let Some(theirs) = subjects.get(*reference).and_then(|f| f.get(what)) {
                        shown[format!("to_{reference}")] = spread(&ratios(rounds, theirs));
                    }
                }
                (what.clone(), shown)
            };
            Value::Object(figures.iter().map(figure).collect())
        };
        let mode = |subjects: &BTreeMap<String, Figures>| {
            Value::Object(subjects.iter().map(|(name, f)| (name.clone(), subject(subjects, name, f))).collect())
        };
        self.modes.iter().map(|(name, subjects)| (name.clone(), mode(subjects))).collect()
    }

    /// The table for people: who costs how much CPU.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<12} {:<12} {:>10} {:>10} {:>9} {:>9} {:>8} {:>8}  ratio to bare Envoy, to the floor (spread)",
            "mode", "who", "CPU µs", "per second", "p50 µs", "p99 µs", "calls", "allocs"
        );
        for (mode, subjects) in &self.modes {
            for (name, figures) in subjects {
                let of = |what: &str| figures.get(what).map_or(f64::NAN, |rounds| median(rounds));
                let ratio = |reference: &str| {
                    let own = figures.get("cpu_us")?;
                    let theirs = subjects.get(reference)?.get("cpu_us")?;
                    let all = ratios(own, theirs);
                    let (low, high) = ends(&all);
                    Some(format!("{:.2} ({low:.2}–{high:.2})", median(&all)))
                };
                let _ = writeln!(
                    out,
                    "{mode:<12} {name:<12} {:>10.1} {:>10.0} {:>9.0} {:>9.0} {:>8.1} {:>8.1}  {}  {}",
                    of("cpu_us"),
                    of("per_second"),
                    of("p50_us"),
                    of("p99_us"),
                    of("syscalls"),
                    of("allocations"),
                    ratio("bare-envoy").unwrap_or_else(|| "-".to_owned()),
                    ratio("floor").unwrap_or_else(|| "-".to_owned()),
                );
            }
        }
        out
    }
}

fn spread(rounds: &[f64]) -> Value {
    let (low, high) = ends(rounds);
    json!({"median": median(rounds), "min": low, "max": high, "rounds": rounds.len()})
}

fn ratios(own: &[f64], theirs: &[f64]) -> Vec<f64> {
    own.iter().zip(theirs).map(|(own, theirs)| if *theirs > 0.0 { own / theirs } else { f64::NAN }).collect()
}

fn ends(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// The middle value; of an even number of them the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => at(n / 2),
        n => (at(n / 2 - 1) + at(n / 2)) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut summary = Summary::default();
        for (native, envoy) in [(50.0, 100.0), (90.0, 300.0), (10.0, 40.0)] {
            summary.add("http1", "native", "cpu_us", native);
            summary.add("http1", "bare-envoy", "cpu_us", envoy);
        }
        let all = summary.json();
        let figure = &all["http1"]["native"]["cpu_us"];
        assert_eq!((figure["median"].as_f64(), figure["rounds"].as_u64()), (Some(50.0), Some(3)));
        let ratio = &figure["to_bare-envoy"];
        assert_eq!(ratio["median"].as_f64(), Some(0.3));
        assert_eq!((ratio["min"].as_f64(), ratio["max"].as_f64()), (Some(0.25), Some(0.5)));
        assert!(all["http1"]["bare-envoy"]["cpu_us"].get("to_bare-envoy").is_none());
        assert!(summary.table().contains("0.30 (0.25–0.50)"), "{}", summary.table());
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
