//! `carrick up`: control plane and embedded API in one process.
//!
//! Invariant: everything kept lies under the data folder; what pods need (packet rules, names) outlives this
//! process. The order of start is: authority, API, host network, control plane, and only then "ready".

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use carrick_api::{MeshConfig, MeshNetworks, validate};
use carrick_apiserver::{ApiOptions, ApiServer, storage::etcd::EtcdOptions};
use carrick_base::TrustDomain;
use carrick_control::{
    BundleEndpoint, Control, ControlOptions, FederationOptions, Profile,
    rotation::{Opening, RotationOptions, Slots, Tokens},
};
use carrick_issuing::{ChallengeListeners, Issuing};
use carrick_ledger::{Ledger, LedgerOptions};
use carrick_pki::{
    KeyAlgorithm,
    ca::{Authority, CaOptions},
};
use carrick_pod::{HostOptions, LocalPods, host, options::GATEWAY};
use carrick_runtime::{clock::SystemClock, tasks::TaskSet};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How long open requests and streams may take when `carrick up` is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The label that tells the network of what says nothing of its own.
const NETWORK: &str = "topology.istio.io/network";
/// The annotation of the root namespace that tells the version of the `carrick up` which is the control plane.
pub(crate) const CONTROL_PLANE: &str = "carrick.dev/control-plane";
/// The file that keeps what the cluster is called, for `carrick run`.
const CLUSTER_ID: &str = "cluster-id";

/// What `carrick up` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of everything that is kept.
    pub data_dir: PathBuf,
    /// Port of the Kubernetes API, on 127.0.0.1.
    pub api_port: u16,
    /// Port of xDS and the certificate authority.
    pub xds_port: u16,
    /// Port of xDS in the clear for gRPC libraries, on 127.0.0.1.
    pub plain_xds_port: Option<u16>,
    /// Port where http-01 challenges of ACME servers are answered, on all addresses.
    pub acme_http_port: Option<u16>,
    /// Port where tls-alpn-01 challenges are answered, on all addresses.
    pub acme_tls_port: Option<u16>,
    /// PKCS#11 libraries that issuers may name.
    pub pkcs11_modules: Vec<PathBuf>,
    /// Port of metrics and debug pages, on 127.0.0.1.
    pub debug_port: u16,
    /// Namespace of the control plane and of mesh-wide policies.
    pub root_namespace: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Key algorithm of a new root.
    pub ca_key_algorithm: KeyAlgorithm,
    /// Lifetime of a certificate whose request names none.
    pub workload_cert_ttl: Duration,
    /// Longest lifetime a workload may ask for.
    pub max_workload_cert_ttl: Duration,
    /// Folder of a plugged-in signing set.
    pub ca_dir: Option<PathBuf>,
    /// Where that set's key is, if it is in a token.
    pub ca_pkcs11: Option<String>,
    /// Port where our SPIFFE bundle is served by https_spiffe, on all addresses.
    pub bundle_port: Option<u16>,
    /// Port where it is served by https_web.
    pub bundle_web_port: Option<u16>,
    /// The files of that server's certificate and key.
    pub bundle_web_files: Option<(PathBuf, PathBuf)>,
    /// MeshConfig file.
    pub mesh_config: Option<PathBuf>,
    /// What the cluster is called.
    pub cluster_id: String,
    /// The network of its pods, to be written down; `None` leaves what is written.
    pub pod_network: Option<String>,
    /// MeshNetworks file.
    pub mesh_networks: Option<PathBuf>,
    /// More addresses of the Kubernetes API, with the same port.
    pub api_addresses: Vec<IpAddr>,
    /// Whether the host's own name table gets the services.
    pub host_names: bool,
    /// Whether there is nothing but the Kubernetes API.
    pub api_only: bool,
    /// Where the API's objects are instead of the data folder.
    pub etcd: Option<EtcdOptions>,
    /// Whether bridge and service rules are made.
    pub network: bool,
    /// What to log.
    pub log: String,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot start; the parts that had started are ended.
