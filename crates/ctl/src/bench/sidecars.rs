//! Every pair at once, loaded in turns: what a request, a connection and a known service cost.
//!
//! Load generator and application share CPU 0, the proxies CPU 1 (where there are two). CPU is the scheduler's count for both
//! proxies of a pair (agents included), divided by the requests completed. The mesh's pairs do all that sidecars do: metrics, ten policies,
//! services nobody calls; the programs beside it do the least that carries a request.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    counters::Counters,
    manifests,
    modes::{Burst, MODES, Mode},
    page,
    pairs::{self, NAMESPACE, Pair, Subject, Variant},
    summary::Summary,
};
use crate::{
    demo::mesh::{Mesh, Setup},
    process,
};

/// Until the start is over.
const SETTLE: Duration = Duration::from_secs(5);
/// Until a quiet sidecar has given back what it needed for a moment only.
const QUIET: Duration = Duration::from_secs(22);

/// Seconds of the two bursts in which is counted; what the longer one has more is what its requests cost.
const COUNTED: (u32, u32) = (1, 3);

/// How much to measure.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Rounds; each measures every mode with every pair.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Requests a second of the fixed-rate measurement.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Services that every sidecar knows.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    services: u32,
    /// Services known for the last look at memory; as many as `--services`: no such look.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    many_services: u32,
    /// Connections that wait, for what each costs; 0: none.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    idle: u32,
    /// Only these modes.
    #[arg(long, value_delimiter = ',')]
    modes: Vec<String>,
    /// Only these pairs: native, envoy, bare-envoy, haproxy, nginx, floor, floor-tokio.
    #[arg(long, value_delimiter = ',')]
    pairs: Vec<String>,
    /// Folder of sidecars.json.
    #[arg(long, default_value = "target/bench")]
    out: std::path::PathBuf,
    /// Write the figures into performance.md of this folder, and draw performance.svg there.
    #[arg(long, value_name = "DIR")]
    page: Option<std::path::PathBuf>,
}

/// Measures and writes what was found; 0 when all requests succeeded.
///
/// # Errors
/// When the mesh does not start or a request fails.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    for program in ["wrk", "h2load", "nginx", "nft"] {
        process::on_path(program).with_context(|| format!("{program} is not installed (`make bench` installs it)"))?;
    }
    let folder = crate::demo::mesh::folder(data_dir, "bench");
    let (summary, mut value) = super::with_mesh(&folder.path, Setup::default(), async |mesh: &mut Mesh| {
        Bench::measure(mesh, options, &folder.path).await
    })
    .await?;
    value.insert("modes".into(), Value::Object(summary.json()));
    std::fs::create_dir_all(&options.out)?;
    let file = options.out.join("sidecars.json");
    std::fs::write(&file, crate::output::json(&Value::Object(value.clone())))?;
    print!("{}", summary.table());
    println!("memory: {}", value.get("memory").unwrap_or(&Value::Null));
    println!("written: {}", file.display());
    if let Some(dir) = &options.page {
        page::write(dir, "sidecars", &Value::Object(value))?;
    }
    Ok(0)
}

/// What was counted in a burst.
struct Counted {
    requests: f64,
    syscalls: u64,
    allocations: Option<u64>,
}

/// The pairs that take part, and how to reach their servers.
struct Bench<'a> {
    options: &'a Options,
    dir: &'a Path,
    pairs: Vec<(Pair, String)>,
}

