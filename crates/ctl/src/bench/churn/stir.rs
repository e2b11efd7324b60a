//! The load of `carrick bench churn`, from within the client's pod: what comes and goes on a sidecar, each kind in turn.
//!
//! Invariant: so many begin in a second and so many are under way at most; what is to succeed is told from what breaks off on purpose.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{Request, body::Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

use crate::bench::hold;

/// Most under way at once.
const AT_ONCE: usize = 300;
/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that a kept connection carries.
const KEPT: u32 = 50;
/// Failures that are told in words.
const TOLD: usize = 5;
/// Ports of the pair: HTTP/1.1, HTTP/2, bytes, HTTP/1.1 that travels as HTTP/2.
const HTTP: u16 = 8080;
const HTTP2: u16 = 8081;
const BYTES: u16 = 8082;
const UPGRADED: u16 = 8083;

/// To where, and how often.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The server's name.
    #[arg(long)]
    to: String,
    /// Begun in a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
}

/// One kind of what comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A request on a connection that is used again.
    Kept(u16),
    /// A connection for one request.
    New(u16),
    /// A request whose connection is reset before its answer.
    Reset(u16),
    /// A body that breaks off on the way up; by a reset, or by an end.
    Upload(u16, bool),
    /// One of 1 MiB that breaks off on the way down.
    Download(u16, bool),
    /// An HTTP/2 connection with four requests, of which one is given up and one breaks off.
    Streams,
}

const KINDS: [Kind; 18] = [
    Kind::Kept(HTTP),
    Kind::Kept(UPGRADED),
    Kind::New(HTTP),
    Kind::New(BYTES),
    Kind::New(UPGRADED),
    Kind::Streams,
    Kind::Reset(HTTP),
    Kind::Reset(BYTES),
    Kind::Reset(UPGRADED),
    Kind::Upload(HTTP, true),
    Kind::Upload(HTTP, false),
    Kind::Upload(UPGRADED, true),
    Kind::Upload(UPGRADED, false),
    Kind::Upload(BYTES, true),
    Kind::Download(HTTP, true),
    Kind::Download(HTTP, false),
    Kind::Download(BYTES, true),
    Kind::Kept(BYTES),
];

/// Connections that wait for their next request, by port, with how often they were used.
type Kept = Arc<Mutex<BTreeMap<u16, Vec<(TcpStream, u32)>>>>;

/// Stirs until standard input ends, then tells in one line what was done.
///
/// # Errors
/// None of the requests' own; those are counted.
pub async fn run(options: &Options) -> Result<u8> {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let kept = Kept::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let mut ended = std::pin::pin!(crate::demo::load::stdin_closed(true));
    let mut running = JoinSet::new();
    let (mut done, mut failed, mut failures) = (BTreeMap::<String, u64>::new(), 0_u64, Vec::new());
    let mut take = |result: Result<(Kind, Result<()>), tokio::task::JoinError>| {
        let Ok((kind, result)) = result else { return };
        let name = format!("{kind:?}");
        let name = name.split('(').next().unwrap_or_default().to_lowercase();
        match result {
            Ok(()) => *done.entry(name).or_default() += 1,
            Err(error) => {
                failed += 1;
                if failures.len() < TOLD {
                    failures.push(format!("{kind:?}: {error:#}"));
                }
            }
        }
    };
    for kind in KINDS.into_iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut ended => break,
        }
        // Who is slow is waited for: the rate is at most this.
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (to, kept) = (options.to.clone(), Arc::clone(&kept));
        running.spawn(async move {
            let result = tokio::time::timeout(PATIENCE, one(kind, &to, &kept)).await;
            drop(slot);
            (kind, result.context("took too long").flatten())
        });
        while let Some(result) = running.try_join_next() {
            take(result);
        }
    }
    while let Some(result) = running.join_next().await {
        take(result);
    }
    println!("{}", json!({"done": done, "failed": failed, "failures": failures}));
    std::io::stdout().flush()?;
    Ok(0)
}

async fn one(kind: Kind, to: &str, kept: &Kept) -> Result<()> {
    let connect = async |port: u16| TcpStream::connect((to, port)).await.context("connecting");
    match kind {
        Kind::Kept(port) => {
            let waiting = kept.lock().unwrap_or_else(PoisonError::into_inner).entry(port).or_default().pop();
            let (mut tcp, used) = match waiting {
                Some(waiting) => waiting,
                None => (connect(port).await?, 0),
            };
            hold::ask(&mut tcp, to).await?;
            if used < KEPT {
                kept.lock().unwrap_or_else(PoisonError::into_inner).entry(port).or_default().push((tcp, used + 1));
            }
        }
        Kind::New(port) => hold::ask(&mut connect(port).await?, to).await?,
        Kind::Reset(port) => {
            let mut tcp = connect(port).await?;
            tcp.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
            tcp.set_zero_linger()?;
        }
        Kind::Upload(port, reset) => {
            let mut tcp = connect(port).await?;
            let head = format!("POST / HTTP/1.1\r\nHost: {to}\r\nContent-Length: 1000000\r\n\r\n");
            tcp.write_all(head.as_bytes()).await?;
            // An answer may come before the end of what is asked, and the connection with it to an end.
            let _ = tcp.write_all(&[b'x'; 50_000]).await;
            if reset {
                tcp.set_zero_linger()?;
            }
        }
        Kind::Download(port, reset) => {
            let mut tcp = connect(port).await?;
            tcp.write_all(format!("GET /1m HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
            let mut some = vec![0; 60_000];
            tcp.read_exact(&mut some).await.context("the beginning of a body")?;
            ensure!(some.starts_with(b"HTTP/1.1 200"), "no body to break off");
            if reset {
                tcp.set_zero_linger()?;
            }
        }
        Kind::Streams => streams(connect(HTTP2).await?, to).await?,
    }
    Ok(())
}

async fn streams(tcp: TcpStream, to: &str) -> Result<()> {
    type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(tcp)).await?;
    let task = tokio::spawn(connection);
    let request = |body: Body| Request::post(format!("http://{to}/")).body(body);
    let whole = || Full::new(Bytes::from_static(&[b'x'; 2000])).map_err(|e| match e {}).boxed();
    let given_up = sender.send_request(request(whole())?);
    let broken = futures_util::stream::iter([
        Ok(Frame::data(Bytes::from_static(&[b'x'; 5000]))),
        Err(std::io::Error::other("broken off on purpose")),
    ]);
    let broken = sender.send_request(request(http_body_util::BodyExt::boxed(StreamBody::new(broken)))?);
    drop(given_up);
    let (first, second) = (sender.send_request(request(whole())?), sender.send_request(request(whole())?));
    let (first, second, _) = tokio::join!(first, second, broken);
    for response in [first?, second?] {
        let status = response.status();
        if !status.is_success() {
            bail!("HTTP/2: {status}");
        }
        response.into_body().collect().await?;
    }
    drop(sender);
    task.await.context("the connection's task")?.ok();
    Ok(())
}
