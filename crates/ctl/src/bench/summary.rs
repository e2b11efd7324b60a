//! Rounds of measurements, their medians, spreads and ratios.
//!
//! Invariant: a ratio is taken within a round and the median over rounds; medians of absolute figures are shown
//! beside it but never divided by each other.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value, json};

/// One engine's figure in one round.
#[derive(Debug, Clone)]
struct Round {
    native: f64,
    envoy: f64,
}

/// Everything measured: mode → figure → rounds.
#[derive(Debug, Default)]
pub struct Summary {
    modes: BTreeMap<String, BTreeMap<String, Vec<Round>>>,
}

impl Summary {
    /// Adds a round's pair of figures.
    pub fn add(&mut self, mode: &str, figure: &str, native: f64, envoy: f64) {
        let rounds = self.modes.entry(mode.to_owned()).or_default().entry(figure.to_owned()).or_default();
        rounds.push(Round { native, envoy });
    }

    /// The machine's form: `{mode: {figure: {native, envoy, ratio, ratio_min, ratio_max, rounds}}}`.
    pub fn json(&self) -> Map<String, Value> {
        let figure = |rounds: &Vec<Round>| {
            let (native, envoy, ratios) = columns(rounds);
            json!({
                "native": median(&native), "envoy": median(&envoy), "ratio": median(&ratios),
                "ratio_min": ratios.first(), "ratio_max": ratios.last(), "rounds": rounds.len(),
            })
        };
        self.modes
            .iter()
            .map(|(mode, figures)| {
                let shown: Map<String, Value> = figures.iter().map(|(name, r)| (name.clone(), figure(r))).collect();
                (mode.clone(), Value::Object(shown))
            })
            .collect()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ =
            writeln!(out, "{:<14} {:<26} {:>12} {:>12} {:>8}  spread", "mode", "figure", "native", "envoy", "ratio");
        for (mode, figures) in &self.modes {
            for (name, rounds) in figures {
                let (native, envoy, ratios) = columns(rounds);
                let _ = writeln!(
                    out,
                    "{mode:<14} {name:<26} {:>12.1} {:>12.1} {:>8.2}  {:.2}–{:.2}",
                    median(&native),
                    median(&envoy),
                    median(&ratios),
                    ratios.first().copied().unwrap_or_default(),
                    ratios.last().copied().unwrap_or_default(),
                );
            }
        }
        out
    }
}

/// The two engines' figures and the ratios, each sorted.
fn columns(rounds: &[Round]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let sorted = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v
    };
    let ratio = |r: &Round| if r.envoy > 0.0 { r.native / r.envoy } else { f64::NAN };
    (
        sorted(rounds.iter().map(|r| r.native).collect()),
        sorted(rounds.iter().map(|r| r.envoy).collect()),
        sorted(rounds.iter().map(ratio).collect()),
    )
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted.get(n / 2).copied().unwrap_or(f64::NAN),
        n => {
            (sorted.get(n / 2 - 1).copied().unwrap_or(f64::NAN) + sorted.get(n / 2).copied().unwrap_or(f64::NAN)) / 2.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut summary = Summary::default();
        for (native, envoy) in [(50.0, 100.0), (90.0, 300.0), (10.0, 40.0)] {
            summary.add("http1", "cpu_us_per_request", native, envoy);
        }
        let figure = &summary.json()["http1"]["cpu_us_per_request"];
        assert_eq!((figure["native"].as_f64(), figure["envoy"].as_f64()), (Some(50.0), Some(100.0)));
        assert_eq!(figure["ratio"].as_f64(), Some(0.3));
        assert_eq!((figure["ratio_min"].as_f64(), figure["ratio_max"].as_f64()), (Some(0.25), Some(0.5)));
        assert!(summary.table().contains("cpu_us_per_request"));
    }
}