impl<'a> Bench<'a> {
    async fn measure(mesh: &mut Mesh, options: &'a Options, dir: &'a Path) -> Result<(Summary, Map<String, Value>)> {
        let modes: Vec<&Mode> = MODES
            .iter()
            .filter(|mode| options.modes.is_empty() || options.modes.iter().any(|m| m == mode.name))
            .collect();
        ensure!(!modes.is_empty() || options.idle > 0, "there are no such modes: {:?}", options.modes);
        let wanted = |subject: Subject| options.pairs.is_empty() || options.pairs.iter().any(|p| p == subject.name());
        let mut wanted_pairs: Vec<Pair> = Vec::new();
        for pair in Pair::all().into_iter().filter(|pair| wanted(pair.subject)) {
            if pair.subject.program().is_none() {
                eprintln!("{} is not installed and does not take part", pair.subject.name());
                continue;
            }
            let used = |mode: &&Mode| mode.subjects.contains(&pair.subject) && mode.pair(pair.subject) == pair;
            if modes.iter().any(used) || (pair.variant == Variant::Usual && options.idle > 0) {
                wanted_pairs.push(pair);
            }
        }
        ensure!(!wanted_pairs.is_empty(), "nobody is there to be measured: {:?}", options.pairs);
        pairs::prepare(dir).await?;
        mesh.apply(&manifests::mesh(&wanted_pairs)).await?;
        let mut memory = Map::new();
        let onlookers: Vec<Pair> =
            wanted_pairs.iter().copied().filter(|p| p.subject.in_mesh() && p.variant == Variant::Usual).collect();
        for pair in &onlookers {
            mesh.spawn(&pair.onlooker())?;
            mesh.ready(NAMESPACE, &pair.pod("onlooker")).await?;
        }
        look(mesh, &onlookers, "idle", &mut memory).await?;
        for objects in manifests::services_in_parts(0..options.services) {
            mesh.apply(&objects).await?;
        }
        look(mesh, &onlookers, &format!("{}_services", options.services), &mut memory).await?;
        let bench = Bench { options, dir, pairs: start(mesh, wanted_pairs, dir).await? };
        let mut summary = Summary::default();
        if options.idle > 0 {
            let each = bench.waiting(mesh).await?;
            memory.insert("bytes_per_waiting_connection".into(), Value::Object(each));
        }
        bench.pin()?;
        bench.rounds(mesh, &modes, &mut summary).await?;
        if let Err(error) = bench.counts(mesh, &modes, &mut summary).await {
            eprintln!("system calls and allocations are not counted: {error:#}");
        }
        memory.insert("after_load".into(), Value::Object(bench.resident()?));
        if options.many_services > options.services {
            for objects in manifests::services_in_parts(options.services..options.many_services) {
                mesh.apply(&objects).await?;
            }
            look(mesh, &onlookers, &format!("{}_services", options.many_services), &mut memory).await?;
        }
        let value = json!({
            "memory": memory, "rounds": options.rounds, "seconds": options.seconds, "rate": options.rate,
            "services": options.services, "repeated": summary.repeated, "machine": page::machine(), "versions": page::versions(),
        });
        Ok((summary, value.as_object().cloned().unwrap_or_default()))
    }

    /// Who takes part in a mode.
    fn of(&self, mode: &Mode) -> Vec<(Subject, &(Pair, String))> {
        let found = |subject: &Subject| {
            let pair = mode.pair(*subject);
            Some((*subject, self.pairs.iter().find(|(p, _)| *p == pair)?))
        };
        mode.subjects.iter().filter_map(found).collect()
    }

    async fn rounds(&self, mesh: &Mesh, modes: &[&Mode], summary: &mut Summary) -> Result<()> {
        for mode in modes {
            for (subject, pair) in self.of(mode) {
                let fail = || format!("warm-up of {} with {}", mode.name, subject.name());
                self.burst(mesh, pair, mode, 1).await.with_context(fail)?;
            }
        }
        for round in 0..self.options.rounds {
            for mode in modes {
                eprintln!("round {} of {}: {}", round + 1, self.options.rounds, mode.name);
                let mut all = self.of(mode);
                // Who goes first changes from round to round.
                let first = round as usize % all.len().max(1);
                all.rotate_left(first);
                for (subject, pair) in all {
                    let measured = match self.one(mesh, pair, mode).await {
                        Ok(measured) => measured,
                        // A stall of the machine must not lose all that was measured; a second one is the subject's own.
                        Err(error) => {
                            eprintln!("once more: {error:#}");
                            summary.repeated.push(format!(
                                "round {}: {} with {}",
                                round + 1,
                                mode.name,
                                subject.name()
                            ));
                            self.one(mesh, pair, mode).await?
                        }
                    };
                    for (figure, value) in measured {
                        summary.add(mode.name, subject.name(), figure, value);
                    }
                }
            }
        }
        Ok(())
    }

