//! `carrick uninstall`: a revision, or with `--purge` everything.
//!
//! Invariant: what goes is what carries the labels of an installation, and what a control plane made by itself and marked as its own;
//! webhooks go first, so that nothing is refused for want of somebody who answers, and rights before what is written by them, since pods of
//! a Deployment that is gone have their time to end. Plugged-in keys (`cacerts`) stay.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::{COMPONENT, OWNED, REVISION, agreed};
use crate::control::{GATEWAYS_LEASE, LEASE};

/// Who serves classes of the Gateway API that a control plane has made.
const CONTROLLER: &str = "istio.io/gateway-controller";

/// What can be told to it.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Remove every control plane, all kinds of the mesh with their objects, and what control planes made.
    #[arg(long, conflicts_with = "revision")]
    purge: bool,
    /// The control plane to remove [default: the one without a name].
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,
    /// Do not ask.
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Tell what would go, and remove nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Group, version, kind and plural of all that may have been installed or made, in the order in which it goes.
const KINDS: [(&str, &str, &str, &str); 17] = [
    ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("apps", "v1", "Deployment", "deployments"),
    ("apps", "v1", "DaemonSet", "daemonsets"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    ("", "v1", "Service", "services"),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    ("", "v1", "Namespace", "namespaces"),
];

/// How long a control plane that is ending may go on to write, since API servers remember for a while who may what.
const AFTERMATH: Duration = Duration::from_secs(1);
/// How often it is looked for what came back.
const LOOKS: u32 = 30;

/// An object that is to go.
struct Doomed {
    resource: ApiResource,
    namespace: Option<String>,
    name: String,
}

impl Doomed {
    fn of(resource: &ApiResource, object: &DynamicObject) -> Self {
        Self { resource: resource.clone(), namespace: object.namespace(), name: object.name_any() }
    }

    fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }

    fn shown(&self) -> String {
        let kind = self.resource.kind.to_ascii_lowercase();
        match &self.namespace {
            Some(namespace) => format!("{kind}/{} in {namespace}", self.name),
            None => format!("{kind}/{}", self.name),
        }
    }
}

fn resource((group, version, kind, plural): (&str, &str, &str, &str)) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Removes; gives 0 when everything that was found is gone.
///
/// # Errors
/// When the API cannot be asked, or refuses.
pub async fn uninstall(options: &Uninstall, client: &Client, namespace: &str) -> Result<u8> {
    let doomed = find(options, client, namespace).await?;
    if doomed.is_empty() {
        println!("There is nothing to remove.");
        return Ok(0);
    }
    for object in &doomed {
        println!("{}{}", object.shown(), if options.dry_run { " would be removed" } else { "" });
    }
    if options.dry_run {
        return Ok(0);
    }
    let question = format!("These {} objects will be removed. Proceed? (y/N) ", doomed.len());
    if !options.skip_confirmation && !agreed(&question)? {
        println!("Cancelled.");
        return Ok(1);
    }
    remove_all(client, &doomed).await?;
    // What a control plane that is still ending has put right meanwhile.
    for _ in 0..if options.purge { LOOKS } else { 0 } {
        tokio::time::sleep(AFTERMATH).await;
        let back = find(options, client, namespace).await?;
        if back.is_empty() {
            break;
        }
        remove_all(client, &back).await?;
    }
    println!("✔ Uninstall complete");
    Ok(0)
}

async fn remove_all(client: &Client, doomed: &[Doomed]) -> Result<()> {
    for object in doomed {
        match object.api(client).delete(&object.name, &DeleteParams::background()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| object.shown()),
        }
    }
    Ok(())
}

async fn find(options: &Uninstall, client: &Client, namespace: &str) -> Result<Vec<Doomed>> {
    let revision = options.revision.as_deref().unwrap_or("default");
    let mut doomed = Vec::new();
    for kind in KINDS {
        let resource = resource(kind);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let all = match api.list(&ListParams::default()).await {
            Ok(all) => all,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).with_context(|| resource.plural.clone()),
        };
        let goes = |object: &&DynamicObject| {
            if object.metadata.deletion_timestamp.is_some() {
                return false;
            }
            let label = |name: &str| object.labels().get(name).map(String::as_str);
            let installed = label(OWNED) == Some("installed-state") && label(COMPONENT).is_some();
            if options.purge {
                installed || made(object, &resource.kind, namespace)
            } else {
                installed && label(REVISION) == Some(revision) && label(COMPONENT) == Some("Pilot")
                    || label("istio.io/tag").is_some() && label(REVISION) == Some(revision)
            }
        };
        doomed.extend(all.iter().filter(goes).map(|object| Doomed::of(&resource, object)));
    }
    let leases = resource(("coordination.k8s.io", "v1", "Lease", "leases"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &leases);
    let ours = |lease: &&DynamicObject| {
        let name = lease.name_any();
        let of = name.strip_prefix(GATEWAYS_LEASE);
        if options.purge { name == LEASE || of.is_some() } else { of == Some(revision) }
    };
    let all = api.list(&ListParams::default()).await.context("leases")?;
    doomed.extend(all.iter().filter(ours).map(|object| Doomed::of(&leases, object)));
    if options.purge {
        let classes = resource(("gateway.networking.k8s.io", "v1", "GatewayClass", "gatewayclasses"));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &classes);
        match api.list(&ListParams::default()).await {
            Ok(all) => {
                let ours = |o: &&DynamicObject| {
                    o.data.pointer("/spec/controllerName").and_then(Value::as_str) == Some(CONTROLLER)
                };
                doomed.extend(all.iter().filter(ours).map(|object| Doomed::of(&classes, object)));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).context("gateway classes"),
        }
        // Plugged-in keys are somebody's own: their namespace stays with them.
        let secrets = resource(("", "v1", "Secret", "secrets"));
        if of_one(client, &secrets, Some(namespace), "cacerts").await?.is_some() {
            doomed.retain(|object| object.resource.kind != "Namespace" || object.name != namespace);
        }
    }
    Ok(doomed)
}

/// What a control plane made by itself.
fn made(object: &DynamicObject, kind: &str, namespace: &str) -> bool {
    let label = |name: &str| object.labels().get(name).map(String::as_str);
    match kind {
        "ConfigMap" => object.name_any() == "istio-ca-root-cert" && label("istio.io/config") == Some("true"),
        "Secret" => object.name_any() == "istio-ca-secret" && object.namespace().as_deref() == Some(namespace),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => label("istio.io/tag").is_some(),
        _ => false,
    }
}

async fn of_one(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Doomed>> {
    let doomed = Doomed { resource: resource.clone(), namespace: namespace.map(str::to_owned), name: name.to_owned() };
    let there = doomed.api(client).get_opt(name).await.with_context(|| doomed.shown())?;
    Ok(there.filter(|there| there.metadata.deletion_timestamp.is_none()).map(|_| doomed))
}
