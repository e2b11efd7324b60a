//! What is to be installed: profiles and IstioOperator's fields → charts with values.
//!
//! Invariant: every field has an effect or is refused by its path; nothing is silently left out.

use serde_json::{Map, Value, json};

use crate::{Chart, ChartError, Release, merge, ordered};

/// Everything to be installed.
#[derive(Debug, Clone, PartialEq)]
pub struct Installation {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of the control plane among several; empty for the only one.
    pub revision: String,
    /// The profile it began with.
    pub profile: String,
    /// Charts, in the order in which they are installed.
    pub pieces: Vec<Piece>,
}

/// One chart to be installed.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// What it is called when it is told about: `Istio core`, `CNI`, `Istiod`, `Ingress gateways`, `Egress gateways`.
    pub component: &'static str,
    pub chart: &'static str,
    pub release: String,
    pub namespace: String,
    pub values: Value,
}

impl Piece {
    /// Its objects, in the order in which they are applied.
    ///
    /// # Errors
    /// When the chart does not render with these values.
    pub fn objects(&self) -> Result<Vec<Value>, ChartError> {
        let chart = Chart::named(self.chart).ok_or_else(|| ChartError::Values(format!("no chart {:?}", self.chart)))?;
        let release = Release { name: &self.release, namespace: &self.namespace };
        Ok(ordered(chart.render(&release, &self.values)?))
    }
}

/// A starting point of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Default,
    Demo,
    Minimal,
    Empty,
    Preview,
    Stable,
}

impl Profile {
    const ALL: [(&'static str, Self); 6] = [
        ("default", Self::Default),
        ("demo", Self::Demo),
        ("minimal", Self::Minimal),
        ("empty", Self::Empty),
        ("preview", Self::Preview),
        ("stable", Self::Stable),
    ];

    fn named(name: &str) -> Result<Self, ChartError> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        known.map(|(_, profile)| *profile).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            ChartError::Values(format!("there is no profile {name:?} here: {}", names.join(", ")))
        })
    }

    /// The fields that it sets.
    fn fields(self) -> Value {
        let gateways = |enabled: bool, name: &str| json!([{"name": name, "enabled": enabled}]);
        let with = |core: bool, ingress: bool, egress: bool| {
            json!({"components": {
                "base": {"enabled": core},
                "pilot": {"enabled": core},
                "ingressGateways": gateways(ingress, "istio-ingressgateway"),
                "egressGateways": gateways(egress, "istio-egressgateway"),
            }})
        };
        match self {
            Self::Default | Self::Preview | Self::Stable => with(true, true, false),
            Self::Minimal => with(true, false, false),
            Self::Empty => with(false, false, false),
            Self::Demo => {
                let mut fields = with(true, true, true);
                let small = json!({"requests": {"cpu": "10m", "memory": "40Mi"}});
                merge(
                    &mut fields,
                    &json!({
                        "meshConfig": {"accessLogFile": "/dev/stdout", "defaultConfig": {"tracing": {"sampling": 100}}},
                        "values": {
                            "global": {"proxy": {"resources": small}},
                            "pilot": {"autoscaleEnabled": false, "resources": {"requests": {"cpu": "10m", "memory": "100Mi"}}},
                            "gateways": {
                                "istio-ingressgateway": {"autoscaleEnabled": false, "resources": small},
                                "istio-egressgateway": {"autoscaleEnabled": false, "resources": small},
                            },
                        },
                    }),
                );
                fields
            }
        }
    }
}

/// Names of `spec` that are understood.
const FIELDS: [&str; 11] = [
    "profile",
    "hub",
    "tag",
    "revision",
    "namespace",
    "meshConfig",
    "components",
    "values",
    "unvalidatedValues",
    "compatibilityVersion",
    "installPackagePath",
];

