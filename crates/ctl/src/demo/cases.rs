//! `carrick demo cases`: case files, each run by every pair of data planes: client native or Envoy, server native or
//! Envoy.
//!
//! Invariant: a case passes only on what curl got and what the server says it saw; where the same resources give
//! different outcomes in different pairs, the case fails for one of them. One mesh serves all cases; the objects of a
//! case are gone before the next one's are judged. The format of the files is told in `cases/README.md`.

mod batch;
mod expect;
mod file;
mod lab;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use self::{
    file::{Case, Request},
    lab::{Lab, Pair},
};
use super::curl::Answer;

/// How long an acknowledged configuration may take to show; Envoy acknowledges before its workers run it.
const SETTLE: Duration = Duration::from_secs(2);
/// The same after a request of the case has failed already.
const SETTLE_AFTER_FAILURE: Duration = Duration::from_millis(300);
/// A request is tried as often as this though its time is over: each try uses up a connection that Envoy still drains, and on a busy
/// machine few of them fit into the time.
const TRIES: u32 = 10;
/// And no longer than this.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a status may take to be written: bursts are waited for.
const TOLD: Duration = Duration::from_secs(10);

/// Which cases, and how they are run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Case files, or folders of them.
    #[arg(default_value = "cases", value_name = "DIR|FILE")]
    places: Vec<PathBuf>,
    /// Pairs of data planes, client-server.
    #[arg(
        long = "pair",
        value_delimiter = ',',
        value_name = "CLIENT-SERVER",
        default_value = "native-native,native-envoy,envoy-native,envoy-envoy"
    )]
    pairs: Vec<Pair>,
    /// Only cases whose name contains one of these.
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    filter: Vec<String>,
    /// Output format: a line of text for each case and pair, or of JSON.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// One line of the report.
struct Verdict {
    case: String,
    pair: Pair,
    failures: Vec<String>,
    took: Duration,
}

/// Runs the cases; 0 only when every one passed in every pair, and there was at least one.
///
/// # Errors
/// When a file cannot be read or the mesh cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut found = file::find(&options.places)?;
    found.retain(|(name, _)| options.filter.is_empty() || options.filter.iter().any(|text| name.contains(text)));
    ensure!(!found.is_empty(), "no case is found");
    // Every file is read before anything is started, so a slip of the pen is told at once.
    for (name, text) in &found {
        file::read(name, text, &lab::Names::example())?;
    }
    let own = super::mesh::folder(data_dir, "cases");
    let mut lab = Lab::start(&own.path, &options.pairs).await?;
    let (mut passed, mut failed) = (0, 0);
    for (name, text) in &found {
        for verdict in one(&mut lab, name, text, &options.pairs).await? {
            let fine = verdict.failures.is_empty();
            *if fine { &mut passed } else { &mut failed } += 1;
            verdict.print(options.output);
        }
    }
    lab.stop().await?;
    if options.output == Output::Text {
        println!("cases: {passed} passed, {failed} failed");
    }
    Ok(u8::from(failed > 0 || passed == 0))
}

impl Verdict {
    fn print(&self, output: Output) {
        let (name, pair, seconds) = (&self.case, self.pair.to_string(), self.took.as_secs_f32());
        match output {
            Output::Json => println!(
                "{}",
                json!({"case": name, "pair": pair, "passed": self.failures.is_empty(), "failures": self.failures,
                    "seconds": (f64::from(seconds) * 100.0).round() / 100.0})
            ),
            Output::Text if self.failures.is_empty() => println!("  ok    {name} {pair} ({seconds:.1} s)"),
            Output::Text => {
                println!("  FAIL  {name} {pair} ({seconds:.1} s)");
                for failure in &self.failures {
                    println!("        {failure}");
                }
            }
        }
    }
}

/// One case in all pairs: at once where their objects do not meet, else one pair after the other.
async fn one(lab: &mut Lab, name: &str, text: &str, pairs: &[Pair]) -> Result<Vec<Verdict>> {
    let mut cases = Vec::new();
    for pair in pairs {
        let case = file::read(name, text, &lab.names(*pair))?;
        if case.pairs.is_empty() || case.pairs.contains(pair) {
            cases.push((*pair, case));
        }
    }
    let mut verdicts = Vec::new();
    let mut able = Vec::new();
    for (pair, case) in cases {
        match asked_for(lab, pair, &case).await {
            Ok(()) => able.push((pair, case)),
            Err(error) => {
                let failures = vec![format!("{error:#}")];
                verdicts.push(Verdict { case: name.to_owned(), pair, failures, took: Duration::ZERO });
            }
        }
    }
    let cases = able;
    let together = cases.iter().map(|(pair, case)| (*pair, case.objects.clone())).collect::<Vec<_>>();
    match batch::merge(&together) {
        Some(objects) => round(lab, name, &objects, &cases, &mut verdicts).await,
        None => {
            for one in cases.chunks(1) {
                let objects = one.first().map(|(_, case)| case.objects.clone()).unwrap_or_default();
                round(lab, name, &objects, one, &mut verdicts).await;
            }
        }
    }
    Ok(verdicts)
}

