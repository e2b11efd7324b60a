//! Row 8, our half: our root is exchanged under load, first for another of our own, then for an issuer whose key is in a token, then
//! for an intermediate of a bank's in the Secret `cacerts`; and a proxy that does not answer stops that before harm.
//!
//! Invariant: every request makes its own handshake, so each one meets the certificates and roots of its moment; a frozen
//! sidecar is always let go on again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rcgen::SerialNumber;
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
/// The library of the token that holds the issuer's key, and the token's PIN.
pub(super) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";
/// How long a rotation may take on a busy machine.
const LIMIT: &str = "60s";
/// How long until everybody but the frozen one has answered.
const ANSWERS: Duration = Duration::from_secs(20);
/// How long the rotation is seen to stand still.
const STILL: Duration = Duration::from_secs(2);

/// The set's texts.
const SET: [&str; 3] = ["ca-cert.pem", "ca-key.pem", "root-cert.pem"];

/// The bank's authority, and the one below it that signs for the mesh.
struct Bank {
    root: certificates::Authority,
    mesh: certificates::Authority,
}

/// A serial number in hexadecimal.
fn number(hex: &str) -> Option<SerialNumber> {
    let hex = if hex.len() % 2 == 1 { format!("0{hex}") } else { hex.to_owned() };
    let bytes: Option<Vec<u8>> =
        hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| SerialNumber::from_slice(&bytes))
}

/// A token of SoftHSM.
struct Token(String);

impl Token {
    /// With the key of a file, which is gone from there.
    fn with_key(file: &std::path::Path) -> Result<Self> {
        let run = |args: &[&str]| {
            let out = std::process::Command::new("softhsm2-util").args(args).output().context("softhsm2-util")?;
            ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
            Ok(())
        };
        let token = Self(format!("carrick-demo-{}", std::process::id()));
        run(&["--init-token", "--free", "--label", &token.0, "--so-pin", "0000", "--pin", PIN])?;
        let path = file.display().to_string();
        run(&["--import", &path, "--token", &token.0, "--label", "mesh", "--id", "01", "--pin", PIN])?;
        std::fs::remove_file(file)?;
        Ok(token)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = std::process::Command::new("softhsm2-util").args(["--delete-token", "--token", &self.0]).output();
    }
}

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

        let (token, in_token) = self.to_a_token(&after).await.context("to a key in a token")?;
        let after = self.authority().await?;
        let inside = inside.finish().await.context("from a sidecar")?;
        let stopped = self.stops_for_a_frozen_one(&after).await?;
        drop(token);
        let edge = edge.finish().await.context("through the gateway")?;
        ensure!(self.stage.mesh.sidecars()? == pids, "a proxy was started anew");
        Ok(format!(
            "new root in {:.1} s; {in_token}; sidecar: {inside}; gateway: {edge}; {stopped}",
            took.as_secs_f64()
        ))
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

    /// The issuer is swapped for one whose key is in a token: refused while the token's PIN is another, and nothing changes then.
    async fn to_a_token(&self, before: &Value) -> Result<(Token, String)> {
        let folder = self.stage.mesh.data_dir().join("token");
        certificates::Authority::new("Root of a token")?.intermediate(&folder, "Mesh of a token")?;
        let token = Token::with_key(&folder.join("ca-key.pem"))?;
        let pin = folder.join("pin");
        let uri = format!("pkcs11:token={};object=mesh?module-path={MODULE}&pin-source={}", token.0, pin.display());
        let folder = folder.display().to_string();
        let rotate = ["ca", "rotate", "--dir", folder.as_str(), "--to", uri.as_str(), "--wait", LIMIT];
        std::fs::write(&pin, "0000")?;
        let refused = self.stage.carrick(&rotate).await.err().context("a wrong PIN is taken")?;
        ensure!(format!("{refused:#}").contains("the PIN of the token"), "refused otherwise: {refused:#}");
        ensure!(self.authority().await?["issuer"] == before["issuer"], "another set signs after a refusal");
        std::fs::write(&pin, PIN)?;
        let start = Instant::now();
        self.stage.carrick(&rotate).await?;
        let after = self.authority().await?;
        self.proved(before, &after)?;
        let source = after["issuer"]["source"].as_str().unwrap_or_default();
        ensure!(source.ends_with(&format!("key in pkcs11:token={};object=mesh", token.0)), "signed by {source}");
        let told = format!("key in a token in {:.1} s, a wrong PIN refused", start.elapsed().as_secs_f64());
        // The token may go once the next rotation has left it.
        Ok((token, told))
    }

    /// The Secret of a bank's intermediate; it waits until it is asked for, since its root is another one.
    async fn plug_in(&self) -> Result<Bank> {
        let folder = self.stage.mesh.data_dir().join("cacerts");
        let root = certificates::Authority::new("Bank Root")?;
        let bank = Bank { mesh: root.intermediate(&folder, "Mesh of the bank")?, root };
        let read = |name| Ok((name, std::fs::read(folder.join(name))?));
        let data = SET.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        self.stage.mesh.apply(&secret("istio-system", "cacerts", "Opaque", &data)).await?;
        let start = Instant::now();
        while self.authority().await?["pending"]["source"] != SECRET {
            ensure!(start.elapsed() < ANSWERS, "the Secret is not seen: {}", self.authority().await?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(bank)
    }

    /// The bank revokes the certificate of orders: nobody takes it any more, and others go on. Then it takes that back.
    async fn revokes(&self, bank: &Bank) -> Result<()> {
        let now = self.authority().await?;
        let is = |proxy: &&Value| proxy["name"] == "orders.gopay";
        let orders = now["proxies"].as_array().into_iter().flatten().find(is).context("orders is not in the status")?;
        let serial = number(orders["serial"].as_str().unwrap_or_default()).context("orders has no serial number")?;
        let lists = bank.root.revoked(&[])? + &bank.mesh.revocations([serial])?;
        let folder = self.stage.mesh.data_dir().join("cacerts");
        let read = |name| Ok((name, std::fs::read(folder.join(name))?));
        let mut data = SET.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        data.push(("ca-crl.pem", lists.into_bytes()));
        self.stage.mesh.apply(&secret("istio-system", "cacerts", "Opaque", &data)).await?;
        self.until(ORDERS, INSIDE, 503).await.context("revoked")?;
        self.stage.expect(PARTNER, &[EDGE], Want::Status(200)).await.context("others, while one is revoked")?;
        if let Some((_, list)) = data.last_mut() {
            *list = (bank.root.revoked(&[])? + &bank.mesh.revocations([])?).into_bytes();
        }
        self.stage.mesh.apply(&secret("istio-system", "cacerts", "Opaque", &data)).await?;
        self.until(ORDERS, INSIDE, 200).await.context("no longer revoked")
    }

    /// Asks until this is the answer.
    async fn until(&self, from: &str, url: &str, status: u16) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.stage.curl(from, &[url]).await?;
            if answer.status == status {
                return Ok(());
            }
            ensure!(start.elapsed() < ANSWERS, "{from} gets {} from {url}, not {status}", answer.status);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One sidecar is frozen: the next rotation waits for it, names it, and goes on when it does.
    async fn stops_for_a_frozen_one(&self, before: &Value) -> Result<String> {
        let bank = self.plug_in().await?;
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
        self.revokes(&bank).await.context("the bank's revocation list")?;
        Ok(format!(
            "then to an intermediate in {SECRET}, whose ca-crl.pem revokes and forgives; frozen, it waits and says {words:?}"
        ))
    }
}
