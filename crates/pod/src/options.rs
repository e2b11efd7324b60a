//! What callers ask of this crate, as plain values. The command line lives elsewhere; nothing here reads the environment or the clock.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where everything is kept when nobody says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/carrick";
/// The address of the bridge: every pod's gateway, and where the control plane answers.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The cluster DNS address; each pod answers it on its own loopback.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The suffix of every name in the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The label by which a Gateway of the Gateway API finds its pods.
pub const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// User and group of the sidecar; its own connections are not captured.
pub const PROXY_ID: u32 = 1337;

/// The pod network of one machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// Address of the bridge.
    pub gateway: Ipv4Addr,
    /// Prefix length of the pod network; `gateway` lies in it.
    pub prefix: u8,
    /// Cluster IP range: address and prefix length.
    pub services: (Ipv4Addr, u8),
    /// nftables table (family `ip`) that holds the service rules.
    pub table: String,
    /// Namespaces are called `<prefix>-<id>`; what does not begin so is never touched.
    pub netns_prefix: String,
    /// Host ends of the pods' links are called `<prefix><id>`.
    pub link_prefix: String,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            bridge: "carrick0".into(),
            gateway: GATEWAY,
            prefix: 16,
            services: (Ipv4Addr::new(10, 96, 0, 0), 16),
            table: "carrick-services".into(),
            netns_prefix: "carrick".into(),
            link_prefix: "ckv".into(),
        }
    }
}

/// What `carrick up` wants of the host.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The data folder; `run/` under it is ours.
    pub data_dir: PathBuf,
    /// The pod network.
    pub network: Network,
    /// The file that gets a marked block of service names; `None` leaves the host's names alone.
    pub hosts_file: Option<PathBuf>,
    /// Name of the Node object; `None` registers none.
    pub node_name: Option<String>,
    /// Where the API listens; becomes the one endpoint of `default/kubernetes`, loopback included. `None` takes the endpoints of the slices.
    pub api_address: Option<SocketAddrV4>,
    /// Let pods reach addresses outside of the pod network through the host's own address.
    pub masquerade_egress: bool,
}

impl HostOptions {
    /// Defaults for a data folder: `/etc/hosts` block on, Node named after the host.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        HostOptions {
            data_dir: data_dir.into(),
            network: Network::default(),
            hosts_file: Some(PathBuf::from("/etc/hosts")),
            node_name: Some(host_name()),
            api_address: None,
            masquerade_egress: true,
        }
    }
}

/// Which data plane a sidecar runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Engine {
    /// Ours, in the agent's process.
    #[default]
    Native,
    /// Envoy as the agent's child.
    Envoy,
}

impl Engine {
    /// The word used on command lines and in the sidecar's environment.
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::Native => "native",
            Engine::Envoy => "envoy",
        }
    }
}

impl std::str::FromStr for Engine {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "native" => Ok(Engine::Native),
            "envoy" => Ok(Engine::Envoy),
            other => Err(format!("unknown engine {other:?}: native or envoy")),
        }
    }
}

/// A container port. Written `8080` or `http=8080`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    /// Name, as a Service's `targetPort` may use it.
    pub name: Option<String>,
    /// Number, 1 to 65535.
    pub number: u16,
}

impl std::str::FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once('=') {
            Some((name, number)) => (Some(name), number),
            None => (None, text),
        };
        let number: u16 = match number.parse() {
            Ok(0) | Err(_) => {
                return Err(format!("{text:?} is no port: write PORT or NAME=PORT, PORT from 1 to 65535"));
            }
            Ok(number) => number,
        };
        if let Some(name) = name {
            let fine = !name.is_empty()
                && name.len() <= 15
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && name.bytes().any(|b| b.is_ascii_lowercase())
                && !name.starts_with('-')
                && !name.ends_with('-')
                && !name.contains("--");
            if !fine {
                return Err(format!(
                    "{name:?} is no port name: at most 15 of a-z, 0-9 and inner single -, with a letter"
                ));
            }
        }
        Ok(Port { name: name.map(str::to_owned), number })
    }
}

