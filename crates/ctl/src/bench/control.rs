//! What proxies cost the control plane, and how long a change takes to the last of them.
//!
//! Invariant: the control plane is the product's own, as a child; proxies are streams of this process, each with its connection and its
//! proof of who it is. A change counts as arrived when the last proxy has acknowledged what it brought.

mod proxy;
mod sidecars;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use carrick_pki::tls::{ServerAuth, TlsOptions, client_config};
use carrick_xds::{TypeUrl, client::Connector};
use clap::Args;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use self::proxy::{Acked, NAMESPACE, Proxy, Tally};
use super::{manifests, page, summary::median};
use crate::{
    demo::mesh::{Mesh, Setup},
    process,
};

/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Proxies that connect at the same time.
const AT_ONCE: usize = 64;
/// What the control plane does behind the last acknowledgement is its cost too: for so long.
const BEHIND: Duration = Duration::from_millis(300);
/// Until start and change are over.
const SETTLE: Duration = Duration::from_secs(3);

/// How much.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Proxies.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    proxies: u32,
    /// Services, each with one endpoint.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    services: u32,
    /// Changes of one service's endpoints.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    endpoint_changes: u32,
    /// Switches of a policy that concerns everybody.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    switches: u32,
    /// Real sidecars, measured after the simulated proxies are gone.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    sidecars: u32,
    /// Folder of control.json.
    #[arg(long, default_value = "target/bench")]
    out: std::path::PathBuf,
    /// Write the figures into performance.md of this folder.
    #[arg(long, value_name = "DIR")]
    page: Option<std::path::PathBuf>,
}

/// Measures; 0 when every change reached every proxy.
///
/// # Errors
/// It does not start, a stream ends, or a change does not arrive in time.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let folder = crate::demo::mesh::folder(data_dir, "bench-control");
    let figures =
        super::with_mesh(&folder.path, Setup::default(), async |mesh: &mut Mesh| measure(mesh, options).await).await?;
    for (what, value) in &figures {
        println!("{:<44} {value}", what.replace('_', " "));
    }
    let command = format!(
        "carrick bench control --proxies {} --services {} --endpoint-changes {} --switches {} --sidecars {}",
        options.proxies, options.services, options.endpoint_changes, options.switches, options.sidecars
    );
    let value = json!({"machine": page::machine(), "command": command, "figures": figures});
    std::fs::create_dir_all(&options.out)?;
    let file = options.out.join("control.json");
    std::fs::write(&file, crate::output::json(&value))?;
    println!("written: {}", file.display());
    if let Some(dir) = &options.page {
        page::write(dir, "control", &value)?;
    }
    Ok(0)
}

/// All streams, and what comes from them.
struct Fleet {
    count: u32,
    streams: JoinSet<Result<()>>,
    acked: mpsc::UnboundedReceiver<Acked>,
    tally: Arc<Tally>,
    pid: u32,
}

/// What one change cost.
struct Wave {
    /// From the event to the last acknowledgement.
    took: Duration,
    /// Of the control plane, meanwhile.
    cpu: Duration,
    responses: u64,
    bytes: u64,
}

