//! An identity is revoked while it holds connections: how long until the last byte, and what becomes of the others.
//!
//! Invariant: times are between the moment before the command was started and the end as the client's own program saw it.
//! What Envoy cannot do is not asserted but told, with what it did.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use super::mesh::{Mesh, PodSpec, folder, own_command};
use super::rows::Rows;
use super::streams::Report;

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Connections of the identity that is revoked, between native sidecars.
    #[arg(long, default_value_t = 50, value_name = "N")]
    connections: usize,
    /// Connections of it on each way that has an Envoy, and of others on each way.
    #[arg(long, default_value_t = 10, value_name = "N")]
    beside: usize,
    /// How long 99 of 100 may take from the order to their end.
    #[arg(long, default_value = "5s", value_parser = crate::duration::parse, value_name = "DURATION")]
    limit: Duration,
    /// How long to watch what Envoys do with open connections.
    #[arg(long, default_value = "3s", value_parser = crate::duration::parse, value_name = "DURATION")]
    watch: Duration,
}

const NAMESPACE: &str = "lab";
const EVIL: &str = "spiffe://cluster.local/ns/lab/sa/evil";
const ENGINES: [Engine; 2] = [Engine::Native, Engine::Envoy];
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: lab, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: server, namespace: lab}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: evil, namespace: lab}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: good, namespace: lab}
---
apiVersion: v1
kind: Service
metadata: {name: server-native, namespace: lab}
spec: {selector: {app: server-native}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: server-envoy, namespace: lab}
spec: {selector: {app: server-envoy}, ports: [{name: tcp, port: 9000}]}
"#;

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("quarantine");
    let own = folder(data_dir, "quarantine");
    let mut lab = Lab { mesh: Mesh::start(&own.path).await?, dir: own.path.clone(), ordered: 0 };
    rows.check("1 two identities hold connections to both engines", async || lab.start(options).await).await;
    rows.check("2 revoked: native ends are cut, others stay", async || lab.revoke(options).await).await;
    rows.check("3 new connections are refused, by Envoy too", async || lab.refused().await).await;
    rows.check("4 no new certificate", async || lab.no_certificate().await).await;
    rows.check("5 it outlives the list and the audit tells of it", async || lab.audit().await).await;
    rows.check("6 taken back, it may talk again", async || lab.undo().await).await;
    lab.mesh.stop().await?;
    Ok(rows.finish())
}

struct Lab {
    mesh: Mesh,
    dir: PathBuf,
    /// When it was revoked, in microseconds since 1970.
    ordered: u64,
}

