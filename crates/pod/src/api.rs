//! The API as this crate uses it: a client from a kubeconfig, and errors in words.
//!
//! Invariant: "does not answer" and "answers no" are different errors.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde_json::Value;

use crate::PodError;

/// A client, and what pods are told of the API.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// The API's certificate authority, PEM; empty when the kubeconfig has none.
    pub(crate) ca_pem: String,
    /// Its address, for messages.
    pub(crate) server: String,
}

/// Reads the kubeconfig; does not talk to the API yet.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<Connection, PodError> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| PodError::Unreachable {
        server: kubeconfig.display().to_string(),
        source,
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| unreachable(error.into()))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| unreachable(error.into()))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let server = config.cluster_url.to_string();
    let ca_pem = config.root_cert.iter().flatten().map(|der| pem(der)).collect();
    let client = Client::try_from(config).map_err(|error| unreachable(error.into()))?;
    Ok(Connection { client, ca_pem, server })
}

/// The namespace, which says at once whether the API answers and whether the pod has a place.
pub(crate) async fn namespace(connection: &Connection, name: &str) -> Result<Namespace, PodError> {
    match Api::<Namespace>::all(connection.client.clone()).get(name).await {
        Ok(namespace) => Ok(namespace),
        Err(error) if not_found(&error) => Err(PodError::Request(format!("namespace {name:?} does not exist"))),
        Err(error @ (kube::Error::Service(_) | kube::Error::HyperError(_))) => {
            Err(PodError::Unreachable { server: connection.server.clone(), source: error.into() })
        }
        Err(error) => Err(PodError::api(format!("read namespace {name}"))(error)),
    }
}

/// The workload that a caller names as `kind/name`.
pub(crate) async fn workload(connection: &Connection, namespace: &str, wanted: &str) -> Result<Value, PodError> {
    let (kind, name) = crate::template::reference(wanted);
    let group = match kind.as_str() {
        "pod" => "/api/v1",
        "deployment" | "statefulset" | "daemonset" | "replicaset" => "/apis/apps/v1",
        "job" | "cronjob" => "/apis/batch/v1",
        _ => {
            return Err(PodError::Request(format!(
                "{wanted:?}: a {kind} in the API has no pods; with -f FILE it may be of any kind"
            )));
        }
    };
    let path = format!("{group}/namespaces/{namespace}/{kind}s/{name}");
    let request = hyper::Request::get(path).body(Vec::new()).map_err(|error| PodError::Request(error.to_string()))?;
    match connection.client.request::<Value>(request).await {
        Ok(object) => Ok(object),
        Err(error) if not_found(&error) => Err(PodError::Request(format!(
            "namespace {namespace:?} has no {kind}/{name}: apply it first, or give its manifest with -f FILE"
        ))),
        Err(error) => Err(PodError::api(format!("read {kind}/{name} in namespace {namespace}"))(error)),
    }
}

/// The label by which pods of one template are told from those of others.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";
/// How long the ReplicaSet of a template that was just written may take.
const SET: Duration = Duration::from_secs(2);

/// The newest ReplicaSet of a Deployment, as an owner of pods.
pub(crate) struct Set {
    pub(crate) name: String,
    /// What its pods carry in [`TEMPLATE_HASH`].
    pub(crate) hash: String,
    pub(crate) owner: OwnerReference,
}

/// Finds it; `None` where the API has no such Deployment, or makes no set of it.
pub(crate) async fn newest_set(client: &Client, namespace: &str, deployment: &str) -> Option<Set> {
    const REVISION: &str = "deployment.kubernetes.io/revision";
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
    let revision = |annotations: &BTreeMap<String, String>| annotations.get(REVISION).cloned();
    let end = Instant::now() + SET;
    while Instant::now() < end {
        let found = deployments.get_opt(deployment).await.ok()??;
        let observed = found.status.as_ref().and_then(|status| status.observed_generation);
        if observed >= found.metadata.generation && revision(found.annotations()).is_some() {
            let all = sets.list(&ListParams::default()).await.ok()?;
            let own = all.into_iter().find(|set| {
                let owned = set.owner_references().iter().any(|owner| Some(&owner.uid) == found.metadata.uid.as_ref());
                owned && revision(set.annotations()) == revision(found.annotations())
            });
            if let Some(set) = own {
                let owner = set.controller_owner_ref(&())?;
                return Some(Set { hash: set.labels().get(TEMPLATE_HASH)?.clone(), name: set.name_any(), owner });
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// What the API answered, in its own words: the client's own text also holds the whole answer as the program sees it.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the API said that there is no such object.
pub(crate) fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
