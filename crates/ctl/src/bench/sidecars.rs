//! A client and a server pod for each engine, all four alive at once, loaded in turns.
//!
//! Load generator and application share CPU 0, the sidecars CPU 1 (where there are two). The path is
//! load → client sidecar → mutual TLS 1.3 → server sidecar → nginx, with the pods' real redirection. CPU is the
//! scheduler's count for both sidecars of a pair (agent included), divided by the requests completed.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::{Value, json};

use super::summary::Summary;
use crate::{
    demo::mesh::{Mesh, PodSpec},
    process,
};

const NAMESPACE: &str = "bench";
const ENGINES: [Engine; 2] = [Engine::Native, Engine::Envoy];

/// Until the start's own memory is given back.
const SETTLE: Duration = Duration::from_secs(5);

/// How much to measure.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Rounds; each measures every mode with both engines.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Requests a second of the fixed-rate measurement.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Services that every sidecar knows.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    services: u32,
    /// Only these modes: http1, http1-one, http1-fixed, http2, tcp, handshake.
    #[arg(long, value_delimiter = ',')]
    modes: Vec<String>,
    /// Folder for summary.json.
    #[arg(long, default_value = "target/bench")]
    out: std::path::PathBuf,
}

/// The ways of loading a pair.
const MODES: [&str; 6] = ["http1", "http1-one", "http1-fixed", "http2", "tcp", "handshake"];

/// What one burst of load completed.
#[derive(Debug, Default)]
struct Burst {
    requests: f64,
    seconds: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

/// Measures and writes the summary; 0 when all requests succeeded.
///
/// # Errors
/// When the mesh does not start or a request fails.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    for program in ["wrk", "h2load", "nginx"] {
        process::on_path(program).with_context(|| format!("{program} is not installed (`make bench` installs it)"))?;
    }
    let dir = if data_dir == Path::new(carrick_pod::options::DEFAULT_DATA_DIR) {
        std::env::temp_dir().join(format!("carrick-bench-{}", std::process::id()))
    } else {
        data_dir.to_owned()
    };
    let mut mesh = Mesh::start(&dir).await?;
    let result = measure(&mut mesh, options, &dir).await;
    mesh.stop().await?;
    let (summary, resident) = result?;
    let mut value = summary.json();
    let sizes = |(native, envoy): (u64, u64)| json!({"native_bytes": native, "envoy_bytes": envoy, "services": options.services});
    value.insert("rss_300_services".into(), sizes(resident.idle));
    value.insert("rss_after_load".into(), sizes(resident.loaded));
    std::fs::create_dir_all(&options.out)?;
    let file = options.out.join("summary.json");
    std::fs::write(&file, crate::output::json(&Value::Object(value)))?;
    print!("{}", summary.table());
    for (when, (native, envoy)) in [("idle", resident.idle), ("after load", resident.loaded)] {
        let (native, envoy) = (native as f64 / 1e6, envoy as f64 / 1e6);
        println!("RSS {when}, {} services known: native {native:.1} MB, envoy {envoy:.1} MB", options.services);
    }
    println!("written: {}", file.display());
    Ok(0)
}

/// Resident memory of the client's sidecar in bytes, native and Envoy (agent included).
struct Resident {
    /// With all services known, before any load.
    idle: (u64, u64),
    /// After the last round.
    loaded: (u64, u64),
}

async fn measure(mesh: &mut Mesh, options: &Options, dir: &Path) -> Result<(Summary, Resident)> {
    mesh.apply(&manifests(options.services)).await?;
    let config = dir.join("nginx.conf");
    std::fs::write(&config, NGINX)?;
    let nginx = process::on_path("nginx").context("nginx")?.display().to_string();
    for engine in ENGINES {
        let server =
            ["sh", "-c", &format!("exec {nginx} -e /dev/stderr -c {} -p /tmp", config.display())].map(str::to_owned);
        mesh.spawn(&pod("server", engine, &["http=8080", "http2=8081", "tcp=8082"], server.to_vec()))?;
        mesh.spawn(&pod("client", engine, &[], vec!["sleep".into(), "86400".into()]))?;
    }
    for engine in ENGINES {
        mesh.ready(NAMESPACE, &name("client", engine)).await?;
        mesh.ready(NAMESPACE, &name("server", engine)).await?;
    }
    mesh.converged().await?;
    // Idle with all services known, once the start has settled: before any load has filled buffers.
    tokio::time::sleep(SETTLE).await;
    let rss = |engine| -> Result<u64> { sidecar(&name("client", engine))?.into_iter().map(process::resident).sum() };
    let idle = (rss(Engine::Native)?, rss(Engine::Envoy)?);
    pin(mesh)?;
    let mut summary = Summary::default();
    let wanted = |mode: &str| options.modes.is_empty() || options.modes.iter().any(|m| m == mode);
    for mode in MODES.into_iter().filter(|mode| wanted(mode)) {
        for engine in ENGINES {
            burst(mesh, engine, mode, 1, options.rate).await.with_context(|| format!("warm-up of {mode}"))?;
        }
    }
    for round in 0..options.rounds {
        for mode in MODES.into_iter().filter(|mode| wanted(mode)) {
            eprintln!("round {} of {}: {mode}", round + 1, options.rounds);
            let mut figures = Vec::new();
            for turn in 0..2 {
                // Who goes first changes from round to round.
                let engine = ENGINES[(turn + round as usize) % 2];
                figures.push((engine, one(mesh, engine, mode, options).await?));
            }
            figures.sort_by_key(|(engine, _)| *engine != Engine::Native);
            if let [(_, native), (_, envoy)] = figures.as_slice() {
                for ((figure, a), (_, b)) in native.iter().zip(envoy) {
                    summary.add(mode, figure, *a, *b);
                }
            }
        }
    }
    let loaded = (rss(Engine::Native)?, rss(Engine::Envoy)?);
    Ok((summary, Resident { idle, loaded }))
}