pub async fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let _log = carrick_runtime::telemetry::init(&options.log, false).context("--log")?;
    let stop = stopped()?;
    crate::process::take_descriptors();
    if options.api_only {
        return api_alone(&options, stop).await;
    }
    let mesh_networks = mesh_networks(&options)?;
    let written = mesh_file(&options)?;
    let mesh_config = MeshConfig::read(&written).context("the mesh configuration")?;
    let (mesh_changes, mesh_file) = watch::channel(Arc::new(written));
    let following = AbortOnDropHandle::new(tokio::spawn(follow_mesh_file(options.clone(), mesh_changes)));

    let lock = lock(&options.data_dir).await?;
    let ledger = ledger(&options.data_dir).await?;
    let (slots, authority) = authority(&options)?;
    authority.record_in(ledger.clone());
    let roots = authority.roots().to_pem();
    let (root_changes, root_pem) = tokio::sync::watch::channel(Some(Arc::<str>::from(roots)));
    let mut api_options = ApiOptions::new(&options.data_dir, options.api_port);
    api_options.root_pem = root_pem;
    api_options.etcd = options.etcd.clone();
    let (list_changes, crl_pem) = watch::channel(authority.set().crl().map(Arc::<str>::from));
    api_options.crl_pem = crl_pem;
    api_options.more = options.api_addresses.iter().map(|ip| (*ip, options.api_port).into()).collect();
    api_options.pods = Some(Arc::new(LocalPods::start(&options.data_dir)?));
    let api = ApiServer::start(api_options).await.context("the embedded API")?;
    let client = crate::cluster::client(api.kubeconfig()).await?;

    mark(&client, &options.root_namespace, true).await?;
    if let Some(network) = &options.pod_network {
        label_network(&client, &options.root_namespace, network).await?;
    }
    std::fs::write(options.data_dir.join(CLUSTER_ID), &options.cluster_id).context("the cluster's name")?;

    let host_stop = CancellationToken::new();
    let host_options = host_options(&options);
    let mut host_task = None;
    if options.network {
        host::setup(&host_options).await.context("the pod network (--no-network leaves it out)")?;
        host_task = Some(tokio::spawn(host::sync(host_options.clone(), client.clone(), host_stop.clone())));
    }

    let authority = Arc::new(authority);
    let issuing = Issuing::new(client.clone(), &options.root_namespace, SystemClock::shared())
        .with_authority(Arc::clone(&authority))
        .with_challenges(challenge_listeners(&options).await?)
        .with_token_modules(options.pkcs11_modules.clone())
        .recorded(ledger.clone());
    let (issuing_trigger, issuing_drain) = carrick_runtime::drain::channel();
    let mut control_options = ControlOptions::new(client, authority, mesh_config);
    control_options.mesh_file = Some(mesh_file);
    control_options.ledger = Some(ledger);
    control_options.rotation = Some(RotationOptions {
        slots,
        roots: root_changes,
        lists: list_changes,
        socket: crate::ca::rotate::socket(&options.data_dir),
    });
    control_options.xds_addr.set_port(options.xds_port);
    control_options.federation = federation(&options);
    control_options.plain_xds = options.plain_xds_port.map(|port| (Ipv4Addr::LOCALHOST, port).into());
    control_options.debug_addr.set_port(options.debug_port);
    control_options.name = format!("carrick-{}", carrick_pod::options::host_name());
    control_options.cluster_id = options.cluster_id.clone();
    control_options.mesh_networks = mesh_networks;
    control_options.server_ips = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(GATEWAY)];
    let control = Control::start(control_options).await.context("the control plane")?;
    control.ready().await;
    let mut tasks = TaskSet::new();
    tasks.spawn("certificates", issuing.run(issuing_drain));
    println!(
        "carrick is ready in {} ms: API https://{}, kubeconfig {}, xDS and CA {}, debug http://{}",
        start.elapsed().as_millis(),
        api.address(),
        api.kubeconfig().display(),
        control.xds_addr(),
        control.debug_addr(),
    );

    stop.await;
    tracing::info!("told to stop");
    drop(following);
    host_stop.cancel();
    if let Some(task) = host_task {
        task.await.context("the host's part")?;
    }
    issuing_trigger.drain(DRAIN).await;
    tasks.abort().await;
    control.drain(DRAIN).await;
    api.drain(DRAIN).await;
    if options.network && !pods_remain(&options.data_dir) {
        host::teardown(&host_options).await.context("removing the pod network")?;
    }
    drop(lock);
    Ok(())
}

/// The embedded API without a mesh: for a control plane that is installed into it.
async fn api_alone(options: &Options, stop: impl Future<Output = ()>) -> Result<()> {
    let lock = lock(&options.data_dir).await?;
    let mut api_options = ApiOptions::new(&options.data_dir, options.api_port);
    api_options.more = options.api_addresses.iter().map(|ip| (*ip, options.api_port).into()).collect();
    api_options.etcd = options.etcd.clone();
    api_options.pods = Some(Arc::new(LocalPods::start(&options.data_dir)?));
    let api = ApiServer::start(api_options).await.context("the embedded API")?;
    mark(&crate::cluster::client(api.kubeconfig()).await?, &options.root_namespace, false).await?;
    println!("carrick is ready: API https://{}, kubeconfig {}", api.address(), api.kubeconfig().display());
    stop.await;
    api.drain(DRAIN).await;
    drop(lock);
    Ok(())
}

