//! The bank that switches mutual TLS on and off by configuration alone, row by row.
//!
//! Invariant: the manifests are those of `examples/banknext`, unchanged; every row asserts on curl's exit code
//! and status, on bytes captured from the wire, or on the count of failed requests.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use super::{
    engines::Engines,
    load::Running,
    mesh::{Mesh, PodSpec, folder, serve_command},
    rows::Rows,
    wire::Capture,
};

const SERVICES: &str = include_str!("../../../../examples/banknext/services.yaml");
const CHALLENGE_1: &str = include_str!("../../../../examples/banknext/challenge-1.yaml");
const CHALLENGE_2: &str = include_str!("../../../../examples/banknext/challenge-2.yaml");
const CHALLENGE_3: &str = include_str!("../../../../examples/banknext/challenge-3.yaml");

const BASIC: Place = Place { namespace: "basic", name: "kyc-credit-check-basic" };
const ADVANCED: Place = Place { namespace: "advanced", name: "kyc-credit-check-advanced" };
const OUTSIDE: Place = Place { namespace: "consumer", name: "kyc-aggregator-mgt" };
const INSIDE: Place = Place { namespace: "consumer", name: "kyc-aggregator-mgt-inside" };

/// Requests a second while the bank switches.
const LOAD_RATE: &str = "250";
/// curl's exit code for a connection that was reset before any answer.
const RESET: i32 = 56;
/// How long an acknowledged switch may take to show on new connections.
const SETTLE_LIMIT: Duration = Duration::from_millis(500);
/// How long the fleet may take to follow one switch.
const FLEET_LIMIT: Duration = Duration::from_secs(5);

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Data planes of client and server: native, envoy, mixed (one of each, both ways) or all.
    #[arg(long, value_enum, default_value = "all")]
    engine: Engines,
    /// How often each switch is made under load, each way.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=500))]
    switches: u32,
    /// Services (each with a workload and a sidecar) of the last row; 0 leaves it out.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1000))]
    services: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    namespace: &'static str,
    name: &'static str,
}

impl Place {
    fn url(self, path: &str) -> String {
        format!("http://{}.{}:8080/{path}", self.name, self.namespace)
    }
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("banknext");
    let own = folder(data_dir, "banknext");
    let dir = &own.path;
    for (client, server) in options.engine.pairs() {
        println!("banknext, client {}, server {}", client.as_str(), server.as_str());
        let own = dir.join(format!("{}-{}", client.as_str(), server.as_str()));
        let mut bank = Bank::open(&own, *client, *server).await?;
        bank.rows(&mut rows, options.switches).await;
        bank.mesh.stop().await?;
    }
    if options.services > 0 {
        println!("banknext, {} services", options.services);
        let mut mesh = Mesh::start(&dir.join("fleet")).await?;
        let title = format!("8 one switch for {} services under load, nothing fails", options.services);
        rows.check(&title, async || fleet(&mut mesh, options.services).await).await;
        mesh.stop().await?;
    }
    Ok(rows.finish())
}

struct Bank {
    mesh: Mesh,
    client: Engine,
    server: Engine,
    basic: Ipv4Addr,
    advanced: Ipv4Addr,
    inside: Ipv4Addr,
    marks: u32,
}

impl Bank {
    async fn open(dir: &Path, client: Engine, server: Engine) -> Result<Self> {
        let mesh = Mesh::start(dir).await?;
        let none = Ipv4Addr::UNSPECIFIED;
        Ok(Self { mesh, client, server, basic: none, advanced: none, inside: none, marks: 0 })
    }

    async fn rows(&mut self, rows: &mut Rows, switches: u32) {
        rows.check("1 pods run, 2/2 with a sidecar and 1/1 without", async || self.start().await).await;
        rows.check("2 no policy: plain from outside, mesh from inside", async || self.no_policy().await).await;
        rows.check("3 STRICT on advanced", async || self.strict_on_advanced().await).await;
        rows.check("4 PERMISSIVE and plain on basic", async || self.plain_to_basic().await).await;
        rows.check("5 STRICT for the whole mesh", async || self.strict_everywhere().await).await;
        rows.check("6 back to nothing", async || self.back_to_nothing().await).await;
        let title = format!("7 {switches} × each switch under load, nothing fails");
        rows.check(&title, async || self.switch_under_load(switches).await).await;
    }

