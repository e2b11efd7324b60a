//! What the scenarios share: a mesh with named pods, curl in each of them, and the wire between two of them.
//!
//! Invariant: an expectation waits only for what an acknowledged configuration may still lack (Envoy's workers), and
//! its failure says who asked what and what came back.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;

use super::{
    call::Call,
    curl::{Answer, Curl},
    mesh::{Mesh, PodSpec, Setup},
    wire::{Capture, Payloads},
};

/// How long an acknowledged configuration may take to show.
const SETTLE: Duration = Duration::from_secs(2);
/// curl's exit code for a connection that was reset before any answer.
pub const RESET: i32 = 56;

/// A running scenario.
pub struct Stage {
    /// The mesh.
    pub mesh: Mesh,
    /// Data plane of those who call.
    pub client: Engine,
    /// Data plane of those who are called.
    pub server: Engine,
    pods: BTreeMap<String, (Ipv4Addr, Curl)>,
    starting: Vec<(String, String)>,
    marks: u32,
}

/// What must come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// This HTTP status.
    Status(u16),
    /// No HTTP answer, and this exit code of curl.
    Exit(i32),
    /// No HTTP answer, whatever curl calls it.
    NoAnswer,
}

impl Want {
    fn met(self, answer: &Answer) -> bool {
        match self {
            Self::Status(status) => answer.status == status,
            Self::Exit(exit) => answer.status == 0 && answer.exit == exit,
            Self::NoAnswer => answer.status == 0 && answer.exit != 0,
        }
    }
}