/// What the spec of an IstioOperator asks for.
///
/// # Errors
/// A field or a profile that is not known here, by its path.
pub fn installation(spec: &Value) -> Result<Installation, ChartError> {
    only(spec, &FIELDS, "")?;
    let text =
        |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let profile = Some(text(spec, "/profile")).filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
    let mut all = Profile::named(&profile)?.fields();
    overlay(&mut all, spec);
    if let Some(version) = all.get("compatibilityVersion").filter(|v| !v.is_null() && **v != "") {
        return Err(ChartError::Values(format!("compatibilityVersion {version}: there is no older behaviour to keep")));
    }

    let namespace = [text(&all, "/namespace"), text(&all, "/values/global/istioNamespace"), "istio-system".to_owned()];
    let namespace = namespace.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let revision = [text(&all, "/revision"), text(&all, "/values/revision")];
    let revision = revision.into_iter().find(|name| !name.is_empty() && name != "default").unwrap_or_default();
    let mut shared = json!({"global": {"istioNamespace": namespace}, "revision": revision});
    for (field, path) in [("hub", "hub"), ("tag", "tag")] {
        if let Some(value) = all.get(field).and_then(scalar) {
            shared["global"][path] = value.into();
        }
    }
    if let Some(config) = all.get("meshConfig") {
        shared["meshConfig"] = config.clone();
    }
    let mut given = all.get("values").cloned().unwrap_or_else(|| json!({}));
    if let Some(more) = all.get("unvalidatedValues") {
        merge(&mut given, more);
    }
    let pilot = given.get("pilot").cloned().unwrap_or_else(|| json!({}));
    let gateways = given.get("gateways").cloned().unwrap_or_else(|| json!({}));
    let cni = given.get("cni").cloned().unwrap_or_else(|| json!({}));
    if let Some(fields) = given.as_object_mut() {
        fields.retain(|name, _| !["pilot", "gateways", "profile", "cni"].contains(&name.as_str()));
    }
    let components = all.get("components").cloned().unwrap_or_else(|| json!({}));
    only(&components, &["base", "pilot", "ingressGateways", "egressGateways", "cni", "ztunnel"], "components.")?;
    if components.pointer("/ztunnel/enabled") == Some(&Value::Bool(true)) {
        return Err(ChartError::Values("components.ztunnel: there is no such component here".to_owned()));
    }

    let mut pieces = Vec::new();
    let enabled = |name: &str| components.pointer(&format!("/{name}/enabled")) == Some(&Value::Bool(true));
    if enabled("base") {
        let mut values = given.clone();
        merge(&mut values, &shared);
        if values.get("defaultRevision").is_none() && !revision.is_empty() {
            values["defaultRevision"] = "".into();
        }
        pieces.push(Piece {
            component: "Istio core",
            chart: "base",
            release: "istio-base".to_owned(),
            namespace: namespace.clone(),
            values,
        });
    }
    if enabled("cni") {
        pieces.push(plugin(components.get("cni").unwrap_or(&Value::Null), &shared, &cni, &namespace)?);
    }
    if enabled("pilot") {
        let mut values = shared.clone();
        // Who installs the plugin wants its pods without capabilities.
        values["cni"] = json!({"enabled": enabled("cni")});
        merge(&mut values, &given);
        merge(&mut values, &json!({"gateways": of_pods(&gateways)}));
        merge(&mut values, &pilot);
        values["revision"] = revision.as_str().into();
        let component = components.get("pilot").cloned().unwrap_or(Value::Null);
        only(&component, &["enabled", "namespace", "hub", "tag", "k8s"], "components.pilot.")?;
        for field in ["hub", "tag"] {
            if let Some(value) = component.get(field).and_then(scalar) {
                values[field] = value.into();
            }
        }
        merge(&mut values, &settings(component.get("k8s"), "components.pilot.k8s.", "")?);
        let suffix = if revision.is_empty() { String::new() } else { format!("-{revision}") };
        pieces.push(Piece {
            component: "Istiod",
            chart: "istiod",
            release: format!("istiod{suffix}"),
            namespace: namespace.clone(),
            values,
        });
    }
    for (list, component, label) in [
        ("ingressGateways", "Ingress gateways", "istio-ingressgateway"),
        ("egressGateways", "Egress gateways", "istio-egressgateway"),
    ] {
        for gateway in components.get(list).and_then(Value::as_array).into_iter().flatten() {
            let at = format!("components.{list}.");
            only(gateway, &["name", "enabled", "namespace", "label", "k8s", "hub", "tag"], &at)?;
            if gateway.get("enabled") != Some(&Value::Bool(true)) {
                continue;
            }
            let name = Some(text(gateway, "/name")).filter(|name| !name.is_empty()).unwrap_or_else(|| label.to_owned());
            let place = Some(text(gateway, "/namespace")).filter(|name| !name.is_empty());
            let mut values = json!({"name": name, "revision": revision});
            if label == "istio-egressgateway" {
                values["service"] = json!({"type": "ClusterIP"});
            }
            merge(
                &mut values,
                &of_gateway(gateways.get(label).unwrap_or(&Value::Null), &format!("values.gateways.{label}."))?,
            );
            if let Some(labels) = gateway.get("label") {
                values["labels"] = labels.clone();
            }
            merge(&mut values, &settings(gateway.get("k8s"), &format!("{at}k8s."), "gateway")?);
            pieces.push(Piece {
                component,
                chart: "gateway",
                release: name,
                namespace: place.unwrap_or_else(|| namespace.clone()),
                values,
            });
        }
    }
    Ok(Installation { namespace, revision, profile, pieces })
}

