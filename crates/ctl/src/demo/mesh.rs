//! A mesh of its own for a scenario: `carrick up` as a child, pods as children, an API client.
//!
//! Invariant: everything is started by this value and ended with it; commands run as a user would type them
//! (the same binary), so a scenario shows the product and not its insides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use carrick_pod::Engine;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::process::{Child, Command};

use crate::process;

/// Its API's port.
const API_PORT: u16 = 6443;
/// How long the control plane may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a pod may take to become ready, on a machine busy with others.
const POD_LIMIT: Duration = Duration::from_secs(90);
/// How long a switch may take to reach every proxy before it counts as failed.
const SWITCH_LIMIT_SECONDS: u32 = 30;

/// A running control plane and its pods.
pub struct Mesh {
    program: PathBuf,
    dir: PathBuf,
    setup: Setup,
    client: Client,
    up: Child,
    pods: Vec<(String, String, Child)>,
}

/// Where and how a mesh is started.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The network namespace it runs in, as a file; `None` for this process's own.
    pub namespace: Option<PathBuf>,
    /// More arguments of `carrick up`.
    pub up: Vec<String>,
    /// The address under which its API is reached from here; `None` for 127.0.0.1.
    pub api: Option<IpAddr>,
}

impl Setup {
    /// A program, in the namespace.
    fn command(&self, program: &Path) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg(program);
                command
            }
        }
    }

    /// A debug page of the control plane.
    async fn page(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        if self.namespace.is_none() {
            let (status, body) = crate::proxy_status::get(15014, path).await?;
            return Ok((status, body.to_vec()));
        }
        let mut command = self.command(Path::new("curl"));
        command.args(["-s", "-w", "\n%{http_code}", &format!("http://127.0.0.1:15014{path}")]);
        let output = command.kill_on_drop(true).output().await.context("curl")?;
        let at = output.stdout.iter().rposition(|b| *b == b'\n').context("curl told no status")?;
        let (body, status) = output.stdout.split_at(at);
        Ok((String::from_utf8_lossy(status).trim().parse()?, body.to_vec()))
    }

    /// A client of its API.
    async fn client(&self, kubeconfig: &Path, port: u16) -> Result<Client> {
        let Some(address) = self.api else { return crate::cluster::client(kubeconfig).await };
        let text = std::fs::read_to_string(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
        let outside = kubeconfig.with_file_name("kubeconfig-outside");
        std::fs::write(&outside, text.replace(&format!("127.0.0.1:{port}"), &format!("{address}:{port}")))?;
        crate::cluster::client(&outside).await
    }
}

