//! `carrick control`: the control plane alone, against a Kubernetes API: a cluster's from inside it, or any by its kubeconfig.
//!
//! Invariant: nothing that must outlive this process is kept on its disk but the ledger of what it signed; the authority's key, who
//! leads, and the mesh's settings are in the cluster. It is ready when everything was listed once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carrick_api::{MeshConfig, MeshNetworks};
use carrick_base::TrustDomain;
use carrick_control::injector::{InjectorOptions, injector};
use carrick_control::leader::{LeaseOptions, election};
use carrick_control::{Control, ControlOptions, Resident, resident};
use carrick_pki::ca::CaOptions;
use carrick_runtime::admin::{AdminServer, Response, Router};
use carrick_runtime::drain;
use carrick_runtime::metrics::{CONTENT_TYPE, Metrics};
use carrick_runtime::tasks::TaskSet;
use clap::Args;
use http::StatusCode;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::{cluster, up};

/// How long everything may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// The Lease of whoever writes, one for all revisions.
pub(crate) const LEASE: &str = "istio-leader";
/// The Leases of those who make what gateways run on, one for each revision, whose name follows.
pub(crate) const GATEWAYS_LEASE: &str = "carrick-gateways-";

/// What can be told to it.
#[derive(Debug, Args)]
pub struct Options {
    /// Name of this control plane among several.
    #[arg(short, long, default_value = "default", value_name = "REVISION")]
    revision: String,
    /// What this cluster is called in a mesh of several.
    #[arg(long, default_value = "Kubernetes", value_name = "ID")]
    cluster_id: String,
    /// Port of xDS and the certificate authority.
    #[arg(long, default_value_t = 15012, value_name = "PORT")]
    xds_port: u16,
    /// Where xDS is served without TLS or proof, to gRPC clients with `xds:///` names alone (Istio's port is 15010); nowhere unless told.
    #[arg(long, value_name = "ADDRESS")]
    plain_xds_address: Option<SocketAddr>,
    /// Port of the webhooks.
    #[arg(long, default_value_t = 15017, value_name = "PORT")]
    webhook_port: u16,
    /// Port of metrics and debug pages, on 127.0.0.1.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
    /// Where metrics and the version are shown to others; nowhere unless told.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// Where probes are answered (/healthz, /ready); nowhere unless told.
    #[arg(long, value_name = "ADDRESS")]
    health_address: Option<SocketAddr>,
    /// More names of this control plane, for its certificate; may be given several times.
    #[arg(long = "server-name", value_name = "NAME")]
    server_names: Vec<String>,
    /// More addresses of this control plane, for its certificate; may be given several times.
    #[arg(long = "server-ip", value_name = "IP")]
    server_ips: Vec<IpAddr>,
    /// Lifetime of a workload certificate whose request names none.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse, value_name = "DURATION")]
    workload_cert_ttl: Duration,
    /// Longest lifetime a workload may ask for.
    #[arg(long, default_value = "2160h", value_parser = crate::duration::parse, value_name = "DURATION")]
    max_workload_cert_ttl: Duration,
    /// What this replica is called; no two may be called the same [default: $POD_NAME, then the host's name and the process].
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    name: Option<String>,
    /// How long a leader's lease holds: a killed one is followed after that.
    #[arg(long, default_value = "15s", value_parser = crate::duration::parse, value_name = "DURATION")]
    lease: Duration,
    /// What to log: error, warn, info, debug, or tracing's directives.
    #[arg(long, default_value = "info", env = "CARRICK_LOG", value_name = "LEVEL")]
    log: String,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot start.
pub async fn run(options: Options, kubeconfig: Option<&Path>, data_dir: &Path, namespace: &str) -> Result<()> {
    let _log = carrick_runtime::telemetry::init(&options.log, false).context("--log")?;
    let stop = up::stopped()?;
    let client = client(kubeconfig, data_dir).await?;
    let map = mesh_map(&options.revision);
    let (mesh_config, mesh_networks) = settings(&client, namespace, &map).await?;
    let trust_domain = TrustDomain::new(&mesh_config.trust_domain).context("meshConfig.trustDomain")?;
    let ca = CaOptions {
        trust_domain,
        default_ttl: options.workload_cert_ttl,
        max_ttl: options.max_workload_cert_ttl.max(options.workload_cert_ttl),
        ..Default::default()
    };
    let authority = Arc::new(resident::authority(&client, namespace, ca).await.context("the certificate authority")?);
    std::fs::create_dir_all(data_dir).with_context(|| data_dir.display().to_string())?;
    let ledger = up::ledger(data_dir).await?;
    authority.record_in(ledger.clone());

    let name = options
        .name
        .clone()
        .unwrap_or_else(|| format!("istiod-{}-{}", carrick_pod::options::host_name(), std::process::id()));
    let (trigger, draining) = drain::channel();
    let mut tasks = TaskSet::new();
    let mut lease = LeaseOptions::new(namespace, LEASE, &name);
    lease.pause = lease.pause.min(options.lease / 5);
    lease.length = options.lease;
    let gateways = LeaseOptions { name: format!("{GATEWAYS_LEASE}{}", options.revision), ..lease.clone() };
    let (leading, electing) = election(client.clone(), lease, draining.clone());
    tasks.spawn("election", electing);
    let (deploys, electing) = election(client.clone(), gateways, draining.clone());
    tasks.spawn("election for gateways", electing);

    // What the ConfigMap says lies over these, and may go again.
    let fixed = json!({"rootNamespace": namespace, "trustDomain": mesh_config.trust_domain});
    let (_unchanged, mesh_file) = tokio::sync::watch::channel(Arc::new(fixed));
    let mut injecting = InjectorOptions::new(namespace, &options.revision);
    injecting.mesh["trustDomain"] = mesh_config.trust_domain.as_str().into();
    let (knows, injects) = tokio::sync::watch::channel(false);
    let (injector, knowing) = injector(client.clone(), injecting, knows, draining.clone());
    tasks.spawn("injector", knowing);
    let metrics = Metrics::new();
    let mut control_options = ControlOptions::new(client, authority, mesh_config);
    control_options.mesh_map = map;
    control_options.mesh_file = Some(mesh_file);
    control_options.ledger = Some(ledger);
    control_options.mesh_networks = mesh_networks;
    control_options.xds_addr.set_port(options.xds_port);
    control_options.plain_xds = options.plain_xds_address;
    control_options.debug_addr.set_port(options.debug_port);
    control_options.name = name;
    control_options.cluster_id = options.cluster_id;
    control_options.server_names = options.server_names;
    if options.revision != "default" {
        control_options.server_names.push(format!("istiod-{}.{namespace}.svc", options.revision));
    }
    control_options.server_ips = options.server_ips;
    control_options.metrics = metrics.clone();
    control_options.leading = Some(leading.clone());
    control_options.resident = Some(Resident {
        revision: options.revision,
        webhooks: (Ipv4Addr::UNSPECIFIED, options.webhook_port).into(),
        inject: Some(injector.answers),
        workloads: Some(injector.workloads),
        deploys: Some(deploys),
    });
    let control = Control::start(control_options).await.context("the control plane")?;
    for (address, router) in [
        (options.health_address, health(control.synced(), injects)),
        (options.metrics_address, shown(metrics, leading)),
    ] {
        let Some(address) = address else { continue };
        let server = AdminServer::bind(address, router).await.with_context(|| address.to_string())?;
        tasks.spawn(format!("pages at {address}"), server.run(draining.clone()));
    }
    drop(draining);
    tokio::pin!(stop);
    tokio::select! {
        () = control.ready() => {
            println!("carrick control is ready: xDS and CA {}, debug http://{}", control.xds_addr(), control.debug_addr());
            stop.await;
        }
        () = &mut stop => {}
    }
    tracing::info!("told to stop");
    trigger.drain(DRAIN).await;
    tasks.abort().await;
    control.drain(DRAIN).await;
    Ok(())
}

/// Inside a cluster its own account, else a kubeconfig.
async fn client(kubeconfig: Option<&Path>, data_dir: &Path) -> Result<Client> {
    if kubeconfig.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        let config = Config::incluster().context("the cluster's API from inside it")?;
        return Client::try_from(config).context("cannot make an API client");
    }
    cluster::client(&cluster::kubeconfig(kubeconfig, data_dir)?).await
}