fn spec(name: &str, account: &str, engine: Engine, command: Vec<String>) -> PodSpec {
    PodSpec {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        app: name.to_owned(),
        labels: Vec::new(),
        ports: if name.starts_with("server") { vec!["tcp=9000".to_owned()] } else { Vec::new() },
        engine,
        more: vec!["--service-account".to_owned(), account.to_owned()],
        command,
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

impl Lab {
    async fn start(&mut self, options: &Options) -> Result<String> {
        self.mesh.apply(OBJECTS).await?;
        let mut names = Vec::new();
        for engine in ENGINES {
            let name = format!("server-{}", engine.as_str());
            self.mesh.spawn(&spec(&name, "server", engine, own_command(&["demo", "streams", "--listen", "9000"])))?;
            names.push(name);
        }
        for account in ["evil", "good"] {
            for engine in ENGINES {
                let name = format!("{account}-{}", engine.as_str());
                let number = |server: Engine| match (account, engine, server) {
                    ("evil", Engine::Native, Engine::Native) => options.connections,
                    _ => options.beside,
                };
                let to = ENGINES.map(|server| format!("server-{}:9000={}", server.as_str(), number(server)));
                let report = self.report_file(&name).display().to_string();
                let [first, second] = &to;
                let command = own_command(&["demo", "streams", "--to", first, "--to", second, "--report", &report]);
                self.mesh.spawn(&spec(&name, account, engine, command))?;
                names.push(name);
            }
        }
        for name in &names {
            self.mesh.ready(NAMESPACE, name).await?;
        }
        let begin = Instant::now();
        loop {
            let all = self.reports()?;
            let open: usize = all.iter().map(|(_, report)| report.open).sum();
            let wanted = options.connections + 7 * options.beside;
            if open == wanted && all.len() == 8 && all.iter().all(|(_, report)| report.last_opened > 0) {
                return Ok(format!("{open} open"));
            }
            ensure!(begin.elapsed() < PATIENCE, "{open} of {wanted} connections are open: {all:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn report_file(&self, pod: &str) -> PathBuf {
        self.dir.join(format!("{pod}.report"))
    }

    /// What every client tells, as `client → server`.
    fn reports(&self) -> Result<Vec<(String, Report)>> {
        let mut all = Vec::new();
        for account in ["evil", "good"] {
            for engine in ENGINES {
                let name = format!("{account}-{}", engine.as_str());
                let Ok(text) = std::fs::read(self.report_file(&name)) else { continue };
                let reports: Vec<Report> = serde_json::from_slice(&text).context("a report")?;
                all.extend(reports.into_iter().map(|r| (format!("{name} → {}", r.to.trim_end_matches(":9000")), r)));
            }
        }
        Ok(all)
    }

    /// The same, of every way.
    fn all_reports(&self) -> Result<Vec<(String, Report)>> {
        let all = self.reports()?;
        ensure!(all.len() == 8, "only {} of 8 ways are told of", all.len());
        Ok(all)
    }

    async fn command(&self, args: &[&str]) -> Result<(i32, Value)> {
        let output = self.mesh.output(args).await?;
        let told = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("carrick {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.code().unwrap_or(-1), told))
    }

    async fn revoke(&mut self, options: &Options) -> Result<String> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
        self.ordered = u64::try_from(since.as_micros())?;
        let args = ["ca", "revoke", "--identity", EVIL, "--reason", "the key was stolen", "-o", "json"];
        let (code, told) = self.command(&args).await?;
        ensure!(code == 0 && told["complete"] == true, "not every proxy has the list: {told}");
        tokio::time::sleep(options.watch).await;
        let mut text =
            format!("{} proxies in {:.0} ms", told["proxies"], told["seconds"].as_f64().unwrap_or_default() * 1000.0);
        for (way, report) in self.all_reports()? {
            let native = way.contains("native");
            if way.starts_with("good") {
                ensure!(report.ended.is_empty() && report.open == options.beside, "{way}: others were cut: {report:?}");
                continue;
            }
            if native {
                ensure!(report.open == 0, "{way}: {} are open after {:?}", report.open, options.watch);
            }
            let mut took: Vec<u64> = report.ended.iter().map(|end| end.saturating_sub(self.ordered)).collect();
            took.sort_unstable();
            match took.get(took.len().saturating_sub(1).saturating_mul(99) / 100) {
                Some(p99) => {
                    text += &format!("; {way}: {} cut, p99 {:.0} ms", took.len(), seconds(*p99) * 1000.0);
                    ensure!(
                        !native || Duration::from_micros(*p99) <= options.limit,
                        "{way}: p99 {:.2} s",
                        seconds(*p99)
                    );
                }
                None => text += &format!("; {way}: {} still open after {:?}", report.open, options.watch),
            }
        }
        Ok(text)
    }

    /// Every way is tried again and again by the clients themselves.
    async fn refused(&self) -> Result<String> {
        let begin = Instant::now();
        loop {
            let all = self.all_reports()?;
            let evil: Vec<_> = all.iter().filter(|(way, _)| way.starts_with("evil")).collect();
            if evil.iter().all(|(_, report)| report.refused > report.last_opened) {
                let good = all.iter().filter(|(way, _)| way.starts_with("good"));
                for (way, report) in good {
                    ensure!(report.refused == 0 && report.last_opened > self.ordered, "{way}: {report:?}");
                }
                let last = |report: &Report| report.last_opened.saturating_sub(self.ordered);
                let told = evil.iter().map(|(way, report)| match last(report) {
                    0 => format!("{way}: none after the order"),
                    last => format!("{way}: the last was begun {:.0} ms after it", seconds(last) * 1000.0),
                });
                return Ok(told.collect::<Vec<_>>().join("; "));
            }
            ensure!(begin.elapsed() < PATIENCE, "connections are still taken: {evil:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn no_certificate(&mut self) -> Result<String> {
        self.mesh.spawn(&spec(
            "late",
            "evil",
            Engine::Native,
            own_command(&["demo", "streams", "--listen", "9000"]),
        ))?;
        let log = self.dir.join(format!("run/logs/{NAMESPACE}_late_istio-proxy.log"));
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("PermissionDenied") && text.contains("is quarantined: the key was stolen") {
                return Ok("the authority refuses, and says why".to_owned());
            }
            ensure!(begin.elapsed() < PATIENCE, "no refusal in its log:\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn audit(&self) -> Result<String> {
        let (code, findings) = self.command(&["certs", "audit", "-o", "json"]).await?;
        let findings = findings.as_array().cloned().unwrap_or_default();
        ensure!(code == 0, "the audit finds errors: {findings:?}");
        let revoked = |f: &&Value| f["message"].as_str().is_some_and(|m| m.contains("is revoked"));
        let held = findings.iter().filter(revoked).count();
        ensure!(held == 2, "two proxies hold what is revoked, the audit tells of {held}: {findings:?}");
        let (code, soon) = self.command(&["certs", "expiring", "--within", "1h", "-o", "json"]).await?;
        ensure!(code == 0 && soon == Value::Array(Vec::new()), "nothing ends within an hour: {soon}");
        let (code, soon) = self.command(&["certs", "expiring", "--within", "48h", "-o", "json"]).await?;
        ensure!(code == 2, "everything ends within two days");
        // A list that cannot be read changes nothing.
        let garbage = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: carrick-quarantine, namespace: istio-system}\ndata: {entries: garbage}\n";
        self.mesh.apply(garbage).await?;
        let (_, page) = self.command(&["ca", "revoke", "--list", "-o", "json"]).await?;
        ensure!(page["problem"].is_string() && page["entries"].as_array().map(Vec::len) == Some(1), "{page}");
        let empty = garbage
            .replace("garbage", &format!("'[{{\"identity\": \"{EVIL}\", \"reason\": \"the key was stolen\"}}]'"));
        self.mesh.apply(&empty).await?;
        Ok(format!("{} certificates in use", soon.as_array().map_or(0, Vec::len)))
    }

    async fn undo(&self) -> Result<String> {
        let (code, told) = self.command(&["ca", "revoke", "--identity", EVIL, "--undo", "-o", "json"]).await?;
        ensure!(code == 0, "{told}");
        let begin = Instant::now();
        loop {
            let all = self.all_reports()?;
            let evil: Vec<_> = all.iter().filter(|(way, _)| way.starts_with("evil")).collect();
            if evil.iter().all(|(_, report)| report.refused == 0) {
                return Ok(String::new());
            }
            ensure!(begin.elapsed() < PATIENCE, "connections are still refused: {evil:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
