//! Who is measured: pairs of sidecars of this mesh, and pairs of programs that do a part of their work, in pods without sidecars.
//!
//! Invariant: the path is the same for everybody: load → client's proxy, which the pod's own redirection brings the connection to → mutual
//! TLS 1.3 with both certificates verified → server's proxy → application. A program that is not installed does not take part.

use std::path::Path;

use anyhow::{Context, Result};
use carrick_pod::Engine;

use crate::{demo::mesh::PodSpec, process};

/// The namespace of all pods.
pub const NAMESPACE: &str = "bench";
/// The variable that the process of a program beside the mesh is found by.
pub const MARK: &str = "CARRICK_BENCH";

/// Whose proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Sidecars with the native engine.
    Native,
    /// Sidecars with Envoy, configured by our control plane as Istio does.
    Envoy,
    /// Envoy with the least configuration that does the work: no metrics of Istio's, no policies, no logs.
    Bare,
    /// HAProxy, with the least configuration.
    HaProxy,
    /// nginx, with the least configuration.
    Nginx,
    /// Sockets, epoll and the TLS library: `carrick-floor epoll`, and `http` where HTTP is spoken.
    Floor,
    /// The same on tokio: `carrick-floor tokio`.
    FloorTokio,
}

/// Which of a subject's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As it is by itself, access logs off.
    Usual,
    /// With access logs.
    Logged,
    /// No session is taken up again.
    Full,
    /// Sessions are, where they are not by themselves.
    Resuming,
    /// Many routes and many policies stand before those that fit.
    Crowded,
}

/// A client's and a server's pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// Whose.
    pub subject: Subject,
    /// Which.
    pub variant: Variant,
}

impl Subject {
    /// All of them, in the order of tables.
    pub const ALL: [Subject; 7] = [
        Subject::Native,
        Subject::Envoy,
        Subject::Bare,
        Subject::HaProxy,
        Subject::Nginx,
        Subject::Floor,
        Subject::FloorTokio,
    ];

    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Native => "native",
            Subject::Envoy => "envoy",
            Subject::Bare => "bare-envoy",
            Subject::HaProxy => "haproxy",
            Subject::Nginx => "nginx",
            Subject::Floor => "floor",
            Subject::FloorTokio => "floor-tokio",
        }
    }

    /// Whether it is part of the mesh.
    pub fn in_mesh(self) -> bool {
        matches!(self, Subject::Native | Subject::Envoy)
    }

    /// Whether libc's allocator serves it.
    pub fn uses_libc(self) -> bool {
        !matches!(self, Subject::Envoy | Subject::Bare)
    }

    /// Its program, where it is installed.
    pub fn program(self) -> Option<std::path::PathBuf> {
        let beside = |name: &str| {
            let file = std::env::current_exe().ok()?.with_file_name(name);
            file.is_file().then_some(file)
        };
        let told = |variable: &str| {
            let file = std::path::PathBuf::from(std::env::var_os(variable)?);
            file.is_file().then_some(file)
        };
        match self {
            // As `carrick run` looks for them.
            Subject::Native => told("CARRICK_PROXY").or_else(|| beside("carrick-proxy")),
            Subject::Envoy | Subject::Bare => told("CARRICK_ENVOY").or_else(|| process::on_path("envoy")),
            Subject::HaProxy => process::on_path("haproxy"),
            Subject::Nginx => process::on_path("nginx"),
            Subject::Floor | Subject::FloorTokio => beside("carrick-floor"),
        }
    }
}

impl Pair {
    /// Every pair there is.
    pub fn all() -> Vec<Pair> {
        let usual = Subject::ALL.into_iter().map(|subject| Pair { subject, variant: Variant::Usual });
        let logged = [Subject::Native, Subject::Envoy].map(|subject| Pair { subject, variant: Variant::Logged });
        let crowded = [Subject::Native, Subject::Envoy].map(|subject| Pair { subject, variant: Variant::Crowded });
        let full = Pair { subject: Subject::Native, variant: Variant::Full };
        let resuming = Pair { subject: Subject::Bare, variant: Variant::Resuming };
        usual.chain(logged).chain(crowded).chain([full, resuming]).collect()
    }