/// The ConfigMap of a revision's settings.
pub fn mesh_map(revision: &str) -> String {
    if revision == "default" || revision.is_empty() { "istio".to_owned() } else { format!("istio-{revision}") }
}

/// What the mesh's settings are at the start; changes are followed where they may change.
async fn settings(client: &Client, namespace: &str, map: &str) -> Result<(MeshConfig, MeshNetworks)> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = maps.get_opt(map).await.with_context(|| format!("ConfigMap {namespace}/{map}"))?;
    let data = found.and_then(|map| map.data).unwrap_or_default();
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    let mut mesh = up::read_mesh(text("mesh")).with_context(|| format!("ConfigMap {namespace}/{map}, mesh"))?;
    mesh["rootNamespace"] = namespace.into();
    let mesh = MeshConfig::read(&mesh).with_context(|| format!("ConfigMap {namespace}/{map}, mesh"))?;
    let networks = match text("meshNetworks").trim() {
        "" => MeshNetworks::default(),
        text => serde_saphyr::from_str(text).with_context(|| format!("ConfigMap {namespace}/{map}, meshNetworks"))?,
    };
    Ok((mesh, networks))
}

/// Ready is who has listed every object once, and knows what it injects: no pod may get the defaults for want of a moment's patience.
fn health(synced: tokio::sync::watch::Receiver<bool>, injects: tokio::sync::watch::Receiver<bool>) -> Router {
    let mut router = Router::new();
    router.get("/healthz", |_| async { Response::text(StatusCode::OK, "alive\n") });
    router.get("/ready", move |_| {
        let missing = match (*synced.borrow(), *injects.borrow()) {
            (true, true) => None,
            (false, _) => Some("objects are not listed yet\n"),
            (true, false) => Some("the injector's settings are not read yet\n"),
        };
        async move {
            match missing {
                None => Response::text(StatusCode::OK, "ready\n"),
                Some(missing) => Response::text(StatusCode::SERVICE_UNAVAILABLE, missing),
            }
        }
    });
    router
}

fn shown(metrics: Metrics, leading: tokio::sync::watch::Receiver<bool>) -> Router {
    let mut router = Router::new();
    router.get("/metrics", move |_| {
        let text = metrics.render();
        async move { Response::typed(StatusCode::OK, CONTENT_TYPE, text) }
    });
    router.get("/version", move |_| {
        let value: Value = json!({"version": crate::version::OWN, "leads": *leading.borrow()});
        async move { Response::typed(StatusCode::OK, "application/json", format!("{value}\n")) }
    });
    router
}
