//! What carries the mesh's trust changes, stands still and goes away, while native sidecars, Envoys, gateways and a machine are under load.
//!
//! Invariant: a request counts as failed when its program did not get an answer; half of them make a handshake of their own, the others keep
//! their connections. How old a certificate is is seen from outside. Nothing is restarted but what a row says.

mod outage;
mod population;
mod roots;

use std::{path::Path, time::Duration};

use anyhow::Result;
use carrick_pod::Engine;
use clap::Args;

use self::population::Population;
use super::{mesh::folder, rows::Rows};

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The machine's data plane.
    #[arg(long, default_value = "native", value_name = "ENGINE")]
    machine: Engine,
    /// Life of every certificate. The control plane is away for half of it.
    #[arg(long, default_value = "1m", value_parser = crate::duration::parse, value_name = "DURATION")]
    certificate_ttl: Duration,
    /// The share of its life that a certificate has left when it is renewed: half, which it then outlives an outage by, and what a control
    /// plane takes to start.
    #[arg(long, default_value_t = 0.6, value_name = "SHARE")]
    grace_ratio: f64,
    /// Requests a second on each of the eleven ways.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=500), value_name = "N")]
    rate: u32,
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("authority");
    let own = folder(data_dir, "authority");
    let mut all = Population::open(&own.path, options).await?;
    rows.check("1 native, Envoy, two gateways and a machine call one another", async || all.start().await).await;
    if !all.started {
        // Nothing that follows could tell anything.
        all.close().await?;
        return Ok(rows.finish());
    }
    rows.check("2 the root is exchanged under load", async || all.root().await).await;
    rows.check("3 the issuer is swapped for another's intermediate under load", async || all.issuer().await).await;
    rows.check("4 one of each kind is frozen: the next root waits and names them", async || all.frozen().await).await;
    rows.check("5 the control plane is killed for half of a leaf's life, under load", async || all.outage().await)
        .await;
    rows.check("6 a machine loses its power in an outage, and comes back", async || all.reboot().await).await;
    all.close().await?;
    Ok(rows.finish())
}
