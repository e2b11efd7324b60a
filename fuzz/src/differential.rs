//! The differential fuzzer: cases from a seed through the simulator, our engine and a real Envoy, and what differs, made small.
//!
//! Invariant: ours is wrong until shown otherwise. A run without differences ends with 0; every difference is printed with its seed, its
//! case's number, the smallest objects and request that still show it, and the three outcomes.

mod batch;
mod case;
mod client;
mod compare;
mod echo;
mod engines;
mod generate;
mod keys;
mod known;
mod moved;
mod prepare;
mod shrink;
mod simulator;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use batch::Ran;
use case::{Case, Says};
use compare::Difference;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which cases.
    pub seed: u64,
    /// How many.
    pub cases: usize,
    /// The number of the first.
    pub first: usize,
    /// Cases that one Envoy holds.
    pub batch: usize,
    /// Kinds of differences that are made small.
    pub shrink: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, cases: 500, first: 0, batch: 50, shrink: 8 }
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    pub cases: usize,
    pub requests: usize,
    /// Requests by what Envoy did with them.
    pub outcomes: BTreeMap<String, usize>,
    /// Objects by their kind.
    pub objects: BTreeMap<String, usize>,
    /// Differences that were not there when the case was run again, by their kind.
    pub unsteady: BTreeMap<String, usize>,
    /// Differences that stay, by their reason.
    pub known: BTreeMap<&'static str, usize>,
    /// Differences by their kind: how many, and the first case.
    pub differences: BTreeMap<String, (usize, usize)>,
}

/// Runs, printing as it goes.
///
/// # Errors
/// When an engine does not start.
pub async fn run(options: &Options) -> Result<Report> {
    let keys = Arc::new(keys::Keys::new()?);
    echo::start(&keys).await?;
    let start = Instant::now();
    let mut report = Report::default();
    let mut round = 0;
    let end = options.first + options.cases;
    let mut next = options.first;
    while next < end {
        let numbers: Vec<usize> = (next..end.min(next + options.batch)).collect();
        next += numbers.len();
        let cases: Vec<Case> = numbers.iter().map(|n| generate::case(options.seed, *n)).collect();
        round += 1;
        let mut ran = batch::run(&cases, round, &keys).await?;
        report.again(&cases, &mut ran, &mut round, &keys).await?;
        for ((number, case), ran) in numbers.iter().zip(&cases).zip(&ran) {
            report.count(*number, case, ran);
        }
        let rate = report.cases as f64 / start.elapsed().as_secs_f64();
        println!(
            "{} cases, {} requests, {} kinds of differences, {rate:.1} cases/s",
            report.cases,
            report.requests,
            report.differences.len()
        );
    }
    let mut kinds: Vec<(&String, &(usize, usize))> = report.differences.iter().collect();
    kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for (kind, (count, first)) in &kinds {
        println!("{count:>6}  case {first:<6} {kind}");
    }
    for (at, (kind, (_, number))) in kinds.into_iter().enumerate() {
        if at >= options.shrink {
            let case = generate::case(options.seed, *number);
            round += 1;
            let ran = batch::run(std::slice::from_ref(&case), round, &keys).await?;
            if let Some(ran) = ran.first() {
                println!("\n{}", shown(options.seed, *number, kind, &only(case, ran, kind), &reduced(ran, kind)));
            }
            continue;
        }
        let small = shrink::shrink(generate::case(options.seed, *number), kind, &mut round, &keys).await?;
        round += 1;
        let ran = batch::run(std::slice::from_ref(&small), round, &keys).await?;
        if let Some(ran) = ran.first() {
            println!("\n{}", shown(options.seed, *number, kind, &small, ran));
        }
    }
    Ok(report)
}

