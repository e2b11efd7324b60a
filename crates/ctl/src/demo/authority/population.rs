//! Who is in the scenario, and who calls whom.
//!
//! Invariant: each kind of data plane calls each other kind and is called by it, by new connections and by kept ones.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;

use super::Options;
use crate::{
    demo::{
        held::Held,
        load::{Counted, Plan, Running, words},
        mesh::{Setup, own_command, serve_command},
        observer::Target,
        stage::{Stage, Want, gateway, pod},
        vm::Vm,
    },
    process,
};

const OBJECTS: &str = include_str!("../../../../../examples/authority/services.yaml");
const NAMESPACE: &str = "shop";
pub(super) const NATIVE: &str = "cart";
pub(super) const ENVOY: &str = "stock";
/// Those that nobody calls.
pub(super) const SPARE_NATIVE: &str = "spare-native";
pub(super) const SPARE_ENVOY: &str = "spare-envoy";
pub(super) const EDGE_NATIVE: &str = "edge-native";
pub(super) const EDGE_ENVOY: &str = "edge-envoy";
const OUTSIDE: &str = "outside";
const MACHINE: &str = "ledger";
/// How long anything may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Everybody.
pub(super) struct Population {
    pub(super) stage: Stage,
    pub(super) vm: Vm,
    pub(super) dir: PathBuf,
    pub(super) options: Options,
    /// Everybody is there.
    pub(super) started: bool,
}

/// What is under way.
pub(super) struct Load {
    ways: Vec<(String, Running)>,
    held: Vec<Held>,
}

/// Which ways are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    /// All of them.
    All,
    /// Those that neither the machine nor the native gateway is part of.
    WithoutMachine,
}

/// A service by new connections, and by kept ones.
fn both(service: &str) -> [String; 2] {
    [format!("http://{service}.{NAMESPACE}:8080/"), format!("http://{service}-kept.{NAMESPACE}:8080/")]
}

impl Population {
    /// A mesh without anybody.
    pub(super) async fn open(dir: &Path, options: &Options) -> Result<Self> {
        let life = format!("{}ms", options.certificate_ttl.as_millis());
        let setup = Setup { up: vec!["--workload-cert-ttl".into(), life], ..Setup::default() };
        let stage = Stage::open_with(&dir.join("mesh"), setup, Engine::Native, Engine::Envoy).await?;
        let vm = Vm::make(&dir.join("vm"))?;
        Ok(Self { stage, vm, dir: dir.to_owned(), options: options.clone(), started: false })
    }

    fn early(&self) -> [String; 2] {
        ["--sidecar-env".to_owned(), format!("SECRET_GRACE_PERIOD_RATIO={}", self.options.grace_ratio)]
    }

    /// The machine's name in the mesh.
    pub(super) fn machine(&self) -> String {
        format!("{MACHINE}-{}", self.vm.link.there)
    }

    pub(super) async fn start(&mut self) -> Result<String> {
        self.stage.mesh.apply(OBJECTS).await?;
        for (name, engine) in [
            (NATIVE, Engine::Native),
            (ENVOY, Engine::Envoy),
            (SPARE_NATIVE, Engine::Native),
            (SPARE_ENVOY, Engine::Envoy),
        ] {
            let mut spec = pod(NAMESPACE, name, name, engine, serve_command(name, &[]));
            spec.more.extend(self.early());
            if name == ENVOY {
                spec.more.extend(["--service-account".to_owned(), ENVOY.to_owned()]);
            }
            self.stage.start(&spec)?;
        }
        for (name, engine) in [(EDGE_NATIVE, Engine::Native), (EDGE_ENVOY, Engine::Envoy)] {
            let mut spec = gateway("istio-system", name, name, engine);
            spec.more.extend(self.early());
            self.stage.start(&spec)?;
        }
        self.stage.start(&pod("partners", OUTSIDE, OUTSIDE, Engine::Native, own_command(&["demo", "serve"])))?;
        self.stage.up().await?;
        self.join().await.with_context(|| self.vm.what_it_said())?;
        self.stage.mesh.converged().await?;
        for (from, urls) in self.ways(Ways::All) {
            for url in urls {
                match from.as_str() {
                    MACHINE => self.machine_calls(&url).await?,
                    pod => drop(self.stage.expect(pod, &[&url], Want::Status(200)).await?),
                }
            }
        }
        self.started = true;
        Ok(format!(
            "certificates for {:?}; the machine's engine is {}",
            self.options.certificate_ttl,
            self.options.machine.as_str()
        ))
    }

    async fn join(&mut self) -> Result<()> {
        let server = format!("{}:15012", self.vm.link.here);
        let create = ["vm", "token", "create", "--group", MACHINE, "-n", NAMESPACE, "--server", &server];
        let token = self.stage.carrick(&create).await?;
        let file = self.vm.dir.join("token");
        std::fs::write(&file, token)?;
        self.vm.start_app()?;
        let (file, early) = (file.display().to_string(), self.early());
        let engine = self.options.machine.as_str();
        let mut join = vec!["join", "--token-file", &file, "--capture-user", "root", "--engine", engine];
        join.extend(early.iter().map(String::as_str));
        self.vm.runner = Some(self.vm.start(self.vm.carrick(&join)?, &self.vm.log())?);
        self.vm.ready().await
    }

