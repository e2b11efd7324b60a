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

#[cfg(test)]
mod tests {
    use super::super::answering::client;
    use super::*;
    use carrick_chart::installation;
    use serde_json::json;

    /// What stands in a cluster where Helm's release `mesh` has some of ours, and a release that is gone has left others.
    fn there(method: &str, path: &str, query: &str) -> (u16, Value) {
        let release = |kind: &str, namespace: &str, name: &str, release: &str| {
            json!({"kind": kind, "metadata": {"name": name, "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "helmed"}}})
        };
        let mut taken_over = release("ConfigMap", "istio-system", "istio", "mesh");
        taken_over["metadata"]["labels"][OWNED] = "installed-state".into();
        let items = match path {
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions" => vec![
                release("CustomResourceDefinition", "", "gateways.networking.istio.io", "mesh"),
                release("CustomResourceDefinition", "", "sidecars.networking.istio.io", "gone"),
                release("CustomResourceDefinition", "", "unheard.example.org", "mesh"),
            ],
            "/apis/apps/v1/deployments" => vec![
                release("Deployment", "istio-system", "istiod", "mesh"),
                release("Deployment", "elsewhere", "istiod", "mesh"),
            ],
            "/api/v1/services" => vec![release("Service", "istio-system", "istiod", "gone")],
            "/api/v1/configmaps" => vec![taken_over],
            "/api/v1/namespaces/helmed/secrets" if query.contains("mesh") => {
                vec![json!({"metadata": {"name": "sh.helm.release.v1.mesh.v1"}})]
            }
            // An API without this kind.
            "/apis/autoscaling/v2/horizontalpodautoscalers" => return (404, Value::Null),
            _ => Vec::new(),
        };
        assert_eq!(method, "GET", "it only looks");
        (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    #[tokio::test]
    async fn what_a_release_has_is_not_written_over() {
        let all = installation(&json!({"profile": "minimal"})).unwrap();
        let client = client(|method, path, query, _| there(method, path, query));
        let found = foreign(&client, &all).await.unwrap();
        assert!(found.keeps("gateways.networking.istio.io") && !found.keeps("sidecars.networking.istio.io"));
        assert_eq!(
            found.told().collect::<Vec<_>>(),
            ["1 kinds belong to the Helm release mesh of namespace helmed: they are used as they are, and not changed"]
        );
        let refused = found.refuse().unwrap_err().to_string();
        assert!(
            refused
                .starts_with("nothing was changed: the Helm release mesh of namespace helmed has Deployment istiod: "),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn releases_that_may_not_be_looked_at_are_there() {
        let all = installation(&json!({"profile": "minimal"})).unwrap();
        let client = client(|method, path, query, _| match path {
            "/api/v1/namespaces/helmed/secrets" => (403, Value::Null),
            _ => there(method, path, query),
        });
        let refused = foreign(&client, &all).await.unwrap().refuse().unwrap_err().to_string();
        assert!(refused.contains("the Helm release gone of namespace helmed has Service istiod"), "{refused}");
    }
}
