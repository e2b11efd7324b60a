//! `carrick bench`: what a proxy and the control plane cost, beside Envoy and others in one run.
//!
//! Invariant: everybody gets the same load in turns, so that what the machine does to one it does to the other; what counts are
//! ratios within a round.

pub mod api;
pub mod check;
pub mod churn;
pub mod control;
mod counters;
pub mod hold;
pub mod informer;
mod manifests;
mod modes;
pub mod page;
mod pairs;
mod peers;
mod served;
pub mod sidecars;
pub mod summary;

use std::path::Path;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::demo::mesh::{Mesh, Setup};

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pairs of sidecars with mutual TLS between them, ours and others'.
    Sidecars(sidecars::Options),
    /// The embedded API: many objects, many watches, many writes, slow watchers, hostile bodies.
    Api(api::Options),
    /// Whether the embedded API loses, doubles or reorders anything: random writers, and watchers that drop and resume.
    Check(check::Options),
    /// A control plane with many proxies that are simulated.
    Control(control::Options),
    /// Whether a pair of native sidecars grows while connections, bodies, endpoints and certificates come and go.
    Churn(churn::Options),
    /// The load of `churn`.
    #[command(hide = true)]
    Stir(churn::stir::Options),
    /// Open connections and hold them.
    #[command(hide = true)]
    Hold(hold::Options),
    /// What an informer of the Rust client library sees, line by line.
    #[command(hide = true)]
    Informer(informer::Options),
}

/// Runs a benchmark.
///
/// # Errors
/// When it cannot be run, or a measured request failed.
pub async fn run(command: Command, data_dir: &Path) -> Result<u8> {
    match command {
        Command::Sidecars(options) => sidecars::run(&options, data_dir).await,
        Command::Api(options) => api::run(options).await,
        Command::Check(options) => check::run(options).await,
        Command::Control(options) => control::run(&options, data_dir).await,
        Command::Churn(options) => churn::run(&options, data_dir).await,
        Command::Stir(options) => churn::stir::run(&options).await,
        Command::Hold(options) => hold::run(&options).await,
        Command::Informer(options) => informer::run(&options).await,
    }
}

/// What `work` comes to, or an error as soon as a signal asks this process to end: what it started is then ended by its owners.
async fn unless_stopped<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let stopped = crate::up::stopped()?;
    tokio::select! {
        done = work => done,
        () = stopped => bail!("a signal ended it"),
    }
}

/// Measures with a mesh of its own in `folder`, which is ended in any case.
async fn with_mesh<T>(folder: &Path, setup: Setup, measure: impl AsyncFnOnce(&mut Mesh) -> Result<T>) -> Result<T> {
    let mut mesh = unless_stopped(Mesh::start_with(folder, setup)).await?;
    let measured = unless_stopped(measure(&mut mesh)).await;
    mesh.stop().await?;
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn a_signal_ends_the_work_and_not_the_process() {
        struct Owner<'a>(&'a mut bool);
        impl Drop for Owner<'_> {
            fn drop(&mut self) {
                *self.0 = true;
            }
        }
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut ended = false;
            let work = async {
                let _owner = Owner(&mut ended);
                raise(signal)?;
                std::future::pending::<Result<()>>().await
            };
            assert!(unless_stopped(work).await.is_err());
            assert!(ended, "what the work started is left");
        }
    }
}
