//! Rows 5 and 6: the control plane is killed while everybody works, and a machine is even started anew meanwhile.
//!
//! Invariant: while it is away nobody is told anything: what holds then is what proxies and machines have themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::population::{ENVOY, NATIVE, PATIENCE, Population, Ways};
use crate::demo::{observer::Observer, stage::Want};

/// How often each certificate is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The serial numbers that proxies say they serve, by name.
fn serials(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let proxies = status["proxies"].as_array().into_iter().flatten();
    proxies.map(|proxy| (text(&proxy["name"]), text(&proxy["serial"]))).collect()
}

impl Population {
    pub(super) async fn outage(&mut self) -> Result<String> {
        let life = self.options.certificate_ttl;
        let (pids, before) = (self.processes()?, self.authority().await?);
        let observer = Observer::start(self.seen()?, life, LOOK)?;
        let load = self.load(Ways::All)?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let killed = Instant::now();
        self.stage.mesh.kill_control_plane().await?;
        tokio::time::sleep((life / 2).saturating_sub(killed.elapsed())).await;
        ensure!(self.processes()? == pids, "a proxy was started anew while the control plane was away");
        self.stage.mesh.start_control_plane().await?;
        let away = killed.elapsed();
        let renewed = self.renewed(&before).await?;
        self.stage.mesh.converged().await?;
        let told = load.finish().await?;
        let seen = observer.finish().await?;
        ensure!(self.processes()? == pids, "a proxy was started anew");
        ensure!(seen.failed == 0, "{} of {} handshakes failed: {:?}", seen.failed, seen.looks, seen.failures);
        ensure!(seen.highest < 1.0, "a certificate was served past its end: {}", seen.whose);
        Ok(format!(
            "away for {:.1} s of {life:?}; everybody renewed {:.1} s after; served at {:.1} % of its life at most, {} handshakes seen; {told}",
            away.as_secs_f64(),
            renewed.as_secs_f64(),
            seen.highest * 100.0,
            seen.looks
        ))
    }

    /// How long it takes until everybody serves another certificate than before.
    async fn renewed(&self, before: &Value) -> Result<Duration> {
        let (start, old) = (Instant::now(), serials(before));
        self.when("everybody has another certificate", |now| {
            let new = serials(now);
            new.len() == old.len() && new.iter().all(|(name, serial)| !old.contains(&(name.clone(), serial.clone())))
        })
        .await?;
        Ok(start.elapsed())
    }

    /// The machine knows by itself who it is and what is configured.
    pub(super) async fn reboot(&mut self) -> Result<String> {
        let load = self.load(Ways::WithoutMachine)?;
        self.stage.mesh.kill_control_plane().await?;
        self.vm.power_off().await?;
        self.vm.start_app()?;
        let start = Instant::now();
        self.vm.runner = Some(self.vm.start(self.vm.carrick(&["run"])?, &self.vm.log())?);
        let served = self.serves().await.with_context(|| self.vm.what_it_said());
        let took = start.elapsed();
        self.stage.mesh.start_control_plane().await?;
        served?;
        let told = load.finish().await?;
        // What changes now reaches it as before.
        self.stage.mesh.converged().await?;
        self.stage.mesh.apply(ONLY_STOCK).await?;
        self.stage.expect(ENVOY, &["http://ledger.shop:8080/"], Want::Status(200)).await?;
        self.stage.expect(NATIVE, &["http://ledger.shop:8080/"], Want::Status(403)).await?;
        self.stage.mesh.delete(ONLY_STOCK).await?;
        Ok(format!("serves {:.1} s after its start without a control plane; meanwhile {told}", took.as_secs_f64()))
    }

    /// Called and calls, with mutual TLS.
    async fn serves(&mut self) -> Result<()> {
        self.vm.ready().await?;
        let start = Instant::now();
        for from in [NATIVE, ENVOY] {
            while self.stage.curl(from, &["http://ledger.shop:8080/"]).await?.status != 200 {
                ensure!(start.elapsed() < PATIENCE / 4, "{from} → machine is not answered");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for to in [NATIVE, ENVOY] {
            self.machine_calls(&format!("http://{to}.shop:8080/")).await?;
        }
        Ok(())
    }
}

const ONLY_STOCK: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-stock, namespace: shop}
spec:
  selector: {matchLabels: {app: ledger}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/stock]}}]}]
";
