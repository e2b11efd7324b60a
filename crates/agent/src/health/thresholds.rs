//! When probes' answers become a change of health.
//!
//! Invariant: pure. A change needs as many equal answers in a row as its threshold says; an answer of the other kind begins anew.

use carrick_xds::health::Health;

/// The answers so far.
#[derive(Debug)]
pub struct Thresholds {
    success: u32,
    failure: u32,
    /// What was told last.
    healthy: Option<bool>,
    /// The answers in a row, and of which kind.
    row: (bool, u32),
}

impl Thresholds {
    /// Without an answer yet; a threshold of zero is one.
    pub fn new(success: u32, failure: u32) -> Self {
        Self { success: success.max(1), failure: failure.max(1), healthy: None, row: (true, 0) }
    }

    /// Takes an answer; gives the health if it changes by it.
    pub fn observe(&mut self, answer: Result<(), String>) -> Option<Health> {
        let good = answer.is_ok();
        self.row = if self.row.0 == good { (good, self.row.1.saturating_add(1)) } else { (good, 1) };
        let needed = if good { self.success } else { self.failure };
        if self.row.1 < needed || self.healthy == Some(good) {
            return None;
        }
        self.healthy = Some(good);
        Some(match answer {
            Ok(()) => Health::Healthy,
            Err(reason) => Health::Ill(reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told after each answer of a text of `+` and `-`: `H`, `I` or nothing (`.`).
    fn told(success: u32, failure: u32, answers: &str) -> String {
        let mut thresholds = Thresholds::new(success, failure);
        let tell = |answer| match thresholds.observe(if answer == '+' { Ok(()) } else { Err("no".to_owned()) }) {
            Some(Health::Healthy) => 'H',
            Some(Health::Ill(_)) => 'I',
            None => '.',
        };
        answers.chars().map(tell).collect()
    }

    #[test]
    fn rows_of_equal_answers() {
        for (success, failure, answers, expected) in [
            (1, 1, "+", "H"),
            (1, 1, "-", "I"),
            (1, 1, "++--+", "H.I.H"),
            (0, 0, "+-", "HI"),
            (1, 3, "+--+---+", "H.....IH"),
            (2, 1, "+-++", ".I.H"),
            (3, 2, "++-+++--", ".....H.I"),
            (1, 3, "--+", "..H"),
        ] {
            assert_eq!(told(success, failure, answers), expected, "{success} {failure} {answers}");
        }
    }

    #[test]
    fn the_reason_is_the_last_answers() {
        let mut thresholds = Thresholds::new(1, 2);
        assert_eq!(thresholds.observe(Err("a".into())), None);
        assert_eq!(thresholds.observe(Err("b".into())), Some(Health::Ill("b".into())));
    }
}
