//! The rows of a scenario as they pass or fail, printed as they happen.
//!
//! Invariant: the last line is `<scenario>: N passed, M failed`, and the exit code is 0 only for M = 0.

use std::time::Instant;

use anyhow::Result;

/// A running tally.
#[derive(Debug)]
pub struct Rows {
    scenario: &'static str,
    passed: usize,
    failed: usize,
}

impl Rows {
    /// No row yet.
    pub fn new(scenario: &'static str) -> Self {
        Self { scenario, passed: 0, failed: 0 }
    }

    /// Runs one row and prints how it went; the text a row gives back is shown behind its title.
    pub async fn check(&mut self, title: &str, row: impl AsyncFnOnce() -> Result<String>) {
        let start = Instant::now();
        let result = row().await;
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(note) => {
                self.passed += 1;
                let note = if note.is_empty() { note } else { format!(": {note}") };
                println!("  ok    {title}{note} ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("  FAIL  {title}: {error:#} ({seconds:.1} s)");
            }
        }
    }

    /// Prints the closing line and gives the exit code.
    pub fn finish(&self) -> u8 {
        println!("{}: {} passed, {} failed", self.scenario, self.passed, self.failed);
        u8::from(self.failed > 0 || self.passed == 0)
    }
}
