//! One connection from a pod that is kept open as long as a row likes, a message back and forth all the time.
//!
//! Invariant: a message that does not come back, or a connection that ends before it was told to, is a failure that says after how
//! many messages; nothing is tried again.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::{io::AsyncWriteExt, process::Child};

use super::{call::Kind, load::stdin_closed, mesh::Mesh, websocket};

/// The pause between two messages.
const PAUSE: Duration = Duration::from_millis(50);

/// Where to.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The WebSocket's URL, `http://…`.
    #[arg(long, value_name = "URL")]
    url: String,
}

/// Keeps it open until standard input is closed; prints how many messages came back. 0 only when all did.
///
/// # Errors
/// When it could not be opened, or broke.
pub async fn run(options: Options) -> Result<u8> {
    let call = super::call::Call {
        url: options.url,
        headers: std::collections::BTreeMap::new(),
        kind: Kind::WebSocket(websocket::Exchange::default()),
    };
    let count = websocket::hold(&call, PAUSE, stdin_closed(true)).await?;
    println!("{count}");
    Ok(0)
}

/// Such a connection in a pod.
pub struct Held {
    child: Child,
}

impl Held {
    /// Opens it.
    ///
    /// # Errors
    /// When the pod cannot be entered.
    pub fn start(mesh: &Mesh, namespace: &str, pod: &str, url: &str) -> Result<Self> {
        let program = std::env::current_exe()?.display().to_string();
        let args = ["exec", pod, "-n", namespace, "--", program.as_str(), "demo", "held", "--url", url];
        let mut command = mesh.carrick(&args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(Self { child: command.spawn().context("carrick exec")? })
    }

    /// Closes it, and tells how many messages came back.
    ///
    /// # Errors
    /// When it was not open until now.
    pub async fn finish(mut self) -> Result<u64> {
        if let Some(mut stdin) = self.child.stdin.take() {
            // It is closed already where the process has ended; its exit code tells.
            let _ = stdin.shutdown().await;
        }
        let output = tokio::time::timeout(Duration::from_secs(30), self.child.wait_with_output()).await??;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "an open connection was cut: {}", told.trim());
        let count = String::from_utf8_lossy(&output.stdout).trim().parse().context("no count of messages")?;
        ensure!(count > 0, "no message went over the open connection");
        Ok(count)
    }
}
