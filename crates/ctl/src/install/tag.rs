//! `carrick tag`: names that stand for revisions, so that namespaces need no new label when the revision behind a name changes.
//!
//! Invariant: a tag's webhooks are those of the chart for its revision, with the bundle that the revision's own webhooks have.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carrick_chart::{Chart, Release};
use clap::{Args, Subcommand};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::{REVISION, agreed};
use crate::apply;
use crate::table::Table;

/// What can be done about tags.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let a tag stand for a revision.
    Set(Setting),
    /// Print the webhooks of a tag.
    Generate(Setting),
    /// List tags, their revisions, and the namespaces that use them.
    #[command(visible_alias = "show")]
    List,
    /// Remove a tag.
    #[command(visible_alias = "delete")]
    Remove {
        /// The tag.
        tag: String,
        /// Do not ask although namespaces use it.
        #[arg(short = 'y', long)]
        skip_confirmation: bool,
    },
}

/// A tag and what it stands for.
#[derive(Debug, Clone, Args)]
pub struct Setting {
    /// The tag.
    tag: String,
    /// The revision that it stands for.
    #[arg(short, long, value_name = "REVISION")]
    revision: String,
    /// Let it stand for this revision although it stands for another.
    #[arg(long)]
    overwrite: bool,
    /// Also inject namespaces that ask for nothing.
    #[arg(long)]
    auto_inject_namespaces: bool,
    /// Do not ask.
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
}

impl Setting {
    /// The tag `default` of the first revision.
    pub(super) fn first(revision: &str) -> Self {
        Self {
            tag: "default".to_owned(),
            revision: revision.to_owned(),
            overwrite: false,
            auto_inject_namespaces: false,
            skip_confirmation: true,
        }
    }
}

const TAG: &str = "istio.io/tag";
/// How long a revision's bundle is waited for.
const BUNDLE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

fn webhook_name(tag: &str) -> String {
    format!("istio-revision-tag-{tag}")
}

/// Runs a command; what it prints.
///
/// # Errors
/// When the API cannot be asked, or there is no such revision or tag.
pub async fn run(command: &Command, client: &Client, namespace: &str) -> Result<String> {
    match command {
        Command::Set(setting) => {
            set_tag(client, setting, namespace).await?;
            let Setting { tag, revision, .. } = setting;
            Ok(format!(
                "Revision tag {tag:?} stands for revision {revision:?}. Namespaces ask for it by:\n  kubectl label namespace NAME istio.io/rev={tag}\n"
            ))
        }
        Command::Generate(setting) => {
            let object = webhook(client, setting, namespace).await?;
            Ok(serde_saphyr::to_string(&object)?)
        }
        Command::List => list(client).await,
        Command::Remove { tag, skip_confirmation } => remove(client, tag, *skip_confirmation).await,
    }
}

/// Sets it.
pub(super) async fn set_tag(client: &Client, setting: &Setting, namespace: &str) -> Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let Setting { tag, revision, .. } = setting;
    if let Some(there) = api.get_opt(&webhook_name(tag)).await.context("the tag's webhooks")? {
        let other = there.labels().get(REVISION).cloned().unwrap_or_default();
        if other != *revision && !setting.overwrite {
            bail!("revision tag {tag:?} stands for revision {other:?}: --overwrite changes that");
        }
    }
    let object = webhook(client, setting, namespace).await?;
    apply::one(client, &object, namespace, false).await?;
    if tag == "default" {
        quiet_default(client).await?;
        default_validator(client, revision, namespace).await?;
    }
    Ok(())
}

/// The webhooks of a revision's installation, by their labels.
async fn of_revision(client: &Client, revision: &str) -> Result<Option<MutatingWebhookConfiguration>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let all = api.list(&ListParams::default().labels(&format!("{REVISION}={revision}"))).await;
    let all = all.context("webhook configurations")?;
    Ok(all.into_iter().find(|w| w.labels().get("app").is_some_and(|a| a == "istiod") && !w.labels().contains_key(TAG)))
}

