//! What a Gateway of the Gateway API runs on in a cluster: an account, a Deployment and a Service, and where somebody says how large
//! they are an autoscaler and a disruption budget.
//!
//! Invariant: an overlay changes neither which objects they are nor whose; pure, and the pod is the one that the template `gateway` gives, written out: no webhook is needed for it to start, and
//! none changes it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::admission::Cluster;
use crate::lists::{list_mut, proxy_mut};
use crate::owner::Owner;
use crate::pod::{InjectError, Injection, inject};
use crate::{CONTAINER_NAME, overlay, proxy_config};

/// Annotations that tell of injection, which this is not.
const OF_INJECTION: &[&str] = &["inject.istio.io/templates", "sidecar.istio.io/status", "proxy.istio.io/overrides"];
/// A gateway is for those outside of the cluster, unless it says otherwise.
const DEFAULT_TYPE: &str = "LoadBalancer";

/// What a gateway is made of.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its Service, whose metadata all objects have.
    pub service: &'a Value,
    /// An account that somebody else made.
    pub account: Option<&'a str>,
    /// What is laid over the objects, by their kind, one after the other.
    pub overlays: &'a [BTreeMap<&'static str, Value>],
}

/// The objects for a gateway.
///
/// # Errors
/// [`InjectError`] of an annotation that the proxy's pod cannot obey, or of an overlay.
pub fn workload(wanted: Wanted<'_>, cluster: &Cluster) -> Result<Vec<Value>, InjectError> {
    let Wanted { service, account, overlays } = wanted;
    let metadata = service.get("metadata").cloned().unwrap_or_default();
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    let selector = service.pointer("/spec/selector").cloned().unwrap_or_default();
    let template = pod(name, namespace, &metadata, account.unwrap_or(name), cluster)?;
    let mut objects = Vec::new();
    if account.is_none() {
        objects.push(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
    }
    objects.push(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": { "selector": { "matchLabels": selector }, "template": template },
    }));
    objects.push(reached(service));
    let said = |kind: &str| overlays.iter().any(|overlays| overlays.contains_key(kind));
    if said("HorizontalPodAutoscaler") {
        objects.push(json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata,
            "spec": { "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name }, "maxReplicas": 1 },
        }));
    }
    if said("PodDisruptionBudget") {
        objects.push(json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata,
            "spec": { "selector": { "matchLabels": selector } },
        }));
    }
    objects.into_iter().map(|object| laid_over(object, overlays)).collect()
}

/// An object with the overlays of its kind.
///
/// # Errors
/// [`InjectError`] of an overlay that cannot be merged, or makes another object of it.
pub fn laid_over(object: Value, overlays: &[BTreeMap<&'static str, Value>]) -> Result<Value, InjectError> {
    let Value::Object(mut object) = object else { return Ok(object) };
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let before = identity(&object);
    for overlay in overlays.iter().filter_map(|overlays| overlays.get(kind.as_str())?.as_object()) {
        let of = if kind == "Service" { overlay::Keys::Service } else { overlay::Keys::Pod };
        overlay::apply_to(&mut object, overlay, of)
            .map_err(|reason| InjectError::Merge { what: format!("the overlay of {kind}"), reason })?;
    }
    if identity(&object) != before {
        let words = format!("the overlay of {kind} changes which object it is: {}", IDENTITY.join(", "));
        return Err(InjectError::Pod(words));
    }
    Ok(Value::Object(object))
}

/// Fields that say which object it is and whose.
const IDENTITY: [&str; 8] = [
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/uid",
    "/metadata/ownerReferences",
    "/metadata/finalizers",
    "/metadata/managedFields",
];

fn identity(object: &Map<String, Value>) -> [Option<Value>; 8] {
    IDENTITY.map(|pointer| {
        let mut at = pointer.split('/').skip(1);
        let first = object.get(at.next()?)?;
        at.try_fold(first, |value, field| value.get(field)).cloned()
    })
}

/// The Service as a cluster should have it.
fn reached(service: &Value) -> Value {
    let mut service = service.clone();
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return service };
    spec.entry("type").or_insert_with(|| DEFAULT_TYPE.into());
    spec.entry("ipFamilyPolicy").or_insert_with(|| "PreferDualStack".into());
    if let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) {
        // Balancers ask it whether the proxy is ready.
        ports.insert(0, json!({ "name": "status-port", "port": 15021, "protocol": "TCP", "appProtocol": "tcp" }));
    }
    service
}

