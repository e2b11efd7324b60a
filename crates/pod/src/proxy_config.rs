//! What a pod's proxy starts with (semantics §15): the mesh's `defaultConfig`, ProxyConfig objects and the pod's annotation.
//!
//! Invariant: it is read once, when the pod starts. What cannot be read counts as absent, and is told. Who has the last word is
//! `carrick-inject`'s business.

use std::collections::BTreeMap;

use carrick_api::{ProxyConfig, from_value};
use carrick_inject::proxy_config::Levels;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::Value;

/// The namespace of what holds for the whole mesh.
const ROOT: &str = "istio-system";
/// The mesh's configuration, and where in it.
const MESH: (&str, &str) = ("istio", "mesh");

/// What the API has.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// `defaultConfig` of the mesh.
    pub default: Option<Value>,
    pub objects: Vec<ProxyConfig>,
}

/// Reads what the API has for a namespace.
pub(crate) async fn find(client: &Client, namespace: &str) -> Found {
    let mut found = Found::default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), ROOT);
    let text = match maps.get_opt(MESH.0).await {
        Ok(map) => map.and_then(|map| map.data?.remove(MESH.1)),
        Err(error) => {
            tracing::warn!(%error, "the mesh configuration is not read; the proxy starts without its defaults");
            None
        }
    };
    let mesh = text.and_then(|text| serde_saphyr::from_str::<Value>(&text).ok());
    found.default = mesh.and_then(|mesh| mesh.get("defaultConfig").cloned()).filter(Value::is_object);
    let resource = ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1beta1".to_owned(),
        api_version: "networking.istio.io/v1beta1".to_owned(),
        kind: "ProxyConfig".to_owned(),
        plural: "proxyconfigs".to_owned(),
    };
    for place in std::collections::BTreeSet::from([ROOT, namespace]) {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), place, &resource);
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                let read = |object: &DynamicObject| from_value(&serde_json::to_value(object).ok()?).ok();
                found.objects.extend(list.items.iter().filter_map(read));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => tracing::warn!(%error, place, "ProxyConfigs are not read; the proxy starts without them"),
        }
    }
    found
}

/// What holds for a pod; `None` when nothing is said.
pub(crate) fn effective(
    found: &Found,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    annotation: Option<Value>,
) -> Option<Value> {
    let levels =
        Levels { default: found.default.as_ref(), objects: &found.objects, root: ROOT, namespace, labels, annotation };
    carrick_inject::proxy_config::effective(&levels)
}