    /// System calls and allocations of each mode with each pair, in bursts of their own: counting costs time.
    async fn counts(&self, mesh: &Mesh, modes: &[&Mode], summary: &mut Summary) -> Result<()> {
        for mode in modes {
            eprintln!("counting: {}", mode.name);
            for (subject, pair) in self.of(mode) {
                let short = self.counted(mesh, pair, mode, COUNTED.0).await?;
                let long = self.counted(mesh, pair, mode, COUNTED.1).await?;
                // What the connections themselves cost is in both, and so in neither.
                let requests = long.requests - short.requests;
                if requests <= 0.0 {
                    eprintln!("{} with {}: not more requests in the longer burst", mode.name, subject.name());
                    continue;
                }
                let each = |long: u64, short: u64| long.saturating_sub(short) as f64 / requests;
                summary.add(mode.name, subject.name(), "syscalls", each(long.syscalls, short.syscalls));
                if let (Some(long), Some(short)) = (long.allocations, short.allocations) {
                    summary.add(mode.name, subject.name(), "allocations", each(long, short));
                }
            }
        }
        Ok(())
    }

    async fn counted(&self, mesh: &Mesh, pair: &(Pair, String), mode: &Mode, seconds: u32) -> Result<Counted> {
        let pids = [pair.0.processes("client")?, pair.0.processes("server")?].concat();
        let counters = Counters::of(&pids, pair.0.subject.uses_libc())?;
        let requests = self.burst(mesh, pair, mode, seconds).await?.requests;
        Ok(Counted { requests, syscalls: counters.syscalls()?, allocations: counters.allocations()? })
    }

    /// One measurement: figures by name.
    async fn one(&self, mesh: &Mesh, pair: &(Pair, String), mode: &Mode) -> Result<Vec<(&'static str, f64)>> {
        let pids = [pair.0.processes("client")?, pair.0.processes("server")?].concat();
        let total = || -> Result<Duration> { pids.iter().map(|pid| process::cpu(*pid)).sum() };
        let before = total()?;
        let burst = self.burst(mesh, pair, mode, self.options.seconds).await?;
        let used = total()?.saturating_sub(before);
        ensure!(burst.requests > 0.0, "{} with {}: no request was answered", mode.name, pair.0.subject.name());
        let mut figures =
            vec![("cpu_us", used.as_secs_f64() * 1e6 / burst.requests), ("per_second", burst.requests / burst.seconds)];
        figures.extend(burst.p50_us.map(|us| ("p50_us", us)));
        figures.extend(burst.p99_us.map(|us| ("p99_us", us)));
        Ok(figures)
    }

    async fn burst(&self, mesh: &Mesh, (pair, host): &(Pair, String), mode: &Mode, seconds: u32) -> Result<Burst> {
        let call = self.dir.join("call.grpc").display().to_string();
        let argv = mode.command(host, seconds, self.options.rate, &call)?;
        let client = pair.pod("client");
        let mut args = vec!["exec", client.as_str(), "-n", NAMESPACE, "--", "taskset", "-c", "0"];
        args.extend(argv.iter().map(String::as_str));
        let output = mesh.output(&args).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let fail = || format!("{} with {}:\n{text}{error}", mode.name, pair.subject.name());
        ensure!(output.status.success(), "{}", fail());
        mode.read(&text, seconds).with_context(fail)
    }

    /// What a waiting HTTP/1.1 connection costs in each of the two proxies, bytes: the mean of both.
    async fn waiting(&self, mesh: &Mesh) -> Result<Map<String, Value>> {
        let mut out = Map::new();
        let count = self.options.idle;
        // What is given back meanwhile would be taken for what connections do not cost.
        tokio::time::sleep(QUIET).await;
        for (pair, host) in self.pairs.iter().filter(|(pair, _)| pair.variant == Variant::Usual) {
            if pair.subject == Subject::FloorTokio {
                continue;
            }
            let memory = || -> Result<u64> {
                let pids = [pair.processes("client")?, pair.processes("server")?].concat();
                pids.into_iter().map(process::resident).sum()
            };
            let before = memory()?;
            let program = std::env::current_exe()?.display().to_string();
            let (client, to, connections) = (pair.pod("client"), format!("{host}:8080"), count.to_string());
            let mut command = mesh.carrick(&[
                "exec",
                &client,
                "-n",
                NAMESPACE,
                "--",
                &program,
                "bench",
                "hold",
                "--to",
                &to,
                "--connections",
                &connections,
            ]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line).await?;
            ensure!(line.starts_with("held"), "{}: the connections did not stand", pair.subject.name());
            tokio::time::sleep(SETTLE).await;
            let each = memory()?.saturating_sub(before) / 2 / u64::from(count);
            // Its input ends, and with it the connections.
            child.wait().await?;
            eprintln!("a waiting connection of {}: {each} bytes", pair.subject.name());
            out.insert(pair.subject.name().to_owned(), each.into());
        }
        Ok(out)
    }

