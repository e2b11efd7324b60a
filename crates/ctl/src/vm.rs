//! Machines that are no pods: `carrick vm …`. Join tokens on the side of the mesh; joining and the sidecar on the machine's.
//!
//! Invariant: a token is printed once and never stored; on the machine nothing is shown to a control plane that has not proven itself.
//! Certificates are `carrick-proxy`'s (it makes the key), rules and the sidecar's life are the pod crate's: here is what was typed.

mod address;
mod join;
mod onboarding;
mod token;
mod units;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carrick_pod::machine::{self, Folder, MachineOptions};
use clap::{Args, Subcommand};

pub(crate) use token::{group, roots};

use crate::cluster;

/// What can be done about machines.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tokens by which machines join: made, listed and revoked beside the control plane.
    #[command(subcommand)]
    Token(token::Command),
    /// Make this machine part of the mesh: by a token, or by a folder of `x workload entry configure`.
    Join(Box<join::Options>),
    /// Run the sidecar of this machine, which has joined, in the foreground.
    Run(Run),
    /// Write systemd's units for this machine, which has joined.
    Install(units::Options),
    /// Remove the packet rules that a sidecar which was killed has left.
    Clean,
}

/// Where the machine's things are, and its programs.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Folder of this machine's settings, key and certificate [default: DATA_DIR/vm].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The carrick-proxy binary [default: beside this program, then PATH].
    #[arg(long, env = "CARRICK_PROXY", value_name = "FILE")]
    proxy_binary: Option<PathBuf>,
    /// The envoy binary, for --engine envoy [default: PATH].
    #[arg(long, env = "CARRICK_ENVOY", value_name = "FILE")]
    envoy_binary: Option<PathBuf>,
}

impl Place {
    fn folder(&self, data_dir: &Path) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| data_dir.join("vm"))
    }

    fn program(&self) -> Result<PathBuf> {
        match &self.proxy_binary {
            Some(path) => Ok(path.clone()),
            None => crate::flags::beside("carrick-proxy"),
        }
    }

    fn options(&self, data_dir: &Path, log: Option<PathBuf>) -> Result<MachineOptions> {
        Ok(MachineOptions {
            folder: self.folder(data_dir),
            program: self.program()?,
            envoy: self.envoy_binary.clone(),
            log,
        })
    }
}

/// `vm run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    place: Place,
    /// File that the sidecar writes to [default: proxy.log in the state folder].
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// Where the command is typed.
#[derive(Debug, Clone)]
pub struct Around {
    /// Kubeconfig that was named.
    pub kubeconfig: Option<PathBuf>,
    /// Folder of the control plane, and of the machine.
    pub data_dir: PathBuf,
    /// Namespace of the control plane.
    pub root_namespace: String,
}

impl Around {
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        cluster::client(&cluster::kubeconfig(self.kubeconfig.as_deref(), &self.data_dir)?).await
    }
}

/// Runs one of them.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(command: Command, around: &Around) -> Result<u8> {
    match command {
        Command::Token(command) => token::run(command, around).await?,
        Command::Join(options) => join::run(*options, around).await?,
        Command::Run(options) => sidecar(&options.place.options(&around.data_dir, options.log_file)?).await?,
        Command::Install(options) => units::install(&options, around)?,
        Command::Clean => machine::clean()?,
    }
    Ok(0)
}

/// The machine's sidecar until somebody stops it.
async fn sidecar(options: &MachineOptions) -> Result<()> {
    let name = Folder::open(&options.folder)?.machine()?;
    println!("{} in {}: starting its sidecar", name.name, options.folder.display());
    machine::run(options, |machine| {
        println!("{}.{} is in the mesh: its sidecar is ready", machine.name, machine.namespace);
    })
    .await?;
    Ok(())
}

/// A file's text, with its name in the error.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