/// The bundle of a revision's webhooks. A control plane that has just started has it there in a moment; one that does not run never has,
/// and its tag gets none: pods are refused until it runs. `None` without such a revision.
async fn bundle(client: &Client, revision: &str) -> Result<Option<Option<ByteString>>> {
    let end = Instant::now() + BUNDLE;
    loop {
        let Some(installed) = of_revision(client, revision).await? else { return Ok(None) };
        let bundle = installed.webhooks.iter().flatten().find_map(|w| w.client_config.ca_bundle.clone());
        if bundle.as_ref().is_some_and(|b| !b.0.is_empty()) || Instant::now() > end {
            return Ok(Some(bundle));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn webhook(client: &Client, setting: &Setting, namespace: &str) -> Result<Value> {
    let Setting { tag, revision, .. } = setting;
    let Some(bundle) = bundle(client, revision).await? else {
        bail!("there is no control plane of revision {revision:?}");
    };
    let plain = if revision == "default" { "" } else { revision.as_str() };
    let suffix = if plain.is_empty() { String::new() } else { format!("-{plain}") };
    let mut values = kept(client, &suffix, namespace).await?;
    values["revision"] = plain.into();
    values["revisionTags"] = json!([tag]);
    if setting.auto_inject_namespaces {
        values["sidecarInjectorWebhook"]["enableNamespacesByDefault"] = true.into();
    }
    let chart = Chart::named("istiod").context("the chart")?;
    let name = webhook_name(tag);
    let objects = chart.render(&Release { name: &format!("istiod{suffix}"), namespace }, &values)?;
    let mut object =
        objects.into_iter().find(|o| o["metadata"]["name"] == name.as_str()).context("the chart has no tag")?;
    if let Some(bundle) = bundle {
        let bundle = serde_json::to_value(bundle)?;
        for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
            webhook["clientConfig"]["caBundle"] = bundle.clone();
        }
    }
    Ok(object)
}

/// The values that a revision was installed with.
async fn kept(client: &Client, suffix: &str, namespace: &str) -> Result<Value> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt(&format!("values{suffix}")).await.context("the values of the installation")?;
    let text = map.and_then(|map| map.data).and_then(|mut data| data.remove("merged-values")).unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_else(|_| json!({})))
}

/// The control plane without a name no longer injects: the tag `default` does, also what asks for the revision of that name.
async fn quiet_default(client: &Client) -> Result<()> {
    let Some(there) = of_revision(client, "default").await? else { return Ok(()) };
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let name = there.name_any();
    let mut object = serde_json::to_value(&there)?;
    quiet(&mut object);
    // The version too, so that nothing is put back which a control plane wrote meanwhile.
    let version = there.resource_version();
    let patch = json!({"metadata": {"resourceVersion": version}, "webhooks": object["webhooks"]});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.context(name)?;
    Ok(())
}

/// Lets webhooks never match, without removing them.
fn quiet(object: &mut Value) {
    let never = json!({"matchLabels": {"istio.io/deactivated": "never-match"}});
    for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
        webhook["namespaceSelector"] = never.clone();
        webhook["objectSelector"] = never.clone();
    }
}

/// Leaves the webhooks of the control plane without a name quiet where they are about to be applied and the tag `default` is set.
pub(super) async fn keep_quiet(client: &Client, object: &mut Value) -> Result<()> {
    let label = |name: &str| object["metadata"]["labels"][name].as_str();
    let unnamed = label(REVISION) == Some("default") && label(TAG).is_none();
    if object["kind"] != "MutatingWebhookConfiguration" || !unnamed {
        return Ok(());
    }
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    if api.get_opt(&webhook_name("default")).await.context("the default tag's webhooks")?.is_some() {
        quiet(object);
    }
    Ok(())
}

/// Objects that name no revision are judged by the default one.
async fn default_validator(client: &Client, revision: &str, namespace: &str) -> Result<()> {
    let chart = Chart::named("base").context("the chart")?;
    let suffix = if revision == "default" { String::new() } else { format!("-{revision}") };
    let kept = kept(client, &suffix, namespace).await?;
    if kept.pointer("/global/configValidation") == Some(&Value::Bool(false)) {
        return Ok(());
    }
    let url = kept.pointer("/base/validationURL").cloned().unwrap_or_else(|| "".into());
    let base = json!({"enableCRDTemplates": false, "validationURL": url});
    let values = json!({"defaultRevision": revision, "base": base, "global": {"istioNamespace": namespace}});
    for mut object in chart.render(&Release { name: "istio-base", namespace }, &values)? {
        if object["kind"] == "ValidatingWebhookConfiguration" {
            super::plan::label(&mut object, "Istio core", "");
            apply::one(client, &object, namespace, false).await?;
        }
    }
    Ok(())
}