impl Report {
    /// Runs cases that differ once more: what a busy machine was late with, or chance decided, is counted apart.
    async fn again(
        &mut self,
        cases: &[Case],
        ran: &mut [Ran],
        round: &mut usize,
        keys: &Arc<keys::Keys>,
    ) -> Result<()> {
        let new = |case: &Case, ran: &Ran| -> Vec<Difference> {
            let all = compare::differences(ran).into_iter();
            all.filter(|difference| known(case, ran, difference).is_none()).collect()
        };
        let odd: Vec<(Vec<Difference>, &Case, &mut Ran)> = cases
            .iter()
            .zip(ran.iter_mut())
            .filter_map(|(case, ran)| Some((new(case, ran), case, ran)).filter(|(new, ..)| !new.is_empty()))
            .collect();
        if odd.is_empty() {
            return Ok(());
        }
        *round += 1;
        let second: Vec<Case> = odd.iter().map(|(_, case, _)| (*case).clone()).collect();
        let second = batch::run(&second, *round, keys).await?;
        for ((first, case, ran), second) in odd.into_iter().zip(second) {
            let still = new(case, &second);
            for gone in first.into_iter().filter(|difference| !still.contains(difference)) {
                *self.unsteady.entry(gone.kind).or_default() += 1;
            }
            *ran = second;
        }
        Ok(())
    }

    fn count(&mut self, number: usize, case: &Case, ran: &Ran) {
        self.cases += 1;
        self.requests += ran.seen.len();
        for object in &case.objects {
            *self.objects.entry(object["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        for seen in &ran.seen {
            *self.outcomes.entry(compare::class(&seen.envoy)).or_default() += 1;
        }
        for difference in compare::differences(ran) {
            match known(case, ran, &difference) {
                Some(reason) => *self.known.entry(reason).or_default() += 1,
                None => self.differences.entry(difference.kind).or_insert((0, number)).0 += 1,
            }
        }
    }
}

/// Why a difference stays, if it does.
fn known(case: &Case, ran: &Ran, difference: &Difference) -> Option<&'static str> {
    let at = difference.ask?;
    known::reason(case.asks.get(at)?, ran.seen.get(at)?)
}

/// A case with the requests alone that show a kind of difference.
fn only(case: Case, ran: &Ran, kind: &str) -> Case {
    let wanted = wanted(ran, kind);
    let asks = case.asks.iter().enumerate().filter(|(i, _)| wanted.contains(i)).map(|(_, a)| a.clone()).collect();
    Case { asks, ..case }
}

fn reduced(ran: &Ran, kind: &str) -> Ran {
    let wanted = wanted(ran, kind);
    let seen = ran.seen.iter().enumerate().filter(|(i, _)| wanted.contains(i)).map(|(_, s)| s.clone()).collect();
    Ran { seen, ..ran.clone() }
}

fn wanted(ran: &Ran, kind: &str) -> Vec<usize> {
    compare::differences(ran).into_iter().filter(|d| d.kind == kind).filter_map(|d| d.ask).collect()
}

/// A difference for a person.
fn shown(seed: u64, number: usize, kind: &str, case: &Case, ran: &Ran) -> String {
    let mut out = format!("=== seed {seed}, case {number}: {kind}\n");
    if case.mesh.as_object().is_some_and(|m| !m.is_empty()) {
        let _ = writeln!(out, "meshConfig: {}", case.mesh);
    }
    for object in &case.objects {
        let _ = writeln!(
            out,
            "--- {} {}.{}\nspec: {}",
            object["kind"], object["metadata"]["name"], object["metadata"]["namespace"], object["spec"]
        );
    }
    for found in &ran.found {
        let _ = writeln!(out, "diagnostic: {found}");
    }
    for refused in ran.refused.0.iter().map(|r| ("native", r)).chain(ran.refused.1.iter().map(|r| ("Envoy", r))) {
        let _ = writeln!(out, "{} refuses: {}", refused.0, refused.1);
    }
    for (ask, seen) in case.asks.iter().zip(&ran.seen) {
        let _ = writeln!(
            out,
            "--- from .{} to .{}:{} {}",
            ask.from,
            ask.to.0,
            ask.to.1,
            ask.tls.as_ref().map_or(String::new(), |t| format!("{t:?}"))
        );
        match &ask.says {
            Says::Bytes(text) => {
                let _ = writeln!(out, "{text:?}");
            }
            Says::Http(r) => {
                let _ = writeln!(out, "{} {} {:?} {:?} {:?}", r.method, r.target, r.headers, r.body, r.tokens);
            }
        }
        let _ =
            writeln!(out, "native:    {:?}\nEnvoy:     {:?}\nsimulator: {:?}", seen.native, seen.envoy, seen.foreseen);
    }
    out
}

/// The Envoy that is used.
pub fn envoy_version() -> String {
    engines::version()
}