/// The CNI plugin's chart.
fn plugin(component: &Value, shared: &Value, given: &Value, namespace: &str) -> Result<Piece, ChartError> {
    only(component, &["enabled", "namespace", "hub", "tag", "k8s"], "components.cni.")?;
    const VALUES: [&str; 15] = [
        "affinity",
        "chained",
        "cniBinDir",
        "cniConfDir",
        "env",
        "excludeNamespaces",
        "hub",
        "image",
        "podAnnotations",
        "podLabels",
        "pullPolicy",
        "repair",
        "resources",
        "seLinuxOptions",
        "tolerations",
    ];
    only(given, &VALUES, "values.cni.")?;
    if given.get("chained") == Some(&Value::Bool(false)) {
        return Err(ChartError::Values("values.cni.chained: the plugin is part of the node's chain here".to_owned()));
    }
    let repair = given.get("repair").cloned().unwrap_or_else(|| json!({}));
    only(&repair, &["enabled", "deletePods"], "values.cni.repair.")?;
    let mut values = shared.clone();
    let mut own = given.clone();
    if let Some(fields) = own.as_object_mut() {
        fields.retain(|name, _| name != "chained" && name != "repair");
    }
    merge(&mut values, &own);
    // Deleting is the only way in which a pod is mended here.
    let asked = [repair.get("enabled"), repair.get("deletePods")];
    if asked.iter().flatten().any(|asked| **asked == Value::Bool(false)) {
        values["repair"] = json!({"enabled": false});
    }
    for field in ["hub", "tag"] {
        if let Some(value) = component.get(field).and_then(scalar) {
            values[field] = value.into();
        }
    }
    let settings = settings(component.get("k8s"), "components.cni.k8s.", "")?;
    only(&settings, &["affinity", "env", "podAnnotations", "resources", "tolerations"], "components.cni.k8s.")?;
    merge(&mut values, &settings);
    let place = component.get("namespace").and_then(Value::as_str).filter(|name| !name.is_empty());
    let namespace = place.unwrap_or(namespace).to_owned();
    Ok(Piece { component: "CNI", chart: "cni", release: "istio-cni".to_owned(), namespace, values })
}

/// What of the gateways' values is for pods that are injected as gateways, not for a gateway's chart.
fn of_pods(gateways: &Value) -> Value {
    let known = |name: &str| gateways.get(name).map(|value| (name.to_owned(), value.clone()));
    Value::Object(["securityContext", "seccompProfile"].into_iter().filter_map(known).collect())
}

/// Lays a spec on a profile: lists of gateways merge by name.
fn overlay(base: &mut Value, over: &Value) {
    let mut plain = over.clone();
    for list in ["ingressGateways", "egressGateways"] {
        let pointer = format!("/components/{list}");
        let Some(given) = plain.pointer_mut(&pointer).map(Value::take) else { continue };
        let mut known = base.pointer(&pointer).and_then(Value::as_array).cloned().unwrap_or_default();
        for gateway in given.as_array().into_iter().flatten() {
            match known.iter_mut().find(|k| gateway.get("name").is_none() || k.get("name") == gateway.get("name")) {
                Some(same) => merge(same, gateway),
                None => known.push(gateway.clone()),
            }
        }
        if let Some(slot) = plain.pointer_mut(&pointer) {
            *slot = known.into();
        }
    }
    merge(base, &plain);
}

