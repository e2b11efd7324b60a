//! The table of options, and the one pass over it.
//!
//! Invariant: an option is defined once, with flag, variables, default and help; a flag beats a variable, a variable the
//! file it may also stand in (`PROXY_CONFIG`), that the default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use carrick_base::TrustDomain;
use carrick_pki::KeyAlgorithm;
use serde_json::Value;

use super::istio;
use super::value;
use super::{
    AgentConfig, Command, ConfigErrors, ControlPlane, DrainConfig, EngineKind, IdentityConfig, JoinConfig, NodeConfig,
    Ports, Role, Surroundings,
};
use crate::app_probes::{self, AppProbes};
use crate::dns::DnsConfig;
use crate::health::Probe;

struct Opt {
    flag: &'static str,
    /// The first one set counts.
    vars: &'static [&'static str],
    /// Key in the JSON of `PROXY_CONFIG`.
    proxy_config: Option<&'static str>,
    /// Empty: required or derived, as the help says.
    default: &'static str,
    help: &'static str,
}

macro_rules! options {
    ($($flag:literal $vars:tt $default:literal $help:literal $(in $key:literal)?;)*) => {
        &[$(Opt { flag: $flag, vars: &$vars, proxy_config: options!(@key $($key)?), default: $default, help: $help }),*]
    };
    (@key) => { None };
    (@key $key:literal) => { Some($key) };
}

