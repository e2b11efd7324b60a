//! A machine that is no pod, for a scenario: a network namespace of its own with one link to this one, and nothing of a pod in it.
//!
//! Invariant: what runs there is what a user would type on a machine; all of it ends with this value.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};

use super::{
    link::Link,
    mesh::{own_command, tail},
};

/// How long a step on the machine may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A machine.
pub struct Vm {
    /// The way to it.
    pub link: Link,
    /// Its folder.
    pub dir: PathBuf,
    /// The resolver configuration that `ip netns exec` shows it.
    resolver: PathBuf,
    /// `carrick vm …`, with its sidecar.
    pub runner: Option<Child>,
    app: Option<Child>,
}

impl Vm {
    /// A machine without programs.
    ///
    /// # Errors
    /// As [`Link::make`].
    pub fn make(dir: &Path) -> Result<Self> {
        let link = Link::make()?;
        let name = namespace(&link)?;
        let there = link.here.to_string();
        let output =
            std::process::Command::new("ip").args(["-n", &name, "route", "add", "default", "via", &there]).output()?;
        ensure!(output.status.success(), "ip route: {}", String::from_utf8_lossy(&output.stderr).trim());
        let resolver = Path::new("/etc/netns").join(&name);
        std::fs::create_dir_all(&resolver)?;
        // Nobody answers there: names of the mesh are the sidecar's.
        std::fs::write(resolver.join("resolv.conf"), format!("nameserver {there}\n"))?;
        std::fs::create_dir_all(dir)?;
        Ok(Self { link, dir: dir.to_owned(), resolver, runner: None, app: None })
    }

    /// A program on the machine.
    ///
    /// # Errors
    /// Its namespace has no name.
    pub fn command(&self, words: &[String]) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace(&self.link)?]).args(words);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// `carrick vm …` on the machine.
    ///
    /// # Errors
    /// As [`Vm::command`].
    pub fn carrick(&self, args: &[&str]) -> Result<Command> {
        let state = self.state();
        let all = [&["vm"], args, &["--state-dir", &state]].concat();
        self.command(&own_command(&all))
    }

    fn state(&self) -> String {
        self.dir.join("state").display().to_string()
    }

    /// What `carrick vm` writes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("vm.log")
    }

    /// Starts a program that stays.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(&self, mut command: Command, log: &Path) -> Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(log.try_clone()?).stderr(log).spawn().context("ip netns exec")
    }

    /// The service on it.
    ///
    /// # Errors
    /// As [`Vm::start`].
    pub fn start_app(&mut self) -> Result<()> {
        let words = own_command(&["demo", "serve", "--port", "8080", "--port", "8082", "--name", "ledger"]);
        self.app = Some(self.start(self.command(&words)?, &self.dir.join("app.log"))?);
        Ok(())
    }

    /// Runs to its end.
    ///
    /// # Errors
    /// When it does not come to it.
    pub async fn output(&self, args: &[&str]) -> Result<Output> {
        tokio::time::timeout(LIMIT, self.carrick(args)?.output()).await.context("carrick vm")?.context("carrick vm")
    }

    /// The serial number of the certificate that the machine keeps.
    ///
    /// # Errors
    /// When it keeps none.
    pub fn serial(&self) -> Result<String> {
        let text = std::fs::read(self.dir.join("state/identity/identity.pem")).context("the machine's certificate")?;
        let chain = carrick_pki::pem::certificates(&text)?;
        let leaf = chain.first().context("no certificate")?;
        Ok(carrick_pki::CertificateInfo::read(leaf)?.serial)
    }

    /// Everything ends at once, as when the power goes; packet rules are the kernel's and go too.
    ///
    /// # Errors
    /// When a process stays.
    pub async fn power_off(&mut self) -> Result<()> {
        for child in [self.runner.take(), self.app.take()].into_iter().flatten() {
            kill(&child)?;
            let mut child = child;
            tokio::time::timeout(LIMIT, child.wait()).await.context("a killed process stays")??;
        }
        let flush = self.command(&["nft".into(), "flush".into(), "ruleset".into()])?.output().await?;
        ensure!(flush.status.success(), "nft: {}", String::from_utf8_lossy(&flush.stderr).trim());
        Ok(())
    }

    /// Waits until its sidecar is ready.
    ///
    /// # Errors
    /// When it is not in time, or ends.
    pub async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15021/healthz/ready"];
        loop {
            let output = self.command(&words.map(str::to_owned))?.output().await?;
            if output.stdout == b"200" {
                break;
            }
            if let Some(status) = self.runner.as_mut().and_then(|runner| runner.try_wait().ok().flatten()) {
                bail!("carrick vm ended: {status}");
            }
            ensure!(start.elapsed() < LIMIT, "the machine's sidecar is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether packets are captured.
    ///
    /// # Errors
    /// As [`Vm::command`].
    pub async fn rules(&self) -> Result<bool> {
        let words = ["nft", "list", "table", "inet", "carrick-machine"].map(str::to_owned);
        Ok(self.command(&words)?.output().await?.status.success())
    }

    /// The ends of its logs.
    pub fn what_it_said(&self) -> String {
        format!("{}\n{}", tail(&self.log()), tail(&self.dir.join("state/proxy.log")))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for child in [&self.runner, &self.app].into_iter().flatten() {
            let _ = kill(child);
        }
        let _ = std::fs::remove_dir_all(&self.resolver);
    }
}

/// A process, with what dies with it: `ip netns exec` becomes the program itself, whose sidecar dies with it.
fn kill(child: &Child) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

fn namespace(link: &Link) -> Result<String> {
    let path = link.namespace();
    Ok(path.file_name().and_then(|name| name.to_str()).context("a namespace's name")?.to_owned())
}
