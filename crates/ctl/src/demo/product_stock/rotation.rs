//! Row 8: certificates that live for seconds, under load.
//!
//! Invariant: rotations are counted by each agent itself, from the start of the load to its end; the connection that is kept open is
//! never opened again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{GATEWAY, PRODUCT, STOCK};
use crate::demo::{held::Held, load::Running, stage::Stage};

/// The sidecars whose rotations are counted: who calls, and who is called.
const SIDECARS: [&str; 2] = [GATEWAY, STOCK];
/// What an agent counts its certificates by.
const OBTAINED: &str = "istio_agent_num_outgoing_requests ";
/// How much longer than the sum of the lives it may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Load and an open connection until every sidecar has renewed its certificate as often as wanted.
pub(super) async fn rotated(stage: &Stage, ttl: Duration, wanted: u64) -> Result<String> {
    let mesh = &stage.mesh;
    settled(stage).await?;
    let before = obtained(stage).await?;
    let load = Running::start(mesh, "default", STOCK, "50", &[PRODUCT.into()]).await?;
    let held = Held::start(mesh, "default", GATEWAY, "http://stock-api.default.svc.cluster.local/")?;
    let limit = ttl * u32::try_from(wanted)? + PATIENCE;
    let start = Instant::now();
    let least = loop {
        let now = obtained(stage).await?;
        let least = now.iter().zip(&before).map(|(now, before)| now - before).min().unwrap_or_default();
        if least >= wanted {
            break least;
        }
        if start.elapsed() > limit {
            bail!("{least} rotations in {} s, of {wanted} wanted", start.elapsed().as_secs());
        }
        tokio::time::sleep(ttl / 4).await;
    };
    let messages = held.finish().await?;
    let told = load.finish().await?;
    Ok(format!("{least} rotations of a certificate for {ttl:?}; {told}; one connection open for {messages} messages"))
}

/// Waits until no connection that Envoy still drains answers by the policies of the row before.
async fn settled(stage: &Stage) -> Result<()> {
    let start = Instant::now();
    loop {
        let answers = stage.together(STOCK, &vec![vec![PRODUCT.to_owned()]; 16]).await?;
        let Some(other) = answers.iter().find(|answer| answer.status != 200) else { return Ok(()) };
        ensure!(start.elapsed() < PATIENCE, "before the load: {other}");
    }
}

/// How many certificates each sidecar has been given.
async fn obtained(stage: &Stage) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for pod in SIDECARS {
        let answer = stage.curl(pod, &["http://127.0.0.1:15020/stats/prometheus"]).await?;
        ensure!(answer.status == 200, "the agent's metrics in {pod}: {answer}");
        let count = answer.body.lines().find_map(|line| line.strip_prefix(OBTAINED));
        counts.push(count.with_context(|| format!("{pod} does not count its certificates"))?.trim().parse()?);
    }
    Ok(counts)
}