/// A workload in a manifest file, or in the API, that supplies the pod template.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestRef {
    /// YAML or JSON file, any number of documents; `None` takes the workload as the API has it, and then it must be named.
    pub path: Option<PathBuf>,
    /// `kind/name`, for example `deployment/shop`; `None` when the file holds exactly one workload.
    pub workload: Option<String>,
}

/// One process to run as a pod.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Namespace of the pod; must exist.
    pub namespace: String,
    /// Pod name; `None` derives `base-xxxxx` from the workload or the command.
    pub name: Option<String>,
    /// Service account; `None` means the manifest's, then `default`.
    pub service_account: Option<String>,
    /// Labels, over those of the manifest.
    pub labels: BTreeMap<String, String>,
    /// Annotations, over those of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Ports of the app container; empty means the manifest's.
    pub ports: Vec<Port>,
    /// The sidecar's data plane.
    pub engine: Engine,
    /// The pod is a gateway: the proxy is its only container, `command` is empty.
    pub gateway: bool,
    /// Run without a sidecar whatever the labels say.
    pub no_sidecar: bool,
    /// Pod template source.
    pub manifest: Option<ManifestRef>,
    /// Program and arguments; empty for a gateway, and where the template's container says what to run.
    pub command: Vec<OsString>,
    /// Environment, over the manifest's, over the caller's own.
    pub env: Vec<(String, String)>,
    /// The data folder of `carrick up`.
    pub data_dir: PathBuf,
    /// Kubeconfig; `None` means `<data_dir>/kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// The `carrick-proxy` binary.
    pub proxy_binary: PathBuf,
    /// Envoy, needed with [`Engine::Envoy`] only.
    pub envoy_binary: Option<PathBuf>,
    /// Environment of the sidecar over what it is given, for example `SECRET_TTL`.
    pub sidecar_env: Vec<(String, String)>,
    /// The sidecar's log; `None` means `<data_dir>/run/logs/<namespace>_<pod>_istio-proxy.log`, removed with the pod.
    pub sidecar_log: Option<PathBuf>,
    /// Time from the stop signal to the kill; `None` means the manifest's, then 30 s.
    pub grace: Option<Duration>,
    /// How long the sidecar may take to become ready before the run fails.
    pub sidecar_timeout: Duration,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// What the cluster is called.
    pub cluster_id: String,
    /// Where the control plane answers, as pods see it.
    pub ca_address: String,
    /// The pod network.
    pub network: Network,
}

impl RunOptions {
    /// Defaults for everything that has one.
    pub fn new(namespace: impl Into<String>, command: Vec<OsString>) -> Self {
        let network = Network::default();
        RunOptions {
            namespace: namespace.into(),
            name: None,
            service_account: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            engine: Engine::Native,
            gateway: false,
            no_sidecar: false,
            manifest: None,
            command,
            env: Vec::new(),
            data_dir: PathBuf::from(DEFAULT_DATA_DIR),
            kubeconfig: None,
            proxy_binary: PathBuf::from("carrick-proxy"),
            envoy_binary: None,
            sidecar_env: Vec::new(),
            sidecar_log: None,
            grace: None,
            sidecar_timeout: Duration::from_secs(60),
            trust_domain: CLUSTER_DOMAIN.into(),
            cluster_id: "Kubernetes".into(),
            ca_address: format!("{}:15012", network.gateway),
            network,
        }
    }

    /// The kubeconfig to use.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| self.data_dir.join("kubeconfig"))
    }
}

/// One process to start inside a running pod.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// Pod name.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
    /// Environment over the pod's.
    pub env: Vec<(String, String)>,
    /// The data folder of `carrick up`.
    pub data_dir: PathBuf,
}

/// The kernel's name of this machine; `localhost` when it has none.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// `<data_dir>/run`.
pub fn run_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("run")
}