    /// Resident memory of both proxies of each pair, agents included, bytes: the mean of both.
    fn resident(&self) -> Result<Map<String, Value>> {
        let one = |pair: &Pair| -> Result<u64> {
            let pids = [pair.processes("client")?, pair.processes("server")?].concat();
            Ok(pids.into_iter().map(process::resident).sum::<Result<u64>>()? / 2)
        };
        let usual = self.pairs.iter().filter(|(pair, _)| pair.variant == Variant::Usual);
        usual.map(|(pair, _)| Ok((pair.subject.name().to_owned(), one(pair)?.into()))).collect()
    }

    /// Proxies on the last CPU, everything else stays where the load is.
    fn pin(&self) -> Result<()> {
        let cpus = std::thread::available_parallelism()?.get();
        for (pair, _) in self.pairs.iter().filter(|_| cpus > 1) {
            for pid in [pair.processes("client")?, pair.processes("server")?].concat() {
                process::pin(pid, cpus - 1)?;
            }
        }
        Ok(())
    }
}

/// Starts the pairs; gives the name or address of each one's server.
pub(super) async fn start(mesh: &mut Mesh, pairs: Vec<Pair>, dir: &Path) -> Result<Vec<(Pair, String)>> {
    let config = dir.join("nginx.conf");
    std::fs::write(&config, nginx(dir))?;
    let nginx = process::on_path("nginx").context("nginx")?.display().to_string();
    let program = std::env::current_exe()?.display().to_string();
    // gRPC, and HTTP of either version on one port, are answered by the examples' service.
    let app = format!(
        "sh -c '{program} demo serve --port 8081 --port 8083 --answer \"{{\\\"said\\\":\\\"{}\\\"}}\" & \
         exec {nginx} -e /dev/null -c {} -p /tmp'",
        "x".repeat(110),
        config.display()
    );
    let mut started = Vec::new();
    for pair in &pairs {
        mesh.spawn(&pair.server(&app, dir)?)?;
    }
    for pair in pairs {
        let address = mesh.ready(NAMESPACE, &pair.pod("server")).await?.to_string();
        mesh.spawn(&pair.client(&address, dir)?)?;
        let host = if pair.subject.in_mesh() { format!("{}.{NAMESPACE}", pair.pod("server")) } else { address };
        started.push((pair, host));
    }
    for (pair, _) in &started {
        mesh.ready(NAMESPACE, &pair.pod("client")).await?;
    }
    mesh.converged().await?;
    tokio::time::sleep(SETTLE).await;
    Ok(started)
}

/// Takes down the memory of sidecars that nobody uses, bytes.
async fn look(mesh: &Mesh, onlookers: &[Pair], when: &str, into: &mut Map<String, Value>) -> Result<()> {
    mesh.converged().await?;
    tokio::time::sleep(QUIET).await;
    let one = |pair: &Pair| -> Result<(String, Value)> {
        let pids = process::sidecars_of(&pair.pod("onlooker"))?;
        let bytes: u64 = pids.into_iter().map(process::resident).sum::<Result<u64>>()?;
        eprintln!("memory of {} {when}: {:.1} MB", pair.subject.name(), bytes as f64 / 1e6);
        Ok((pair.subject.name().to_owned(), bytes.into()))
    };
    into.insert(format!("resident_{when}"), Value::Object(onlookers.iter().map(one).collect::<Result<_>>()?));
    Ok(())
}

/// 128 bytes of answer on the port of HTTP and the one that is declared TCP, and a body of 1 MiB.
fn nginx(dir: &Path) -> String {
    let body = "x".repeat(128);
    format!(
        "daemon off;\nmaster_process off;\npid {0}/nginx.pid;\nworker_processes 1;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 9000; }}\nhttp {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  \
         keepalive_requests 1000000000;\n  keepalive_timeout 300s;\n  \
         server {{ listen 8080 backlog=4096; listen 8082 backlog=4096; default_type text/plain;\n    \
         location / {{ return 200 \"{body}\"; }}\n    location /1m {{ root {0}/www; }} }}\n}}\n",
        dir.display()
    )
}
