//! `carrick certs`: certificates of the mesh and those outside of it.
//!
//! Invariant: one file for each command; nothing here shows a private key unless it was asked for by name.

mod audit;
mod dial;
mod export;
mod known;
mod list;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List certificates: what was issued, and who holds it.
    List(list::Options),
    /// List certificates in use that end soon; exit code 2 when there are some.
    Expiring(list::Expiring),
    /// Compare what was issued, what is held and what is served; exit code 1 when they do not fit.
    Audit(audit::Options),
    /// Write a certificate as a bundle for somebody outside: PEM, PKCS#12 or JKS.
    Export(export::Options),
}

/// Where the mesh is.
#[derive(Clone)]
pub struct Place {
    /// The folder of the control plane on this machine.
    pub data_dir: PathBuf,
    /// The API, where there is one.
    pub client: Option<kube::Client>,
}

/// Runs a command; its exit code.
///
/// # Errors
/// When it cannot do what was asked.
pub async fn run(command: Command, place: Place) -> Result<u8> {
    match command {
        Command::List(options) => list::list(&options, &place).await,
        Command::Expiring(options) => list::expiring(&options, &place).await,
        Command::Audit(options) => audit::run(&options, &place).await,
        Command::Export(options) => {
            let client = place
                .client
                .context("no Kubernetes API is known: start one with `carrick up`, or name one with --kubeconfig")?;
            export::run(&options, &client).await.map(|()| 0)
        }
    }
}
