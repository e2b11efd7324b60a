//! What of an installation's objects belongs to somebody's Helm already.
//!
//! Invariant: an object of a Helm release that is there is never written: its kinds are left as they are and used, anything else
//! forbids the installation. What a release left behind when it went (kinds that it keeps) belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use carrick_chart::Installation;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::OWNED;

const MANAGED: &str = "app.kubernetes.io/managed-by=Helm";

/// Kind, namespace (empty for none) and name.
type Place = (String, String, String);

/// Objects that belong to Helm releases, by the release as it is shown.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Definitions of kinds.
    pub kinds: BTreeMap<String, BTreeSet<String>>,
    /// Everything else.
    pub others: BTreeMap<String, BTreeSet<String>>,
}

impl Foreign {
    /// Whether a definition is left as it is.
    pub fn keeps(&self, name: &str) -> bool {
        self.kinds.values().any(|names| names.contains(name))
    }

    /// What is told of kinds that are left as they are.
    pub fn told(&self) -> impl Iterator<Item = String> + '_ {
        self.kinds.iter().map(|(release, names)| {
            format!("{} kinds belong to {release}: they are used as they are, and not changed", names.len())
        })
    }

    /// What forbids an installation.
    pub fn conflicts(&self) -> impl Iterator<Item = String> + '_ {
        self.others.iter().map(|(release, names)| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!(
                "{release} has {}: go on with Helm (`helm upgrade`), remove it first (`helm uninstall`), or install beside it with --revision",
                names.join(", ")
            )
        })
    }

    /// # Errors
    /// When something other than a kind is in the way.
    pub fn refuse(&self) -> Result<()> {
        let conflicts: Vec<String> = self.conflicts().collect();
        if !conflicts.is_empty() {
            bail!("nothing was changed: {}", conflicts.join("\n"));
        }
        Ok(())
    }
}

/// Looks among everything that an installation would write.
///
/// # Errors
/// When the API cannot be asked.
pub(super) async fn foreign(client: &Client, all: &Installation) -> Result<Foreign> {
    let mut wanted: BTreeMap<(String, String), BTreeSet<Place>> = BTreeMap::new();
    for piece in &all.pieces {
        for object in piece.objects()? {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (version, kind) = (text("/apiVersion"), text("/kind"));
            let place = (kind.clone(), text("/metadata/namespace"), text("/metadata/name"));
            wanted.entry((version, kind)).or_default().insert(place);
        }
    }
    let (mut foreign, mut releases) = (Foreign::default(), BTreeMap::new());
    for ((version, kind), places) in wanted {
        let Some(resource) = resource(&version, &kind) else { continue };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let theirs = match api.list(&ListParams::default().labels(MANAGED)).await {
            Ok(theirs) => theirs,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).with_context(|| resource.plural.clone()),
        };
        for object in &theirs {
            let place = (kind.clone(), object.namespace().unwrap_or_default(), object.name_any());
            let ours = object.labels().get(OWNED).is_some_and(|owner| owner == "installed-state");
            if ours || !places.contains(&place) {
                continue;
            }
            let Some(release) = release(client, object, &mut releases).await? else { continue };
            let (map, name) = match kind.as_str() {
                "CustomResourceDefinition" => (&mut foreign.kinds, place.2),
                _ => (&mut foreign.others, format!("{kind} {}", place.2)),
            };
            map.entry(release).or_default().insert(name);
        }
    }
    Ok(foreign)
}

fn resource(version: &str, kind: &str) -> Option<ApiResource> {
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let known = carrick_api::kinds::registry().by_kind(group, kind)?;
    Some(ApiResource {
        group: group.to_owned(),
        version: short.to_owned(),
        api_version: version.to_owned(),
        kind: kind.to_owned(),
        plural: known.plural.to_owned(),
    })
}

/// The release that an object names, if it is there. Who may not look is told that it is.
async fn release(
    client: &Client,
    object: &DynamicObject,
    known: &mut BTreeMap<(String, String), bool>,
) -> Result<Option<String>> {
    let note = |name: &str| object.annotations().get(&format!("meta.helm.sh/{name}")).cloned();
    let (Some(name), Some(namespace)) = (note("release-name"), note("release-namespace")) else { return Ok(None) };
    let shown = format!("the Helm release {name} of namespace {namespace}");
    let key = (namespace, name);
    let there = match known.get(&key) {
        Some(there) => *there,
        None => {
            let secrets: Api<Secret> = Api::namespaced(client.clone(), &key.0);
            let found = secrets.list(&ListParams::default().labels(&format!("owner=helm,name={}", key.1))).await;
            let there = match found {
                Ok(found) => !found.items.is_empty(),
                Err(kube::Error::Api(status)) if status.code == 403 => true,
                Err(error) => return Err(error).context("Helm's releases"),
            };
            known.insert(key, there);
            there
        }
    };
    Ok(there.then_some(shown))
}