    async fn start(&mut self) -> Result<String> {
        self.mesh.apply(SERVICES).await?;
        let serve = |place: Place, engine: Engine| PodSpec {
            namespace: place.namespace.into(),
            name: place.name.into(),
            app: place.name.into(),
            labels: Vec::new(),
            ports: vec!["http=8080".into()],
            engine,
            more: Vec::new(),
            command: serve_command(place.name, &[]),
        };
        self.mesh.spawn(&serve(BASIC, self.server))?;
        self.mesh.spawn(&serve(ADVANCED, self.server))?;
        self.mesh.spawn(&serve(OUTSIDE, Engine::Native))?;
        let mut inside = serve(INSIDE, self.client);
        inside.labels.push(("sidecar.istio.io/inject".into(), "true".into()));
        self.mesh.spawn(&inside)?;
        self.basic = self.mesh.ready(BASIC.namespace, BASIC.name).await?;
        self.advanced = self.mesh.ready(ADVANCED.namespace, ADVANCED.name).await?;
        self.mesh.ready(OUTSIDE.namespace, OUTSIDE.name).await?;
        self.inside = self.mesh.ready(INSIDE.namespace, INSIDE.name).await?;
        self.mesh.converged().await?;
        for (place, want) in [(BASIC, "2/2"), (ADVANCED, "2/2"), (INSIDE, "2/2"), (OUTSIDE, "1/1")] {
            let cells = self.table_row(place).await?;
            let cell = |n: usize| cells.get(n).map_or("", String::as_str);
            ensure!(cell(1) == want && cell(2) == "Running", "{}: READY {} STATUS {}", place.name, cell(1), cell(2));
            ensure!(cell(5).parse::<Ipv4Addr>().is_ok(), "{}: no IP in {cells:?}", place.name);
        }
        Ok(String::new())
    }

    /// The cells kubectl prints for a pod with `-o wide`.
    async fn table_row(&self, place: Place) -> Result<Vec<String>> {
        let request = http::Request::get(format!("/api/v1/namespaces/{}/pods", place.namespace))
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())?;
        let table: Value = self.mesh.client().request(request).await?;
        let rows = table.get("rows").and_then(Value::as_array).context("not a table")?;
        let cells = rows
            .iter()
            .filter_map(|row| row.get("cells")?.as_array())
            .find(|cells| cells.first().and_then(Value::as_str) == Some(place.name))
            .with_context(|| format!("{} is not in the table", place.name))?;
        Ok(cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect())
    }

    async fn no_policy(&mut self) -> Result<String> {
        self.ok(OUTSIDE, BASIC).await?;
        self.ok(OUTSIDE, ADVANCED).await?;
        for to in [BASIC, ADVANCED] {
            // The first call to a service makes the connection, so its handshake is in the capture.
            let seen = self.over_mesh(to).await?;
            ensure!(seen.negotiated_tls13(), "inside → {}: no TLS 1.3 handshake on the wire", to.name);
        }
        Ok("TLS 1.3 on the wire from inside, no HTTP bytes".into())
    }

    async fn strict_on_advanced(&mut self) -> Result<String> {
        let took = self.mesh.apply(CHALLENGE_1).await?;
        self.reset(OUTSIDE, ADVANCED).await?;
        self.over_mesh(ADVANCED).await?;
        self.ok(OUTSIDE, BASIC).await?;
        Ok(format!("outside gets curl exit 56; applied to the last proxy in {} ms", took.as_millis()))
    }

    async fn plain_to_basic(&mut self) -> Result<String> {
        let took = self.mesh.apply(CHALLENGE_2).await?;
        self.ok(OUTSIDE, BASIC).await?;
        self.in_the_clear(BASIC).await?;
        Ok(format!("plain on the wire from inside; applied to the last proxy in {} ms", took.as_millis()))
    }

    async fn strict_everywhere(&mut self) -> Result<String> {
        self.mesh.delete(CHALLENGE_1).await?;
        self.mesh.delete(CHALLENGE_2).await?;
        let took = self.mesh.apply(CHALLENGE_3).await?;
        for place in [BASIC, ADVANCED, INSIDE] {
            self.reset_at(OUTSIDE, &format!("http://{}:8080/", self.address(place))).await?;
        }
        self.reset(OUTSIDE, BASIC).await?;
        self.over_mesh(BASIC).await?;
        self.over_mesh(ADVANCED).await?;
        Ok(format!("outside gets curl exit 56; applied to the last proxy in {} ms", took.as_millis()))
    }

    async fn back_to_nothing(&mut self) -> Result<String> {
        let took = self.mesh.delete(CHALLENGE_3).await?;
        self.ok(OUTSIDE, BASIC).await?;
        self.ok(OUTSIDE, ADVANCED).await?;
        Ok(format!("deleted at the last proxy in {} ms", took.as_millis()))
    }

    async fn switch_under_load(&mut self, switches: u32) -> Result<String> {
        let before = self.mesh.sidecars()?;
        let urls = [BASIC.url("load"), ADVANCED.url("load")];
        let load = Running::start(&self.mesh, INSIDE.namespace, INSIDE.name, LOAD_RATE, &urls).await?;
        let mut times = Vec::new();
        for _ in 0..switches {
            for manifests in [CHALLENGE_1, CHALLENGE_2, CHALLENGE_3] {
                times.push(self.mesh.apply(manifests).await?);
                times.push(self.mesh.delete(manifests).await?);
            }
        }
        let report = load.finish().await?;
        ensure!(self.mesh.sidecars()? == before, "a sidecar was restarted");
        Ok(format!("{report}; {}", spread(&mut times)))
    }

    fn address(&self, place: Place) -> Ipv4Addr {
        match place.name {
            name if name == BASIC.name => self.basic,
            name if name == ADVANCED.name => self.advanced,
            _ => self.inside,
        }
    }

    async fn ok(&self, from: Place, to: Place) -> Result<()> {
        let (code, status) = self.mesh.curl(from.namespace, from.name, &to.url("")).await?;
        ensure!(status == 200, "{} → {}: status {status}, curl exit {code}", from.name, to.name);
        Ok(())
    }

    async fn reset(&self, from: Place, to: Place) -> Result<()> {
        self.reset_at(from, &to.url("")).await
    }

    /// Envoy acknowledges a listener a moment before its workers run it, so the first answers may still be old.
    async fn reset_at(&self, from: Place, url: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let (code, status) = self.mesh.curl(from.namespace, from.name, url).await?;
            if code == RESET && status == 0 {
                return Ok(());
            }
            let late = start.elapsed() > SETTLE_LIMIT;
            ensure!(!late, "{} → {url}: status {status}, curl exit {code}, want {RESET}", from.name);
        }
    }

    /// One request from inside with a mark in its path, and what of it crossed the wire.
    async fn marked(&mut self, to: Place) -> Result<(String, super::wire::Payloads)> {
        self.marks += 1;
        let mark = format!("mark-{}-{}", std::process::id(), self.marks);
        let capture = Capture::start(self.inside, self.address(to))?;
        let (code, status) = self.mesh.curl(INSIDE.namespace, INSIDE.name, &to.url(&mark)).await?;
        let seen = capture.finish()?;
        ensure!(status == 200, "inside → {}: status {status}, curl exit {code}", to.name);
        ensure!(!seen.is_empty(), "inside → {}: nothing was captured", to.name);
        Ok((mark, seen))
    }

    async fn over_mesh(&mut self, to: Place) -> Result<super::wire::Payloads> {
        let (mark, seen) = self.marked(to).await?;
        ensure!(!seen.contain(mark.as_bytes()), "inside → {}: the request crossed in the clear", to.name);
        ensure!(!seen.contain(b"HTTP/1.1"), "inside → {}: HTTP crossed in the clear", to.name);
        ensure!(seen.carry_tls(), "inside → {}: no TLS records on the wire", to.name);
        Ok(seen)
    }

    async fn in_the_clear(&mut self, to: Place) -> Result<()> {
        let (mark, seen) = self.marked(to).await?;
        ensure!(seen.contain(mark.as_bytes()), "inside → {}: the request is not readable on the wire", to.name);
        Ok(())
    }
}

fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let at = |n: usize| times.get(n).map_or(0, Duration::as_millis);
    format!("switch to last ACK: median {} ms, worst {} ms", at(times.len() / 2), at(times.len().saturating_sub(1)))
}

/// The bank's size: one switch for hundreds of services, each a workload with a sidecar of its own.
async fn fleet(mesh: &mut Mesh, count: u32) -> Result<String> {
    const NAMESPACE: &str = "fleet";
    let mut manifests = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n"
    );
    for n in 0..count {
        manifests += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: svc-{n}, namespace: {NAMESPACE}}}\n\
             spec: {{selector: {{app: svc-{n}}}, ports: [{{name: http, port: 8080}}]}}\n"
        );
    }
    mesh.apply(&manifests).await?;
    let start = Instant::now();
    let names: Vec<String> = (0..count).map(|n| format!("svc-{n}")).collect();
    for batch in names.chunks(20) {
        for name in batch {
            mesh.spawn(&PodSpec {
                namespace: NAMESPACE.into(),
                name: name.clone(),
                app: name.clone(),
                labels: Vec::new(),
                ports: vec!["http=8080".into()],
                engine: Engine::Native,
                more: Vec::new(),
                command: serve_command(name, &[]),
            })?;
        }
        for name in batch {
            mesh.ready(NAMESPACE, name).await?;
        }
    }
    mesh.converged().await?;
    let started = start.elapsed();
    let before = mesh.sidecars()?;
    let urls: Vec<String> = names.iter().skip(1).take(20).map(|n| format!("http://{n}.{NAMESPACE}:8080/")).collect();
    let load = Running::start(mesh, NAMESPACE, "svc-0", LOAD_RATE, &urls).await?;
    let on = mesh.apply(CHALLENGE_3).await?;
    let off = mesh.delete(CHALLENGE_3).await?;
    let report = load.finish().await?;
    ensure!(mesh.sidecars()? == before, "a sidecar was restarted");
    ensure!(on < FLEET_LIMIT && off < FLEET_LIMIT, "converged in {on:?} and {off:?}, want less than {FLEET_LIMIT:?}");
    Ok(format!(
        "{count} pods up in {:.0} s; on in {} ms, off in {} ms; {report}",
        started.as_secs_f32(),
        on.as_millis(),
        off.as_millis()
    ))
}
