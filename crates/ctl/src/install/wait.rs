//! Waiting for a cluster: until kinds are served, until a Deployment is ready.
//!
//! Invariant: what never comes is told by its name after the time allowed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

const LOOK: Duration = Duration::from_millis(250);
/// A cluster serves a kind within seconds of its definition.
const KINDS: Duration = Duration::from_secs(60);

/// Until the definitions are established.
pub(super) async fn served(client: &Client, names: &[String]) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let end = Instant::now() + KINDS;
    loop {
        let all = api.list(&ListParams::default()).await.context("custom resource definitions")?;
        let mut missing = Vec::new();
        for name in names {
            let Some(found) = all.iter().find(|d| d.name_any() == *name) else {
                missing.push(name.as_str());
                continue;
            };
            let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let established = conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True");
            if !established && !listed(client, found).await {
                missing.push(name.as_str());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("not served after {} s: {}", KINDS.as_secs(), missing.join(", "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the kind is served whatever its definition's status says: an API may have it built in.
async fn listed(client: &Client, definition: &CustomResourceDefinition) -> bool {
    let Some(version) = definition.spec.versions.first() else { return false };
    let version = format!("{}/{}", definition.spec.group, version.name);
    let known = client.list_api_group_resources(&version).await;
    known.is_ok_and(|known| known.resources.iter().any(|r| r.name == definition.spec.names.plural))
}

/// Until all pods of a Deployment are ready.
pub(super) async fn ready(client: &Client, namespace: &str, name: &str, limit: Duration) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let end = Instant::now() + limit;
    loop {
        let found = api.get(name).await.with_context(|| format!("Deployment {namespace}/{name}"))?;
        let status = found.status.clone().unwrap_or_default();
        let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let current = status.observed_generation >= found.metadata.generation;
        let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
        if current && updated >= wanted && available >= wanted {
            return Ok(());
        }
        let failed = status.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
        // An API without nodes says so, and always will.
        if let Some(why) = failed.filter(|c| c.reason.as_deref() == Some("NoContainerRuntime")) {
            bail!(
                "Deployment {namespace}/{name}: {} (--wait=false does not wait)",
                why.message.as_deref().unwrap_or("there is no container runtime")
            );
        }
        if Instant::now() > end {
            bail!(
                "Deployment {namespace}/{name}: {available} of {wanted} pods are ready after {} s (--wait=false does not wait)",
                limit.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}
