//! The health of a machine's workload: probes as its WorkloadGroup says (spec §11.7), told to the control plane.
//!
//! Invariant: what is told changes only when a threshold is reached; nothing is told before the first one is. What becomes of it (whether
//! others send traffic) is the control plane's.

mod probe;
mod thresholds;

use std::time::Duration;

use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use carrick_xds::health::Health;
use tokio::sync::watch;
use tracing::{info, warn};

pub use probe::{Check, Probe};
pub use thresholds::Thresholds;

/// Probes until drained; changes go to `told`.
pub async fn run(probe: Probe, clock: SharedClock, told: watch::Sender<Option<Health>>, drain: Drain) {
    tokio::select! {
        () = drain.graceful() => {}
        () = keep(&probe, &clock, &told) => {}
    }
}

async fn keep(probe: &Probe, clock: &SharedClock, told: &watch::Sender<Option<Health>>) {
    clock.sleep(Duration::from_secs(probe.initial_delay_seconds)).await;
    let mut thresholds = Thresholds::new(probe.success_threshold, probe.failure_threshold);
    loop {
        if let Some(health) = thresholds.observe(probe.check().await) {
            match &health {
                Health::Healthy => info!("the workload is healthy"),
                Health::Ill(reason) => warn!(reason, "the workload is not healthy"),
            }
            told.send_replace(Some(health));
        }
        clock.sleep(Duration::from_secs(probe.period_seconds)).await;
    }
}
