//! What a pod's proxy starts with (semantics §15): the mesh's `defaultConfig`, ProxyConfig objects and the pod's annotation.
//!
//! Invariant: whoever is nearer to the workload has the last word, field by field; of two objects on a level the older one counts.

use std::collections::BTreeMap;

use carrick_api::ProxyConfig;
use carrick_api::istio::proxy_config::ProxyConfigSpec;
use serde_json::{Map, Value, json};

use crate::values::lay;

/// Fields of a ProxyConfig in the order of their message.
const FIELDS: &[&str] = &[
    "configPath",
    "binaryPath",
    "serviceCluster",
    "tracingServiceName",
    "drainDuration",
    "discoveryAddress",
    "discoveryRefreshDelay",
    "zipkinAddress",
    "statsdUdpAddress",
    "envoyMetricsServiceAddress",
    "proxyAdminPort",
    "availabilityZone",
    "controlPlaneAuthPolicy",
    "customConfigFile",
    "statNameLength",
    "concurrency",
    "proxyBootstrapTemplatePath",
    "interceptionMode",
    "tracing",
    "sds",
    "envoyAccessLogService",
    "envoyMetricsService",
    "proxyMetadata",
    "runtimeValues",
    "statusPort",
    "extraStatTags",
    "gatewayTopology",
    "terminationDrainDuration",
    "meshId",
    "readinessProbe",
    "proxyStatsMatcher",
    "holdApplicationUntilProxyStarts",
    "caCertificatesPem",
    "image",
    "privateKeyProvider",
    "proxyHeaders",
    "fileFlushInterval",
    "fileFlushMinSizeKb",
    "statsCompression",
    "connectionSettings",
];

/// Where a field stands in its message; those that it has not come last.
pub(crate) fn rank(field: &str) -> usize {
    FIELDS.iter().position(|known| *known == field).unwrap_or(usize::MAX)
}

/// Whether the message has a field, as JSON or as its definition writes the name.
pub(crate) fn is_field(name: &str) -> bool {
    let snake = |known: &str| -> String {
        let parts = known
            .chars()
            .flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()]));
        parts.collect()
    };
    FIELDS.iter().any(|known| *known == name || snake(known) == name)
}

/// What is said on each level.
#[derive(Debug, Clone)]
pub struct Levels<'a> {
    /// `defaultConfig` of the mesh.
    pub default: Option<&'a Value>,
    pub objects: &'a [ProxyConfig],
    /// The namespace of what holds for the whole mesh.
    pub root: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The pod's annotation `proxy.istio.io/config`.
    pub annotation: Option<Value>,
}

/// What holds for a pod; `None` when nothing is said.
pub fn effective(levels: &Levels<'_>) -> Option<Value> {
    let mut objects: Vec<&ProxyConfig> = levels.objects.iter().collect();
    objects.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    let general = |place: &str| {
        objects.iter().find(|o| o.metadata.namespace == place && !o.spec.selects_workloads()).map(|o| object(&o.spec))
    };
    let own = objects.iter().find(|o| {
        let wanted = o.spec.selector.iter().flat_map(|s| &s.match_labels);
        o.metadata.namespace == levels.namespace
            && o.spec.selects_workloads()
            && wanted.into_iter().all(|(key, value)| levels.labels.get(key) == Some(value))
    });
    let namespaced = (levels.namespace != levels.root).then(|| general(levels.namespace)).flatten();
    let said = [
        levels.default.cloned(),
        general(levels.root),
        namespaced,
        levels.annotation.clone(),
        own.map(|o| object(&o.spec)),
    ];
    let mut all: Option<Value> = None;
    for level in said.into_iter().flatten().filter(Value::is_object) {
        lay(all.get_or_insert_with(|| Value::Object(Map::new())), &level);
    }
    all
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
    if let Some(image) = &spec.image {
        out.insert("image".to_owned(), json!({ "imageType": image.image_type }));
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_api::from_value;

    fn config(namespace: &str, age: u32, spec: Value) -> ProxyConfig {
        let created = format!("2026-01-01T00:00:{age:02}Z");
        let meta = json!({"namespace": namespace, "name": format!("c{age}"), "creationTimestamp": created});
        from_value(&json!({"kind": "ProxyConfig", "metadata": meta, "spec": spec})).expect("readable")
    }

    #[test]
    fn the_nearest_has_the_last_word() {
        let selecting =
            |app: &str, threads: i32| json!({"selector": {"matchLabels": {"app": app}}, "concurrency": threads});
        let default = json!({"concurrency": 1, "proxyMetadata": {"A": "mesh", "B": "mesh"}, "drainDuration": "9s"});
        let mut objects = vec![
            config("istio-system", 1, json!({"concurrency": 2, "environmentVariables": {"B": "root"}})),
            config("shop", 5, json!({"concurrency": 9})),
            config("shop", 3, json!({"environmentVariables": {"C": "shop"}, "image": {"imageType": "debug"}})),
            config("shop", 4, selecting("other", 8)),
            config("bank", 2, json!({"concurrency": 7})),
        ];
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let of = |objects: &[ProxyConfig], annotation| {
            let (root, namespace) = ("istio-system", "shop");
            effective(&Levels { default: Some(&default), objects, root, namespace, labels: &labels, annotation })
        };
        let variables = json!({"A": "mesh", "B": "root", "C": "shop"});
        let image = json!({"imageType": "debug"});
        assert_eq!(
            of(&objects, None),
            Some(json!({"concurrency": 2, "proxyMetadata": variables, "drainDuration": "9s", "image": image}))
        );
        let annotation = Some(json!({"concurrency": 4, "proxyMetadata": {"C": "pod"}}));
        let variables = json!({"A": "mesh", "B": "root", "C": "pod"});
        assert_eq!(
            of(&objects, annotation.clone()),
            Some(json!({"concurrency": 4, "proxyMetadata": variables, "drainDuration": "9s", "image": image}))
        );
        objects.push(config("shop", 6, selecting("web", 6)));
        assert_eq!(of(&objects, annotation).map(|c| c["concurrency"].clone()), Some(json!(6)));
        let nothing =
            Levels { default: None, objects: &[], root: "r", namespace: "n", labels: &labels, annotation: None };
        assert_eq!(effective(&nothing), None);
    }
}
