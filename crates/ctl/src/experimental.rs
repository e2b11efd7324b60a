//! `carrick experimental`: reports that put the API's objects beside what a proxy really runs.
//!
//! Invariant: the texts are pure functions of objects and dump; only `fetch` talks to anybody.

pub mod auth_check;
pub mod authz_check;
pub mod chains;
pub mod describe;
pub mod peer;
pub mod tls_check;

use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use serde_json::Value;

use crate::{cluster::ProxyName, proxy_config::dump};

/// The objects a report looks at, as JSON.
#[derive(Debug, Default, Clone)]
pub struct Objects {
    /// Services of the pod's namespace.
    pub services: Vec<Value>,
    /// PeerAuthentications of every namespace.
    pub peer_authentications: Vec<Value>,
    /// DestinationRules of every namespace.
    pub destination_rules: Vec<Value>,
    /// VirtualServices of every namespace.
    pub virtual_services: Vec<Value>,
    /// Pods that are ingress gateways.
    pub gateways: Vec<Value>,
}

/// Reads the objects.
///
/// # Errors
/// When the API refuses.
pub async fn fetch(client: &Client, namespace: &str) -> Result<Objects> {
    let list = async |group: &str, version: &str, kind: &str| -> Result<Vec<Value>> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let found = api.list(&Default::default()).await.with_context(|| format!("list {kind}s"))?;
        found.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    };
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(client.clone());
    let gateways = pods.list(&kube::api::ListParams::default().labels("istio=ingressgateway")).await?;
    let mut services = list("", "v1", "Service").await?;
    services.retain(|service| service.pointer("/metadata/namespace").and_then(Value::as_str) == Some(namespace));
    Ok(Objects {
        services,
        peer_authentications: list("security.istio.io", "v1", "PeerAuthentication").await?,
        destination_rules: list("networking.istio.io", "v1", "DestinationRule").await?,
        virtual_services: list("networking.istio.io", "v1", "VirtualService").await?,
        gateways: gateways.into_iter().map(|pod| Ok(serde_json::to_value(pod)?)).collect::<Result<_>>()?,
    })
}

/// Which pod or service is described, and from where.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub proxy: ProxyName,
    /// The namespace whose names need no suffix.
    pub namespace: String,
    /// The namespace of mesh-wide objects.
    pub root: String,
    /// The data folder, to reach pods.
    pub data_dir: PathBuf,
    /// Admin port of the proxy.
    pub admin_port: u16,
}

/// The report about a pod.
///
/// # Errors
/// When there is no such pod or its proxy does not answer.
pub async fn describe_pod(client: &Client, wanted: &Wanted) -> Result<String> {
    let pod = serde_json::to_value(wanted.proxy.pod(client).await?)?;
    let objects = fetch(client, &wanted.proxy.namespace).await?;
    let sidecar = ["containers", "initContainers"].iter().any(|kind| {
        let all = pod.pointer(&format!("/spec/{kind}")).and_then(Value::as_array);
        all.into_iter().flatten().any(|container| container.get("name").is_some_and(|name| name == "istio-proxy"))
    });
    let dump = match sidecar {
        true => Some(dump::fetch(client, &wanted.proxy, &wanted.data_dir, wanted.admin_port).await?),
        false => None,
    };
    Ok(describe::pod(&describe::Subject {
        pod: &pod,
        objects: &objects,
        dump: dump.as_ref(),
        namespace: &wanted.namespace,
        root: &wanted.root,
    }))
}

/// The report about a service: its first pod in the mesh.
///
/// # Errors
/// When there is no such service or the proxy does not answer.
pub async fn describe_service(client: &Client, wanted: &Wanted) -> Result<String> {
    let ProxyName { name, namespace, .. } = &wanted.proxy;
    let pods = pods_of(client, name, namespace).await?;
    let mut outside = 0;
    for pod in &pods {
        let proxy = ProxyName { kind: "pod".into(), name: pod.clone(), namespace: namespace.clone() };
        let told = describe_pod(client, &Wanted { proxy, ..wanted.clone() }).await?;
        if !told.contains("is not part of mesh") {
            return Ok(told);
        }
        outside += 1;
    }
    Ok(match outside {
        0 => format!("Service {name:?} has no pods.\n"),
        n => format!("Service {name:?} has no Istio pods.  ({n} pods in service).\n"),
    })
}

/// What servers ask for beside what a proxy does.
///
/// # Errors
/// When the API refuses.
pub async fn tls_check(client: &Client, dump: &dump::Dump, host: Option<&str>, root: &str) -> Result<String> {
    let objects = fetch(client, "").await?;
    Ok(tls_check::show(dump, &objects.peer_authentications, host, root))
}

/// The pods that a service selects.
///
/// # Errors
/// When there is no such service or the API refuses.
pub async fn pods_of(client: &Client, name: &str, namespace: &str) -> Result<Vec<String>> {
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(client.clone(), namespace);
    let service = services.get(name).await.with_context(|| format!("service {name} in namespace {namespace}"))?;
    let selector = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
    if selector.is_empty() {
        return Ok(Vec::new());
    }
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.list(&kube::api::ListParams::default().labels(&labels.join(","))).await?;
    Ok(found.iter().map(ResourceExt::name_any).collect())
}

/// Whether an object is selected by labels; no selector selects everything.
fn selects(selector: Option<&Value>, labels: &Value) -> bool {
    let Some(wanted) = selector.and_then(Value::as_object) else { return true };
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `name.namespace` of an object.
fn dotted(object: &Value) -> String {
    let field = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
    format!("{}.{}", field("name"), field("namespace"))
}