fn pod(name: &str, namespace: &str, metadata: &Value, account: &str, cluster: &Cluster) -> Result<Value, InjectError> {
    let map = |field: &str| metadata.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut labels = Map::new();
    labels.insert("sidecar.istio.io/inject".to_owned(), "false".into());
    labels.insert("service.istio.io/canonical-name".to_owned(), name.into());
    labels.insert("service.istio.io/canonical-revision".to_owned(), "latest".into());
    labels.extend(map("labels"));
    let mut annotations = map("annotations");
    annotations.insert("inject.istio.io/templates".to_owned(), "gateway".into());
    let probe = |failures: u32, first: u32, period: u32| {
        json!({
            "httpGet": { "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" },
            "failureThreshold": failures, "initialDelaySeconds": first, "periodSeconds": period,
            "successThreshold": 1, "timeoutSeconds": 1,
        })
    };
    let resources = crate::template::installed_resources(&cluster.settings.values);
    let wanted = json!({
        "metadata": { "namespace": namespace, "labels": labels, "annotations": annotations },
        "spec": {
            "serviceAccountName": account,
            "containers": [{
                "name": CONTAINER_NAME,
                "image": "auto",
                "resources": resources,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "privileged": false,
                    "readOnlyRootFilesystem": true,
                    "runAsNonRoot": true,
                },
                "startupProbe": probe(30, 1, 1),
                "readinessProbe": probe(4, 0, 15),
            }],
        },
    });
    let owner = Owner {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
    };
    let strings = |map: Map<String, Value>| -> BTreeMap<String, String> {
        map.into_iter().map(|(key, value)| (key, crate::values::plain(&value))).collect()
    };
    let effective = proxy_config::effective(&proxy_config::Levels {
        default: cluster.mesh.get("defaultConfig"),
        objects: &cluster.proxy_configs,
        root: &cluster.root_namespace,
        namespace,
        labels: &strings(map("labels")),
        annotation: annotations
            .get("proxy.istio.io/config")
            .and_then(|text| carrick_api::parse::documents(text.as_str()?.as_bytes()).ok()?.pop()),
    });
    let nothing = BTreeMap::new();
    let mut pod = inject(&Injection {
        pod: &wanted,
        owner: &owner,
        namespace_annotations: cluster.namespace_annotations.get(namespace).unwrap_or(&nothing),
        settings: &cluster.settings,
        mesh: &cluster.mesh,
        proxy_config: &effective.unwrap_or_else(|| json!({})),
        revision: &cluster.revision,
        native_sidecars: cluster.native_sidecars,
        variables: &nothing,
    })?;
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("namespace");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|annotation, _| !OF_INJECTION.contains(&annotation.as_str()));
        }
    }
    if let Some(ports) = pod.get_mut("spec").and_then(proxy_mut).and_then(|proxy| list_mut(proxy, "ports")) {
        ports.insert(0, json!({ "containerPort": 15021, "name": "status-port", "protocol": "TCP" }));
        ports.insert(0, json!({ "containerPort": 15020, "name": "metrics", "protocol": "TCP" }));
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(account: Option<&str>, annotations: Value) -> Result<Vec<Value>, InjectError> {
        with(account, annotations, &[])
    }

    fn with(
        account: Option<&str>,
        annotations: Value,
        overlays: &[BTreeMap<&'static str, Value>],
    ) -> Result<Vec<Value>, InjectError> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web-istio", "namespace": "shop", "annotations": annotations,
                "labels": { "gateway.networking.k8s.io/gateway-name": "web", "team": "a" },
                "ownerReferences": [{ "kind": "Gateway", "name": "web", "uid": "u" }],
            },
            "spec": { "selector": { "gateway.networking.k8s.io/gateway-name": "web" }, "ports": [{ "name": "http-80", "port": 80 }] },
        });
        workload(Wanted { service: &service, account, overlays }, &Cluster::default())
    }

    #[test]
    fn a_gateway_runs_as_a_deployment_that_needs_no_webhook() {
        let objects = made(None, json!({ "note": "x" })).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ServiceAccount", "Deployment", "Service"]);
        for object in &objects {
            assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "web");
            assert_eq!(object["metadata"]["annotations"]["note"], "x");
        }
        let template = &objects[1]["spec"]["template"];
        assert_eq!(
            objects[1]["spec"]["selector"]["matchLabels"],
            json!({ "gateway.networking.k8s.io/gateway-name": "web" })
        );
        let labels = &template["metadata"]["labels"];
        assert_eq!((&labels["sidecar.istio.io/inject"], &labels["team"]), (&json!("false"), &json!("a")));
        assert_eq!(labels["service.istio.io/canonical-name"], "web-istio");
        let annotations = &template["metadata"]["annotations"];
        assert_eq!(
            (&annotations["istio.io/rev"], &annotations["prometheus.io/port"]),
            (&json!("default"), &json!("15020"))
        );
        assert!(OF_INJECTION.iter().all(|name| annotations.get(name).is_none()), "{annotations}");
        let spec = &template["spec"];
        assert_eq!(spec["serviceAccountName"], "web-istio");
        assert_eq!(spec["securityContext"]["sysctls"][0]["name"], "net.ipv4.ip_unprivileged_port_start");
        let proxy = &spec["containers"][0];
        assert_eq!(proxy["args"][1], "router");
        assert!(proxy["image"].as_str().unwrap().contains("/proxyv2:"), "{proxy}");
        assert_eq!(proxy["securityContext"]["runAsUser"], 1337);
        let ports: Vec<_> =
            proxy["ports"].as_array().unwrap().iter().map(|p| p["containerPort"].as_i64().unwrap()).collect();
        assert_eq!(ports, [15020, 15021, 15090]);
        let env = |name: &str| {
            proxy["env"].as_array().unwrap().iter().find(|e| e["name"] == name).map(|e| e["value"].clone())
        };
        assert_eq!(
            env("ISTIO_META_OWNER"),
            Some(json!("kubernetes://apis/apps/v1/namespaces/shop/deployments/web-istio"))
        );
        assert_eq!(
            (&objects[2]["spec"]["type"], &objects[2]["spec"]["ports"][0]["port"]),
            (&json!("LoadBalancer"), &json!(15021))
        );
        for (kind, object) in [("Deployment", &objects[1]), ("Service", &objects[2])] {
            let group = if kind == "Deployment" { ("apps", "v1") } else { ("", "v1") };
            let schema = carrick_api::kinds::registry().by_kind(group.0, kind).unwrap().schema(group.1);
            assert_eq!(schema.check(object), [], "{kind}");
        }
    }

    #[test]
    fn an_account_of_somebody_elses_is_used_and_bad_words_refuse() {
        let objects = made(Some("robot"), json!({})).unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0]["spec"]["template"]["spec"]["serviceAccountName"], "robot");
        assert!(made(None, json!({ "proxy.istio.io/config": "concurency: 1" })).is_err());
    }

    #[test]
    fn overlays_are_laid_over_their_kinds_one_after_the_other() {
        let of_class = BTreeMap::from([
            (
                "Deployment",
                json!({"spec": {"replicas": 4, "template": {"spec": {"containers": [{"name": "istio-proxy", "resources": {"limits": {"memory": "2Gi"}}}]}}}}),
            ),
            ("Service", json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}})),
            ("PodDisruptionBudget", json!({"spec": {"minAvailable": 1}})),
        ]);
        let own = BTreeMap::from([
            ("Deployment", json!({"spec": {"replicas": null}})),
            ("ServiceAccount", json!({"metadata": {"annotations": {"role": "edge"}}})),
            ("HorizontalPodAutoscaler", json!({"spec": {"minReplicas": 2, "maxReplicas": 5}})),
        ]);
        let objects = with(None, json!({ "note": "x" }), &[of_class, own]).unwrap();
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        assert_eq!(of("ServiceAccount")["metadata"]["annotations"], json!({"note": "x", "role": "edge"}));
        assert_eq!(of("Deployment")["spec"].get("replicas"), None);
        let proxy = &of("Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!((&proxy["resources"]["limits"]["memory"], &proxy["args"][1]), (&json!("2Gi"), &json!("router")));
        let ports = of("Service")["spec"]["ports"].as_array().unwrap();
        assert_eq!(of("Service")["spec"]["type"], "NodePort");
        let http = ports.iter().find(|port| port["port"] == 80).unwrap();
        assert_eq!((ports.len(), &http["name"], &http["nodePort"]), (2, &json!("http-80"), &json!(30080)));
        assert_eq!(
            of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]["gateway.networking.k8s.io/gateway-name"],
            "web"
        );
        assert_eq!(of("PodDisruptionBudget")["spec"]["minAvailable"], 1);
        let scaler = &of("HorizontalPodAutoscaler")["spec"];
        assert_eq!((&scaler["scaleTargetRef"]["name"], &scaler["maxReplicas"]), (&json!("web-istio"), &json!(5)));
        for (group, version, kind) in
            [("autoscaling", "v2", "HorizontalPodAutoscaler"), ("policy", "v1", "PodDisruptionBudget")]
        {
            let schema = carrick_api::kinds::registry().by_kind(group, kind).unwrap().schema(version);
            assert_eq!(schema.check(of(kind)), [], "{kind}");
        }
    }

    #[test]
    fn an_overlay_does_not_make_another_object_of_it() {
        for overlay in [
            json!({"metadata": {"name": "other"}}),
            json!({"metadata": {"namespace": "other"}}),
            json!({"metadata": {"ownerReferences": [{"uid": "v"}]}}),
            json!({"kind": "Secret"}),
        ] {
            let overlays = [BTreeMap::from([("Deployment", overlay.clone())])];
            assert!(with(None, json!({}), &overlays).is_err(), "{overlay}");
        }
    }
}
