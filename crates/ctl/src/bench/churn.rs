//! Whether a pair of native sidecars grows while everything around it comes and goes: connections, streams, bodies that break off, endpoints,
//! services, certificates.
//!
//! Invariant: what is looked at is two processes, from outside; the verdict is about the second half of the time, when everything that is kept
//! for good has been made. Load is bounded, so that it is the coming and going that counts and not a queue.

mod samples;
pub mod stir;

use std::{
    fmt::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::MissedTickBehavior,
};

use self::samples::{Sample, Samples};
use super::{
    manifests, page,
    pairs::{self, NAMESPACE, Pair, Subject, Variant},
    sidecars,
};
use crate::{
    demo::mesh::{Mesh, Setup},
    output::Format,
};

/// Services whose endpoints change in turn.
const SERVICES: u32 = 50;
/// Between two changes of what the sidecars are told.
const CHANGE: Duration = Duration::from_secs(5);
/// How long the last requests may take.
const LAST: Duration = Duration::from_secs(60);

/// How long and how much.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long.
    #[arg(long, default_value = "1h", value_parser = crate::duration::parse, value_name = "DURATION")]
    time: Duration,
    /// Requests or connections begun in a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Life of every certificate, of which half is used.
    #[arg(long, default_value = "2m", value_parser = crate::duration::parse, value_name = "DURATION")]
    certificate_ttl: Duration,
    /// How often the sidecars are looked at.
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse, value_name = "DURATION")]
    look: Duration,
    /// Most that a sidecar may grow, reckoned for an hour, in MB.
    #[arg(long, default_value_t = 2.0)]
    most: f64,
    /// Form of what is printed in the end.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Churns; 0 when nothing grew and nothing failed that was to succeed.
///
/// # Errors
/// The mesh does not start, or a sidecar ends.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    ensure!(options.time >= 8 * options.look, "eight looks at least are needed to tell anything");
    let folder = crate::demo::mesh::folder(data_dir, "bench-churn");
    let life = format!("{}ms", options.certificate_ttl.as_millis());
    let setup = Setup { up: vec!["--workload-cert-ttl".into(), life], ..Setup::default() };
    let (samples, done) =
        super::with_mesh(&folder.path, setup, async |mesh: &mut Mesh| churn(mesh, options, &folder.path).await).await?;
    let failed = done.get("failed").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let most = options.most * 1e6;
    let passed = failed == 0 && samples.iter().all(|(_, all)| !all.grows(most));
    let rows: Map<String, Value> = samples.iter().map(|(role, all)| ((*role).to_owned(), all.json(most))).collect();
    let value = json!({
        "machine": page::machine(), "seconds": options.time.as_secs(), "rate": options.rate, "sidecars": rows, "done": done,
        "passed": passed,
    });
    match options.output {
        Format::Json => print!("{}", crate::output::json(&value)),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&value)?),
        Format::Short => print!("{}", words(&samples, &value, most)),
    }
    Ok(u8::from(!passed))
}

fn words(samples: &[(&str, Samples)], value: &Value, most: f64) -> String {
    let mut out = String::new();
    for (role, all) in samples {
        let _ = writeln!(out, "{role}: {}", all.words(most));
    }
    let _ = writeln!(out, "done: {}", value["done"]);
    let _ = writeln!(out, "{}", if value["passed"] == true { "nothing grows, nothing failed" } else { "FAILED" });
    out
}

async fn churn(mesh: &mut Mesh, options: &Options, dir: &Path) -> Result<(Vec<(&'static str, Samples)>, Value)> {
    let pair = Pair { subject: Subject::Native, variant: Variant::Usual };
    pairs::prepare(dir).await?;
    mesh.apply(&manifests::mesh(&[pair])).await?;
    mesh.apply(&services(0..SERVICES, 0)).await?;
    let started = sidecars::start(mesh, vec![pair], dir).await?;
    let (_, host) = started.first().context("no pair was started")?;
    let mut all = Vec::new();
    for role in ["client", "server"] {
        let pid = *pair.processes(role)?.first().context("no sidecar")?;
        all.push((role, pid, Samples::default()));
    }
    let program = std::env::current_exe()?.display().to_string();
    let (client, rate) = (pair.pod("client"), options.rate.to_string());
    let stir = ["exec", &client, "-n", NAMESPACE, "--", &program, "bench", "stir", "--to", host, "--rate", &rate];
    let mut child = mesh
        .carrick(&stir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the load")?;
    let mut told = BufReader::new(child.stdout.take().context("no output")?).lines();
    let begun = Instant::now();
    let mut look = tokio::time::interval(options.look);
    let mut change = tokio::time::interval(CHANGE);
    change.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut changes, mut late) = (0, 0);
    while begun.elapsed() < options.time {
        tokio::select! {
            _ = look.tick() => {
                for (role, pid, samples) in &mut all {
                    let sample = Sample::of(*pid, begun.elapsed()).with_context(|| format!("the sidecar of {role}"))?;
                    eprintln!("{:>6.0} s {role}: {}", begun.elapsed().as_secs_f64(), sample.words());
                    samples.add(sample);
                }
                ensure!(child.try_wait()?.is_none(), "the load has ended");
            }
            _ = change.tick() => {
                changes += 1;
                if let Err(error) = step(mesh, changes).await {
                    late += 1;
                    eprintln!("change {changes}: {error:#}");
                }
            }
        }
    }
    // Its input ends, and with it the load.
    drop(child.stdin.take());
    let line = tokio::time::timeout(LAST, told.next_line()).await.context("the load does not end")??;
    let mut done: Value = serde_json::from_str(&line.context("the load told nothing")?)?;
    (done["changes"], done["late_changes"]) = (changes.into(), late.into());
    Ok((all.into_iter().map(|(role, _, samples)| (role, samples)).collect(), done))
}

/// One change, acknowledged by both sidecars: of a service's endpoints; now and then services come, or go.
async fn step(mesh: &Mesh, n: u32) -> Result<()> {
    match n % 4 {
        1 => mesh.apply(&services(SERVICES..SERVICES + 5, n)).await,
        3 => mesh.delete(&services(SERVICES..SERVICES + 5, n)).await,
        _ => {
            let one = n / 2 % SERVICES;
            mesh.apply(&services(one..one + 1, n)).await
        }
    }
    .map(drop)
}

/// Services whose endpoints' addresses depend on `turn`.
fn services(which: std::ops::Range<u32>, turn: u32) -> String {
    let mut out = String::new();
    for n in which {
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: turning-{n}, namespace: {NAMESPACE}}}\n\
             spec: {{ports: [{{name: http, port: 8080}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: turning-{n}-1\n  \
             namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: turning-{n}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: [\"10.245.{n}.{}\"], conditions: {{ready: true}}}}]\n",
            turn % 250 + 1
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_objects() {
        let objects = carrick_api::parse::objects(services(0..3, 499).as_bytes()).unwrap();
        assert_eq!(objects.len(), 6);
        assert_ne!(services(0..3, 1), services(0..3, 2));
    }
}
