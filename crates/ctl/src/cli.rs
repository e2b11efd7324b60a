//! What can be typed: every command, flag and default, and the way from there to the code that does it.
//!
//! Invariant: a flag is defined once, here; the code behind gets plain values and never sees the command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use carrick_pod::{Engine, ExecOptions, ManifestRef, Port, RunOptions, options::DEFAULT_DATA_DIR};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    analyze, apply, backup, bench, ca, certs, cluster, control, convert, demo, etcd, experimental,
    flags::{beside, key_value},
    inject, install,
    output::Format,
    process, proxy_config, proxy_status, remote, up, validate, version, vm, why, workload,
};

/// A service mesh that takes Istio's manifests: identity and mutual TLS for every service, on one machine or many.
#[derive(Debug, Parser)]
#[command(name = "carrick", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Kubeconfig to use [default: $KUBECONFIG, then DATA_DIR/kubeconfig, then ~/.kube/config].
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Folder of the control plane on this machine.
    #[arg(long, global = true, env = "CARRICK_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
    /// Namespace of the control plane.
    #[arg(
        short = 'i',
        long,
        global = true,
        alias = "istioNamespace",
        default_value = "istio-system",
        value_name = "NS"
    )]
    istio_namespace: String,
}

impl Global {
    async fn client(&self) -> Result<kube::Client> {
        cluster::client(&cluster::kubeconfig(self.kubeconfig.as_deref(), &self.data_dir)?).await
    }

