//! The embedded API as a process of its own, for what is measured and checked from outside.
//!
//! Invariant: the process ends with its handle; it can be killed hard and started again at the same place.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use carrick_apiserver::storage::etcd::EtcdOptions;
use clap::Args;
use kube::Client;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{cluster, demo::mesh::Folder, etcd::StorageFlags};

/// Long enough for 100,000 objects in a debug build.
const START: Duration = Duration::from_secs(120);

/// Where servers keep their objects, and how it is told what came of them.
#[derive(Debug, Clone, Args)]
pub struct ServedFlags {
    /// Folder of the servers' data; of several, below it, one for each [default: one of its own that is removed].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    pub storage: StorageFlags,
}

impl ServedFlags {
    /// The folder; without one, one of its own that is called after `what`.
    pub fn folder(&self, what: &str) -> Folder {
        Folder::of(self.folder.as_deref(), what)
    }
}

/// One server.
pub struct Served {
    folder: PathBuf,
    port: u16,
    etcd: Option<EtcdOptions>,
    child: Child,
    /// From the start of the process to its word that it is ready.
    pub took: Duration,
}

impl Served {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(folder: &Path, etcd: Option<EtcdOptions>) -> Result<Self> {
        // Free for now; it has to be known, so that the server comes back at the same place.
        let free = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let port = free.local_addr()?.port();
        drop(free);
        let (child, took) = launch(folder, port, etcd.as_ref()).await?;
        Ok(Self { folder: folder.to_owned(), port, etcd, child, took })
    }

    /// Kills it (SIGKILL) and starts it again.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn kill_and_start(&mut self) -> Result<()> {
        self.child.kill().await?;
        (self.child, self.took) = launch(&self.folder, self.port, self.etcd.as_ref()).await?;
        Ok(())
    }

    /// An administrator's client.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        cluster::client(&self.folder.join("kubeconfig")).await
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

async fn launch(folder: &Path, port: u16, etcd: Option<&EtcdOptions>) -> Result<(Child, Duration)> {
    let begun = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--data-dir").arg(folder).args(["up", "--api-only", "--no-network", "--log", "warn"]);
    command.args(["--api-port", &port.to_string()]);
    if let Some(etcd) = etcd {
        let servers: Vec<String> = etcd.servers.iter().map(ToString::to_string).collect();
        command.args(["--etcd-servers", &servers.join(","), "--etcd-prefix", &etcd.prefix]);
        let seconds = format!("{}s", etcd.compact_every.as_secs());
        command.args(["--etcd-compaction-interval", &seconds]);
        for (flag, file) in
            [("--etcd-cafile", &etcd.ca_file), ("--etcd-certfile", &etcd.cert_file), ("--etcd-keyfile", &etcd.key_file)]
        {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let out = child.stdout.take().context("the server's output")?;
    let mut lines = BufReader::new(out).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("ready") {
                return Ok(());
            }
        }
        bail!("the server ended before it was ready")
    };
    tokio::time::timeout(START, ready).await.context("the server does not become ready")??;
    Ok((child, begun.elapsed()))
}
