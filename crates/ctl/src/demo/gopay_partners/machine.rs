//! A machine outside of the mesh, for rows 1 and 2: an agent that keeps files, and programs that serve them.
//!
//! Invariant: processes end with this value; what is served is read from a handshake, never from a log.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use carrick_pki::{
    CertificateInfo,
    tls::{self, ServerAuth, TlsOptions},
};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

const AGENT: &str = include_str!("../../../../../examples/gopay-partners/agent.yaml");
const NAMESPACE: &str = "machines";
const ACCOUNT: &str = "vm-web";
/// How long anything on it may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The machine.
pub(super) struct Machine {
    dir: PathBuf,
    agent: Child,
    servers: Vec<Child>,
    /// Where the programs listen.
    pub(super) web: SocketAddr,
    /// The one whose reload is broken.
    pub(super) reports: SocketAddr,
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Machine {
    /// An agent with a token of its service account, and what it needs to know of the mesh.
    pub(super) async fn start(dir: &Path, client: &Client) -> Result<Self> {
        let dir = dir.join("machine");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let (web, reports) = (free()?, free()?);
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        let audiences = vec!["istio-ca".to_owned()];
        let request = TokenRequest { spec: TokenRequestSpec { audiences, ..Default::default() }, ..Default::default() };
        let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
        std::fs::write(dir.join("token"), answer.status.context("no token")?.token)?;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let roots = wait("the mesh's roots", async || {
            let map = maps.get_opt("istio-ca-root-cert").await.ok()??;
            map.data?.remove("root-cert.pem")
        })
        .await?;
        std::fs::write(dir.join("roots.pem"), roots)?;
        let file = dir.join("agent.yaml");
        let text = AGENT
            .replace("MACHINE", &dir.display().to_string())
            .replace("OTHER_PORT", &reports.port().to_string())
            .replace("PORT", &web.port().to_string());
        std::fs::write(&file, text)?;
        let agent = agent(&dir, &file)?;
        Ok(Self { dir, agent, servers: Vec::new(), web, reports })
    }

    /// A file that the agent keeps.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The agent's log.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Waits for the files, then starts nginx on them.
    pub(super) async fn serve(&mut self) -> Result<()> {
        for (name, address) in [("web", self.web), ("reports", self.reports)] {
            let key = self.dir.join(name).join("tls.key");
            wait("the agent's files", async || key.exists().then_some(()))
                .await
                .with_context(|| format!("the agent said: {}", self.log()))?;
            let server = nginx(&self.dir, name, address)?;
            self.servers.push(server);
            wait("nginx", async || TcpStream::connect(address).await.ok()).await?;
        }
        if let Some(status) = self.agent.try_wait()? {
            bail!("the agent ended ({status}): {}", self.log());
        }
        Ok(())
    }

    /// Has an nginx read its files again, as a person would.
    pub(super) async fn reload(&self, name: &str) -> Result<()> {
        let [config, log] = ["conf", "log"].map(|kind| self.dir.join(format!("{name}.{kind}")).display().to_string());
        let output = Command::new("nginx").args(["-c", &config, "-e", &log, "-s", "reload"]).output().await?;
        ensure!(output.status.success(), "nginx: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Ends everything on it.
    pub(super) async fn stop(mut self) -> Result<()> {
        for child in self.servers.iter_mut().chain([&mut self.agent]) {
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            }
            if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        Ok(())
    }
}

fn agent(dir: &Path, file: &Path) -> Result<Child> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.with_file_name("carrick-proxy");
    let program = std::env::var_os("CARRICK_PROXY").map_or(beside, PathBuf::from);
    let log = std::fs::File::create(dir.join("agent.log"))?;
    let path = |name: &str| dir.join(name).display().to_string();
    Command::new(&program)
        .args(["agent", "--pod-name", "vm-1", "--pod-namespace", NAMESPACE, "--service-account", ACCOUNT])
        .args(["--discovery-address", "127.0.0.1:15012", "--token-file", &path("token")])
        .args(["--root-file", &path("roots.pem"), "--state-dir", &path("state")])
        .args(["--certificates", &file.display().to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.display().to_string())
}

fn nginx(dir: &Path, name: &str, address: SocketAddr) -> Result<Child> {
    let base = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path {base}/{name}-{of}; "))
        .concat();
    let config = format!(
        "daemon off; pid {base}/{name}.pid; error_log {base}/{name}.log; events {{}}\nhttp {{ access_log off; {temporary}\n server {{ \
         listen {address} ssl; ssl_certificate {base}/{name}/tls.crt; ssl_certificate_key {base}/{name}/tls.key; return 200; }} }}\n"
    );
    let file = dir.join(format!("{name}.conf"));
    std::fs::write(&file, config)?;
    Command::new("nginx")
        .args(["-c", &file.display().to_string(), "-e", &format!("{base}/{name}.log")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("nginx, which `tools/install demo` brings")
}

/// The serial number of the certificate that somebody serves under a name.
pub(super) async fn served(address: SocketAddr, name: &'static str) -> Result<String> {
    let none: [&str; 0] = [];
    let config = tls::client_config(None, ServerAuth::None, &none, &TlsOptions::default())?;
    let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
    let stream = connector.connect(ServerName::try_from(name)?, stream).await.with_context(|| address.to_string())?;
    let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
    Ok(CertificateInfo::read(chain.first().context("no certificate")?)?.serial)
}

/// Waits for something to be there.
pub(super) async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        ensure!(start.elapsed() < LIMIT, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
