//! An open-loop HTTP/1.1 load generator: requests start on schedule whether or not earlier ones have answered.
//!
//! Invariant: rate, duration and connections are bounded; a request counts as failed unless it got a status
//! below 400. Latency is counted from the time a request was due.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, sync::Semaphore, task::JoinSet};

use super::mesh::Mesh;

/// Most requests under way at once; one more fails at once instead of waiting.
const MAX_IN_FLIGHT: usize = 2_000;
/// Failures that are told in words.
const TOLD: usize = 5;
/// Between two reports into a file.
const TELL: Duration = Duration::from_secs(1);

/// What to send, how fast, how long.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// URLs, called in turn.
    #[arg(long = "url", required = true, value_name = "URL")]
    urls: Vec<http::Uri>,
    /// Methods, used in turn; POST has a short body.
    #[arg(long = "method", default_value = "GET", value_name = "METHOD")]
    methods: Vec<http::Method>,
    /// Requests per second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// How long at most, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// End as soon as standard input is closed.
    #[arg(long)]
    until_stdin_closes: bool,
    /// Tell in this file, once a second, what was counted so far.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the load and prints one JSON line; 0 only when nothing failed.
///
/// # Errors
/// None of the requests' own failures; those are counted.
pub async fn run(options: Options) -> Result<u8> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let total = u64::from(options.rate) * u64::from(options.seconds);
    let gap = Duration::from_secs(1) / options.rate;
    let start = Instant::now();
    let mut running = JoinSet::new();
    let mut tally = Tally::default();
    let mut told = start;
    let mut ended = std::pin::pin!(stdin_closed(options.until_stdin_closes));
    for ((n, uri), method) in (0..total).zip(options.urls.iter().cycle()).zip(options.methods.iter().cycle()) {
        let due = start + gap * u32::try_from(n).unwrap_or(u32::MAX);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = &mut ended => break,
        }
        tally.sent += 1;
        match slots.clone().try_acquire_owned() {
            Ok(slot) => {
                let (client, method, uri) = (client.clone(), method.clone(), uri.clone());
                running.spawn(async move {
                    let result = one(client, method, uri, due).await;
                    drop(slot);
                    result
                });
            }
            Err(_) => tally.take(start, Err(anyhow::anyhow!("{MAX_IN_FLIGHT} requests already under way"))),
        }
        while let Some(done) = running.try_join_next() {
            tally.take(start, done.context("request task").flatten());
        }
        if let Some(path) = options.report.as_deref().filter(|_| told.elapsed() >= TELL) {
            told = Instant::now();
            tell(path, &tally.line(start))?;
        }
    }
    while let Some(done) = running.join_next().await {
        tally.take(start, done.context("request task").flatten());
    }
    println!("{}", tally.line(start));
    Ok(u8::from(tally.failed > 0))
}

/// What was counted.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    failed: u64,
    failures: Vec<String>,
    latencies: Vec<Duration>,
}

impl Tally {
    fn take(&mut self, start: Instant, result: Result<Duration>) {
        match result {
            Ok(latency) => self.latencies.push(latency),
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < TOLD {
                    self.failures.push(format!("after {:.1} s: {error:#}", start.elapsed().as_secs_f64()));
                }
            }
        }
    }

    fn line(&mut self, start: Instant) -> Value {
        self.latencies.sort();
        let quantile = |q: f64| {
            let at = ((self.latencies.len() as f64) * q) as usize;
            self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).map_or(0, Duration::as_micros)
        };
        json!({
            "requests": self.sent, "failed": self.failed, "failures": self.failures, "seconds": start.elapsed().as_secs_f64(),
            "p50_us": quantile(0.5), "p99_us": quantile(0.99), "max_us": quantile(1.0),
        })
    }
}

/// Replaces the file as a whole; who reads it sees one report or the next.
fn tell(path: &Path, line: &Value) -> Result<()> {
    let half = path.with_extension("half");
    std::fs::write(&half, line.to_string()).with_context(|| half.display().to_string())?;
    std::fs::rename(&half, path).with_context(|| path.display().to_string())
}

/// Returns when standard input ends; never, when nobody wants to know.
pub(crate) async fn stdin_closed(wanted: bool) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let reader = move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(());
    };
    let started = wanted && std::thread::Builder::new().name("stdin".into()).spawn(reader).is_ok();
    if !started || told.await.is_err() {
        std::future::pending().await
    }
}