async fn measure(mesh: &mut Mesh, options: &Options) -> Result<Map<String, Value>> {
    let pid = mesh.control_plane().context("the control plane does not run")?;
    mesh.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n")).await?;
    mesh.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", super::pairs::NAMESPACE)).await?;
    for objects in manifests::services_in_parts(0..options.services) {
        mesh.apply(&objects).await?;
    }
    let token = token(mesh).await?;
    tokio::time::sleep(SETTLE).await;
    let before = process::resident(pid)?;
    let start = Instant::now();
    let mut fleet = Fleet::start(options.proxies, pid, token).await?;
    let connected = start.elapsed();
    tokio::time::sleep(SETTLE).await;
    fleet.drain();
    let resident = process::resident(pid)?.saturating_sub(before);

    let mut endpoints = Vec::new();
    for n in 0..options.endpoint_changes {
        let (name, object) = endpoint_change(n, options.services);
        let wave = fleet.wave(mesh, &object, |a| a.type_url == TypeUrl::Endpoint && a.names.contains(&name)).await;
        endpoints.push(wave.with_context(|| name.clone())?);
    }
    let mut switches = Vec::new();
    for n in 0..options.switches {
        let wave = fleet.wave(mesh, &switch(n), |a| a.type_url == TypeUrl::Listener).await;
        switches.push(wave.with_context(|| format!("switch {n}"))?);
    }
    let mut out = Map::new();
    out.insert("proxies".into(), options.proxies.into());
    out.insert("services".into(), options.services.into());
    out.insert("seconds_until_all_were_connected".into(), connected.as_secs_f64().into());
    out.insert("resident_KB_per_proxy".into(), (resident as f64 / 1e3 / f64::from(options.proxies)).into());
    figures(&mut out, "endpoint_change", &endpoints);
    figures(&mut out, "policy_switch", &switches);
    if options.sidecars > 0 {
        drop(fleet);
        sidecars::start(mesh, options.sidecars).await?;
        tokio::time::sleep(SETTLE).await;
        let (mut endpoints, mut switches) = (Vec::new(), Vec::new());
        for n in 0..options.endpoint_changes {
            // Other addresses than before.
            endpoints.push(sidecars::wave(mesh, &endpoint_change(n + 50, options.services).1).await?);
        }
        for n in 0..options.switches {
            switches.push(sidecars::wave(mesh, &switch(n)).await?);
        }
        out.insert("real_sidecars".into(), options.sidecars.into());
        figures(&mut out, "endpoint_change_with_real_sidecars", &endpoints);
        figures(&mut out, "policy_switch_with_real_sidecars", &switches);
    }
    Ok(out)
}

/// Other endpoints of a service: the name of their resource, and the objects.
fn endpoint_change(n: u32, services: u32) -> (String, String) {
    let which = n % services;
    let name = format!("outbound|8080||known-{which}.{}.svc.cluster.local", super::pairs::NAMESPACE);
    let objects = manifests::services(which..which + 1);
    (name, objects.replace("addresses: [\"10.244.", &format!("addresses: [\"10.{}.", 1 + n % 99)))
}

