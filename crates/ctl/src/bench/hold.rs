//! Many connections that wait: for what a connection costs that does nothing.
//!
//! Invariant: each has had one request answered with 200 before it waits; all are held until standard input ends.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How many, and to where.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Address of an HTTP/1.1 server.
    #[arg(long)]
    to: String,
    /// Connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
}

/// Opens them, says so in one line, waits.
///
/// # Errors
/// One of them is not answered.
pub async fn run(options: &Options) -> Result<u8> {
    let mut held = Vec::new();
    for n in 0..options.connections {
        held.push(one(&options.to).await.with_context(|| format!("connection {n}"))?);
    }
    println!("held {}", held.len());
    std::io::stdout().flush()?;
    // Nothing else is to be done meanwhile.
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(0)
}

async fn one(to: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    ask(&mut stream, to.split(':').next().unwrap_or(to)).await?;
    Ok(stream)
}

/// One request on a connection, answered with 200 and a body of a known length.
///
/// # Errors
/// It is answered otherwise, or not at all.
pub(super) async fn ask(stream: &mut TcpStream, host: &str) -> Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut seen = Vec::new();
    let head = loop {
        ensure!(stream.read_buf(&mut seen).await? > 0, "ended without an answer");
        if let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(seen.get(..head).unwrap_or_default()).to_ascii_lowercase();
    ensure!(text.starts_with("http/1.1 200"), "{text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.context("no content-length")?.trim().parse()?;
    while seen.len() < head + length {
        ensure!(stream.read_buf(&mut seen).await? > 0, "the body ended early");
    }
    Ok(())
}