/// The Kubernetes settings of a component.
fn settings(given: Option<&Value>, at: &str, chart: &str) -> Result<Value, ChartError> {
    let Some(given) = given.filter(|given| !given.is_null()) else { return Ok(json!({})) };
    let known = [
        "affinity",
        "env",
        "hpaSpec",
        "nodeSelector",
        "podAnnotations",
        "replicaCount",
        "resources",
        "service",
        "serviceAnnotations",
        "tolerations",
    ];
    only(given, &known, at)?;
    let mut values = Map::new();
    for name in ["affinity", "nodeSelector", "podAnnotations", "replicaCount", "resources", "tolerations"] {
        values.extend(given.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    if let Some(list) = given.get("env").and_then(Value::as_array) {
        let mut env = Map::new();
        for entry in list {
            only(entry, &["name", "value"], &format!("{at}env."))?;
            let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
            env.insert(name.to_owned(), entry.get("value").cloned().unwrap_or_else(|| "".into()));
        }
        values.insert("env".to_owned(), env.into());
    }
    if let Some(spec) = given.get("hpaSpec") {
        only(spec, &["minReplicas", "maxReplicas", "scaleTargetRef", "metrics"], &format!("{at}hpaSpec."))?;
        let bounds = [("minReplicas", "autoscaleMin"), ("maxReplicas", "autoscaleMax")];
        for (theirs, ours) in bounds {
            let Some(value) = spec.get(theirs) else { continue };
            if chart == "gateway" {
                let slot = values.entry("autoscaling").or_insert_with(|| json!({}));
                slot[theirs] = value.clone();
            } else {
                values.insert(ours.to_owned(), value.clone());
            }
        }
    }
    if let Some(service) = given.get("service") {
        if chart != "gateway" {
            return Err(ChartError::Values(format!("{at}service: not for this component")));
        }
        values.insert("service".to_owned(), service.clone());
    }
    if let Some(annotations) = given.get("serviceAnnotations") {
        if chart == "gateway" {
            let slot = values.entry("service").or_insert_with(|| json!({}));
            slot["annotations"] = annotations.clone();
        } else {
            values.insert("serviceAnnotations".to_owned(), annotations.clone());
        }
    }
    Ok(values.into())
}

/// The values of the first gateway charts, in today's names.
fn of_gateway(given: &Value, at: &str) -> Result<Value, ChartError> {
    let mut values = json!({});
    for (name, value) in given.as_object().into_iter().flatten() {
        match name.as_str() {
            "type" => values["service"]["type"] = value.clone(),
            "ports" => values["service"]["ports"] = value.clone(),
            "serviceAnnotations" => values["service"]["annotations"] = value.clone(),
            "loadBalancerIP" | "externalTrafficPolicy" | "loadBalancerSourceRanges" | "externalIPs" => {
                values["service"][name] = value.clone();
            }
            "autoscaleEnabled" => values["autoscaling"]["enabled"] = value.clone(),
            "autoscaleMin" => values["autoscaling"]["minReplicas"] = value.clone(),
            "autoscaleMax" => values["autoscaling"]["maxReplicas"] = value.clone(),
            "replicaCount" | "resources" | "nodeSelector" | "podAnnotations" | "env" | "labels" | "tolerations"
            | "affinity" | "name" => values[name] = value.clone(),
            _ => return Err(ChartError::Values(format!("{at}{name}: not known here"))),
        }
    }
    Ok(values)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn only(value: &Value, known: &[&str], at: &str) -> Result<(), ChartError> {
    match value.as_object().into_iter().flatten().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => Err(ChartError::Values(format!("{at}{name}: not known here"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(spec: Value) -> Vec<(String, String)> {
        installation(&spec).unwrap().pieces.into_iter().map(|p| (p.chart.to_owned(), p.release)).collect()
    }

    #[test]
    fn profiles_choose_components() {
        let pair = |chart: &str, release: &str| (chart.to_owned(), release.to_owned());
        let core = [pair("base", "istio-base"), pair("istiod", "istiod")];
        let ingress = pair("gateway", "istio-ingressgateway");
        assert_eq!(names(json!({})), [core[0].clone(), core[1].clone(), ingress.clone()]);
        assert_eq!(names(json!({"profile": "minimal"})), core);
        assert_eq!(names(json!({"profile": "empty"})), []);
        assert_eq!(names(json!({"profile": "demo"})).len(), 4);
        let canary = json!({"profile": "minimal", "revision": "canary"});
        assert_eq!(names(canary), [pair("base", "istio-base"), pair("istiod", "istiod-canary")]);
        let off = json!({"components": {"ingressGateways": [{"name": "istio-ingressgateway", "enabled": false}]}});
        assert_eq!(names(off), core);
    }

    #[test]
    fn with_the_plugin_pods_need_no_capability() {
        let spec = json!({"profile": "minimal", "components": {"cni": {"enabled": true, "namespace": "kube-system"}},
            "values": {"cni": {"cniBinDir": "/home/kubernetes/bin", "repair": {"deletePods": false}},
                "gateways": {"securityContext": {"runAsNonRoot": true}}}});
        let all = installation(&spec).unwrap();
        let pieces: Vec<_> = all.pieces.iter().map(|p| (p.chart, p.namespace.as_str())).collect();
        assert_eq!(pieces, [("base", "istio-system"), ("cni", "kube-system"), ("istiod", "istio-system")]);
        let objects = all.pieces[1].objects().unwrap();
        let set = objects.iter().find(|o| o["kind"] == "DaemonSet").unwrap();
        assert_eq!(set["spec"]["template"]["spec"]["volumes"][0]["hostPath"]["path"], "/home/kubernetes/bin");
        assert!(!set.to_string().contains("--repair"), "{set}");
        let values = |piece: &Piece| -> Value {
            let objects = piece.objects().unwrap();
            let map = objects.iter().find(|o| o["metadata"]["name"] == "istio-sidecar-injector").unwrap();
            serde_json::from_str(map["data"]["values"].as_str().unwrap()).unwrap()
        };
        let injected = values(&all.pieces[2]);
        assert_eq!(injected["pilot"]["cni"]["enabled"], true, "the injector knows of it");
        assert_eq!(injected["gateways"]["securityContext"]["runAsNonRoot"], true);
        // By the names of Istio's documents, and without.
        let named = json!({"profile": "minimal", "values": {"pilot": {"cni": {"enabled": true}}}});
        assert_eq!(values(&installation(&named).unwrap().pieces[1])["pilot"]["cni"]["enabled"], true);
        assert_eq!(values(&installation(&json!({})).unwrap().pieces[1])["pilot"]["cni"]["enabled"], false);
    }

    #[test]
    fn fields_reach_the_charts_or_are_refused() {
        let spec = json!({
            "profile": "minimal", "hub": "example.org/mesh", "tag": "7",
            "meshConfig": {"trustDomain": "td"},
            "values": {"pilot": {"autoscaleMin": 3}, "global": {"proxy": {"logLevel": "info"}}},
            "components": {"pilot": {"k8s": {"env": [{"name": "A", "value": "b"}], "hpaSpec": {"maxReplicas": 9}}}},
        });
        let all = installation(&spec).unwrap();
        let objects = all.pieces[1].objects().unwrap();
        let find = |kind: &str| objects.iter().find(|o| o["kind"] == kind).unwrap();
        let container = &find("Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "example.org/mesh/pilot:7");
        assert!(container["env"].as_array().unwrap().contains(&json!({"name": "A", "value": "b"})));
        let scaler = &find("HorizontalPodAutoscaler")["spec"];
        assert_eq!((&scaler["minReplicas"], &scaler["maxReplicas"]), (&json!(3), &json!(9)));
        let mesh = objects.iter().find(|o| o["metadata"]["name"] == "istio").unwrap()["data"]["mesh"].as_str().unwrap();
        assert!(mesh.contains("trustDomain: td"), "{mesh}");
        for (spec, path) in [
            (json!({"foo": 1}), "foo"),
            (json!({"profile": "ambient"}), "ambient"),
            (json!({"components": {"pilot": {"k8s": {"overlays": []}}}}), "components.pilot.k8s.overlays"),
            (json!({"components": {"ztunnel": {"enabled": true}}}), "components.ztunnel"),
            (
                json!({"components": {"cni": {"enabled": true}}, "values": {"cni": {"ambient": {}}}}),
                "values.cni.ambient",
            ),
            (
                json!({"components": {"cni": {"enabled": true}}, "values": {"cni": {"chained": false}}}),
                "values.cni.chained",
            ),
            (
                json!({"values": {"gateways": {"istio-ingressgateway": {"x": 1}}}}),
                "values.gateways.istio-ingressgateway.x",
            ),
            (json!({"compatibilityVersion": "1.20"}), "compatibilityVersion"),
        ] {
            let error = installation(&spec).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