/// One measurement: figures by name, in a fixed order.
async fn one(mesh: &Mesh, engine: Engine, mode: &str, options: &Options) -> Result<Vec<(&'static str, f64)>> {
    let pods = [sidecar(&name("client", engine))?, sidecar(&name("server", engine))?].concat();
    let total = || -> Result<Duration> { pods.iter().map(|pid| process::cpu(*pid)).sum() };
    let before = total()?;
    let burst = burst(mesh, engine, mode, options.seconds, options.rate).await?;
    let used = total()?.saturating_sub(before);
    ensure!(burst.requests > 0.0, "{mode} with {}: no request was answered", engine.as_str());
    let mut figures = vec![
        ("cpu_us_per_request", used.as_secs_f64() * 1e6 / burst.requests),
        ("requests_per_second", burst.requests / burst.seconds),
    ];
    figures.extend(burst.p50_us.map(|us| ("latency_p50_us", us)));
    figures.extend(burst.p99_us.map(|us| ("latency_p99_us", us)));
    Ok(figures)
}

async fn burst(mesh: &Mesh, engine: Engine, mode: &str, seconds: u32, rate: u32) -> Result<Burst> {
    let url = |port: u16| format!("http://{}.{NAMESPACE}:{port}/", name("server", engine));
    let duration = format!("{seconds}s");
    let seconds_text = seconds.to_string();
    let rate_text = rate.to_string();
    let program = std::env::current_exe()?.display().to_string();
    let (http, http2, tcp) = (url(8080), url(8081), url(8082));
    let argv: Vec<&str> = match mode {
        "http1" => vec!["wrk", "-t1", "-c64", "--latency", "-d", &duration, &http],
        "http1-one" => vec!["wrk", "-t1", "-c1", "--latency", "-d", &duration, &http],
        "http1-fixed" => {
            vec![&program, "demo", "load", "--rate", &rate_text, "--seconds", &seconds_text, "--url", &http]
        }
        "http2" => vec!["h2load", "-t1", "-c8", "-m8", "-D", &seconds_text, &http2],
        "tcp" => vec!["wrk", "-t1", "-c64", "--latency", "-d", &duration, &tcp],
        "handshake" => vec!["wrk", "-t1", "-c16", "--latency", "-H", "Connection: close", "-d", &duration, &tcp],
        other => bail!("unknown mode {other:?}: {}", MODES.join(", ")),
    };
    let client = name("client", engine);
    let mut args = vec!["exec", client.as_str(), "-n", NAMESPACE, "--", "taskset", "-c", "0"];
    args.extend(argv);
    let output = mesh.output(&args).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fail = || format!("{mode} with {}:\n{text}{}", engine.as_str(), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}", fail());
    match mode {
        "http1-fixed" => read_own(&text),
        "http2" => read_h2load(&text, f64::from(seconds)),
        _ => read_wrk(&text),
    }
    .with_context(fail)
}

fn read_own(text: &str) -> Result<Burst> {
    let line: Value = serde_json::from_str(text.trim())?;
    let number = |field: &str| line.get(field).and_then(Value::as_f64).unwrap_or(0.0);
    ensure!(number("failed") == 0.0, "{} requests failed", number("failed"));
    Ok(Burst {
        requests: number("requests"),
        seconds: number("seconds"),
        p50_us: Some(number("p50_us")),
        p99_us: Some(number("p99_us")),
    })
}