    /// One call by the machine, until it is answered.
    pub(super) async fn machine_calls(&self, url: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let words = ["curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}", url].map(str::to_owned);
            let output = self.vm.command(&words)?.output().await?;
            let status = String::from_utf8_lossy(&output.stdout).into_owned();
            if status == "200" {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE / 4, "machine → {url}: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Who calls what.
    fn ways(&self, ways: Ways) -> Vec<(String, Vec<String>)> {
        let machine = ways == Ways::All;
        let to = |services: &[&str]| {
            let kept = services.iter().filter(|service| machine || **service != MACHINE);
            kept.flat_map(|service| both(service)).collect::<Vec<_>>()
        };
        let edges: &[&str] = if machine { &[EDGE_NATIVE, EDGE_ENVOY] } else { &[EDGE_ENVOY] };
        // Each gateway leads to a native sidecar, an Envoy and the machine.
        let through = |edge: &&str| {
            let paths: &[&str] = if machine { &["cart", "stock", "ledger"] } else { &["cart", "stock"] };
            paths.iter().map(|path| format!("http://{edge}.istio-system/{path}")).collect::<Vec<_>>()
        };
        let mut all = vec![
            (NATIVE.to_owned(), to(&[ENVOY, MACHINE])),
            (ENVOY.to_owned(), to(&[NATIVE, MACHINE])),
            (OUTSIDE.to_owned(), edges.iter().flat_map(through).collect()),
        ];
        if machine {
            all.push((MACHINE.to_owned(), to(&[NATIVE, ENVOY])));
        }
        all
    }

    /// Begins to call.
    pub(super) fn load(&self, ways: Ways) -> Result<Load> {
        let (mut running, mut held) = (Vec::new(), Vec::new());
        for (from, urls) in self.ways(ways) {
            let rate = (self.options.rate * u32::try_from(urls.len())?).div_ceil(2).to_string();
            let plan = Plan { rate: &rate, urls: &urls, methods: &["GET", "POST"], report: None };
            let one = match from.as_str() {
                MACHINE => Running::spawn(self.vm.command(&words(plan)?)?)?,
                OUTSIDE => Running::begin(&self.stage.mesh, "partners", OUTSIDE, plan)?,
                pod => Running::begin(&self.stage.mesh, NAMESPACE, pod, plan)?,
            };
            running.push((from, one));
        }
        for (from, to) in [(NATIVE, ENVOY), (ENVOY, NATIVE), (NATIVE, MACHINE)] {
            if ways == Ways::All || to != MACHINE {
                held.push(Held::start(&self.stage.mesh, NAMESPACE, from, &both(to)[1])?);
            }
        }
        Ok(Load { ways: running, held })
    }

    /// Everybody whose certificate can be seen from outside.
    pub(super) fn seen(&self) -> Result<Vec<Target>> {
        let pods = [NATIVE, ENVOY, SPARE_NATIVE, SPARE_ENVOY];
        let mut all = pods
            .iter()
            .map(|name| Ok(Target { name: (*name).to_owned(), address: self.stage.address(name)? }))
            .collect::<Result<Vec<_>>>()?;
        all.push(Target { name: self.machine(), address: self.vm.link.there });
        Ok(all)
    }

    /// The processes of every data plane, to tell a restart.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        let mut all = self.stage.mesh.sidecars()?;
        all.extend(process::sidecars_of(&self.machine())?);
        all.sort_unstable();
        Ok(all)
    }

    pub(super) async fn close(self) -> Result<()> {
        drop(self.vm);
        self.stage.close().await
    }
}

impl Load {
    /// Ends it; every request was answered, and every kept connection is open still.
    pub(super) async fn finish(self) -> Result<String> {
        let (from, running): (Vec<_>, Vec<_>) = self.ways.into_iter().unzip();
        let counted = futures_util::future::join_all(running.into_iter().map(Running::counted)).await;
        let held = futures_util::future::join_all(self.held.into_iter().map(Held::finish)).await;
        let mut sum = Counted::default();
        let mut wrong = Vec::new();
        for (from, counted) in from.iter().zip(counted) {
            match counted {
                Ok(counted) => {
                    sum.requests += counted.requests;
                    sum.p99 = sum.p99.max(counted.p99);
                    sum.seconds = sum.seconds.max(counted.seconds);
                }
                Err(error) => wrong.push(format!("from {from}: {error:#}")),
            }
        }
        let kept = held.len();
        wrong.extend(held.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(format!(
            "{} requests in {:.0} s, 0 failed, p99 {} µs, {kept} connections kept",
            sum.requests, sum.seconds, sum.p99
        ))
    }
}
