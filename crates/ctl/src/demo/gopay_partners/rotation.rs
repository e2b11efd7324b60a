//! Row 8, our half: our root is exchanged under load, first for another of our own, then for an intermediate of a bank's in
//! the Secret `cacerts`; and a proxy that does not answer stops that before harm.
//!
//! Invariant: every request makes its own handshake, so each one meets the certificates and roots of its moment; a frozen
//! sidecar is always let go on again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{INGRESS_POD, ORDERS, PARTNER, PAYMENTS, Pay};
use crate::demo::{
    certificates,
    frozen::Frozen,
    load::Running,
    stage::{Want, secret},
};

const MANIFESTS: &str = include_str!("../../../../../examples/gopay-partners/rotation.yaml");
const INSIDE: &str = "http://payments.gopay:8080/";
const EDGE: &str = "http://plain-ingress.istio-system/";
/// What the set of the Secret is called.
const SECRET: &str = "Secret istio-system/cacerts";
/// Requests a second, each with a handshake of its own; the same again through the gateway.
const RATE: &str = "25";
/// How long a rotation may take on a busy machine.
const LIMIT: &str = "60s";
/// How long until everybody but the frozen one has answered.
const ANSWERS: Duration = Duration::from_secs(20);
/// How long the rotation is seen to stand still.
const STILL: Duration = Duration::from_secs(2);

impl Pay {
    pub(super) async fn rotation(&mut self) -> Result<String> {
        self.stage.mesh.apply(MANIFESTS).await?;
        let told = self.rotated().await;
        self.stage.mesh.delete(MANIFESTS).await?;
        told
    }

    async fn rotated(&mut self) -> Result<String> {
        self.stage.expect(ORDERS, &[INSIDE], Want::Status(200)).await?;
        self.stage.expect(PARTNER, &[EDGE], Want::Status(200)).await?;
        let before = self.authority().await?;
        let pids = self.stage.mesh.sidecars()?;
        let start = Instant::now();
        let inside = Running::start(&self.stage.mesh, "gopay", ORDERS, RATE, &[INSIDE.to_owned()]).await?;
        let edge = Running::start(&self.stage.mesh, "partners", PARTNER, RATE, &[EDGE.to_owned()]).await?;

        self.stage.carrick(&["ca", "rotate", "--wait", LIMIT]).await?;
        let took = start.elapsed();
        let after = self.authority().await?;
        self.proved(&before, &after)?;

        let inside = inside.finish().await.context("from a sidecar")?;
        let stopped = self.stops_for_a_frozen_one(&after).await?;
        let edge = edge.finish().await.context("through the gateway")?;
        ensure!(self.stage.mesh.sidecars()? == pids, "a proxy was started anew");
        Ok(format!("new root in {:.1} s; sidecar: {inside}; gateway: {edge}; {stopped}", took.as_secs_f64()))
    }

    /// What `carrick ca rotate --status -o json` tells.
    async fn authority(&self) -> Result<Value> {
        let text = self.stage.carrick(&["ca", "rotate", "--status", "-o", "json"]).await?;
        serde_json::from_str(&text).context("the status is not JSON")
    }

    /// One root, a new one, and everybody serves and trusts that alone.
    fn proved(&self, before: &Value, after: &Value) -> Result<()> {
        let [root] = after["roots"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            anyhow::bail!("want one root, got {}", after["roots"]);
        };
        let root = &root["fingerprint"];
        ensure!(*root != before["roots"][0]["fingerprint"], "the root is the old one");
        let proxies = after["proxies"].as_array().context("no proxies in the status")?;
        for name in [ORDERS, PAYMENTS, INGRESS_POD] {
            let is = |proxy: &&Value| proxy["name"].as_str().is_some_and(|n| n.starts_with(&format!("{name}.")));
            let proxy = proxies.iter().find(is).with_context(|| format!("{name} is not in the status"))?;
            let one = |list: &Value| list.as_array().is_some_and(|all| all.as_slice() == std::slice::from_ref(root));
            ensure!(one(&proxy["trusts"]) && one(&proxy["leadsTo"]), "{name} is not at the new root: {proxy}");
            let old = before["proxies"].as_array().into_iter().flatten().find(is);
            ensure!(old.is_none_or(|old| old["serial"] != proxy["serial"]), "{name} serves its old certificate");
        }
        Ok(())
    }

    /// The Secret of a bank's intermediate; it waits until it is asked for, since its root is another one.
    async fn plug_in(&self) -> Result<()> {
        let folder = self.stage.mesh.data_dir().join("cacerts");
        certificates::Authority::new("Bank Root")?.intermediate(&folder, "Mesh of the bank")?;
        let read = |name| Ok((name, std::fs::read(folder.join(name))?));
        let data: Vec<_> =
            ["ca-cert.pem", "ca-key.pem", "root-cert.pem"].into_iter().map(read).collect::<Result<_>>()?;
        self.stage.mesh.apply(&secret("istio-system", "cacerts", "Opaque", &data)).await?;
        let start = Instant::now();
        while self.authority().await?["pending"]["source"] != SECRET {
            ensure!(start.elapsed() < ANSWERS, "the Secret is not seen: {}", self.authority().await?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// One sidecar is frozen: the next rotation waits for it, names it, and goes on when it does.
    async fn stops_for_a_frozen_one(&self, before: &Value) -> Result<String> {
        self.plug_in().await?;
        let frozen = Frozen::sidecar_of(ORDERS)?;
        self.stage.carrick(&["ca", "rotate"]).await?;
        let start = Instant::now();
        loop {
            let now = self.authority().await?;
            let held = now["rotation"]["heldBy"].as_array().map(Vec::as_slice).unwrap_or_default();
            if let [only] = held
                && only["proxy"] == "orders.gopay"
                && now["rotation"]["step"] == "prove"
            {
                break;
            }
            ensure!(start.elapsed() < ANSWERS, "orders.gopay does not hold the rotation up: {}", now["rotation"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(STILL).await;
        let now = self.authority().await?;
        ensure!(now["rotation"]["step"] == "prove", "it went on without the frozen one: {}", now["rotation"]);
        ensure!(now["issuer"] == before["issuer"], "another set signs already");
        let table = self.stage.carrick(&["ca", "rotate", "--status"]).await?;
        let line = table.lines().find(|line| line.starts_with("orders.gopay")).context("not in the table")?;
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        drop(frozen);
        self.stage.carrick(&["ca", "rotate", "--status", "--wait", LIMIT]).await?;
        self.stage.expect(ORDERS, &[INSIDE], Want::Status(200)).await?;
        let after = self.authority().await?;
        self.proved(before, &after)?;
        ensure!(after["issuer"]["source"] == SECRET, "the Secret's set does not sign: {}", after["issuer"]);
        Ok(format!("then to an intermediate in {SECRET}; frozen, it waits and says {words:?}"))
    }
}
