//! Certificates that live for a minute in hundreds of sidecars, for half an hour, under load: nothing fails, and nothing old is served.
//!
//! Invariant: a request counts as failed when its program did not get an answer; how old a certificate is is seen from outside, in a
//! handshake with each sidecar every few seconds. Every other service is called by a new connection, so a new handshake, for each request.

mod usage;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use self::usage::Usage;
use super::{
    held::Held,
    load::{Counted, Plan, Running},
    mesh::{Mesh, PodSpec, Setup, folder, serve_command, tail},
    observer::{Observer, Seen, Target},
    rows::Rows,
};

const NAMESPACE: &str = "members";
/// Sidecars that are started at once.
const AT_ONCE: usize = 15;
/// Members for each that also calls.
const MEMBERS_PER_CALLER: usize = 30;
/// The share of its life beyond which no certificate may be served.
const LIMIT: f64 = 0.9;

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Sidecars of the native engine, each a pod with a service of its own.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(2..=1000))]
    sidecars: u16,
    /// Envoys beside them.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=100))]
    envoys: u16,
    /// Life of every certificate, of which half is used.
    #[arg(long, default_value = "1m", value_parser = crate::duration::parse, value_name = "DURATION")]
    certificate_ttl: Duration,
    /// How long.
    #[arg(long, default_value = "30m", value_parser = crate::duration::parse, value_name = "DURATION")]
    time: Duration,
    /// Requests a second, over all.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// How often each sidecar is looked at.
    #[arg(long, default_value = "5s", value_parser = crate::duration::parse, value_name = "DURATION")]
    look: Duration,
    /// How often it is told how things are.
    #[arg(long, default_value = "1m", value_parser = crate::duration::parse, value_name = "DURATION")]
    tell: Duration,
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("renewals");
    let own = folder(data_dir, "renewals");
    let life = format!("{}ms", options.certificate_ttl.as_millis());
    let setup = Setup { up: vec!["--workload-cert-ttl".into(), life], ..Setup::default() };
    let mut fleet =
        Fleet { mesh: Mesh::start_with(&own.path, setup).await?, dir: own.path.clone(), members: Vec::new() };
    let title = format!("1 {} native sidecars and {} Envoys with mutual TLS", options.sidecars, options.envoys);
    rows.check(&title, async || fleet.start(options).await).await;
    let title =
        format!("2 certificates for {:?}, {:?} under load, nothing fails", options.certificate_ttl, options.time);
    rows.check(&title, async || fleet.lives(options).await).await;
    rows.check("3 the ledger is whole, and fits what is held", async || fleet.audited().await).await;
    fleet.mesh.stop().await?;
    Ok(rows.finish())
}

struct Fleet {
    mesh: Mesh,
    dir: PathBuf,
    members: Vec<Target>,
}

/// Load that is under way, with where it tells how it goes.
struct Load {
    running: Running,
    report: PathBuf,
}

impl Fleet {
    fn name(n: usize) -> String {
        format!("member-{n}")
    }

    /// Some of the native ones call, and each Envoy.
    fn calls(n: usize, native: usize) -> bool {
        n >= native || n.is_multiple_of(MEMBERS_PER_CALLER)
    }

    async fn start(&mut self, options: &Options) -> Result<String> {
        let (native, envoys) = (usize::from(options.sidecars), usize::from(options.envoys));
        let begin = Instant::now();
        self.mesh.apply(&objects(native + envoys)).await?;
        let names: Vec<String> = (0..native + envoys).map(Self::name).collect();
        for (batch, chunk) in names.chunks(AT_ONCE).enumerate() {
            for (at, name) in chunk.iter().enumerate() {
                let engine = if batch * AT_ONCE + at < native { Engine::Native } else { Engine::Envoy };
                self.mesh.spawn(&PodSpec {
                    namespace: NAMESPACE.into(),
                    name: name.clone(),
                    app: name.clone(),
                    labels: vec![(
                        "role".into(),
                        if Self::calls(batch * AT_ONCE + at, native) { "caller" } else { "member" }.into(),
                    )],
                    ports: vec!["http=8080".into()],
                    engine,
                    more: Vec::new(),
                    command: serve_command(name, &[]),
                })?;
            }
            for name in chunk {
                let address = self.mesh.ready(NAMESPACE, name).await?;
                self.members.push(Target { name: name.clone(), address });
            }
        }
        self.mesh.converged().await?;
        let usage = Usage::of(&self.mesh)?;
        Ok(format!(
            "{} up in {:.0} s; native {:.1} MiB each, control plane {:.0} MiB",
            self.members.len(),
            begin.elapsed().as_secs_f64(),
            usage.native_mib().0,
            usage.control_plane_mib()
        ))
    }

    /// Those who call.
    fn callers(&self, options: &Options) -> Vec<String> {
        let native = usize::from(options.sidecars);
        let calling = |(n, member): (usize, &Target)| {
            (n >= native || n.is_multiple_of(MEMBERS_PER_CALLER)).then(|| member.name.clone())
        };
        self.members.iter().enumerate().filter_map(calling).collect()
    }