    fn around(&self) -> vm::Around {
        vm::Around {
            kubeconfig: self.kubeconfig.clone(),
            data_dir: self.data_dir.clone(),
            root_namespace: self.istio_namespace.clone(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane and the embedded Kubernetes API, in the foreground.
    Up(Up),
    /// Run the control plane alone, against a Kubernetes API: inside a cluster, or by a kubeconfig.
    Control(Box<control::Options>),
    /// Install the control plane and its gateways into a cluster.
    Install(install::Options),
    /// Change what is installed to this version, or to other settings.
    Upgrade(install::Options),
    /// Remove what is installed.
    Uninstall(install::Uninstall),
    /// Print what would be installed.
    #[command(subcommand)]
    Manifest(install::Manifest),
    /// Names that stand for revisions.
    #[command(subcommand)]
    Tag(install::tag::Command),
    /// Run one process as a pod: own network namespace, address, identity and sidecar.
    Run(Run),
    /// Run a command inside a pod of `carrick run`.
    Exec(Exec),
    /// Machines that are no pods: tokens to join by, joining, and the sidecar on the machine's own network.
    #[command(subcommand)]
    Vm(vm::Command),
    /// Write all objects of the embedded Kubernetes API, and the keys that go with them, to one file.
    Backup(backup::Backup),
    /// Put a backup in place: into the data folder of a server that is stopped, or into an etcd.
    Restore(backup::Restore),
    /// Create or update the objects of manifest files (server-side apply).
    Apply(Apply),
    /// Print manifests with a sidecar in every pod template, as the webhook would inject it.
    KubeInject(Box<inject::Options>),
    /// Judge manifests by the rules of admission, without a cluster.
    #[command(visible_alias = "v")]
    Validate(Validate),
    /// Find what is wrong with objects together, in manifests, in the cluster, or both.
    Analyze(Analyze),
    /// Print legacy policies and roles as today's objects.
    Convert(Convert),
    /// Show what a proxy really runs.
    #[command(visible_alias = "pc", subcommand)]
    ProxyConfig(ProxyConfig),
    /// Show which proxies are connected and whether they run the newest configuration.
    #[command(visible_alias = "ps")]
    ProxyStatus(ProxyStatus),
    /// Ask something of the mesh's certificate authority.
    #[command(subcommand)]
    Ca(Ca),
    /// Certificates: what was issued, who holds it, what is served.
    Certs {
        #[command(subcommand)]
        command: certs::Command,
    },
    /// Print the Secret by which other control planes may read this cluster.
    CreateRemoteSecret(remote::Options),
    /// List the clusters that the control plane on this machine reads.
    RemoteClusters(RemoteClusters),
    /// Tell whether a call gets through, what happens to it, and which object decides each step.
    Why(Why),
    /// Reports that put the API's objects beside what a proxy really runs.
    #[command(visible_aliases = ["x", "exp"], subcommand)]
    Experimental(Experimental),
    /// Which certificates and tokens a proxy checks, and whether callers and servers can talk.
    #[command(subcommand)]
    Authn(AuthCheck),
    /// Run a whole scenario and check every row of it on real traffic.
    Demo(Demo),
    /// Measure what the proxies cost, native and Envoy side by side.
    Bench(Bench),
    /// Show the versions of this program, the control plane and the proxies.
    Version(Version),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// Port of the Kubernetes API, on 127.0.0.1.
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    api_port: u16,
    /// Port of xDS and the certificate authority.
    #[arg(long, default_value_t = 15012, value_name = "PORT")]
    xds_port: u16,
    /// Port of xDS without TLS or proof, on 127.0.0.1, for gRPC clients with `xds:///` names (Istio's is 15010); none unless told.
    #[arg(long, value_name = "PORT")]
    plain_xds_port: Option<u16>,
    /// Port where ACME servers' http-01 challenges are answered, directly or behind gateways; none unless told.
    #[arg(long, value_name = "PORT")]
    acme_http_port: Option<u16>,
    /// Port where ACME servers' tls-alpn-01 challenges are answered; none unless told.
    #[arg(long, value_name = "PORT")]
    acme_tls_port: Option<u16>,
    /// A PKCS#11 library that issuers and the mesh's authority may name; may be given several times. It runs in this process; no others are loaded.
    #[arg(long, value_name = "FILE")]
    pkcs11_module: Vec<PathBuf>,
    /// Port of metrics and debug pages, on 127.0.0.1.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
    /// Trust domain of all identities.
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain, value_name = "DOMAIN")]
    trust_domain: String,
    /// Key algorithm of a root made at the first start: ecdsa-p256, ecdsa-p384, rsa-2048 or rsa-4096.
    #[arg(long, default_value = "ecdsa-p256", value_name = "ALGORITHM")]
    ca_key_algorithm: carrick_pki::KeyAlgorithm,
    /// Lifetime of a workload certificate whose request names none.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse, value_name = "DURATION")]
    workload_cert_ttl: Duration,
    /// Longest lifetime a workload may ask for.
    #[arg(long, default_value = "2160h", value_parser = crate::duration::parse, value_name = "DURATION")]
    max_workload_cert_ttl: Duration,
    /// Folder of a plugged-in signing set, by the names of Istio's Secret `cacerts`; taken at the first start, and followed. A set with
    /// another root waits for `carrick ca rotate`.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// The key of the set in --ca-dir is in a token: pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE, with the
    /// library among those of --pkcs11-module.
    #[arg(long, requires = "ca_dir", value_name = "URI")]
    ca_pkcs11: Option<String>,
    /// Port where other trust domains read our roots as a SPIFFE bundle; the server shows spiffe://DOMAIN/ns/istio-system/sa/istiod
    /// (https_spiffe).
    #[arg(long, value_name = "PORT")]
    bundle_port: Option<u16>,
    /// The same with a certificate of the web (https_web).
    #[arg(long, requires = "bundle_web_cert", value_name = "PORT")]
    bundle_web_port: Option<u16>,
    /// The certificate (PEM, the chain) of --bundle-web-port; read anew for each connection.
    #[arg(long, requires = "bundle_web_key", value_name = "FILE")]
    bundle_web_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "bundle_web_cert", value_name = "FILE")]
    bundle_web_key: Option<PathBuf>,
    /// MeshConfig file (YAML); only what is named there differs from the defaults.
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// What this cluster is called in a mesh of several.
    #[arg(long, default_value = "Kubernetes", value_name = "ID")]
    cluster_id: String,
    /// The network of this cluster's pods: written as a label on the control plane's namespace, where other clusters read it.
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Networks, and the gateways between them, as far as labels do not tell (YAML of Istio's meshNetworks).
    #[arg(long, value_name = "FILE")]
    mesh_networks: Option<PathBuf>,
    /// Addresses of this machine, besides 127.0.0.1, that the Kubernetes API listens on, for the control planes of other clusters.
    #[arg(long = "api-address", value_name = "IP")]
    api_addresses: Vec<std::net::IpAddr>,
    /// Leave /etc/hosts alone: the host itself then cannot call services by name.
    #[arg(long)]
    no_host_names: bool,
    /// Run the Kubernetes API alone, for a control plane that is installed into it (`carrick install`, `carrick control`).
    #[arg(long)]
    api_only: bool,
    #[command(flatten)]
    etcd: etcd::EtcdFlags,
    /// Leave the host's network alone: no bridge, no cluster IPs; `carrick run` needs both.
    #[arg(long)]
    no_network: bool,
    /// What to log: error, warn, info, debug, or tracing's directives.
    #[arg(long, default_value = "info", env = "CARRICK_LOG", value_parser = log_filter, value_name = "LEVEL")]
    log: String,
}

