//! What the injection webhook answers with: the installation's ConfigMap, the mesh's configuration, ProxyConfigs, the nodes' version.
//!
//! Invariant: an answer takes nobody's time but its own: what the cluster says is read beside, and at most [`AGE`] old. While the API
//! is away, or a configuration cannot be used, the last good one stays. What a pod becomes is decided by `carrick-inject`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use carrick_api::{ProxyConfig, from_value, parse};
use carrick_inject::admission::{Cluster, answer};
use carrick_inject::gateway_api::{Wanted, workload};
use carrick_inject::{Settings, openshift};
use carrick_runtime::drain::Drain;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

/// How old what is known of the cluster may be.
pub const AGE: Duration = Duration::from_secs(3);
/// The same for its nodes' version, which changes with the cluster's.
const NODES_AGE: Duration = Duration::from_secs(60);
/// Kubernetes 1.N whose nodes all know containers that stay from a pod's start.
const NATIVE_SINCE: u32 = 33;

/// Answers reviews: path and `request` to `response`.
pub type Answers = Arc<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// Gives the objects that a gateway runs on.
pub type Workloads = Arc<dyn Fn(Wanted<'_>) -> Result<Vec<Value>, String> + Send + Sync>;

/// What an injector is asked.
#[derive(Clone)]
pub struct Injector {
    /// By the API server, about new pods.
    pub answers: Answers,
    /// By the controller of gateways; an error until the cluster was read once.
    pub workloads: Workloads,
}

/// Where the injector finds what it goes by.
#[derive(Debug, Clone)]
pub struct InjectorOptions {
    pub root_namespace: String,
    /// Name of this control plane among several; `default` for the only one.
    pub revision: String,
    /// ConfigMap with the keys `config` and `values`.
    pub config_map: String,
    /// ConfigMap with the key `mesh`.
    pub mesh_map: String,
    /// The mesh's settings under what the ConfigMap says.
    pub mesh: Value,
    /// Whether nodes know containers that stay from a pod's start; asked of them when `None`.
    pub native_sidecars: Option<bool>,
}

impl InjectorOptions {
    /// The usual names for a revision.
    pub fn new(root_namespace: &str, revision: &str) -> Self {
        let suffix = if matches!(revision, "" | "default") { String::new() } else { format!("-{revision}") };
        Self {
            root_namespace: root_namespace.to_owned(),
            revision: if revision.is_empty() { "default".to_owned() } else { revision.to_owned() },
            config_map: format!("istio-sidecar-injector{suffix}"),
            mesh_map: format!("istio{suffix}"),
            mesh: serde_json::json!({ "trustDomain": "cluster.local" }),
            native_sidecars: None,
        }
    }
}

/// An injector, and the work that keeps what it knows fresh. `knows` becomes true when that has read the cluster once; until then the
/// defaults would be injected.
pub fn injector(
    client: Client,
    options: InjectorOptions,
    knows: watch::Sender<bool>,
    drain: Drain,
) -> (Injector, impl Future<Output = ()> + Send) {
    let known = Arc::new(ArcSwap::from_pointee(Cluster {
        root_namespace: options.root_namespace.clone(),
        revision: options.revision.clone(),
        native_sidecars: options.native_sidecars.unwrap_or_default(),
        mesh: options.mesh.clone(),
        ..Cluster::default()
    }));
    let shown = Arc::clone(&known);
    let answers: Answers = Arc::new(move |path, request| answer(path, request, &shown.load()));
    let (shown, ready) = (Arc::clone(&known), knows.subscribe());
    let workloads: Workloads = Arc::new(move |wanted| {
        if !*ready.borrow() {
            return Err("the cluster was not read yet".to_owned());
        }
        workload(wanted, &shown.load()).map_err(|error| error.to_string())
    });
    (Injector { answers, workloads }, keep(client, options, known, knows, drain))
}

async fn keep(
    client: Client,
    options: InjectorOptions,
    known: Arc<ArcSwap<Cluster>>,
    knows: watch::Sender<bool>,
    drain: Drain,
) {
    let (mut nodes_at, mut told, mut first) = (None::<Instant>, None::<String>, true);
    loop {
        let mut cluster = Cluster::clone(&known.load());
        let fresh_nodes = nodes_at.is_some_and(|at| at.elapsed() < NODES_AGE);
        if options.native_sidecars.is_none() && !fresh_nodes {
            cluster.native_sidecars = native_sidecars(&client).await;
            nodes_at = Some(Instant::now());
        }
        match read(&client, &options, &mut cluster).await {
            Ok(()) => {
                if told.take().is_some() || first {
                    info!(native = cluster.native_sidecars, "the injector knows the cluster");
                }
                first = false;
                known.store(Arc::new(cluster));
                knows.send_if_modified(|knows| !std::mem::replace(knows, true));
            }
            Err(reason) => {
                if told.as_ref() != Some(&reason) {
                    warn!(%reason, "the injector goes by what it knew");
                    told = Some(reason);
                }
            }
        }
        tokio::select! {
            () = drain.graceful() => return,
            () = tokio::time::sleep(AGE) => {}
        }
    }
}

async fn read(client: &Client, options: &InjectorOptions, cluster: &mut Cluster) -> Result<(), String> {
    let words = |what: &'static str| move |error: kube::Error| format!("{what}: {error}");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.root_namespace);
    let map = maps.get_opt(&options.config_map).await.map_err(words("the injector's ConfigMap"))?;
    let data = map.and_then(|map| map.data).unwrap_or_default();
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    cluster.settings = Settings::read(text("config"), text("values")).map_err(|error| error.to_string())?;
    let map = maps.get_opt(&options.mesh_map).await.map_err(words("the mesh's ConfigMap"))?;
    let mesh = map.and_then(|map| map.data?.remove("mesh")).unwrap_or_default();
    let said = parse::documents(mesh.as_bytes()).map_err(|error| format!("the mesh's ConfigMap: {error}"))?.pop();
    cluster.mesh = options.mesh.clone();
    if let Some(said) = said.filter(Value::is_object) {
        carrick_inject::lay(&mut cluster.mesh, &said);
    }
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1beta1", "ProxyConfig");
    let configs: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    cluster.proxy_configs = match configs.list(&ListParams::default()).await {
        Ok(list) => {
            let read = |object: &DynamicObject| from_value::<ProxyConfig>(&serde_json::to_value(object).ok()?).ok();
            list.items.iter().filter_map(read).collect()
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(format!("ProxyConfigs: {error}")),
    };
    cluster.namespace_annotations = namespace_annotations(client).await.map_err(words("namespaces"))?;
    Ok(())
}

/// Annotations of the namespaces to which OpenShift gave users.
///
/// # Errors
/// The cluster does not tell its namespaces.
pub async fn namespace_annotations(client: &Client) -> kube::Result<BTreeMap<String, BTreeMap<String, String>>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespaces = namespaces.list_metadata(&ListParams::default()).await?;
    Ok(namespaces
        .into_iter()
        .filter(|namespace| namespace.annotations().keys().any(|key| key.starts_with(openshift::ANNOTATIONS)))
        .map(|namespace| (namespace.name_any(), namespace.annotations().clone()))
        .collect())
}

/// Whether every node of a cluster knows containers that stay from a pod's start. A cluster without nodes, or one that does not tell,
/// counts as one that does not.
pub async fn native_sidecars(client: &Client) -> bool {
    let nodes: Api<Node> = Api::all(client.clone());
    let Ok(nodes) = nodes.list(&ListParams::default()).await else { return false };
    let version = |node: &Node| {
        let info = node.status.as_ref()?.node_info.as_ref()?;
        info.kubelet_version.trim_start_matches('v').split('.').nth(1)?.parse::<u32>().ok()
    };
    !nodes.items.is_empty() && nodes.iter().all(|node| version(node).is_some_and(|minor| minor >= NATIVE_SINCE))
}