    fn load(&self, options: &Options) -> Result<Vec<Load>> {
        let callers = self.callers(options);
        let count = u32::try_from(callers.len())?;
        let rate = options.rate.div_ceil(count).to_string();
        let all = self.members.len();
        let begin = |(n, caller): (usize, &String)| {
            // Everybody calls everybody else, each from another beginning.
            let turned = (0..all).map(|at| (at + n * all / callers.len()) % all);
            let urls: Vec<String> = turned
                .map(Self::name)
                .filter(|name| name != caller)
                .map(|name| format!("http://{name}.{NAMESPACE}:8080/"))
                .collect();
            let report = self.dir.join(format!("{caller}.load"));
            let plan = Plan { rate: &rate, urls: &urls, methods: &["GET", "POST"], report: Some(&report) };
            Ok(Load { running: Running::begin(&self.mesh, NAMESPACE, caller, plan)?, report })
        };
        callers.iter().enumerate().map(begin).collect()
    }

    /// Connections that stay open: from the first of each engine to the next of its own and to the first of the other.
    fn held(&self, options: &Options) -> Result<Vec<Held>> {
        let native = usize::from(options.sidecars);
        let mut ways = vec![(0, 1)];
        if options.envoys > 0 {
            ways.extend([(0, native), (native, 1)]);
        }
        if options.envoys > 1 {
            ways.push((native, native + 1));
        }
        // Even ones keep connections; the odd ones' are closed after each request, which a WebSocket is until its end.
        let url = |n: usize| format!("http://{}.{NAMESPACE}:8080/", Self::name(n));
        ways.into_iter().map(|(from, to)| Held::start(&self.mesh, NAMESPACE, &Self::name(from), &url(to))).collect()
    }

    async fn lives(&mut self, options: &Options) -> Result<String> {
        ensure!(self.members.len() == usize::from(options.sidecars + options.envoys), "not everybody is up");
        let pids = self.mesh.sidecars()?;
        let held = self.held(options)?;
        let observer = Observer::start(self.members.clone(), options.certificate_ttl, options.look)?;
        let loads = self.load(options)?;
        let begin = Instant::now();
        let first = Usage::of(&self.mesh)?;
        let mut last = first.clone();
        let mut words = BTreeSet::new();
        println!("{HEAD}");
        while begin.elapsed() < options.time {
            tokio::time::sleep(options.tell.min(options.time.saturating_sub(begin.elapsed()))).await;
            let now = Usage::of(&self.mesh)?;
            println!("{}", line(begin.elapsed(), &loads, &observer.seen(), (&now, &last), &mut words));
            last = now;
        }
        // All are ended before the first is judged.
        let counted = futures_util::future::join_all(loads.into_iter().map(|load| load.running.counted())).await;
        let seen = observer.finish().await?;
        let held = futures_util::future::join_all(held.into_iter().map(Held::finish)).await;
        let after = Usage::of(&self.mesh)?;
        self.judge(options, &seen, begin.elapsed())?;
        let mut sum = Counted::default();
        for one in counted {
            let one = one?;
            sum.requests += one.requests;
            (sum.p99, sum.longest) = (sum.p99.max(one.p99), sum.longest.max(one.longest));
        }
        let kept = held.len();
        let messages = held.into_iter().sum::<Result<u64>>()?;
        ensure!(self.mesh.sidecars()? == pids, "a sidecar was started anew");
        Ok(told(options, &sum, (kept, messages), &seen, (&first, &after), begin.elapsed()))
    }

    /// What was seen from outside is as it should be.
    fn judge(&self, options: &Options, seen: &Seen, took: Duration) -> Result<()> {
        ensure!(seen.failed == 0, "{} of {} handshakes failed: {:?}", seen.failed, seen.looks, seen.failures);
        let highest = percent(seen.highest);
        ensure!(seen.highest <= LIMIT, "a certificate was served at {highest} of its life: {}", seen.whose);
        // Half of a life each; the first and the last may not be over, and a look comes late by its pause.
        let lives = (took.as_secs_f64() / options.certificate_ttl.as_secs_f64() * 1.8).floor() as usize;
        let (fewest, _) = seen.spread();
        ensure!(fewest >= lives.saturating_sub(1), "somebody had only {fewest} certificates in {took:?}");
        Ok(())
    }

