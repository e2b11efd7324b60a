//! Connections that are held open, for scenarios in which somebody cuts them: one side ticks, the other notes each end.
//!
//! Invariant: a report is whole or absent; the time in it is when the end was seen, which is no earlier than the last byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What is held.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Send a byte on every connection to this port, several times a second.
    #[arg(long, value_name = "PORT", required_unless_present = "to")]
    listen: Option<u16>,
    /// Open connections to this address, given with their number: HOST:PORT=N; may be given several times.
    #[arg(long, value_name = "HOST:PORT=N", conflicts_with = "listen", requires = "report")]
    to: Vec<String>,
    /// Where to tell what became of them.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What became of the connections to one address. Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Where they went.
    pub to: String,
    /// Open, and a byte has come.
    pub open: usize,
    /// Bytes in all.
    pub bytes: u64,
    /// When each that ended did.
    pub ended: Vec<u64>,
    /// When the last attempt to open one that got a byte was made.
    pub last_opened: u64,
    /// When the first attempt since then failed; 0 while none did.
    pub refused: u64,
}

/// Between two ticks of one connection.
const TICK: Duration = Duration::from_millis(200);
/// Between two reports, and between two new connections that only see whether that still works.
const TELL: Duration = Duration::from_millis(100);
/// How long a new connection may take to its first byte.
const FIRST: Duration = Duration::from_secs(2);
/// How long opening them all may take.
const OPEN: Duration = Duration::from_secs(60);

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Runs until it is ended.
///
/// # Errors
/// A port cannot be had; a connection cannot be opened in time.
pub async fn run(options: Options) -> Result<u8> {
    match (options.listen, options.report) {
        (Some(port), _) => listen(port).await,
        (None, Some(report)) => hold(&options.to, report).await,
        (None, None) => bail!("--report is missing"),
    }
}

async fn listen(port: u16) -> Result<u8> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            while stream.write_all(b".").await.is_ok() {
                tokio::time::sleep(TICK).await;
            }
        });
    }
}

type Shared = Arc<Mutex<Vec<Report>>>;

fn change(all: &Shared, at: usize, f: impl FnOnce(&mut Report)) {
    if let Some(report) = all.lock().unwrap_or_else(|e| e.into_inner()).get_mut(at) {
        f(report);
    }
}

async fn hold(to: &[String], file: PathBuf) -> Result<u8> {
    let all: Shared = Arc::default();
    for (at, place) in to.iter().enumerate() {
        let (address, n) = place.rsplit_once('=').context("HOST:PORT=N expected")?;
        let n: usize = n.parse().context("HOST:PORT=N expected")?;
        all.lock().unwrap_or_else(|e| e.into_inner()).push(Report { to: address.to_owned(), ..Report::default() });
        let begin = std::time::Instant::now();
        for _ in 0..n {
            let stream = loop {
                match open(address).await {
                    Ok(stream) => break stream,
                    Err(error) if begin.elapsed() > OPEN => return Err(error).with_context(|| address.to_owned()),
                    Err(_) => tokio::time::sleep(TELL).await,
                }
            };
            change(&all, at, |report| report.open += 1);
            tokio::spawn(watch(stream, all.clone(), at));
        }
        tokio::spawn(probe(address.to_owned(), all.clone(), at));
    }
    loop {
        let text = serde_json::to_vec(&*all.lock().unwrap_or_else(|e| e.into_inner()))?;
        let half = file.with_extension("half");
        tokio::fs::write(&half, text).await?;
        tokio::fs::rename(&half, &file).await?;
        tokio::time::sleep(TELL).await;
    }
}

/// A connection on which a byte has come: without one nobody knows whether the way to the server is open.
async fn open(address: &str) -> Result<TcpStream> {
    let first = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.read_exact(&mut [0]).await?;
        Ok(stream)
    };
    tokio::time::timeout(FIRST, first).await.context("no byte in time")?
}

async fn watch(mut stream: TcpStream, all: Shared, at: usize) {
    let mut bytes = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        change(&all, at, |report| report.bytes += u64::try_from(n).unwrap_or_default());
    }
    let end = now();
    change(&all, at, |report| {
        report.open -= 1;
        report.ended.push(end);
    });
}

/// Opens one after the other, to see whether that still works.
async fn probe(address: String, all: Shared, at: usize) {
    loop {
        let begin = now();
        let opened = open(&address).await.is_ok();
        change(&all, at, |report| match opened {
            true => (report.last_opened, report.refused) = (begin, 0),
            false if report.refused == 0 => report.refused = begin,
            false => {}
        });
        tokio::time::sleep(TELL).await;
    }
}