/// A policy that concerns everybody.
fn switch(n: u32) -> String {
    let mode = if n.is_multiple_of(2) { "STRICT" } else { "PERMISSIVE" };
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn figures(out: &mut Map<String, Value>, what: &str, waves: &[Wave]) {
    let milliseconds: Vec<f64> = waves.iter().map(|wave| wave.took.as_secs_f64() * 1e3).collect();
    let mut sorted = milliseconds.clone();
    sorted.sort_by(f64::total_cmp);
    let cpu: f64 = waves.iter().map(|wave| wave.cpu.as_secs_f64()).sum();
    out.insert(format!("{what}_ms_to_the_last_ACK_p50"), median(&milliseconds).into());
    let at = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
    out.insert(format!("{what}_ms_to_the_last_ACK_p99"), sorted.get(at).copied().into());
    let responses: u64 = waves.iter().map(|wave| wave.responses).sum();
    if responses > 0 {
        let bytes: u64 = waves.iter().map(|wave| wave.bytes).sum();
        out.insert(format!("{what}_bytes_per_push"), (bytes as f64 / responses as f64).into());
        out.insert(format!("{what}_CPU_µs_per_push"), (cpu * 1e6 / responses as f64).into());
    }
    out.insert(format!("{what}_CPU_ms"), (cpu * 1e3 / waves.len().max(1) as f64).into());
}

impl Fleet {
    /// Connects everybody and waits until each has had its endpoints and routes.
    async fn start(count: u32, pid: u32, token: Arc<str>) -> Result<Self> {
        let (tell, acked) = mpsc::unbounded_channel();
        let tally = Arc::new(Tally::default());
        // Who the control plane is does not matter here, who we are does.
        let config = client_config(None, ServerAuth::None, &["h2"], &TlsOptions::default())?;
        let connector = Connector::Tls {
            address: "127.0.0.1:15012".to_owned(),
            server_name: "istiod.istio-system.svc".try_into()?,
            config: Arc::new(move || Ok(config.clone())),
        };
        let mut fleet = Fleet { count, streams: JoinSet::new(), acked, tally, pid };
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let (mut missing, mut turn_of) = (BTreeSet::new(), std::collections::BTreeMap::new());
        let mut next = 0;
        while next < count || !missing.is_empty() {
            tokio::select! {
                Ok(turn) = turns.clone().acquire_owned(), if next < count => {
                    let (connector, token) = (connector.clone(), token.clone());
                    let proxy = Proxy { number: next, connector, token, tally: fleet.tally.clone(), acked: tell.clone() };
                    fleet.streams.spawn(proxy.run());
                    turn_of.insert(next, turn);
                    missing.insert(next);
                    next += 1;
                }
                Some(acked) = fleet.acked.recv() => {
                    // Routes are asked for last.
                    if acked.type_url == TypeUrl::Route {
                        missing.remove(&acked.proxy);
                        turn_of.remove(&acked.proxy);
                    }
                }
                Some(ended) = fleet.streams.join_next() => return Err(ended?.err().context("a stream ended")?),
                () = tokio::time::sleep(PATIENCE) => bail!("{} proxies got no routes", missing.len()),
            }
        }
        Ok(fleet)
    }

    /// Forgets what came so far.
    fn drain(&mut self) {
        while self.acked.try_recv().is_ok() {}
    }

    /// Applies an object and waits until every proxy has acknowledged what it is known by.
    async fn wave(&mut self, mesh: &Mesh, object: &str, known: impl Fn(&Acked) -> bool) -> Result<Wave> {
        self.drain();
        let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
        let (cpu, responses, bytes) = (process::cpu(self.pid)?, count(&self.tally.responses), count(&self.tally.bytes));
        let objects = carrick_api::parse::objects(object.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
        let start = Instant::now();
        for object in &objects {
            crate::apply::one(mesh.client(), object, "default", false).await?;
        }
        let mut missing: BTreeSet<u32> = (0..self.count).collect();
        let mut last = start;
        let limit = tokio::time::Instant::now() + PATIENCE;
        while !missing.is_empty() {
            tokio::select! {
                Some(acked) = self.acked.recv() => {
                    if known(&acked) && missing.remove(&acked.proxy) {
                        last = last.max(acked.at);
                    }
                }
                Some(ended) = self.streams.join_next() => return Err(ended?.err().context("a stream ended")?),
                () = tokio::time::sleep_until(limit) => bail!("{} proxies have not acknowledged it", missing.len()),
            }
        }
        tokio::time::sleep(BEHIND).await;
        Ok(Wave {
            took: last.duration_since(start),
            cpu: process::cpu(self.pid)?.saturating_sub(cpu),
            responses: count(&self.tally.responses).saturating_sub(responses),
            bytes: count(&self.tally.bytes).saturating_sub(bytes),
        })
    }
}

/// A token that proves to be the service account `default` of the proxies' namespace.
async fn token(mesh: &Mesh) -> Result<Arc<str>> {
    let accounts: Api<ServiceAccount> = Api::namespaced(mesh.client().clone(), NAMESPACE);
    let spec = TokenRequestSpec {
        audiences: vec!["istio-ca".to_owned()],
        expiration_seconds: Some(3600),
        ..Default::default()
    };
    let request = TokenRequest { spec, ..Default::default() };
    let answer = accounts.create_token_request("default", &PostParams::default(), &request).await?;
    let token = answer.status.map(|status| status.token).unwrap_or_default();
    ensure!(!token.is_empty(), "no token was given");
    Ok(token.into())
}
