//! What the API server is answered when it asks about a new pod.
//!
//! Invariant: a pod that is not to be injected is let through as it is; one that is and cannot be is refused, with the reason and the
//! field's name. Which pods are asked about is the business of the webhook's selectors.

use std::collections::BTreeMap;

use carrick_api::ProxyConfig;
use serde_json::{Value, json};

use crate::decide::{Config, PodFacts, required};
use crate::owner;
use crate::pod::{InjectError, Injection, inject};
use crate::proxy_config::{self, Levels};
use crate::settings::Settings;
use crate::values::plain;
use crate::{openshift, patch, written};

/// What the cluster and the installation say.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub settings: Settings,
    /// The mesh's configuration as an object; `{}` is the default one.
    pub mesh: Value,
    /// Every ProxyConfig.
    pub proxy_configs: Vec<ProxyConfig>,
    pub root_namespace: String,
    pub revision: String,
    /// Whether all nodes know containers that stay from the pod's start.
    pub native_sidecars: bool,
    /// Annotations of namespaces, where they say which users are free.
    pub namespace_annotations: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            mesh: json!({}),
            proxy_configs: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            revision: crate::DEFAULT_REVISION.to_owned(),
            native_sidecars: false,
            namespace_annotations: BTreeMap::new(),
        }
    }
}

/// The `response` to an AdmissionReview's `request`, without its `uid`. `path` is the webhook's, whose parameters are pairs after
/// `/inject`: `/inject/cluster/NAME/net/NETWORK`; `:ENV:NAME=VALUE…` is Istio's other form.
pub fn answer(path: &str, request: &Value, cluster: &Cluster) -> Value {
    let Some(object) = request.get("object").filter(|object| object.is_object()) else {
        return refused("the review has no object");
    };
    if object.get("kind").and_then(Value::as_str).is_some_and(|kind| kind != "Pod") {
        return json!({ "allowed": true });
    }
    let mut pod = object.clone();
    let namespace = request.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if let Some(metadata) = pod.pointer_mut("/metadata").and_then(Value::as_object_mut)
        && metadata.get("namespace").is_none_or(|own| own == "")
    {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    match injected(path, &pod, cluster) {
        Ok(None) => json!({ "allowed": true }),
        Ok(Some(mut after)) => {
            // The namespace was filled in for the templates; the API server fills it in by itself.
            if let Some(metadata) = after.pointer_mut("/metadata").and_then(Value::as_object_mut) {
                match object.pointer("/metadata/namespace") {
                    Some(own) => drop(metadata.insert("namespace".to_owned(), own.clone())),
                    None => drop(metadata.shift_remove("namespace")),
                }
            }
            let operations = Value::Array(patch::diff(object, &after)).to_string();
            json!({ "allowed": true, "patchType": "JSONPatch", "patch": base64(operations.as_bytes()) })
        }
        Err(error) => refused(&format!("sidecar injection: {error}")),
    }
}

/// The pod as it should be; `None` where it stays as it is.
///
/// # Errors
/// [`InjectError`] of a pod that cannot be injected as it asks.
pub fn injected(path: &str, pod: &Value, cluster: &Cluster) -> Result<Option<Value>, InjectError> {
    let strings = |name: &str| -> BTreeMap<String, String> {
        let map = pod.get("metadata").and_then(|metadata| metadata.get(name)).and_then(Value::as_object);
        map.into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
    };
    let (labels, annotations) = (strings("labels"), strings("annotations"));
    let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let settings = &cluster.settings;
    let config = Config {
        policy_enabled: settings.policy_enabled,
        never_inject: settings.never_inject.clone(),
        always_inject: settings.always_inject.clone(),
        ..Config::default()
    };
    let facts = PodFacts {
        namespace,
        namespace_labels: &BTreeMap::new(),
        labels: &labels,
        annotations: &annotations,
        host_network: pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)),
    };
    if required(&config, &facts).is_err() {
        return Ok(None);
    }
    let annotated = annotations.get("proxy.istio.io/config");
    let annotated = annotated.and_then(|text| carrick_api::parse::documents(text.as_bytes()).ok()?.pop());
    let proxy_config = proxy_config::effective(&Levels {
        default: cluster.mesh.get("defaultConfig"),
        objects: &cluster.proxy_configs,
        root: &cluster.root_namespace,
        namespace,
        labels: &labels,
        annotation: annotated,
    });
    let nothing = BTreeMap::new();
    let of_namespace = cluster.namespace_annotations.get(namespace).unwrap_or(&nothing);
    let pod = &openshift::with_own_user(pod, of_namespace);
    inject(&Injection {
        pod,
        owner: &owner::of_pod(pod),
        namespace_annotations: of_namespace,
        settings,
        mesh: &cluster.mesh,
        proxy_config: &proxy_config.unwrap_or_else(|| json!({})),
        revision: &cluster.revision,
        native_sidecars: cluster.native_sidecars,
        variables: &variables(path),
    })
    .map(Some)
}

