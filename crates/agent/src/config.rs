//! What an agent is started with: flags, environment, files of the pod — read once, every mistake reported at once.
//!
//! Invariant: an [`AgentConfig`] is usable as it is; whoever holds one reads no environment. The table of options is in
//! `options`, and is the only place that knows their names.

mod istio;
mod options;
mod value;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carrick_base::TrustDomain;
use carrick_pki::KeyAlgorithm;

use crate::app_probes::AppProbes;
use crate::dns::DnsConfig;
use crate::health::Probe;

pub use options::help;
pub(crate) use value::{duration, host_port, name};

/// Everything an agent needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Beside a workload, or alone as a gateway.
    pub role: Role,
    /// Who the workload is.
    pub node: NodeConfig,
    /// What carries its traffic.
    pub engine: EngineKind,
    /// Worker threads of the engine.
    pub concurrency: usize,
    /// The native engine takes TLS sessions up again.
    pub session_resumption: bool,
    /// Where the control plane is.
    pub control_plane: ControlPlane,
    /// How the certificate is asked for and renewed.
    pub identity: IdentityConfig,
    /// Sockets and the bootstrap are written here.
    pub state_dir: PathBuf,
    /// Where the pod's applications find the SPIFFE Workload API; nowhere when `None`.
    pub workload_api_socket: Option<PathBuf>,
    /// How it ends.
    pub drain: DrainConfig,
    /// Where names of the mesh are answered; `None` where somebody else does.
    pub dns: Option<DnsConfig>,
    /// How the workload's health is found out; `None` where somebody else does.
    pub probe: Option<Probe>,
    /// Probes of the application that Kubernetes asks here.
    pub app_probes: AppProbes,
    /// Where the application's metrics are, as injection wrote it down: JSON with `scrape`, `path`, `port`.
    pub app_metrics: Option<serde_json::Value>,
    /// Ports of its own.
    pub ports: Ports,
    /// Log level, `info` or `warn,carrick_xds=debug`.
    pub log_level: String,
    /// Log as JSON.
    pub log_json: bool,
}

/// What a proxy is to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Carries the captured traffic of one workload (node type `sidecar`).
    #[default]
    Sidecar,
    /// Is itself what others connect to (node type `router`): no capture, its listeners are what the Gateways say.
    Gateway,
}

/// Who the workload is.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Addresses; never empty.
    pub ips: Vec<IpAddr>,
    /// Domain of the cluster, `cluster.local`.
    pub cluster_domain: String,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// More metadata, from `ISTIO_META_*` and `ISTIO_METAJSON_*`.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// The data planes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Our own, in this process.
    Native,
    /// Envoy, as a child.
    Envoy {
        /// Its binary.
        binary: PathBuf,
        /// Its log level.
        log_level: String,
    },
    /// None here: a gRPC library in the application speaks xDS itself.
    Library {
        /// The file that it reads when it starts.
        bootstrap: PathBuf,
        /// The folder of its certificate's files, if it is to have one.
        certificates: Option<PathBuf>,
    },
}

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// `host:port` of xDS.
    pub discovery_address: String,
    /// `host:port` of the certificate service.
    pub ca_address: String,
    /// The name its certificate must have.
    pub server_name: String,
    /// The mesh roots, PEM.
    pub root_file: PathBuf,
}

/// How the certificate is asked for and renewed.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityConfig {
    /// Service account token, read anew for each request.
    pub token_file: PathBuf,
    /// Where key and certificate are kept across restarts; `None` keeps them in memory.
    pub folder: Option<PathBuf>,
    /// Where another authority's key, certificate and roots may be; they count instead of ours then.
    pub credentials: Option<PathBuf>,
    /// Life asked for; zero leaves it to the authority.
    pub ttl: Duration,
    /// Share of the life that is left when it is renewed.
    pub grace_ratio: f64,
    /// Random change of that share, up or down.
    pub grace_jitter: f64,
    /// Kind of key.
    pub algorithm: KeyAlgorithm,
}

/// How a machine joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// The token, or the invitation it is in; a file, so that it is in no list of processes.
    pub token_file: PathBuf,
    /// `host:port` of the certificate service, where the invitation tells none.
    pub server: Option<String>,
    /// The name its certificate must have.
    pub server_name: String,
    /// The mesh roots, PEM.
    pub root_file: Option<PathBuf>,
    /// SHA-256 of one of them, 64 hexadecimal digits, instead of the file.
    pub fingerprint: Option<String>,
    /// Where key and certificate are kept.
    pub folder: PathBuf,
    /// Kind of key.
    pub algorithm: KeyAlgorithm,
}

/// How an agent ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// Longest time from TERM to the end.
    pub duration: Duration,
    /// Shortest, where connections are waited for.
    pub minimum: Duration,
    /// End as soon as no connection is open.
    pub exit_on_zero: bool,
}

/// The agent's own ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Where status, health and metrics listen.
    pub bind: IpAddr,
    /// Admin, on 127.0.0.1.
    pub admin: u16,
    /// Status and merged metrics.
    pub status: u16,
    /// Health.
    pub health: u16,
    /// Metrics of the engine.
    pub prometheus: u16,
}

impl AgentConfig {
    /// Where Envoy sends the logs that are counted.
    pub fn counts_socket(&self) -> PathBuf {
        self.state_dir.join("ALS")
    }

    /// The socket on which Envoy is given secrets.
    pub fn sds_socket(&self) -> PathBuf {
        self.state_dir.join("SDS")
    }

    /// The socket on which Envoy, or a library, reaches the control plane.
    pub fn xds_socket(&self) -> PathBuf {
        self.state_dir.join("XDS")
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run, beside a workload or as a gateway.
    Proxy(Box<AgentConfig>),
    /// Keep certificates as files: which, this file says.
    Agent(Box<AgentConfig>, PathBuf),
    /// Get a machine's first certificate by a join token, and end.
    Join(Box<JoinConfig>),
    /// Do one of the small things that an injected pod's containers ask for, and end.
    Tool(Tool),
    /// Print this text and end.
    Print(String),
}

/// The small things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Wait until the proxy is ready: its port, its path, and how long at most.
    Wait {
        /// Port of the status page.
        port: u16,
        /// Its path.
        path: String,
        /// How long at most.
        limit: Duration,
    },
    /// Ask the agent of this pod for something.
    Ask {
        /// Port of the agent.
        port: u16,
        /// HTTP method.
        method: String,
        /// Path, with its slash.
        path: String,
    },
}

/// Everything that is wrong with flags, environment and files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Outside input of [`parse`]: the environment and the files it names.
pub trait Surroundings {
    /// All environment variables.
    fn environment(&self) -> BTreeMap<String, String>;
    /// A file's text; `None` when there is none.
    fn read(&self, path: &Path) -> Option<String>;
    /// A program by name in PATH, or the path itself when it is one and exists.
    fn find_program(&self, name: &str) -> Option<PathBuf>;
}

/// The process's own surroundings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

impl Surroundings for Process {
    fn environment(&self) -> BTreeMap<String, String> {
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
    }

    fn read(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    fn find_program(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(PathBuf::from(name)).filter(|p| p.is_file());
        }
        std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
    }
}

/// Reads the command line (without the program's name) and its surroundings.
///
/// # Errors
/// Every mistake, one line each.
pub fn parse(arguments: &[String], surroundings: &impl Surroundings) -> Result<Command, ConfigErrors> {
    options::parse(arguments, surroundings)
}

#[cfg(test)]
mod tests;
