//! Around an installation: namespaces, labels, and what is there already.
//!
//! Invariant: a label of the chart is kept.

use anyhow::{Context, Result};
use carrick_chart::Installation;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::{COMPONENT, OWNED, REVISION, VERSION};
use crate::version::OWN;

/// Names the installation on an object, so that it is found again.
pub(super) fn label(object: &mut Value, component: &str, revision: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    let Some(labels) = labels.as_object_mut() else { return };
    // The gateway's name of its revision is for its pods.
    let revision = if revision.is_empty() { "default" } else { revision };
    let short = match component {
        "Istio core" => "Base",
        "Istiod" => "Pilot",
        "CNI" => "Cni",
        "Ingress gateways" => "IngressGateways",
        _ => "EgressGateways",
    };
    for (name, value) in [(OWNED, "installed-state"), (COMPONENT, short), (VERSION, OWN), (REVISION, revision)] {
        // What belongs to all revisions belongs to none.
        if name == REVISION && matches!(short, "Base" | "Cni") {
            continue;
        }
        labels.entry(name).or_insert_with(|| value.into());
    }
}

/// Makes the namespaces that are missing; gives which those were.
pub(super) async fn make_namespaces(client: &Client, names: &[&str], dry: bool) -> Result<Vec<String>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let mut fresh = Vec::new();
    for name in names {
        if api.get_opt(name).await.with_context(|| format!("namespace {name}"))?.is_some() {
            continue;
        }
        fresh.push((*name).to_owned());
        if dry {
            continue;
        }
        let labels = json!({OWNED: "installed-state", COMPONENT: "Namespace"});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let params = PatchParams::apply("carrick-apply");
        api.patch(name, &params, &Patch::Apply(&object)).await.with_context(|| format!("namespace {name}"))?;
    }
    Ok(fresh)
}

/// The version of the `carrick up` that is the control plane of this API itself.
pub(super) async fn within(client: &Client, root: &str) -> Result<Option<String>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_opt(root).await.with_context(|| format!("namespace {root}"))?;
    Ok(found.and_then(|namespace| namespace.annotations().get(crate::up::CONTROL_PLANE).cloned()))
}

/// Whether an object is needed beside a `carrick up`, which is the control plane itself and injects without a webhook.
pub(super) fn is_around(component: &str, kind: &str, name: &str) -> bool {
    match component {
        "Istio core" | "CNI" => false,
        "Istiod" => kind == "ConfigMap" && name == "istio",
        _ => kind != "CustomResourceDefinition" && !kind.ends_with("WebhookConfiguration"),
    }
}

/// The version of the control plane that is to be replaced, if there is one.
pub(super) async fn version_of(client: &Client, all: &Installation) -> Result<Option<String>> {
    let suffix = if all.revision.is_empty() { String::new() } else { format!("-{}", all.revision) };
    let api: Api<Deployment> = Api::namespaced(client.clone(), &all.namespace);
    let found = api.get_opt(&format!("istiod{suffix}")).await.context("the control plane's Deployment")?;
    Ok(found.map(|deployment| {
        let label = |name: &str| deployment.labels().get(name).cloned();
        label("app.kubernetes.io/version").or_else(|| label(VERSION)).unwrap_or_else(|| "unknown".to_owned())
    }))
}

/// Whether some control plane injects what names no revision.
pub(super) async fn has_default(client: &Client) -> Result<bool> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let all = api.list(&ListParams::default()).await.context("webhook configurations")?;
    let default = |webhook: &MutatingWebhookConfiguration| {
        let label = |name: &str| webhook.labels().get(name).map(String::as_str);
        label("istio.io/tag") == Some("default")
            || (label("app") == Some("istiod") && label(REVISION) == Some("default") && label("istio.io/tag").is_none())
    };
    Ok(all.iter().any(default))
}