#[derive(Debug, Args)]
struct Run {
    /// Namespace of the pod.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Name of the pod [default: made from the workload or the command].
    #[arg(long)]
    name: Option<String>,
    /// Service account, and so the identity [default: the manifest's, then "default"].
    #[arg(long, value_name = "SA")]
    service_account: Option<String>,
    /// Labels, over the manifest's.
    #[arg(short, long, value_delimiter = ',', value_parser = key_value, value_name = "K=V")]
    labels: Vec<(String, String)>,
    /// Annotations, over the manifest's.
    #[arg(long = "annotation", value_parser = key_value, value_name = "K=V")]
    annotations: Vec<(String, String)>,
    /// Ports the process listens on.
    #[arg(long = "port", value_name = "[NAME=]PORT")]
    ports: Vec<Port>,
    /// The sidecar's data plane: native or envoy.
    #[arg(long, default_value = "native", value_name = "ENGINE")]
    engine: Engine,
    /// The pod is a gateway: nothing but the proxy, which Gateway objects select by its labels. Takes no COMMAND.
    /// With a name it serves the Gateway of the Gateway API that has this name, in the pod's namespace.
    #[arg(long, conflicts_with_all = ["no_sidecar", "command"], num_args = 0..=1, require_equals = true, value_name = "NAME")]
    gateway: Option<Option<String>>,
    /// Run without a sidecar, whatever the labels say.
    #[arg(long)]
    no_sidecar: bool,
    /// Manifest whose pod template supplies labels, annotations, service account, ports, environment and probes.
    #[arg(short, long, value_name = "MANIFEST")]
    filename: Option<PathBuf>,
    /// Which workload of the manifest; without one: of the API. pod/NAME takes over a pod that `kubectl run` has made.
    #[arg(long = "as", value_name = "deployment/NAME")]
    workload: Option<String>,
    /// Environment of the process.
    #[arg(short, long = "env", value_parser = key_value, value_name = "K=V")]
    env: Vec<(String, String)>,
    /// Environment of the sidecar, e.g. SECRET_TTL=1h or ISTIO_META_…
    #[arg(long, value_parser = key_value, value_name = "K=V")]
    sidecar_env: Vec<(String, String)>,
    /// The carrick-proxy binary [default: beside this program, then PATH].
    #[arg(long, env = "CARRICK_PROXY", value_name = "FILE")]
    proxy_binary: Option<PathBuf>,
    /// The envoy binary, for --engine envoy [default: PATH].
    #[arg(long, env = "CARRICK_ENVOY", value_name = "FILE")]
    envoy_binary: Option<PathBuf>,
    /// Trust domain, as `carrick up` has it.
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain, value_name = "DOMAIN")]
    trust_domain: String,
    /// Program and arguments [default: the command and args of the manifest's container].
    #[arg(last = true, required_unless_present_any = ["gateway", "filename", "workload"], value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Exec {
    /// Name of the pod.
    pod: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Apply {
    /// Files or folders of YAML or JSON; `-` reads standard input.
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Have the server check everything and keep nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct Validate {
    /// Files or folders of YAML or JSON; `-` reads standard input.
    #[arg(short, long, required = true, value_delimiter = ',', value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Kept for scripts: all rules are always checked.
    #[arg(short = 'x', long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    referential: Option<bool>,
}

#[derive(Debug, Args)]
struct Analyze {
    /// Files or folders of YAML or JSON; `-` reads standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace to analyze, and namespace of objects that name none.
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Analyze all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Look at the live cluster; --use-kube=false analyzes files only.
    #[arg(short = 'k', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    use_kube: bool,
    /// Removed: folders are always read with everything below.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// List the analyzers.
    #[arg(short = 'L', long)]
    list_analyzers: bool,
    /// Run only this analyzer; may be given several times.
    #[arg(long = "analyzer", value_name = "NAME")]
    analyzers: Vec<String>,
    /// Leave out a code on a resource, e.g. "IST0103=Pod *.testing"; may be given several times.
    #[arg(short = 'S', long, value_name = "CODE=RESOURCE")]
    suppress: Vec<String>,
    /// The level from which on the exit code is 79: Info, Warning or Error.
    #[arg(long, default_value = "Error", value_parser = analyze::level, value_name = "LEVEL")]
    failure_threshold: carrick_base::Severity,
    /// The level from which on messages are shown: Info, Warning or Error.
    #[arg(long, default_value = "Info", value_parser = analyze::level, value_name = "LEVEL")]
    output_threshold: carrick_base::Severity,
    /// Output format.
    #[arg(short, long, value_enum, ignore_case = true, default_value = "log")]
    output: analyze::Form,
    /// Color the levels [default: on a terminal].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    color: Option<bool>,
    /// Tell which analyzers run.
    #[arg(short, long)]
    verbose: bool,
    /// How long the cluster may take to answer.
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse, value_name = "DURATION")]
    timeout: Duration,
    /// Do not fail because of files that are not understood.
    #[arg(long)]
    ignore_unknown: bool,
    /// MeshConfig file that counts instead of the cluster's.
    #[arg(long, alias = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,
    /// Control plane whose objects are looked at.
    #[arg(short, long, default_value = "default", value_name = "REVISION")]
    revision: String,
}