async fn tags(client: &Client) -> Result<Vec<(String, String)>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let all = api.list(&ListParams::default().labels(TAG)).await.context("webhook configurations")?;
    let pair = |w: &MutatingWebhookConfiguration| {
        let label = |name: &str| w.labels().get(name).cloned().unwrap_or_default();
        (label(TAG), label(REVISION))
    };
    let mut tags: Vec<(String, String)> = all.iter().map(pair).collect();
    tags.sort();
    Ok(tags)
}

async fn users(client: &Client, tag: &str) -> Result<Vec<String>> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = api.list(&ListParams::default()).await.context("namespaces")?;
    let uses = |namespace: &&Namespace| {
        let label = |name: &str| namespace.labels().get(name).map(String::as_str);
        label(REVISION) == Some(tag) || (tag == "default" && label("istio-injection") == Some("enabled"))
    };
    Ok(all.iter().filter(uses).map(ResourceExt::name_any).collect())
}

async fn list(client: &Client) -> Result<String> {
    let tags = tags(client).await?;
    if tags.is_empty() {
        return Ok("No Istio revision tags found.\n".to_owned());
    }
    let mut table = Table::new(1, ["TAG", "REVISION", "NAMESPACES"]);
    for (tag, revision) in tags {
        let users = users(client, &tag).await?.join(",");
        table.row([tag, revision, users]);
    }
    Ok(table.to_string())
}

async fn remove(client: &Client, tag: &str, sure: bool) -> Result<String> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    if api.get_opt(&webhook_name(tag)).await.context("the tag's webhooks")?.is_none() {
        bail!("there is no revision tag {tag:?}");
    }
    let users = users(client, tag).await?;
    let question = format!("Namespaces use it and will no longer be injected: {}. Proceed? (y/N) ", users.join(", "));
    if !users.is_empty() && !sure && !agreed(&question)? {
        return Ok("Cancelled.\n".to_owned());
    }
    api.delete(&webhook_name(tag), &DeleteParams::default()).await.context("the tag's webhooks")?;
    Ok(format!("Revision tag {tag} removed\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_analyze::{Object, Objects, analyze};

    /// What analysis says of the webhooks of the control plane without a name, beside those of the tag `default`.
    fn overlaps(without_name: &Value, tag: &Value) -> usize {
        let mut objects = Objects::new("istio-system", true);
        [without_name, tag].into_iter().for_each(|object| objects.add(Object::new(object.clone(), None)));
        objects.complete();
        let now = carrick_api::timestamp::Timestamp::from_system(std::time::SystemTime::UNIX_EPOCH);
        analyze(&objects, &["webhook.Analyzer".to_owned()], now).iter().filter(|m| m.text.contains("overlaps")).count()
    }

    #[tokio::test]
    async fn a_pod_is_not_injected_twice_where_the_default_tag_is_set() {
        let chart = Chart::named("istiod").unwrap();
        let find = |values: Value, name: &str| {
            let release = Release { name: "istiod", namespace: "istio-system" };
            let mut all = chart.render(&release, &values).unwrap().into_iter();
            all.find(|o| o["kind"] == "MutatingWebhookConfiguration" && o["metadata"]["name"] == name).unwrap()
        };
        let mut without_name = find(json!({}), "istio-sidecar-injector");
        let tag = find(json!({"revision": "canary", "revisionTags": ["default"]}), "istio-revision-tag-default");
        assert!(overlaps(&without_name, &tag) > 0);
        let server = |tagged: bool| {
            super::super::answering::client(move |_, path, _, _| {
                assert_eq!(
                    path,
                    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/istio-revision-tag-default"
                );
                if tagged {
                    (200, json!({"metadata": {"name": "istio-revision-tag-default"}}))
                } else {
                    (404, Value::Null)
                }
            })
        };
        keep_quiet(&server(false), &mut without_name).await.unwrap();
        assert!(overlaps(&without_name, &tag) > 0, "without the tag they are in force");
        keep_quiet(&server(true), &mut without_name).await.unwrap();
        assert_eq!(overlaps(&without_name, &tag), 0);
    }
}