    async fn audited(&self) -> Result<String> {
        let output = self.mesh.output(&["certs", "audit", "-o", "json"]).await?;
        let found: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("carrick certs audit: {}", String::from_utf8_lossy(&output.stderr)))?;
        let errors: Vec<&Value> =
            found.as_array().into_iter().flatten().filter(|found| found["level"] == "Error").collect();
        let first = errors.first().map(|found| format!("{} {}", found["place"], found["message"]));
        ensure!(output.status.success() && errors.is_empty(), "{} errors, such as {first:?}", errors.len());
        let size: u64 = std::fs::read_dir(self.dir.join("ledger"))?
            .map(|entry| Ok(entry?.metadata()?.len()))
            .sum::<std::io::Result<u64>>()?;
        let problems = tail(&self.dir.join("up.log")).lines().filter(|line| line.contains("ERROR")).count();
        ensure!(problems == 0, "the control plane's log ends with errors:\n{}", tail(&self.dir.join("up.log")));
        Ok(format!("{:.1} MiB", size as f64 / 1024.0 / 1024.0))
    }
}

const HEAD: &str = "    time   requests  failed   looks  failed  certificates  highest  processors: control plane, native, Envoy  MiB: control plane, native (most), Envoy";

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// How things are.
fn line(at: Duration, loads: &[Load], seen: &Seen, usage: (&Usage, &Usage), told: &mut BTreeSet<String>) -> String {
    let (now, last) = usage;
    let (mut requests, mut failed, mut words) = (0, 0, Vec::new());
    for load in loads {
        let report: Value =
            std::fs::read(&load.report).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default();
        requests += report["requests"].as_u64().unwrap_or_default();
        failed += report["failed"].as_u64().unwrap_or_default();
        words.extend(report["failures"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    }
    words.extend(seen.failures.iter().cloned());
    for word in words {
        if told.insert(word.clone()) {
            println!("    failed: {word}");
        }
    }
    let [control, native, envoy] = now.processors_since(last);
    format!(
        "  {:>5} s {requests:>10} {failed:>7} {:>7} {:>7} {:>13} {:>8}  {control:.2}, {native:.2}, {envoy:.2}  {:.0}, {:.1} ({:.1}), {:.0}",
        at.as_secs(),
        seen.looks,
        seen.failed,
        seen.certificates(),
        percent(seen.highest),
        now.control_plane_mib(),
        now.native_mib().0,
        now.native_mib().1,
        now.envoy_mib().0,
    )
}

/// The table of the end.
fn told(
    options: &Options,
    sum: &Counted,
    held: (usize, u64),
    seen: &Seen,
    usage: (&Usage, &Usage),
    took: Duration,
) -> String {
    let seconds = took.as_secs_f64();
    let (before, after) = usage;
    let [control, native, envoy] = after.processors_since(before);
    let (fewest, most) = seen.spread();
    let each = |of: fn(&Usage) -> (f64, f64)| format!("{:.1} (most {:.1})", of(after).0, of(after).1);
    let rows = [
        ("sidecars", format!("{} native, {} Envoy", options.sidecars, options.envoys)),
        ("time", format!("{seconds:.0} s, life of a certificate {:?}", options.certificate_ttl)),
        (
            "requests",
            format!(
                "{}, {:.0}/s, 0 failed, p99 {} µs, longest {} µs",
                sum.requests,
                sum.requests as f64 / seconds,
                sum.p99,
                sum.longest
            ),
        ),
        ("open connections", format!("{} kept from beginning to end, {} messages", held.0, held.1)),
        (
            "looks from outside",
            format!("{} handshakes, 0 failed; longest pause at one sidecar {:?}", seen.looks, seen.gap),
        ),
        ("certificates served", format!("{}; {fewest} to {most} by each sidecar", seen.certificates())),
        (
            "served at most at",
            format!("{} of its life; {} counted from notBefore", percent(seen.highest), percent(seen.from_not_before)),
        ),
        ("processors", format!("control plane {control:.2}, native {native:.2} in all, Envoy {envoy:.2} in all")),
        (
            "native MiB",
            format!("{} at the end, {:.1} at the beginning", each(Usage::native_mib), before.native_mib().0),
        ),
        (
            "Envoy MiB, with agent",
            format!("{} at the end, {:.1} at the beginning", each(Usage::envoy_mib), before.envoy_mib().0),
        ),
        (
            "control plane MiB",
            format!("{:.0} at the end, {:.0} at the beginning", after.control_plane_mib(), before.control_plane_mib()),
        ),
    ];
    rows.iter().map(|(name, text)| format!("\n          {name:<22} {text}")).collect()
}

/// Services, mutual TLS, and new connections for each request of every other service. Who calls nobody is told of nobody, as is usual in a
/// mesh of this size.
fn objects(count: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: {NAMESPACE}}}\n\
         spec: {{egress: [{{hosts: [\"istio-system/*\"]}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: callers, namespace: {NAMESPACE}}}\n\
         spec: {{workloadSelector: {{labels: {{role: caller}}}}, egress: [{{hosts: [\"*/*\"]}}]}}\n"
    );
    for n in 0..count {
        let name = Fleet::name(n);
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}]}}\n"
        );
        if n % 2 == 1 {
            text += &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
                 spec: {{host: {name}.{NAMESPACE}.svc.cluster.local, trafficPolicy: {{connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}}}}}\n"
            );
        }
    }
    text
}