#[derive(Debug, Args)]
struct Convert {
    /// Files or folders of YAML or JSON, with the Services that policies are for; `-` reads standard input.
    #[arg(short, long, required = true, value_delimiter = ',', value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
}

#[derive(Debug, Clone, Args)]
struct Target {
    /// The proxy: [TYPE/]NAME[.NAMESPACE].
    #[arg(value_name = "POD[.NS]")]
    proxy: Option<String>,
    /// Namespace of a proxy that names none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Read a saved config dump instead of a proxy.
    #[arg(short, long, value_name = "FILE", conflicts_with = "proxy")]
    file: Option<PathBuf>,
    /// Admin port of the proxy.
    #[arg(long, default_value_t = 15000, value_name = "PORT")]
    proxy_admin_port: u16,
}

#[derive(Debug, Subcommand)]
enum ProxyConfig {
    /// Listeners and their filter chains.
    #[command(visible_aliases = ["listener", "l"])]
    Listeners {
        #[command(flatten)]
        target: Target,
        /// Only listeners bound to this address.
        #[arg(long)]
        address: Option<String>,
        /// Only listeners bound to this port.
        #[arg(long)]
        port: Option<u32>,
        /// Only listeners of this type: HTTP, TCP or HTTP+TCP.
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// A row for each filter chain, with match and destination.
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
        verbose: bool,
    },
    /// Upstream clusters.
    #[command(visible_aliases = ["cluster", "c"])]
    Clusters {
        #[command(flatten)]
        target: Target,
        /// Only services whose full name contains this.
        #[arg(long)]
        fqdn: Option<String>,
        /// Only this service port.
        #[arg(long)]
        port: Option<u32>,
        /// Only inbound or outbound.
        #[arg(long)]
        direction: Option<String>,
        /// Only this subset.
        #[arg(long)]
        subset: Option<String>,
    },
    /// Route configurations.
    #[command(visible_aliases = ["route", "r"])]
    Routes {
        #[command(flatten)]
        target: Target,
        /// Only the configuration of this name.
        #[arg(long)]
        name: Option<String>,
        /// A row for each route.
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
        verbose: bool,
    },
    /// Endpoints with the health the proxy sees.
    #[command(visible_aliases = ["endpoint", "ep"])]
    Endpoints {
        #[command(flatten)]
        target: Target,
        /// Only hosts of this address.
        #[arg(long)]
        address: Option<String>,
        /// Only hosts of this port.
        #[arg(long)]
        port: Option<u32>,
        /// Only this cluster (its whole name).
        #[arg(long)]
        cluster: Option<String>,
        /// Only hosts in this state: healthy, unhealthy …
        #[arg(long)]
        status: Option<String>,
    },
    /// Certificates and trust bundles.
    #[command(visible_aliases = ["secret", "s"])]
    Secrets {
        #[command(flatten)]
        target: Target,
    },
    /// The bootstrap configuration.
    #[command(visible_alias = "b")]
    Bootstrap {
        #[command(flatten)]
        target: Target,
    },
    /// Everything, section after section.
    #[command(visible_alias = "a")]
    All {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
enum Ca {
    /// Refuse an identity or a certificate everywhere, and cut its connections; or take that back.
    Revoke(ca::revoke::Options),
    /// Exchange the root or the signing certificate, step by step, each waiting for every proxy; or show, stop and turn that.
    Rotate(ca::rotate::Options),
}

#[derive(Debug, Subcommand)]
enum Experimental {
    /// Tell whether a cluster takes an installation or an upgrade.
    Precheck,
    /// Describe a pod or service, and every object that has a say in its traffic.
    #[command(visible_alias = "des", subcommand)]
    Describe(Describe),
    /// Which certificates, tokens and rules a proxy checks, port by port.
    #[command(visible_alias = "authn", subcommand)]
    Auth(AuthCheck),
    /// Which AuthorizationPolicies a proxy enforces.
    #[command(subcommand)]
    Authz(AuthzCheck),
    /// Files and objects for machines that join.
    #[command(subcommand)]
    Workload(workload::Command),
    /// Which webhook injects a pod, and why the others do not.
    CheckInject {
        /// The pod: POD[.NAMESPACE], or deploy/NAME.
        #[arg(value_name = "[TYPE/]NAME[.NS]")]
        target: Option<String>,
        /// Labels of a pod that there is not yet: KEY=VALUE,…
        #[arg(short, long, conflicts_with = "target", value_name = "LABELS")]
        labels: Option<String>,
        /// Namespace of a name that has none.
        #[arg(short, long, default_value = "default", value_name = "NS")]
        namespace: String,
    },
    /// Injectors of the cluster.
    #[command(subcommand)]
    Injector(Injector),
}

#[derive(Debug, Subcommand)]
enum Injector {
    /// Namespaces with their revision, and webhooks with their namespaces.
    List,
}

#[derive(Debug, Subcommand)]
enum Describe {
    /// A pod.
    #[command(visible_alias = "po")]
    Pod {
        #[command(flatten)]
        named: Named,
    },
    /// A service, and its first pod.
    #[command(visible_alias = "svc")]
    Service {
        #[command(flatten)]
        named: Named,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// Its name: NAME[.NAMESPACE].
    #[arg(value_name = "NAME[.NS]")]
    name: String,
    /// Namespace of a name that has none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Admin port of the proxy.
    #[arg(long, default_value_t = 15000, value_name = "PORT")]
    proxy_admin_port: u16,
}

#[derive(Debug, Subcommand)]
enum AuthCheck {
    /// Two tables: the listeners of a pod, and its clusters.
    Check {
        #[command(flatten)]
        target: Target,
        /// Every listener, with routes, server names and protocols.
        #[arg(short, long)]
        all: bool,
    },
    /// What the servers that a pod knows ask for, what the pod does, and whether the two can talk.
    TlsCheck {
        #[command(flatten)]
        target: Target,
        /// Only this service, by its full name.
        host: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum AuthzCheck {
    /// A table of policies with action and number of rules.
    Check {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct Why {
    #[command(flatten)]
    question: why::Options,
    /// Port of the control plane's debug pages on this machine, for the mesh's settings.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
}

#[derive(Debug, Args)]
struct ProxyStatus {
    /// Only this proxy: NAME[.NAMESPACE].
    proxy: Option<String>,
    /// Only proxies of this namespace.
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// 1 shows a column for each type.
    #[arg(short, long, default_value_t = 0)]
    verbosity: u8,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

#[derive(Debug, Args)]
struct RemoteClusters {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

#[derive(Debug, Args)]
struct Demo {
    #[command(subcommand)]
    command: demo::Command,
}

#[derive(Debug, Args)]
struct Bench {
    #[command(subcommand)]
    command: bench::Command,
}

#[derive(Debug, Args)]
struct Version {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Ask the control plane too.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    remote: bool,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

impl Cli {
    /// Runs the command and returns its exit code.
    ///
    /// # Errors
    /// Whatever the command could not do.
    pub async fn dispatch(self) -> Result<u8> {
        let global = self.global;
        match self.command {
            Command::Up(options) => up::run(options.resolve(&global)).await.map(|()| 0),
            Command::Control(options) => {
                let (kubeconfig, namespace) = (global.kubeconfig.as_deref(), &global.istio_namespace);
                control::run(*options, kubeconfig, &global.data_dir, namespace).await.map(|()| 0)
            }
            Command::Install(options) => {
                install::install(&options, &global.client().await?, &global.istio_namespace, false).await
            }
            Command::Upgrade(options) => {
                install::install(&options, &global.client().await?, &global.istio_namespace, true).await
            }
            Command::Uninstall(options) => {
                install::uninstall(&options, &global.client().await?, &global.istio_namespace).await
            }
            Command::Manifest(command) => {
                print!("{}", install::manifest(&command, &global.istio_namespace)?);
                Ok(0)
            }
            Command::Tag(command) => {
                print!("{}", install::tag::run(&command, &global.client().await?, &global.istio_namespace).await?);
                Ok(0)
            }
            Command::Run(options) => {
                let code = carrick_pod::run(options.resolve(&global)?).await?;
                Ok(exit_code(code))
            }
            Command::Exec(options) => {
                let (pod, namespace) = (options.pod, options.namespace);
                let options = ExecOptions {
                    pod,
                    namespace,
                    command: options.command,
                    env: Vec::new(),
                    data_dir: global.data_dir,
                };
                Ok(exit_code(carrick_pod::exec(options).await?))
            }
            Command::Vm(command) => vm::run(command, &global.around()).await,
            Command::Apply(options) => {
                let kubeconfig = cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?;
                let client = cluster::client(&kubeconfig).await?;
                apply::run(&client, &options.filename, &options.namespace, options.dry_run).await
            }
            Command::KubeInject(options) => {
                inject::run(&options, global.kubeconfig.as_deref(), &global.data_dir, &global.istio_namespace).await
            }
            Command::Validate(options) => {
                validate::run(&options.filename, &options.namespace, &global.istio_namespace, options.output)
            }
            Command::Analyze(options) => options.run(&global).await,
            Command::Convert(options) => convert::run(&options.filename, &options.namespace, &global.istio_namespace),
            Command::ProxyConfig(command) => proxy_config_command(command, &global).await.map(|()| 0),
            Command::ProxyStatus(options) => {
                let filter = proxy_status::Filter {
                    proxy: options.proxy,
                    namespace: options.namespace,
                    wide: options.verbosity > 0,
                };
                let answer = proxy_status::fetch(options.debug_port).await?;
                let missing = filter.proxy.clone().filter(|_| !proxy_status::any(&answer, &filter));
                if let Some(proxy) = missing {
                    anyhow::bail!("no proxy {proxy:?} is connected to the control plane");
                }
                print!("{}", proxy_status::show(&answer, &filter, options.output)?);
                Ok(0)
            }
            Command::Ca(Ca::Revoke(options)) => {
                let kubeconfig = cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?;
                let client = cluster::client(&kubeconfig).await?;
                ca::revoke::run(&options, client, &global.istio_namespace).await
            }
            Command::Certs { command } => {
                // An audit looks at the ledger also where no API runs.
                let client = match cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir) {
                    Ok(kubeconfig) => cluster::client(&kubeconfig).await.ok(),
                    Err(_) => None,
                };
                certs::run(command, certs::Place { data_dir: global.data_dir, client }).await
            }
            Command::Ca(Ca::Rotate(options)) => ca::rotate::run(&options, &global.data_dir).await,
            Command::CreateRemoteSecret(options) => {
                let kubeconfig = cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?;
                print!("{}", remote::secret(&options, &kubeconfig, &global.istio_namespace).await?);
                Ok(0)
            }
            Command::RemoteClusters(options) => {
                let (clusters, control_plane) = remote::fetch(options.debug_port).await?;
                print!("{}", remote::show(&clusters, &control_plane, options.output)?);
                Ok(0)
            }
            Command::Why(options) => {
                let kubeconfig = cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?;
                let client = cluster::client(&kubeconfig).await?;
                why::run(&options.question, &client, options.debug_port, options.output).await
            }
            Command::Experimental(command) => experimental_command(command, &global).await.map(|()| 0),
            Command::Authn(command) => experimental_command(Experimental::Auth(command), &global).await.map(|()| 0),
            Command::Demo(options) => demo::run(options.command, &global.data_dir).await,
            Command::Bench(options) => bench::run(options.command, &global.data_dir).await,
            Command::Backup(options) => options.run(&global.data_dir).await,
            Command::Restore(options) => options.run(&global.data_dir).await,
            Command::Version(options) => {
                let port = options.remote.then_some(options.debug_port);
                let cluster = match port {
                    Some(_) => global.client().await.ok(),
                    None => None,
                };
                let cluster = cluster.map(|client| (client, global.istio_namespace.as_str()));
                print!("{}", version::show(port, options.output, cluster).await?);
                Ok(0)
            }
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "carrick", &mut std::io::stdout());
                Ok(0)
            }
        }
    }
}

impl Analyze {
    async fn run(self, global: &Global) -> Result<u8> {
        if self.list_analyzers {
            analyze::list();
            return Ok(0);
        }
        if self.recursive {
            println!("The recursive flag has been removed and is hardcoded to true without explicitly specifying it.");
            return Ok(0);
        }
        analyze::run(analyze::Options {
            files: self.files,
            namespace: self.namespace,
            all_namespaces: self.all_namespaces,
            istio_namespace: global.istio_namespace.clone(),
            use_kube: self.use_kube,
            kubeconfig: global.kubeconfig.clone(),
            data_dir: global.data_dir.clone(),
            analyzers: self.analyzers,
            suppress: self.suppress,
            failure: self.failure_threshold,
            shown: self.output_threshold,
            form: self.output,
            color: self.color,
            verbose: self.verbose,
            timeout: self.timeout,
            ignore_unknown: self.ignore_unknown,
            mesh_config: self.mesh_config_file,
            revision: self.revision,
        })
        .await
    }
}

/// A process's exit code as the shell sees it; what does not fit a byte is a failure.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

async fn proxy_config_command(command: ProxyConfig, global: &Global) -> Result<()> {
    use proxy_config::{Section, clusters, endpoints, listeners, routes};
    let (target, section) = match command {
        ProxyConfig::Listeners { target, address, port, kind, verbose } => {
            (target, Section::Listeners(listeners::Filter { address, port, kind, verbose }))
        }
        ProxyConfig::Clusters { target, fqdn, port, direction, subset } => {
            (target, Section::Clusters(clusters::Filter { fqdn, port, direction, subset }))
        }
        ProxyConfig::Routes { target, name, verbose } => (target, Section::Routes(routes::Filter { name, verbose })),
        ProxyConfig::Endpoints { target, address, port, cluster, status } => {
            (target, Section::Endpoints(endpoints::Filter { address, port, cluster, status }))
        }
        ProxyConfig::Secrets { target } => (target, Section::Secrets),
        ProxyConfig::Bootstrap { target } => (target, Section::Bootstrap),
        ProxyConfig::All { target } => (target, Section::All),
    };
    let dump = dump_of(&target, global).await?;
    print!("{}", proxy_config::show(&dump, &section, target.output)?);
    Ok(())
}

async fn dump_of(target: &Target, global: &Global) -> Result<proxy_config::dump::Dump> {
    match (&target.file, &target.proxy) {
        (Some(file), _) => {
            let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
            proxy_config::dump::Dump::parse(&bytes, None)
        }
        (None, Some(proxy)) => {
            let kubeconfig = cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?;
            let client = cluster::client(&kubeconfig).await?;
            let name = cluster::ProxyName::parse(proxy, &target.namespace);
            proxy_config::dump::fetch(&client, &name, &global.data_dir, target.proxy_admin_port).await
        }
        (None, None) => anyhow::bail!("name a proxy (POD[.NAMESPACE]) or a saved dump (--file)"),
    }
}

async fn experimental_command(command: Experimental, global: &Global) -> Result<()> {
    let client = async || cluster::client(&cluster::kubeconfig(global.kubeconfig.as_deref(), &global.data_dir)?).await;
    let of = |named: Named| experimental::Wanted {
        proxy: cluster::ProxyName::parse(&named.name, &named.namespace),
        namespace: named.namespace,
        root: global.istio_namespace.clone(),
        data_dir: global.data_dir.clone(),
        admin_port: named.proxy_admin_port,
    };
    let text = match command {
        Experimental::Precheck => install::precheck::run(&client().await?, &global.istio_namespace).await?,
        Experimental::Workload(command) => workload::run(command, &global.around()).await?,
        Experimental::CheckInject { target, labels, namespace } => {
            inject::check::run(&client().await?, target.as_deref(), labels.as_deref(), &namespace).await?
        }
        Experimental::Injector(Injector::List) => inject::list::run(&client().await?, &global.istio_namespace).await?,
        Experimental::Describe(Describe::Pod { named }) => {
            experimental::describe_pod(&client().await?, &of(named)).await?
        }
        Experimental::Describe(Describe::Service { named }) => {
            experimental::describe_service(&client().await?, &of(named)).await?
        }
        Experimental::Auth(AuthCheck::Check { target, all }) => {
            let address = match &target.proxy {
                Some(proxy) => {
                    let pod = cluster::ProxyName::parse(proxy, &target.namespace).pod(&client().await?).await?;
                    pod.status.and_then(|status| status.pod_ip).unwrap_or_default()
                }
                None => "0.0.0.0".to_owned(),
            };
            experimental::auth_check::show(&dump_of(&target, global).await?, &address, all)
        }
        Experimental::Auth(AuthCheck::TlsCheck { target, host }) => {
            let dump = dump_of(&target, global).await?;
            experimental::tls_check(&client().await?, &dump, host.as_deref(), &global.istio_namespace).await?
        }
        Experimental::Authz(AuthzCheck::Check { target }) => {
            experimental::authz_check::show(&dump_of(&target, global).await?)
        }
    };
    print!("{text}");
    Ok(())
}

impl Up {
    fn resolve(self, global: &Global) -> up::Options {
        up::Options {
            data_dir: global.data_dir.clone(),
            api_port: self.api_port,
            xds_port: self.xds_port,
            plain_xds_port: self.plain_xds_port,
            acme_http_port: self.acme_http_port,
            acme_tls_port: self.acme_tls_port,
            pkcs11_modules: self.pkcs11_module,
            debug_port: self.debug_port,
            root_namespace: global.istio_namespace.clone(),
            trust_domain: self.trust_domain,
            ca_key_algorithm: self.ca_key_algorithm,
            workload_cert_ttl: self.workload_cert_ttl,
            max_workload_cert_ttl: self.max_workload_cert_ttl,
            ca_dir: self.ca_dir,
            ca_pkcs11: self.ca_pkcs11,
            bundle_port: self.bundle_port,
            bundle_web_port: self.bundle_web_port,
            bundle_web_files: self.bundle_web_cert.zip(self.bundle_web_key),
            mesh_config: self.mesh_config,
            cluster_id: self.cluster_id,
            pod_network: self.network,
            mesh_networks: self.mesh_networks,
            api_addresses: self.api_addresses,
            host_names: !self.no_host_names,
            api_only: self.api_only,
            etcd: self.etcd.resolve(),
            network: !self.no_network,
            log: self.log,
        }
    }
}

impl Run {
    fn resolve(self, global: &Global) -> Result<RunOptions> {
        let mut options = RunOptions::new(self.namespace, self.command);
        options.name = self.name;
        options.service_account = self.service_account;
        options.labels = self.labels.into_iter().collect();
        options.annotations = self.annotations.into_iter().collect();
        options.ports = self.ports;
        options.engine = self.engine;
        if let Some(name) = self.gateway.as_ref().and_then(Option::as_ref) {
            options.labels.insert(carrick_pod::options::GATEWAY_LABEL.to_owned(), name.clone());
        }
        options.gateway = self.gateway.is_some();
        options.no_sidecar = self.no_sidecar;
        options.manifest = match (self.filename, self.workload) {
            (None, None) => None,
            (path, workload) => Some(ManifestRef { path, workload }),
        };
        options.env = self.env;
        options.sidecar_env = self.sidecar_env;
        options.data_dir = global.data_dir.clone();
        options.kubeconfig = global.kubeconfig.clone();
        options.proxy_binary = match self.proxy_binary {
            Some(path) => path,
            None => beside("carrick-proxy")?,
        };
        options.envoy_binary = self.envoy_binary.or_else(|| process::on_path("envoy"));
        options.trust_domain = self.trust_domain;
        if let Some(cluster_id) = up::cluster_id(&global.data_dir) {
            options.cluster_id = cluster_id;
        }
        Ok(options)
    }
}

/// A trust domain: a host name in lower case.
fn trust_domain(text: &str) -> Result<String, String> {
    carrick_base::spiffe::TrustDomain::new(text).map(|domain| domain.as_str().to_owned()).map_err(|e| e.to_string())
}

/// What to log, as the logger reads it.
fn log_filter(text: &str) -> Result<String, String> {
    carrick_runtime::telemetry::check(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_what_the_readme_types() {
        let line = "carrick run -n basic --name kyc -l app=kyc,version=v1 --port http=8080 --engine envoy -- sleep 1";
        let Command::Run(run) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("not run") };
        assert_eq!(run.labels.len(), 2);
        assert_eq!(run.engine, Engine::Envoy);
        assert_eq!(run.command, ["sleep", "1"]);
        assert!(Cli::try_parse_from(["carrick", "run", "-l", "app", "--", "x"]).is_err());
        assert!(Cli::try_parse_from(["carrick", "run"]).is_err());
    }

    #[test]
    fn bad_values_are_a_bad_command_line() {
        for line in
            ["up --log=a[b", "up --trust-domain=A_B", "analyze --failure-threshold=Fatal", "validate", "convert"]
        {
            assert!(Cli::try_parse_from(std::iter::once("carrick").chain(line.split(' '))).is_err(), "{line}");
        }
        for line in [
            "up --log=info,carrick=debug",
            "analyze -k=false a.yaml -S IST0103=x",
            "analyze -L",
            "v -f a,b -x=false",
            "analyze --use-kube=false --output JSON x",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("carrick").chain(line.split(' ')));
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
        let gateway = "carrick run --gateway -n edge --name in -l istio=ingressgateway --port http=80";
        assert!(Cli::try_parse_from(gateway.split(' ')).is_ok());
        assert!(Cli::try_parse_from("carrick run --gateway -- sleep 1".split(' ')).is_err());
        assert!(Cli::try_parse_from("carrick run --gateway=web -- sleep 1".split(' ')).is_err());
        let Ok(Cli { command: Command::Run(run), .. }) = Cli::try_parse_from("carrick run --gateway=web".split(' '))
        else {
            panic!("a gateway by name");
        };
        assert_eq!(run.gateway, Some(Some("web".to_owned())));
    }
}
