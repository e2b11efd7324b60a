//! Rows 2 to 4: the root, the issuer, and who holds the next root up.
//!
//! Invariant: what a proxy serves and trusts is what it says itself, and has to be the new root alone at the end of each row.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::population::{EDGE_NATIVE, PATIENCE, Population, SPARE_ENVOY, SPARE_NATIVE, Ways};
use crate::demo::{certificates::Authority, frozen::Frozen, stage::secret};

/// How long a rotation may take on a busy machine.
const LIMIT: &str = "120s";
/// How long the rotation is seen to stand still.
const STILL: Duration = Duration::from_secs(2);
const SECRET: &str = "Secret istio-system/cacerts";

impl Population {
    /// What `carrick ca rotate --status -o json` tells.
    pub(super) async fn authority(&self) -> Result<Value> {
        let text = self.stage.carrick(&["ca", "rotate", "--status", "-o", "json"]).await?;
        serde_json::from_str(&text).context("the status is not JSON")
    }

    pub(super) async fn root(&mut self) -> Result<String> {
        self.rotated(&["ca", "rotate", "--wait", LIMIT]).await
    }

    /// An intermediate of somebody else's root, in the Secret that Istio has for it.
    pub(super) async fn issuer(&mut self) -> Result<String> {
        let folder = self.dir.join("cacerts");
        Authority::new("Bank Root")?.intermediate(&folder, "Mesh of the bank")?;
        let read = |name| Ok((name, std::fs::read(folder.join(name))?));
        let data: Vec<_> =
            ["ca-cert.pem", "ca-key.pem", "root-cert.pem"].into_iter().map(read).collect::<Result<_>>()?;
        self.stage.mesh.apply(&secret("istio-system", "cacerts", "Opaque", &data)).await?;
        self.when("the Secret is seen", |now| now["pending"]["source"] == SECRET).await?;
        let told = self.rotated(&["ca", "rotate", "--wait", LIMIT]).await?;
        let source = self.authority().await?["issuer"]["source"].clone();
        ensure!(source == SECRET, "{source} signs");
        Ok(told)
    }

    /// A rotation under load.
    async fn rotated(&mut self, command: &[&str]) -> Result<String> {
        let (before, pids) = (self.authority().await?, self.processes()?);
        let load = self.load(Ways::All)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        let done = self.stage.carrick(command).await;
        let took = start.elapsed();
        let told = load.finish().await?;
        done?;
        self.proved(&before).await?;
        ensure!(self.processes()? == pids, "a proxy was started anew");
        Ok(format!("in {:.1} s; {told}", took.as_secs_f64()))
    }

    /// One root, which is not the one from before, and everybody serves and trusts that alone.
    async fn proved(&self, before: &Value) -> Result<()> {
        let after = self.authority().await?;
        let [root] = after["roots"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            bail!("want one root, got {}", after["roots"]);
        };
        let root = &root["fingerprint"];
        ensure!(*root != before["roots"][0]["fingerprint"], "the root is the old one");
        let proxies = after["proxies"].as_array().context("no proxies in the status")?;
        ensure!(proxies.len() == 7, "want seven proxies, got {}", after["proxies"]);
        for proxy in proxies {
            let one = |list: &Value| list.as_array().is_some_and(|all| all.as_slice() == std::slice::from_ref(root));
            ensure!(one(&proxy["trusts"]) && one(&proxy["leadsTo"]), "not at the new root: {proxy}");
        }
        Ok(())
    }

    /// The status, as soon as it is as wanted.
    pub(super) async fn when(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let now = self.authority().await?;
            if wanted(&now) {
                return Ok(now);
            }
            ensure!(start.elapsed() < PATIENCE, "not so: {what}: {now}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One of each kind stands still: the rotation waits for them before anything is signed that they would not trust.
    pub(super) async fn frozen(&mut self) -> Result<String> {
        let folder = self.dir.join("next");
        Authority::new("Next Root")?.intermediate(&folder, "Next mesh")?;
        let (before, pids) = (self.authority().await?, self.processes()?);
        let load = self.load(Ways::WithoutMachine)?;
        let names = [SPARE_NATIVE.to_owned(), SPARE_ENVOY.to_owned(), EDGE_NATIVE.to_owned(), self.machine()];
        let frozen = names.iter().map(|name| Frozen::sidecar_of(name)).collect::<Result<Vec<_>>>()?;
        self.stage.carrick(&["ca", "rotate", "--dir", &folder.display().to_string()]).await?;
        let mut wanted: Vec<String> = names[..2].iter().map(|name| format!("{name}.shop")).collect();
        wanted.extend([format!("{EDGE_NATIVE}.istio-system"), format!("{}.shop", self.machine())]);
        wanted.sort();
        let held = |now: &Value| {
            let held = now["rotation"]["heldBy"].as_array().into_iter().flatten();
            let mut held: Vec<String> = held.filter_map(|one| one["proxy"].as_str().map(str::to_owned)).collect();
            held.sort();
            held == wanted && now["rotation"]["step"] == "prove"
        };
        self.when("the frozen ones alone hold the rotation up", held).await?;
        tokio::time::sleep(STILL).await;
        let now = self.authority().await?;
        ensure!(held(&now), "it went on without the frozen ones: {}", now["rotation"]);
        ensure!(now["issuer"] == before["issuer"], "another set signs already");
        drop(frozen);
        let done = self.stage.carrick(&["ca", "rotate", "--status", "--wait", LIMIT]).await;
        let told = load.finish().await?;
        done?;
        self.proved(&before).await?;
        ensure!(self.processes()? == pids, "a proxy was started anew");
        Ok(format!("{}; meanwhile {told}", wanted.join(", ")))
    }
}