/// Where ACME servers are answered. Pods reach it at the bridge, and so do their gateways.
async fn challenge_listeners(options: &Options) -> Result<ChallengeListeners> {
    let bind = async |port: Option<u16>, option: &str| match port {
        Some(port) => {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
            listener.map(Some).with_context(|| format!("{option} {port}"))
        }
        None => Ok(None),
    };
    Ok(ChallengeListeners {
        http: bind(options.acme_http_port, "--acme-http-port").await?,
        tls: bind(options.acme_tls_port, "--acme-tls-port").await?,
        reached_at: options.acme_http_port.filter(|_| options.network).map(|port| (GATEWAY, port).into()),
    })
}

/// Told to stop by a signal; the handlers are in place when this returns.
pub(crate) fn stopped() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    })
}

/// How long a killed predecessor may take to be gone: a process holds its locks until the kernel has taken it apart.
const DYING: Duration = Duration::from_secs(2);

/// One `up` for a folder; the kernel gives the lock back however this process ends.
async fn lock(data_dir: &Path) -> Result<nix::fcntl::Flock<std::fs::File>> {
    use std::os::unix::fs::DirBuilderExt;
    let shown = data_dir.display();
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(data_dir).with_context(|| shown.to_string())?;
    let path = data_dir.join("up.lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let mut file = file.with_context(|| path.display().to_string())?;
    let begin = std::time::Instant::now();
    loop {
        match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if begin.elapsed() < DYING => file = again,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("another `carrick up` is running on {shown}: stop it, or choose another folder with --data-dir")
            }
            Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often the mesh configuration's file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The mesh configuration's file, as it is; what the command line says of it comes first.
fn mesh_file(options: &Options) -> Result<Value> {
    let mut written = match &options.mesh_config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            read_mesh(&text).with_context(|| format!("{} is no MeshConfig", path.display()))?
        }
        None => Value::Object(serde_json::Map::new()),
    };
    put_fixed(options, &mut written);
    Ok(written)
}

/// A MeshConfig as text.
pub(crate) fn read_mesh(text: &str) -> Result<Value> {
    let written: Value = serde_saphyr::from_str(text)?;
    let written = if written.is_null() { Value::Object(serde_json::Map::new()) } else { written };
    anyhow::ensure!(written.is_object(), "it is no object");
    let findings = validate::mesh_config(&written);
    for found in &findings {
        tracing::warn!(field = found.field.as_str(), "mesh configuration: {}", found.message);
    }
    if let Some(error) = findings.iter().find(|f| validate::has_errors(std::slice::from_ref(f))) {
        bail!("{}: {}", error.field.as_str(), error.message);
    }
    MeshConfig::read(&written)?;
    Ok(written)
}

/// What identities and names depend on is the command line's to say.
fn put_fixed(options: &Options, written: &mut Value) {
    if let Some(fields) = written.as_object_mut() {
        fields.insert("rootNamespace".to_owned(), options.root_namespace.clone().into());
        fields.insert("trustDomain".to_owned(), options.trust_domain.clone().into());
    }
}

/// Reads the file again and again; what is not valid is told of once and changes nothing.
async fn follow_mesh_file(options: Options, told: watch::Sender<Arc<Value>>) {
    let Some(path) = options.mesh_config.clone() else { return };
    let mut before = tokio::fs::read_to_string(&path).await.ok();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = tokio::fs::read_to_string(&path).await.ok();
        if now == before {
            continue;
        }
        match now.as_deref().map(read_mesh) {
            Some(Ok(mut written)) => {
                put_fixed(&options, &mut written);
                told.send_replace(Arc::new(written));
            }
            Some(Err(error)) => {
                tracing::warn!(path = %path.display(), "{error:#}; the last good mesh configuration stays");
            }
            None => tracing::warn!(path = %path.display(), "cannot be read; the last good mesh configuration stays"),
        }
        before = now;
    }
}

fn mesh_networks(options: &Options) -> Result<MeshNetworks> {
    let Some(path) = &options.mesh_networks else { return Ok(MeshNetworks::default()) };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is no MeshNetworks", path.display()))
}

/// What the cluster of a data folder is called, if `carrick up` has run there.
pub fn cluster_id(data_dir: &Path) -> Option<String> {
    std::fs::read_to_string(data_dir.join(CLUSTER_ID)).ok().filter(|id| !id.is_empty())
}