impl Stage {
    /// A mesh in a folder, without pods.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn open(dir: &Path, client: Engine, server: Engine) -> Result<Self> {
        Self::open_with(dir, Setup::default(), client, server).await
    }

    /// The same, elsewhere or otherwise.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn open_with(dir: &Path, setup: Setup, client: Engine, server: Engine) -> Result<Self> {
        let mesh = Mesh::start_with(dir, setup).await?;
        Ok(Self { mesh, client, server, pods: BTreeMap::new(), starting: Vec::new(), marks: 0 })
    }

    /// Starts a pod; [`Stage::up`] waits for all of them.
    ///
    /// # Errors
    /// When its process cannot be started.
    pub fn start(&mut self, spec: &PodSpec) -> Result<()> {
        self.mesh.spawn(spec)?;
        self.starting.push((spec.namespace.clone(), spec.name.clone()));
        Ok(())
    }

    /// Waits until every pod is ready and every proxy runs with what is stored.
    ///
    /// # Errors
    /// When one is not.
    pub async fn up(&mut self) -> Result<()> {
        for (namespace, name) in std::mem::take(&mut self.starting) {
            let address = self.mesh.ready(&namespace, &name).await?;
            let curl = Curl::enter(&self.mesh, &namespace, &name)?;
            self.pods.insert(name, (address, curl));
        }
        self.mesh.converged().await
    }

    /// A pod's address.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn address(&self, pod: &str) -> Result<Ipv4Addr> {
        Ok(self.pods.get(pod).with_context(|| format!("no pod {pod}"))?.0)
    }

    /// curl in a pod.
    ///
    /// # Errors
    /// When it cannot be run there.
    pub async fn curl(&self, from: &str, args: &[&str]) -> Result<Answer> {
        let (_, curl) = self.pods.get(from).with_context(|| format!("no pod {from}"))?;
        curl.run(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).await
    }

    /// One curl for each of these in a pod, all at the same time.
    ///
    /// # Errors
    /// When they cannot be run there.
    pub async fn together(&self, from: &str, many: &[Vec<String>]) -> Result<Vec<Answer>> {
        let (_, curl) = self.pods.get(from).with_context(|| format!("no pod {from}"))?;
        curl.together(many).await
    }

    /// A call that curl cannot make, in a pod.
    ///
    /// # Errors
    /// When it cannot be made there.
    pub async fn call(&self, from: &str, call: &Call) -> Result<Answer> {
        let (_, curl) = self.pods.get(from).with_context(|| format!("no pod {from}"))?;
        curl.call(call).await
    }

    /// curl in a pod, until what comes back is as wanted.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn expect(&self, from: &str, args: &[&str], want: Want) -> Result<Answer> {
        let start = Instant::now();
        loop {
            let answer = self.curl(from, args).await?;
            if want.met(&answer) {
                return Ok(answer);
            }
            let url = args.last().copied().unwrap_or_default();
            ensure!(start.elapsed() < SETTLE, "{from} → {url}: want {want:?}, got {answer}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// One request with a mark in its path (`{mark}` in the last argument), and what of it crossed between two pods.
    ///
    /// # Errors
    /// When the answer is not 200 or nothing was captured.
    pub async fn captured(&mut self, from: &str, args: &[&str], between: (&str, &str)) -> Result<(String, Payloads)> {
        self.marks += 1;
        let mark = format!("mark-{}-{}", std::process::id(), self.marks);
        let marked: Vec<String> = args.iter().map(|arg| arg.replace("{mark}", &mark)).collect();
        let marked: Vec<&str> = marked.iter().map(String::as_str).collect();
        let capture = Capture::start(self.address(between.0)?, self.address(between.1)?)?;
        let answer = self.curl(from, &marked).await?;
        let seen = capture.finish()?;
        ensure!(answer.status == 200, "{from} → {}: {answer}", marked.last().copied().unwrap_or_default());
        ensure!(!seen.is_empty(), "nothing crossed between {} and {}", between.0, between.1);
        Ok((mark, seen))
    }

    /// The same, and it must have crossed encrypted.
    ///
    /// # Errors
    /// When any HTTP could be read on the wire.
    pub async fn encrypted(&mut self, from: &str, args: &[&str], between: (&str, &str)) -> Result<()> {
        let (mark, seen) = self.captured(from, args, between).await?;
        let clear = seen.contain(mark.as_bytes()) || seen.contain(b"HTTP/1.1");
        ensure!(!clear, "{} → {}: HTTP crossed in the clear", between.0, between.1);
        ensure!(seen.carry_tls(), "{} → {}: no TLS records on the wire", between.0, between.1);
        Ok(())
    }

    /// The same, and it must have crossed readable.
    ///
    /// # Errors
    /// When the mark cannot be read on the wire.
    pub async fn in_the_clear(&mut self, from: &str, args: &[&str], between: (&str, &str)) -> Result<()> {
        let (mark, seen) = self.captured(from, args, between).await?;
        ensure!(seen.contain(mark.as_bytes()), "{} → {}: not readable on the wire", between.0, between.1);
        Ok(())
    }

    /// What a `carrick` command prints; its exit code must be 0.
    ///
    /// # Errors
    /// When it fails.
    pub async fn carrick(&self, args: &[&str]) -> Result<String> {
        let output = self.mesh.output(args).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "carrick {}: {}", args.join(" "), told.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends everything.
    ///
    /// # Errors
    /// When a process cannot be waited for.
    pub async fn close(self) -> Result<()> {
        drop(self.pods);
        self.mesh.stop().await
    }
}

/// A pod as most scenarios start it: an HTTP server on 8080.
pub fn pod(namespace: &str, name: &str, app: &str, engine: Engine, command: Vec<String>) -> PodSpec {
    PodSpec {
        namespace: namespace.into(),
        name: name.into(),
        app: app.into(),
        labels: vec![("version".into(), "v1".into())],
        ports: vec!["http=8080".into()],
        engine,
        more: Vec::new(),
        command,
    }
}

/// A gateway, which Gateway objects select by its `istio` label.
pub fn gateway(namespace: &str, name: &str, label: &str, engine: Engine) -> PodSpec {
    PodSpec {
        namespace: namespace.into(),
        name: name.into(),
        app: name.into(),
        labels: vec![("istio".into(), label.into())],
        ports: Vec::new(),
        engine,
        more: vec!["--gateway".into()],
        command: Vec::new(),
    }
}

/// A Secret as a manifest.
pub fn secret(namespace: &str, name: &str, kind: &str, data: &[(&str, Vec<u8>)]) -> String {
    use base64::Engine as _;
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ntype: {kind}\ndata:\n"
    );
    for (key, value) in data {
        text += &format!("  {key}: {}\n", base64::engine::general_purpose::STANDARD.encode(value));
    }
    text
}

/// Fails with the text when one of the parts is missing in it.
///
/// # Errors
/// Naming the missing part.
pub fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}