fn read_wrk(text: &str) -> Result<Burst> {
    ensure!(!text.contains("Non-2xx"), "some answers were not 2xx");
    // Errors of connections that the deadline cut are wrk's own; reads and writes that fail are not.
    let mut found = Burst::default();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [n, "requests", "in", time, ..] => {
                found.requests = n.parse()?;
                found.seconds = micros(time.trim_end_matches(','))? / 1e6;
            }
            ["50%", time] => found.p50_us = Some(micros(time)?),
            ["99%", time] => found.p99_us = Some(micros(time)?),
            _ => {}
        }
    }
    Ok(found)
}

fn read_h2load(text: &str, seconds: f64) -> Result<Burst> {
    let line = text.lines().find(|l| l.starts_with("requests:")).context("no line \"requests:\"")?;
    let count = |what: &str| -> f64 {
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        words.windows(2).find(|w| w[1] == what).and_then(|w| w[0].parse().ok()).unwrap_or(0.0)
    };
    ensure!(count("failed") + count("errored") == 0.0, "requests failed: {line}");
    Ok(Burst { requests: count("succeeded"), seconds, p50_us: None, p99_us: None })
}

/// wrk's times: `830.00us`, `1.20ms`, `4.00s`, `1.01m`.
fn micros(text: &str) -> Result<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).context("a time without a unit")?;
    let (value, unit) = text.split_at(at);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        other => bail!("unknown unit {other:?}"),
    };
    Ok(value.parse::<f64>()? * factor)
}

fn name(role: &str, engine: Engine) -> String {
    format!("{role}-{}", engine.as_str())
}

fn pod(role: &str, engine: Engine, ports: &[&str], command: Vec<String>) -> PodSpec {
    let name = name(role, engine);
    let ports = ports.iter().map(|port| (*port).to_owned()).collect();
    let (namespace, app, labels, more) = (NAMESPACE.into(), name.clone(), Vec::new(), Vec::new());
    PodSpec { namespace, app, name, labels, ports, engine, more, command }
}

fn sidecar(pod: &str) -> Result<Vec<u32>> {
    let found = process::sidecars_of(pod)?;
    ensure!(!found.is_empty(), "no sidecar process of pod {pod}");
    Ok(found)
}

/// Sidecars on the last CPU, everything else stays where the load is.
fn pin(_mesh: &Mesh) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    if cpus < 2 {
        return Ok(());
    }
    for engine in ENGINES {
        for role in ["client", "server"] {
            for pid in sidecar(&name(role, engine))? {
                process::pin(pid, cpus - 1)?;
            }
        }
    }
    Ok(())
}

/// Both pairs' services, STRICT, and services nobody calls but every sidecar knows.
fn manifests(services: u32) -> String {
    let mut out = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n"
    );
    for engine in ENGINES {
        let name = name("server", engine);
        out += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             selector: {{app: {name}}}\n  ports:\n  - {{name: http, port: 8080}}\n  - {{name: http2, port: 8081}}\n  \
             - {{name: tcp, port: 8082}}\n"
        );
    }
    for n in 0..services {
        out += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: known-{n}, namespace: {NAMESPACE}}}\n\
             spec: {{ports: [{{name: http, port: 8080}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: known-{n}-1\n  \
             namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: known-{n}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: [\"10.244.{}.{}\"], conditions: {{ready: true}}}}]\n",
            200 + n / 250,
            n % 250 + 1
        );
    }
    out
}

/// 128 bytes of answer on three ports: HTTP/1.1, HTTP/2 without TLS, and the one that is declared TCP.
const NGINX: &str = "\
daemon off;\nmaster_process off;\npid /tmp/carrick-bench-nginx.pid;\nworker_processes 1;\n\
events { worker_connections 4096; }\n\
http {\n  access_log off;\n  keepalive_requests 1000000000;\n\
  server { listen 8080 backlog=4096; listen 8082 backlog=4096; location / { default_type text/plain; \
return 200 \"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456\\n\"; } }\n\
  server { listen 8081 http2; location / { default_type text/plain; return 200 \"0123456789\\n\"; } }\n}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_the_generators_are_read() {
        let wrk =
            "  Latency Distribution\n     50%    1.20ms\n     99%  830.00us\n  40211 requests in 4.01s, 9.00MB read\n";
        let burst = read_wrk(wrk).unwrap();
        assert_eq!((burst.requests, burst.p50_us, burst.p99_us), (40211.0, Some(1200.0), Some(830.0)));
        assert!(read_wrk("  Non-2xx or 3xx responses: 4\n").is_err());
        let h2 = "requests: 9000 total, 9064 started, 9000 done, 9000 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(read_h2load(h2, 3.0).unwrap().requests, 9000.0);
        let failed = "requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, 0 errored, 0 timeout\n";
        assert!(read_h2load(failed, 3.0).is_err());
    }
}