    /// The name of its client's or server's pod.
    pub fn pod(self, role: &str) -> String {
        let more = match self.variant {
            Variant::Usual => "",
            Variant::Logged => "-logged",
            Variant::Full => "-full",
            Variant::Resuming => "-resuming",
            Variant::Crowded => "-crowded",
        };
        format!("{role}-{}{more}", self.subject.name())
    }

    /// The process ids of its proxies, both sides; of a sidecar with its agent.
    ///
    /// # Errors
    /// One of them does not run.
    pub fn processes(self, role: &str) -> Result<Vec<u32>> {
        let pod = self.pod(role);
        let found =
            if self.subject.in_mesh() { process::sidecars_of(&pod)? } else { process::with_variable(MARK, &pod)? };
        anyhow::ensure!(!found.is_empty(), "no proxy of pod {pod} runs");
        Ok(found)
    }

    /// The server's pod. `app` starts the applications and stays.
    ///
    /// # Errors
    /// The program is not there.
    pub fn server(self, app: &str, dir: &Path) -> Result<PodSpec> {
        let name = self.pod("server");
        let command = if self.subject.in_mesh() {
            vec!["sh".into(), "-c".into(), format!("exec {app}")]
        } else {
            let proxy = super::peers::command(self, "server", "127.0.0.1", dir)?;
            vec!["sh".into(), "-c".into(), format!("{app} &\n{}", marked(&name, &proxy))]
        };
        Ok(self.pod_spec(name, &["http=8080", "grpc=8081", "tcp=8082", "http-up=8083"], command))
    }

    /// The client's pod; `server` is the address of the other one.
    ///
    /// # Errors
    /// The program is not there.
    pub fn client(self, server: &str, dir: &Path) -> Result<PodSpec> {
        let name = self.pod("client");
        let command = if self.subject.in_mesh() {
            vec!["sleep".into(), "86400".into()]
        } else {
            let rules = super::peers::redirection(server);
            let proxy = super::peers::command(self, "client", server, dir)?;
            let script = format!("set -e\nnft -f - <<'RULES'\n{rules}RULES\n{}", marked(&name, &proxy));
            vec!["sh".into(), "-c".into(), script]
        };
        Ok(self.pod_spec(name, &[], command))
    }

    /// A pod that nobody calls, for its sidecar's memory.
    pub fn onlooker(self) -> PodSpec {
        self.pod_spec(self.pod("onlooker"), &[], vec!["sleep".into(), "86400".into()])
    }

    fn pod_spec(self, name: String, ports: &[&str], command: Vec<String>) -> PodSpec {
        let engine = if self.subject == Subject::Envoy { Engine::Envoy } else { Engine::Native };
        let mut more = Vec::new();
        if self.subject.in_mesh() {
            // As many threads as the others have: there is one CPU for all proxies.
            more.extend(["--sidecar-env".to_owned(), "PROXY_CONCURRENCY=1".to_owned()]);
        } else {
            more.push("--no-sidecar".to_owned());
        }
        if self.variant == Variant::Full {
            more.extend(["--sidecar-env".to_owned(), "CARRICK_SESSION_RESUMPTION=false".to_owned()]);
        }
        let mut labels = Vec::new();
        if self.variant == Variant::Logged {
            labels.push(("logs".to_owned(), "on".to_owned()));
        }
        let ports = ports.iter().map(|port| (*port).to_owned()).collect();
        PodSpec { namespace: NAMESPACE.into(), app: name.clone(), name, labels, ports, engine, more, command }
    }
}

fn marked(name: &str, proxy: &str) -> String {
    format!("export {MARK}={name}\nexec {proxy}\n")
}

/// What is written to `dir` for everybody: certificates, configurations, a body, a call.
///
/// # Errors
/// A file cannot be written, or OpenSSL fails.
pub async fn prepare(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir.join("www"))?;
    std::fs::write(dir.join("www/1m"), vec![b'x'; 1 << 20])?;
    let message = [&[0, 0, 0, 0, 32][..], &[b'x'; 32]].concat();
    std::fs::write(dir.join("call.grpc"), message)?;
    let script = include_str!("certificates.sh");
    let output = tokio::process::Command::new("sh").args(["-c", script]).current_dir(dir).output().await;
    let output = output.context("openssl")?;
    anyhow::ensure!(output.status.success(), "certificates: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