/// Writes the network of all pods on the root namespace, where every control plane of the mesh looks for it.
/// Says on the control plane's namespace whether this process is the control plane, for `carrick install`.
async fn mark(client: &kube::Client, root: &str, control_plane: bool) -> Result<()> {
    let namespaces: kube::Api<Namespace> = kube::Api::all(client.clone());
    if !control_plane && namespaces.get_opt(root).await?.is_none() {
        return Ok(());
    }
    let version = control_plane.then_some(crate::version::OWN);
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": root, "annotations": {CONTROL_PLANE: version}},
    });
    let patch = kube::api::Patch::Merge(&object);
    match namespaces.patch(root, &kube::api::PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let object = serde_json::from_value(object).context("the control plane's namespace")?;
            namespaces.create(&kube::api::PostParams::default(), &object).await.map(|_| ())
        }
        patched => patched.map(|_| ()),
    }
    .with_context(|| format!("namespace {root}"))
}

async fn label_network(client: &kube::Client, root: &str, network: &str) -> Result<()> {
    let namespaces: kube::Api<Namespace> = kube::Api::all(client.clone());
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": root, "labels": {NETWORK: network}},
    });
    let params = kube::api::PatchParams::apply("carrick-up").force();
    namespaces.patch(root, &params, &kube::api::Patch::Apply(object)).await.context("--network")?;
    Ok(())
}

fn authority(options: &Options) -> Result<(Slots, Authority)> {
    let trust_domain = TrustDomain::new(&options.trust_domain).context("--trust-domain")?;
    let ca = CaOptions {
        algorithm: options.ca_key_algorithm,
        trust_domain,
        default_ttl: options.workload_cert_ttl,
        max_ttl: options.max_workload_cert_ttl.max(options.workload_cert_ttl),
        ..Default::default()
    };
    let plugged = options.ca_dir.as_deref().map(std::path::absolute).transpose().context("--ca-dir")?;
    let tokens = Tokens::new(options.pkcs11_modules.iter().cloned());
    let (dir, token) = (options.data_dir.join("ca"), options.ca_pkcs11.clone());
    let opening = Opening { dir: &dir, plugged, token, tokens, options: ca };
    Slots::open(opening, SystemTime::now()).context("the certificate authority")
}

/// Where other trust domains' bundles are kept, and ours is served.
fn federation(options: &Options) -> FederationOptions {
    let at = |port: u16, profile| BundleEndpoint { address: (Ipv4Addr::UNSPECIFIED, port).into(), profile };
    let spiffe = options.bundle_port.map(|port| at(port, Profile::Spiffe));
    let files = options.bundle_web_files.clone();
    let web = options.bundle_web_port.zip(files);
    let web = web.map(|(port, (certificate, key))| at(port, Profile::Web { certificate, key }));
    FederationOptions {
        dir: Some(options.data_dir.join("ca")),
        endpoints: spiffe.into_iter().chain(web).collect(),
        ..FederationOptions::default()
    }
}

/// The folder of the ledger of certificates.
pub fn ledger_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger")
}

/// Reads the whole ledger: a chain that does not hold is a reason not to sign anything.
pub(crate) async fn ledger(data_dir: &Path) -> Result<Arc<Ledger>> {
    let dir = ledger_dir(data_dir);
    let open = move || Ledger::open(&dir, LedgerOptions::new(SystemClock::shared()));
    let opened = tokio::task::spawn_blocking(open).await.context("the ledger of certificates")?;
    Ok(Arc::new(opened.context("the ledger of certificates (`carrick certs audit` shows where)")?))
}

fn host_options(options: &Options) -> HostOptions {
    let mut host = HostOptions::new(&options.data_dir);
    if !options.host_names {
        host.hosts_file = None;
    }
    host.api_address = Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, options.api_port));
    host
}

/// Whether pods of this folder still run; they need the rules that are there.
fn pods_remain(data_dir: &Path) -> bool {
    std::fs::read_dir(carrick_pod::options::run_dir(data_dir).join("pods")).is_ok_and(|mut pods| pods.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_has_one_owner_and_a_dying_one_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("carrick-up-lock-{}", std::process::id()));
        let first = lock(&folder).await.unwrap();
        let refused = lock(&folder).await.unwrap_err();
        assert!(refused.to_string().contains("another `carrick up` is running on"), "{refused}");
        let dying = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(first);
        });
        lock(&folder).await.unwrap();
        dying.await.unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
