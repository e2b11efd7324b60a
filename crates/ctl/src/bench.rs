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

use anyhow::Result;
use clap::Subcommand;

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