async fn one<C>(client: Client<C, Full<Bytes>>, method: http::Method, uri: http::Uri, due: Instant) -> Result<Duration>
where
    C: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static,
{
    let shown = format!("{method} {uri}");
    let body = if method == http::Method::POST { Bytes::from_static(b"an order") } else { Bytes::new() };
    let request = Request::builder().method(method).uri(uri).body(Full::new(body))?;
    let answered = tokio::time::timeout(Duration::from_secs(15), async {
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.as_u16() < 400, "status {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    });
    answered.await.context("no answer in 15 s").flatten().context(shown)?;
    Ok(due.elapsed())
}

/// What is sent from inside a pod until told to end.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Requests a second.
    pub rate: &'a str,
    /// URLs, called in turn.
    pub urls: &'a [String],
    /// Methods, used in turn.
    pub methods: &'a [&'a str],
    /// Where it is told meanwhile what was counted so far.
    pub report: Option<&'a Path>,
}

/// Constant load from inside a pod until told to end.
pub struct Running {
    child: tokio::process::Child,
}

/// How a load went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Requests sent; none of them failed.
    pub requests: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// 99 of 100 took no longer, in microseconds.
    pub p99: u64,
    /// None took longer, in microseconds.
    pub longest: u64,
}

impl Running {
    /// Starts it in a pod and lets it settle.
    ///
    /// # Errors
    /// When the pod cannot be entered.
    pub async fn start(mesh: &Mesh, namespace: &str, pod: &str, rate: &str, urls: &[String]) -> Result<Self> {
        Self::with_methods(mesh, namespace, pod, rate, urls, &["GET"]).await
    }

    /// The same with these methods in turn.
    ///
    /// # Errors
    /// When the pod cannot be entered.
    pub async fn with_methods(
        mesh: &Mesh,
        namespace: &str,
        pod: &str,
        rate: &str,
        urls: &[String],
        methods: &[&str],
    ) -> Result<Self> {
        let running = Self::begin(mesh, namespace, pod, Plan { rate, urls, methods, report: None })?;
        // Let the load settle, so that the first switch already meets a constant rate.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(running)
    }

    /// Starts it in a pod.
    ///
    /// # Errors
    /// When the pod cannot be entered.
    pub fn begin(mesh: &Mesh, namespace: &str, pod: &str, plan: Plan<'_>) -> Result<Self> {
        let words = words(plan)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Self::spawn(mesh.carrick(&[&["exec", pod, "-n", namespace, "--"], &words[..]].concat()))
    }

    /// Starts it by a command that ends with [`words`].
    ///
    /// # Errors
    /// When there is no such program.
    pub fn spawn(mut command: tokio::process::Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(Self { child: command.spawn().context("a load")? })
    }

    /// Ends the load; the text names rate and worst latency.
    ///
    /// # Errors
    /// When any request failed.
    pub async fn finish(self) -> Result<String> {
        let Counted { requests, seconds, p99, .. } = self.counted().await?;
        Ok(format!("{requests} requests at {:.0}/s, 0 failed, p99 {p99} µs", requests as f64 / seconds))
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When any request failed.
    pub async fn counted(mut self) -> Result<Counted> {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.shutdown().await?;
        }
        let output = tokio::time::timeout(Duration::from_secs(30), self.child.wait_with_output()).await??;
        let line: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the load gave no report: {}", String::from_utf8_lossy(&output.stderr)))?;
        let (requests, failed) = (line["requests"].as_u64().unwrap_or(0), line["failed"].as_u64().unwrap_or(1));
        ensure!(failed == 0, "{failed} of {requests} requests failed: {}", line["failures"]);
        ensure!(requests > 0, "no request was sent");
        let number = |key: &str| line[key].as_u64().unwrap_or_default();
        let seconds = line["seconds"].as_f64().unwrap_or(f64::INFINITY);
        Ok(Counted { requests, seconds, p99: number("p99_us"), longest: number("max_us") })
    }
}

/// This very program as a load.
///
/// # Errors
/// It cannot be told where this program lies.
pub fn words(plan: Plan<'_>) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.display().to_string();
    let mut words = vec![program, "demo".into(), "load".into(), "--rate".into(), plan.rate.into()];
    words.extend(["--seconds", "3600", "--until-stdin-closes"].map(str::to_owned));
    for url in plan.urls {
        words.extend(["--url".to_owned(), url.clone()]);
    }
    for method in plan.methods {
        words.extend(["--method".to_owned(), (*method).to_owned()]);
    }
    if let Some(report) = plan.report {
        words.extend(["--report".to_owned(), report.display().to_string()]);
    }
    Ok(words)
}