/// Starts what a case needs besides the pods that all need.
async fn asked_for(lab: &mut Lab, pair: Pair, case: &Case) -> Result<()> {
    if case.gateway {
        lab.gateway(pair).await.context("gateway")?;
    }
    if case.transparent {
        lab.transparent(pair).await.context("the transparent server")?;
    }
    Ok(())
}

/// Applies objects, runs the requests of the pairs side by side, deletes the objects.
async fn round(
    lab: &mut Lab,
    name: &str,
    objects: &[serde_json::Value],
    cases: &[(Pair, Case)],
    verdicts: &mut Vec<Verdict>,
) {
    let start = Instant::now();
    let applied = lab.apply(objects).await;
    let mut failures: Vec<Vec<String>> = Vec::new();
    match applied {
        Ok(()) => {
            lab.settled().await;
            let lab = &*lab;
            failures = futures_util::future::join_all(
                cases.iter().map(|(pair, case)| async move { requests(lab, *pair, case).await }),
            )
            .await;
        }
        Err(error) => {
            let told = crate::output::words(&error);
            for (_, case) in cases {
                failures.push(match &case.refused {
                    Some(text) if told.contains(text) => Vec::new(),
                    Some(text) => vec![format!("apply: want a refusal with {text:?}, got: {told}")],
                    None => vec![format!("apply: {told}")],
                });
            }
        }
    }
    let later = cases.iter().flat_map(|(_, case)| case.requests.iter().flat_map(|request| &request.objects));
    let all: Vec<serde_json::Value> = objects.iter().chain(later).cloned().collect();
    if let Err(error) = lab.delete(&all).await {
        for list in &mut failures {
            list.push(format!("delete: {}", crate::output::words(&error)));
        }
    }
    for ((pair, _), failures) in cases.iter().zip(failures) {
        verdicts.push(Verdict { case: name.to_owned(), pair: *pair, failures, took: start.elapsed() });
    }
}

/// The failures of one pair's requests.
async fn requests(lab: &Lab, pair: Pair, case: &Case) -> Vec<String> {
    if let Some(text) = &case.refused {
        return vec![format!("apply: want a refusal with {text:?}, but it was taken")];
    }
    lab.flush(pair).await;
    let mut failures = Vec::new();
    for request in &case.requests {
        let limit = match request.within {
            Some(seconds) => Duration::from_secs_f32(seconds),
            None if failures.is_empty() => SETTLE,
            None => SETTLE_AFTER_FAILURE,
        };
        if let Err(error) = judge(lab, pair, request, limit).await {
            failures.push(format!("{error:#}"));
        }
    }
    for wanted in &case.told {
        if let Err(error) = told(lab, wanted).await {
            failures.push(format!("{error:#}"));
        }
    }
    failures
}

/// Reads an object's status until it says what is wanted, or the time is up.
async fn told(lab: &Lab, wanted: &file::Told) -> Result<()> {
    let start = Instant::now();
    loop {
        let missing = wanted.missing(&lab.status(&wanted.object()).await?);
        let Some(missing) = missing else { return Ok(()) };
        ensure!(start.elapsed() < TOLD, "{missing}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends a request until the answer is as expected, or the time is up.
async fn judge(lab: &Lab, pair: Pair, request: &Request, limit: Duration) -> Result<()> {
    if !request.objects.is_empty() {
        lab.apply(&request.objects).await?;
        lab.settled().await;
    }
    let start = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let all: Vec<Vec<String>> = (1..=request.times).map(|turn| request.curl(turn)).collect();
        let mut answers: Vec<Answer> = Vec::new();
        for some in all.chunks(if request.together { all.len().max(1) } else { 1 }) {
            answers.extend(lab.ask(pair, request, some).await?);
        }
        let wrong = expect::check(&request.expect, &answers);
        let Some(wrong) = wrong else { return Ok(()) };
        // After a failure there is no use in patience.
        let patient = limit >= SETTLE && tries < TRIES && start.elapsed() < PATIENCE;
        ensure!(patient || start.elapsed() < limit, "{request}: {wrong}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