/// The variables in a webhook's path.
fn variables(path: &str) -> BTreeMap<String, String> {
    let rest = path.strip_prefix("/inject").unwrap_or_default().trim_matches('/');
    let name = |key: &str| match key {
        "cluster" => "ISTIO_META_CLUSTER_ID".to_owned(),
        "net" => "ISTIO_META_NETWORK".to_owned(),
        other => other.to_owned(),
    };
    if let Some(pairs) = rest.strip_prefix(":ENV:") {
        let pairs = pairs.split(":ENV:").filter_map(|pair| pair.split_once('='));
        // A slash cannot stand in a path's part.
        return pairs.map(|(key, value)| (name(key), value.replace("--slash--", "/"))).collect();
    }
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let pairs = parts.as_chunks::<2>().0;
    pairs.iter().map(|[key, value]| (name(key), value.replace("--slash--", "/"))).collect()
}

fn refused(message: &str) -> Value {
    json!({ "allowed": false, "status": { "status": "Failure", "message": message, "code": 400 } })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 §4, as patches travel.
fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4_usize {
            let shift = 18_u32.saturating_sub(u32::try_from(place).unwrap_or_default().saturating_mul(6));
            let index = usize::try_from(bits >> shift & 63).unwrap_or_default();
            let letter = ALPHABET.get(index).copied().unwrap_or(b'=');
            out.push(char::from(if place <= chunk.len() { letter } else { b'=' }));
        }
    }
    out
}

/// A pod for people: sorted, without what is empty.
pub fn shown(pod: &Value) -> Value {
    let mut pod = pod.clone();
    written::tidy(&mut pod);
    written::sorted(&pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(labels: Value, annotations: Value) -> Value {
        json!({ "namespace": "shop", "object": { "kind": "Pod",
            "metadata": { "generateName": "web-", "labels": labels, "annotations": annotations },
            "spec": { "containers": [{ "name": "web", "image": "w" }] },
        } })
    }

    #[test]
    fn a_pod_is_patched_let_through_or_refused() {
        let cluster = Cluster::default();
        let patched = answer("/inject", &review(json!({}), json!({})), &cluster);
        assert_eq!((&patched["allowed"], &patched["patchType"]), (&json!(true), &json!("JSONPatch")));
        assert!(patched["patch"].as_str().unwrap().len() > 100);
        let left = answer("/inject", &review(json!({"sidecar.istio.io/inject": "false"}), json!({})), &cluster);
        assert_eq!(left, json!({"allowed": true}));
        let wrong = answer("/inject", &review(json!({}), json!({"status.sidecar.istio.io/port": "x"})), &cluster);
        assert_eq!(wrong["allowed"], false);
        assert!(wrong["status"]["message"].as_str().unwrap().contains("status.sidecar.istio.io/port"), "{wrong}");
        assert_eq!(answer("/inject", &json!({}), &cluster)["allowed"], false);
    }

    #[test]
    fn openshifts_user_of_every_container_is_not_the_proxys() {
        let range = BTreeMap::from([(openshift::UID_RANGE.to_owned(), "5000/100".to_owned())]);
        let openshift = BTreeMap::from([("shop".to_owned(), range)]);
        let cluster = Cluster { namespace_annotations: openshift, ..Cluster::default() };
        let user = |of_application: i64, of_proxy: i64, cluster: &Cluster| {
            let container = |name: &str, user: i64| json!({ "name": name, "image": "auto", "securityContext": { "runAsUser": user } });
            let pod = json!({
                "metadata": { "name": "web", "namespace": "shop" },
                "spec": { "containers": [container("web", of_application), container("istio-proxy", of_proxy)] },
            });
            let pod = injected("/inject", &pod, cluster).unwrap().unwrap();
            let proxy =
                pod["spec"]["containers"].as_array().unwrap().iter().find(|c| c["name"] == "istio-proxy").unwrap();
            proxy["securityContext"]["runAsUser"].as_i64()
        };
        assert_eq!(user(5000, 5000, &cluster), Some(5099));
        assert_eq!(user(5000, 5001, &cluster), Some(5001), "somebody meant it");
        assert_eq!(user(5000, 5000, &Cluster::default()), Some(5000), "no OpenShift");
    }

    #[test]
    fn paths_have_parameters() {
        let told =
            |path: &str| variables(path).into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
        assert_eq!(told("/inject"), "");
        assert_eq!(told("/inject/cluster/east/net/n1"), "ISTIO_META_CLUSTER_ID=east ISTIO_META_NETWORK=n1");
        assert_eq!(told("/inject/:ENV:cluster=a--slash--b:ENV:X=1"), "ISTIO_META_CLUSTER_ID=a/b X=1");
        assert_eq!(told("/inject/cluster"), "");
    }

    #[test]
    fn patches_travel_in_base64() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
