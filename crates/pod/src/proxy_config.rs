//! What a pod's proxy starts with (semantics §15): the mesh's `defaultConfig`, ProxyConfig objects and the pod's annotation.
//!
//! Invariant: it is read once, when the pod starts; whoever is nearer to the workload has the last word, field by field. What cannot be
//! read counts as absent, and is told.

use std::collections::BTreeMap;

use carrick_api::istio::proxy_config::ProxyConfigSpec;
use carrick_api::{ProxyConfig, from_value};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::{Map, Value};

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
    let mut objects: Vec<&ProxyConfig> = found.objects.iter().collect();
    objects.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    let general = |place: &str| {
        objects.iter().find(|o| o.metadata.namespace == place && !o.spec.selects_workloads()).map(|o| object(&o.spec))
    };
    let own = objects.iter().find(|o| {
        let wanted = o.spec.selector.iter().flat_map(|s| &s.match_labels);
        o.metadata.namespace == namespace
            && o.spec.selects_workloads()
            && wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value))
    });
    let namespaced = (namespace != ROOT).then(|| general(namespace)).flatten();
    let levels = [found.default.clone(), general(ROOT), namespaced, annotation, own.map(|o| object(&o.spec))];
    let said: Vec<Value> = levels.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.iter().fold(Value::Object(Map::new()), over))
}

/// An object, in the words of the annotation.
fn object(spec: &ProxyConfigSpec) -> Value {
    let mut out = Map::new();
    if let Some(threads) = spec.concurrency {
        out.insert("concurrency".to_owned(), threads.into());
    }
    if !spec.environment_variables.is_empty() {
        let variables = spec.environment_variables.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        out.insert("proxyMetadata".to_owned(), Value::Object(variables));
    }
    Value::Object(out)
}

/// One over the other: objects in each other, anything else replaced.
fn over(below: Value, above: &Value) -> Value {
    match (below, above) {
        (Value::Object(mut below), Value::Object(above)) => {
            for (key, value) in above {
                let merged = over(below.remove(key).unwrap_or_default(), value);
                below.insert(key.clone(), merged);
            }
            Value::Object(below)
        }
        (_, above) => above.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(namespace: &str, age: u32, spec: Value) -> ProxyConfig {
        let created = format!("2026-01-01T00:00:{age:02}Z");
        let meta = json!({"namespace": namespace, "name": format!("c{age}"), "creationTimestamp": created});
        from_value(&json!({"kind": "ProxyConfig", "metadata": meta, "spec": spec})).expect("readable")
    }

    #[test]
    fn the_nearest_has_the_last_word() {
        let selecting =
            |app: &str, threads: i32| json!({"selector": {"matchLabels": {"app": app}}, "concurrency": threads});
        let mut found = Found {
            default: Some(
                json!({"concurrency": 1, "proxyMetadata": {"A": "mesh", "B": "mesh"}, "drainDuration": "9s"}),
            ),
            objects: vec![
                config("istio-system", 1, json!({"concurrency": 2, "environmentVariables": {"B": "root"}})),
                config("shop", 5, json!({"concurrency": 9})),
                config("shop", 3, json!({"environmentVariables": {"C": "shop"}})),
                config("shop", 4, selecting("other", 8)),
                config("bank", 2, json!({"concurrency": 7})),
            ],
        };
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let of = |found: &Found, annotation| effective(found, "shop", &labels, annotation);
        let variables = json!({"A": "mesh", "B": "root", "C": "shop"});
        assert_eq!(
            of(&found, None),
            Some(json!({"concurrency": 2, "proxyMetadata": variables, "drainDuration": "9s"}))
        );
        let annotation = Some(json!({"concurrency": 4, "proxyMetadata": {"C": "pod"}}));
        let variables = json!({"A": "mesh", "B": "root", "C": "pod"});
        assert_eq!(
            of(&found, annotation.clone()),
            Some(json!({"concurrency": 4, "proxyMetadata": variables, "drainDuration": "9s"}))
        );
        found.objects.push(config("shop", 6, selecting("web", 6)));
        assert_eq!(of(&found, annotation).map(|c| c["concurrency"].clone()), Some(json!(6)));
        assert_eq!(effective(&Found::default(), "shop", &labels, None), None);
    }
}