/// A pod to start.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The value of its `app` label.
    pub app: String,
    /// More labels.
    pub labels: Vec<(String, String)>,
    /// Ports it listens on, as `--port` takes them.
    pub ports: Vec<String>,
    /// The sidecar's data plane, where it gets one.
    pub engine: Engine,
    /// Further arguments of `carrick run`.
    pub more: Vec<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl Mesh {
    /// Starts `carrick up` on a fresh folder and waits until it answers.
    ///
    /// # Errors
    /// When it does not start; what it printed is part of the error.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, Setup::default()).await
    }

    /// The same, elsewhere or otherwise.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn start_with(dir: &Path, setup: Setup) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program lies")?;
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for port in [API_PORT, 15012, 15014].into_iter().filter(|_| setup.namespace.is_none()) {
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!("port {port} is taken: is another `carrick up` running? The demo brings its own")
            })?;
        }
        let up = spawn_up(&program, dir, API_PORT, &setup)?;
        let client = answers(dir, &setup).await?;
        Ok(Self { program, dir: dir.to_owned(), setup, client, up, pods: Vec::new() })
    }

    /// A client of its API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its folder.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// A `carrick` command against this mesh.
    pub fn carrick(&self, args: &[&str]) -> Command {
        let mut command = self.setup.command(&self.program);
        command.arg("--data-dir").arg(&self.dir).args(args).stdin(Stdio::null());
        command.env_remove("KUBECONFIG");
        command
    }

    /// Runs `carrick …` to its end.
    ///
    /// # Errors
    /// When it cannot be started; its exit code is the caller's to judge.
    pub async fn output(&self, args: &[&str]) -> Result<Output> {
        self.carrick(args).output().await.with_context(|| format!("carrick {}", args.join(" ")))
    }

    /// Starts a pod; [`Mesh::ready`] waits for it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(&mut self, spec: &PodSpec) -> Result<()> {
        let log = std::fs::File::create(self.dir.join(format!("{}_{}.log", spec.namespace, spec.name)))?;
        let mut labels = vec![format!("app={}", spec.app)];
        labels.extend(spec.labels.iter().map(|(k, v)| format!("{k}={v}")));
        let mut command = self.carrick(&["run", "-n", &spec.namespace, "--name", &spec.name]);
        command.args(["-l", &labels.join(","), "--engine", spec.engine.as_str()]);
        for port in &spec.ports {
            command.args(["--port", port]);
        }
        command.args(&spec.more);
        if !spec.command.is_empty() {
            command.arg("--").args(&spec.command);
        }
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("carrick run")?;
        self.pods.push((spec.namespace.clone(), spec.name.clone(), child));
        Ok(())
    }

    /// Waits until a pod is Ready and gives its address.
    ///
    /// # Errors
    /// When its runner ends or the time is up; the runner's log is part of the error.
    pub async fn ready(&mut self, namespace: &str, name: &str) -> Result<Ipv4Addr> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let log = self.dir.join(format!("{namespace}_{name}.log"));
        let start = Instant::now();
        loop {
            if let Some(address) = api.get_opt(name).await?.as_ref().and_then(ready_address) {
                return Ok(address);
            }
            let runner = self.pods.iter_mut().find(|(ns, n, _)| ns == namespace && n == name);
            if let Some((_, _, child)) = runner
                && let Some(status) = child.try_wait()?
            {
                bail!("pod {namespace}/{name} ended ({status}):\n{}", tail(&log));
            }
            ensure!(start.elapsed() < POD_LIMIT, "pod {namespace}/{name} is not ready:\n{}", tail(&log));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// curl from inside a pod: exit code and HTTP status (0 when there was none).
    ///
    /// # Errors
    /// When curl could not be run there.
    pub async fn curl(&self, namespace: &str, pod: &str, url: &str) -> Result<(i32, u16)> {
        let args = [
            "exec",
            pod,
            "-n",
            namespace,
            "--",
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-m",
            "10",
            "-w",
            "%{http_code}",
            url,
        ];
        let output = self.output(&args).await?;
        let status = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .with_context(|| format!("curl in {namespace}/{pod}: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.code().unwrap_or(-1), status))
    }

    /// Applies manifests by `carrick apply`, waits until every proxy runs with them, tells how long that took.
    ///
    /// # Errors
    /// When an object is refused or a proxy does not follow.
    pub async fn apply(&self, manifests: &str) -> Result<Duration> {
        let start = Instant::now();
        let mut command = self.carrick(&["apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            tokio::io::AsyncWriteExt::write_all(&mut stdin, manifests.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "carrick apply: {}", String::from_utf8_lossy(&output.stderr));
        self.converged().await?;
        Ok(start.elapsed())
    }

    /// Deletes the objects of manifests and waits as [`Mesh::apply`] does. What is gone already is fine.
    ///
    /// # Errors
    /// When the API refuses or a proxy does not follow.
    pub async fn delete(&self, manifests: &str) -> Result<Duration> {
        let start = Instant::now();
        for object in carrick_api::parse::objects(manifests.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))? {
            crate::apply::delete(&self.client, &object, "default").await?;
        }
        self.converged().await?;
        Ok(start.elapsed())
    }

    /// Waits until every connected proxy has accepted a configuration that holds all that is stored now.
    ///
    /// # Errors
    /// When that does not happen in time, or one refuses it.
    pub async fn converged(&self) -> Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let newest = namespaces.list(&kube::api::ListParams::default().limit(1)).await?;
        let version = newest.metadata.resource_version.context("the list has no resourceVersion")?;
        let path = format!("/debug/distribution?resourceVersion={version}&wait={SWITCH_LIMIT_SECONDS}");
        let limit = Duration::from_secs(u64::from(SWITCH_LIMIT_SECONDS) + 5);
        let (status, body) = tokio::time::timeout(limit, self.setup.page(&path)).await??;
        ensure!(status == 200, "not every proxy followed: {}", String::from_utf8_lossy(&body));
        let told: serde_json::Value = serde_json::from_slice(&body).context("the distribution is not JSON")?;
        for proxy in told.get("proxies").and_then(serde_json::Value::as_array).into_iter().flatten() {
            if let Some(refused) = proxy.get("refused") {
                bail!("{} refused its configuration: {refused}", proxy["name"]);
            }
        }
        Ok(())
    }

    /// The process ids of this mesh's sidecars, to tell a restart.
    ///
    /// # Errors
    /// When the process table cannot be read, or no sidecar is running.
    pub fn sidecars(&self) -> Result<Vec<u32>> {
        let mut found: Vec<u32> = self.sidecars_by_pod()?.into_values().flatten().collect();
        found.sort_unstable();
        ensure!(!found.is_empty(), "no sidecar of this mesh is running");
        Ok(found)
    }

    /// The same, by the pod's name.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn sidecars_by_pod(&self) -> Result<BTreeMap<String, Vec<u32>>> {
        let names: BTreeSet<&str> = self.pods.iter().map(|(_, name, _)| name.as_str()).collect();
        process::sidecars(|name| names.contains(name))
    }

    /// The control plane's process id, while it runs.
    pub fn control_plane(&self) -> Option<u32> {
        self.up.id()
    }

    /// Ends the control plane as a machine does that loses its power: nothing of it gets another instruction.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill_control_plane(&mut self) -> Result<()> {
        self.up.kill().await.context("carrick up")
    }

    /// Starts it again on its folder, and waits until it answers.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn start_control_plane(&mut self) -> Result<()> {
        self.up = spawn_up(&self.program, &self.dir, API_PORT, &self.setup)?;
        self.client = answers(&self.dir, &self.setup).await?;
        Ok(())
    }

    /// Ends every pod, then the control plane.
    ///
    /// # Errors
    /// When a process cannot be waited for.
    pub async fn stop(mut self) -> Result<()> {
        for (_, _, child) in &self.pods {
            terminate(child);
        }
        for (namespace, name, mut child) in self.pods.drain(..) {
            if tokio::time::timeout(Duration::from_secs(40), child.wait()).await.is_err() {
                eprintln!("pod {namespace}/{name} does not end; its runner is killed");
                child.kill().await?;
            }
        }
        terminate(&self.up);
        if tokio::time::timeout(Duration::from_secs(15), self.up.wait()).await.is_err() {
            self.up.kill().await?;
        }
        Ok(())
    }
}