const OPTIONS: &[Opt] = options![
    "engine" ["CARRICK_ENGINE"] "native" "data plane: native or envoy";
    "pod-name" ["POD_NAME"] "" "name of the pod (required)";
    "pod-namespace" ["POD_NAMESPACE"] "" "its namespace (required)";
    "instance-ip" ["INSTANCE_IP", "INSTANCE_IPS"] "" "its addresses, separated by commas (required)";
    "service-account" ["SERVICE_ACCOUNT"] "default" "its service account" ;
    "trust-domain" ["TRUST_DOMAIN"] "cluster.local" "trust domain of the mesh";
    "cluster-domain" ["CLUSTER_DOMAIN"] "cluster.local" "DNS domain of the cluster";
    "labels-file" ["POD_LABELS_FILE"] "./etc/istio/pod/labels" "the pod's labels, one key=\"value\" a line; may be absent";
    "annotations-file" ["POD_ANNOTATIONS_FILE"] "./etc/istio/pod/annotations" "its annotations, in the same form";
    "discovery-address" ["DISCOVERY_ADDRESS"] "istiod.istio-system.svc:15012" "host:port of the control plane" in "discoveryAddress";
    "ca-address" ["CA_ADDR"] "" "host:port of the certificate authority [the discovery address]";
    "control-plane-name" ["ISTIOD_SAN"] "istiod.istio-system.svc" "name in the control plane's certificate";
    "root-file" ["CA_ROOT_CA", "XDS_ROOT_CA"] "./var/run/secrets/istio/root-cert.pem" "roots of the mesh, PEM";
    "token-file" ["CARRICK_TOKEN_FILE"] "./var/run/secrets/tokens/istio-token" "service account token, audience istio-ca";
    "certificates" ["CARRICK_CERTIFICATES"] "./etc/carrick/certificates.yaml" "what `agent` keeps, YAML";
    "identity-dir" ["CARRICK_IDENTITY_DIR"] "" "folder that keeps key and certificate across restarts, for machines; else they are in memory alone";
    "dns-address" ["CARRICK_DNS"] "" "address on which names of the mesh are answered, for machines; else they are not";
    "resolv-conf" ["CARRICK_RESOLV_CONF"] "/etc/resolv.conf" "who is asked for other names";
    "state-dir" ["CARRICK_STATE_DIR"] "./etc/istio/proxy" "sockets and Envoy's bootstrap are written here" in "configPath";
    "workload-api-socket" ["CARRICK_WORKLOAD_API_SOCKET"] "" "Unix socket of the SPIFFE Workload API for the pod's applications [none]";
    "workload-credentials" ["CARRICK_WORKLOAD_CREDENTIALS"] "/var/run/secrets/workload-spiffe-credentials" "folder of cert-chain.pem, key.pem and root-cert.pem of another authority, which count instead of ours";
    "secret-ttl" ["SECRET_TTL"] "0s" "life of a certificate to ask for; 0s leaves it to the authority";
    "secret-grace-ratio" ["SECRET_GRACE_PERIOD_RATIO"] "0.5" "share of its life that is left when it is renewed";
    "secret-grace-jitter" ["SECRET_GRACE_PERIOD_RATIO_JITTER"] "0.01" "random change of that share";
    "key-algorithm" ["CARRICK_KEY_ALGORITHM"] "ecdsa-p256" "key of the workload: ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096";
    "disable-envoy" ["DISABLE_ENVOY"] "false" "no data plane at all: a gRPC library of the application speaks xDS";
    "grpc-bootstrap" ["GRPC_XDS_BOOTSTRAP"] "./etc/istio/proxy/grpc-bootstrap.json" "what that library starts with is written here";
    "output-certs" ["OUTPUT_CERTS"] "" "folder of key.pem, cert-chain.pem and root-cert.pem for that library";
    "envoy" ["CARRICK_ENVOY"] "envoy" "Envoy's binary, for --engine envoy" in "binaryPath";
    "envoy-log-level" ["PROXY_LOG_LEVEL"] "warning" "Envoy's log level";
    "concurrency" ["PROXY_CONCURRENCY", "ISTIO_CPU_LIMIT"] "2" "worker threads of the engine; 0: one for each core" in "concurrency";
    "session-resumption" ["CARRICK_SESSION_RESUMPTION"] "true" "the native engine takes TLS sessions between mesh peers up again, under the trust that made them";
    "drain-duration" ["TERMINATION_DRAIN_DURATION"] "5s" "longest time for open connections after TERM" in "terminationDrainDuration";
    "minimum-drain-duration" ["MINIMUM_DRAIN_DURATION"] "0s" "shortest time from TERM to the end";
    "exit-on-zero-connections" ["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] "true" "end as soon as no connection is open";
    "bind-address" ["CARRICK_BIND_ADDRESS"] "0.0.0.0" "address of the status, health and metrics ports";
    "admin-port" ["CARRICK_ADMIN_PORT"] "15000" "admin port, on 127.0.0.1" in "proxyAdminPort";
    "status-port" ["CARRICK_STATUS_PORT"] "15020" "status and merged metrics" in "statusPort";
    "health-port" ["CARRICK_HEALTH_PORT"] "15021" "health";
    "prometheus-port" ["CARRICK_PROMETHEUS_PORT"] "15090" "metrics of the engine";
    "log-level" ["CARRICK_LOG"] "info" "log level: error, warn, info, debug, or target=level,…";
    "log-json" ["CARRICK_LOG_JSON"] "false" "log as JSON";
];

const COMMANDS: &str = "sidecar, gateway, agent, join, version or help";

/// Longest path of a Unix socket (`sun_path`, with its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// The help text.
pub fn help() -> String {
    let mut text = String::from(
        "Runs beside a workload, or alone as a gateway: gets its certificate, and carries its traffic. As an agent it carries\n\
         nothing, and keeps certificates as files for other programs of this machine.\n\n\
         Usage: carrick-proxy sidecar [--FLAG VALUE]...\n\
         \x20      carrick-proxy gateway [--FLAG VALUE]...\n\
         \x20      carrick-proxy agent [--FLAG VALUE]...\n\
         \x20      carrick-proxy join --token-file FILE --identity-dir DIR [--ca-address HOST:PORT]\n\
         \x20                         --ca-fingerprint SHA256 | --root-file FILE\n\
         \x20      carrick-proxy version\n\nOptions (flag, environment, [default]):\n",
    );
    for option in OPTIONS {
        text.push_str(&format!("  --{:<26} {}", option.flag, option.help));
        text.push_str(&format!(" [env: {}]", option.vars.join(", ")));
        if !option.default.is_empty() {
            text.push_str(&format!(" [{}]", option.default));
        }
        text.push('\n');
    }
    text.push_str(
        "\nMore environment: PROXY_CONFIG (JSON of the mesh's proxyConfig), ISTIO_META_<KEY> and ISTIO_METAJSON_<KEY>\n\
         (metadata of the node that the control plane sees).\n",
    );
    text
}

struct Reader<'a, S> {
    given: BTreeMap<&'static str, String>,
    env: BTreeMap<String, String>,
    proxy_config: serde_json::Map<String, Value>,
    surroundings: &'a S,
    errors: Vec<String>,
}

pub(super) fn parse(arguments: &[String], surroundings: &impl Surroundings) -> Result<Command, ConfigErrors> {
    let translated = match istio::translate(arguments, &surroundings.environment()) {
        Some(Ok(istio::Meant::Tool(tool))) => return Ok(Command::Tool(tool)),
        Some(Ok(istio::Meant::Proxy(arguments))) => Some(arguments),
        Some(Err(errors)) => return Err(ConfigErrors(errors)),
        None => None,
    };
    let mut arguments = translated.as_deref().unwrap_or(arguments).iter();
    let (role, files) = match arguments.next().map(String::as_str) {
        Some("sidecar") => (Role::Sidecar, false),
        Some("gateway") => (Role::Gateway, false),
        Some("agent") => (Role::Sidecar, true),
        Some("join") => return join(arguments),
        Some("version" | "--version" | "-V") => {
            return Ok(Command::Print(format!("carrick-proxy {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Some("help" | "--help" | "-h") => return Ok(Command::Print(help())),
        Some(other) => return Err(ConfigErrors(vec![format!("unknown command {other:?}: {COMMANDS}")])),
        None => return Err(ConfigErrors(vec![format!("a command is missing: {COMMANDS}")])),
    };
    let mut reader = Reader {
        given: BTreeMap::new(),
        env: surroundings.environment(),
        proxy_config: serde_json::Map::new(),
        surroundings,
        errors: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        if matches!(argument.as_str(), "--help" | "-h") {
            return Ok(Command::Print(help()));
        }
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        let Some(option) = OPTIONS.iter().find(|o| flag.strip_prefix("--") == Some(o.flag)) else {
            reader.errors.push(format!("unknown argument {argument:?}"));
            continue;
        };
        match inline.or_else(|| arguments.next().cloned()) {
            Some(value) => {
                if reader.given.insert(option.flag, value).is_some() {
                    reader.errors.push(format!("--{} is given twice", option.flag));
                }
            }
            None => reader.errors.push(format!("--{} needs a value", option.flag)),
        }
    }
    reader.read_proxy_config();
    if files {
        // Nobody calls an agent, so it needs no address.
        reader.env.entry("INSTANCE_IP".to_owned()).or_insert_with(|| "127.0.0.1".to_owned());
    }
    let config = reader.config(role);
    match config {
        Some(config) if reader.errors.is_empty() => Ok(match files {
            true => Command::Agent(Box::new(config), reader.path("certificates")),
            false => Command::Proxy(Box::new(config)),
        }),
        _ => Err(ConfigErrors(reader.errors)),
    }
}

/// The flags of `join`; it reads no environment, so that a sidecar's does not leak into it.
fn join<'a>(arguments: impl Iterator<Item = &'a String>) -> Result<Command, ConfigErrors> {
    const FLAGS: [&str; 7] = [
        "token-file",
        "ca-address",
        "control-plane-name",
        "root-file",
        "ca-fingerprint",
        "identity-dir",
        "key-algorithm",
    ];
    let (mut given, mut errors) = (BTreeMap::new(), Vec::new());
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        let Some(flag) = FLAGS.into_iter().find(|known| flag.strip_prefix("--") == Some(known)) else {
            errors.push(format!("unknown argument {argument:?}"));
            continue;
        };
        match inline.or_else(|| arguments.next().cloned()) {
            Some(value) => drop(given.insert(flag, value)),
            None => errors.push(format!("--{flag} needs a value")),
        }
    }
    let mut path = |flag: &str| match given.get(flag) {
        Some(value) => PathBuf::from(value),
        None => {
            errors.push(format!("--{flag} is missing"));
            PathBuf::new()
        }
    };
    let (token_file, folder) = (path("token-file"), path("identity-dir"));
    let mut read = |flag: &str, default: &str, check: fn(&str) -> Result<String, String>| {
        let text = given.get(flag).map_or(default, String::as_str);
        if text.is_empty() {
            return None;
        }
        check(text).map_err(|reason| errors.push(format!("--{flag}: {reason}"))).ok()
    };
    let server = read("ca-address", "", value::host_port);
    let server_name = read("control-plane-name", "istiod.istio-system.svc", value::name);
    let fingerprint = read("ca-fingerprint", "", |text| {
        carrick_pki::join::read_fingerprint(text).ok_or_else(|| format!("{text:?} is no SHA-256 in hexadecimal"))
    });
    let algorithm = given.get("key-algorithm").map_or("ecdsa-p256", String::as_str).parse::<KeyAlgorithm>();
    let algorithm = algorithm.map_err(|error| errors.push(format!("--key-algorithm: {error}"))).ok();
    match (server_name, algorithm) {
        (Some(server_name), Some(algorithm)) if errors.is_empty() => Ok(Command::Join(Box::new(JoinConfig {
            token_file,
            server,
            server_name,
            root_file: given.get("root-file").map(PathBuf::from),
            fingerprint,
            folder,
            algorithm,
        }))),
        _ => Err(ConfigErrors(errors)),
    }
}

impl<S: Surroundings> Reader<'_, S> {
    fn read_proxy_config(&mut self) {
        let Some(text) = self.env.get("PROXY_CONFIG").filter(|t| !t.trim().is_empty()) else { return };
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => {
                if let Some(Value::Object(extra)) = map.get("proxyMetadata") {
                    for (key, value) in extra {
                        if let Some(value) = value.as_str() {
                            self.env.entry(key.clone()).or_insert_with(|| value.to_owned());
                        }
                    }
                }
                self.proxy_config = map;
            }
            Ok(_) => self.errors.push("PROXY_CONFIG: not a JSON object".to_owned()),
            Err(e) => self.errors.push(format!("PROXY_CONFIG: {e}")),
        }
    }

    /// The text of an option and where it came from.
    fn text(&self, flag: &str) -> (String, String) {
        let Some(option) = OPTIONS.iter().find(|o| o.flag == flag) else { return (String::new(), flag.to_owned()) };
        if let Some(value) = self.given.get(flag) {
            return (value.clone(), format!("--{flag}"));
        }
        for var in option.vars {
            if let Some(value) = self.env.get(*var).filter(|v| !v.is_empty()) {
                return (value.clone(), (*var).to_owned());
            }
        }
        match option.proxy_config.and_then(|key| Some((key, self.proxy_config.get(key)?))) {
            Some((key, Value::String(value))) => (value.clone(), format!("PROXY_CONFIG {key}")),
            Some((key, value @ Value::Number(_))) => (value.to_string(), format!("PROXY_CONFIG {key}")),
            _ => (option.default.to_owned(), format!("--{flag} (or {})", option.vars.join(", "))),
        }
    }

    fn take<T>(&mut self, flag: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, source) = self.text(flag);
        let required = OPTIONS.iter().any(|o| o.flag == flag && o.help.ends_with("(required)"));
        if text.is_empty() && required {
            self.errors.push(format!("{source} is missing"));
            return None;
        }
        match read(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.errors.push(format!("{source}: {reason}"));
                None
            }
        }
    }

    fn path(&self, flag: &str) -> PathBuf {
        PathBuf::from(self.text(flag).0)
    }

    fn port(&mut self, flag: &str) -> Option<u16> {
        self.take(flag, |t| t.parse().map_err(|_| format!("{t:?} is no port")))
    }

    fn map_file(&mut self, flag: &str) -> BTreeMap<String, String> {
        let (path, source) = self.text(flag);
        let Some(text) = self.surroundings.read(path.as_ref()) else { return BTreeMap::new() };
        value::downward_map(&text).unwrap_or_else(|reason| {
            self.errors.push(format!("{source}: {path}: {reason}"));
            BTreeMap::new()
        })
    }

    fn metadata(&mut self) -> BTreeMap<String, Value> {
        let mut metadata = BTreeMap::new();
        for (key, text) in &self.env {
            if let Some(key) = key.strip_prefix("ISTIO_META_") {
                metadata.insert(key.to_owned(), Value::String(text.clone()));
            } else if let Some(key) = key.strip_prefix("ISTIO_METAJSON_") {
                match serde_json::from_str(text) {
                    Ok(value) => {
                        metadata.insert(key.to_owned(), value);
                    }
                    Err(e) => self.errors.push(format!("ISTIO_METAJSON_{key}: {e}")),
                }
            }
        }
        if !self.proxy_config.is_empty() {
            metadata.insert("PROXY_CONFIG".to_owned(), Value::Object(self.proxy_config.clone()));
        }
        metadata
    }

    fn engine(&mut self) -> Option<EngineKind> {
        if self.take("disable-envoy", value::boolean)? {
            let certificates = Some(self.path("output-certs")).filter(|path| !path.as_os_str().is_empty());
            return Some(EngineKind::Library { bootstrap: self.path("grpc-bootstrap"), certificates });
        }
        match self.text("engine") {
            (text, _) if text == "native" => Some(EngineKind::Native),
            (text, _) if text == "envoy" => {
                let (name, source) = self.text("envoy");
                let (log_level, _) = self.text("envoy-log-level");
                match self.surroundings.find_program(&name) {
                    Some(binary) => Some(EngineKind::Envoy { binary, log_level }),
                    None => {
                        self.errors.push(format!("{source}: there is no program {name:?}"));
                        None
                    }
                }
            }
            (text, source) => {
                self.errors.push(format!("{source}: {text:?} is neither native nor envoy"));
                None
            }
        }
    }

    fn node(&mut self) -> Option<NodeConfig> {
        let name = self.take("pod-name", value::name);
        let namespace = self.take("pod-namespace", value::name);
        let service_account = self.take("service-account", value::name);
        let ips = self.take("instance-ip", value::addresses);
        let cluster_domain = self.take("cluster-domain", value::name);
        let trust_domain = self.take("trust-domain", |t| TrustDomain::new(t).map_err(|e| e.to_string()));
        let labels = self.map_file("labels-file");
        let annotations = self.map_file("annotations-file");
        let metadata = self.metadata();
        Some(NodeConfig {
            name: name?,
            namespace: namespace?,
            service_account: service_account?,
            ips: ips?,
            cluster_domain: cluster_domain?,
            trust_domain: trust_domain?,
            labels,
            annotations,
            metadata,
        })
    }

    fn control_plane(&mut self) -> Option<ControlPlane> {
        let discovery_address = self.take("discovery-address", value::host_port);
        let ca_address = match self.text("ca-address").0.is_empty() {
            true => discovery_address.clone(),
            false => self.take("ca-address", value::host_port),
        };
        let server_name = self.take("control-plane-name", value::name);
        let root_file = self.path("root-file");
        Some(ControlPlane {
            discovery_address: discovery_address?,
            ca_address: ca_address?,
            server_name: server_name?,
            root_file,
        })
    }

    fn identity(&mut self) -> Option<IdentityConfig> {
        let ttl = self.take("secret-ttl", |t| {
            value::duration(t)
                .and_then(|d| if d.is_zero() || d.as_secs() > 0 { Ok(d) } else { Err("less than a second".to_owned()) })
        });
        let grace_ratio = self.take("secret-grace-ratio", value::ratio);
        let grace_jitter = self.take("secret-grace-jitter", value::ratio);
        let algorithm = self.take("key-algorithm", |t| t.parse::<KeyAlgorithm>().map_err(|e| e.to_string()));
        Some(IdentityConfig {
            token_file: self.path("token-file"),
            folder: Some(self.path("identity-dir")).filter(|path| !path.as_os_str().is_empty()),
            credentials: Some(self.path("workload-credentials")).filter(|path| !path.as_os_str().is_empty()),
            ttl: ttl?,
            grace_ratio: grace_ratio?,
            grace_jitter: grace_jitter?,
            algorithm: algorithm?,
        })
    }

    /// `None` is a mistake, `Some(None)` none.
    fn dns(&mut self) -> Option<Option<DnsConfig>> {
        if self.text("dns-address").0.is_empty() {
            return Some(None);
        }
        let address = self.take("dns-address", |t| t.parse().map_err(|_| format!("{t:?} is no address and port")))?;
        Some(Some(DnsConfig { address, resolv_conf: self.path("resolv-conf") }))
    }

    fn probe(&mut self) -> Option<Option<Probe>> {
        let Some(probe) = self.proxy_config.get("readinessProbe").filter(|p| !p.is_null()) else { return Some(None) };
        match serde_json::from_value(probe.clone()) {
            Ok(probe) => Some(Some(probe)),
            Err(error) => {
                self.errors.push(format!("PROXY_CONFIG readinessProbe: {error}"));
                None
            }
        }
    }

    fn app_probes(&mut self, node: Option<&NodeConfig>) -> Option<AppProbes> {
        let text = self.env.get(app_probes::VARIABLE).cloned().unwrap_or_default();
        let localhost = self.env.get(app_probes::LOCALHOST).is_some_and(|value| value == "true");
        let pod = node.and_then(|node| node.ips.first().copied());
        let read = AppProbes::read(&text, pod, localhost);
        read.map_err(|reason| self.errors.push(format!("{}: {reason}", app_probes::VARIABLE))).ok()
    }

    /// `None` is a mistake, `Some(None)` none.
    fn app_metrics(&mut self) -> Option<Option<Value>> {
        const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
        let Some(text) = self.env.get(VARIABLE).filter(|text| !text.is_empty()) else { return Some(None) };
        match serde_json::from_str(text) {
            Ok(told) => Some(Some(told)),
            Err(error) => {
                self.errors.push(format!("{VARIABLE}: {error}"));
                None
            }
        }
    }

    fn drain(&mut self) -> Option<DrainConfig> {
        let duration = self.take("drain-duration", value::duration);
        let minimum = self.take("minimum-drain-duration", value::duration);
        let exit_on_zero = self.take("exit-on-zero-connections", value::boolean);
        Some(DrainConfig { duration: duration?, minimum: minimum?, exit_on_zero: exit_on_zero? })
    }

    fn ports(&mut self) -> Option<Ports> {
        let bind = self.take("bind-address", |t| t.parse().map_err(|_| format!("{t:?} is no IP address")));
        let [admin, status, health, prometheus] =
            ["admin-port", "status-port", "health-port", "prometheus-port"].map(|flag| self.port(flag));
        let ports = Ports { bind: bind?, admin: admin?, status: status?, health: health?, prometheus: prometheus? };
        let mut all = [ports.admin, ports.status, ports.health, ports.prometheus];
        all.sort_unstable();
        if all.windows(2).any(|pair| matches!(pair, [a, b] if a == b && *a != 0)) {
            self.errors.push("the admin, status, health and prometheus ports must differ".to_owned());
        }
        Some(ports)
    }

    fn config(&mut self, role: Role) -> Option<AgentConfig> {
        let node = self.node();
        let engine = self.engine();
        let concurrency = self.take("concurrency", value::threads);
        let session_resumption = self.take("session-resumption", value::boolean);
        let control_plane = self.control_plane();
        let identity = self.identity();
        let drain = self.drain();
        let (dns, probe) = (self.dns(), self.probe());
        let ports = self.ports();
        let app_probes = self.app_probes(node.as_ref());
        let app_metrics = self.app_metrics();
        let log_json = self.take("log-json", value::boolean);
        let state_dir = self.path("state-dir");
        if state_dir.join("SDS").as_os_str().len() > MAX_SOCKET_PATH {
            let source = self.text("state-dir").1;
            self.errors.push(format!("{source}: the path is too long for a socket in it"));
        }
        let workload_api_socket = Some(self.path("workload-api-socket")).filter(|path| !path.as_os_str().is_empty());
        if workload_api_socket.as_ref().is_some_and(|path| path.as_os_str().len() > MAX_SOCKET_PATH) {
            let source = self.text("workload-api-socket").1;
            self.errors.push(format!("{source}: the path is too long for a socket"));
        }
        Some(AgentConfig {
            role,
            node: node?,
            engine: engine?,
            concurrency: concurrency?,
            session_resumption: session_resumption?,
            control_plane: control_plane?,
            identity: identity?,
            state_dir,
            workload_api_socket,
            drain: drain?,
            dns: dns?,
            probe: probe?,
            app_probes: app_probes?,
            app_metrics: app_metrics?,
            ports: ports?,
            log_level: self.text("log-level").0,
            log_json: log_json?,
        })
    }
}