/// A client of a control plane that was just started, as soon as it answers.
async fn answers(dir: &Path, setup: &Setup) -> Result<Client> {
    let kubeconfig = dir.join("kubeconfig");
    let start = Instant::now();
    loop {
        ensure!(start.elapsed() < START_LIMIT, "carrick up does not answer:\n{}", tail(&dir.join("up.log")));
        if kubeconfig.exists() {
            let client = setup.client(&kubeconfig, API_PORT).await?;
            let ready = setup.page("/ready").await.is_ok_and(|(status, _)| status == 200);
            if ready && client.apiserver_version().await.is_ok() {
                return Ok(client);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file of this name in the mesh's folder is its configuration.
pub const MESH_CONFIG: &str = "mesh.yaml";

fn spawn_up(program: &Path, dir: &Path, api_port: u16, setup: &Setup) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("up.log"))?;
    let settings = dir.join(MESH_CONFIG);
    let settings =
        settings.is_file().then(|| ["--mesh-config".into(), settings.into_os_string()]).into_iter().flatten();
    let mut command = setup.command(program);
    // The host's own name table is this namespace's mesh's.
    let elsewhere = setup.namespace.is_some().then_some("--no-host-names");
    command
        .arg("--data-dir")
        .arg(dir)
        .args(["up", "--api-port", &api_port.to_string()])
        .args(elsewhere)
        .args(&setup.up)
        .args(settings)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("carrick up")
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
}

fn ready_address(pod: &Pod) -> Option<Ipv4Addr> {
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    status.pod_ip.as_deref().filter(|_| ready)?.parse().ok()
}

/// This very program with arguments, as a pod's command.
pub fn own_command(args: &[&str]) -> Vec<String> {
    let program = std::env::current_exe().map_or_else(|_| "carrick".to_owned(), |p| p.display().to_string());
    std::iter::once(program).chain(args.iter().map(|arg| (*arg).to_owned())).collect()
}

/// The example service, on 8080 and what is told more.
pub fn serve_command(name: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["demo", "serve", "--port", "8080", "--name", name];
    args.extend(more);
    own_command(&args)
}

/// A scenario's own folder, removed when dropped unless the user named one.
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    ours: bool,
}

/// The folder the user named, or else a new one that is called after the scenario.
pub fn folder(data_dir: &Path, scenario: &str) -> Folder {
    let named = data_dir != Path::new(carrick_pod::options::DEFAULT_DATA_DIR);
    Folder::of(named.then_some(data_dir), scenario)
}

impl Folder {
    /// The one that was named, or else a new one that is called after `what` and removed in the end.
    pub fn of(named: Option<&Path>, what: &str) -> Self {
        let own = || std::env::temp_dir().join(format!("carrick-{what}-{}", std::process::id()));
        Self { ours: named.is_none(), path: named.map_or_else(own, Path::to_owned) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
