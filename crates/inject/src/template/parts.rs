//! What several templates have alike: images, resources, environment, probes, volumes.
//!
//! Invariant: nothing here knows which template it is used in; where they differ, they say so by an argument.

use serde_json::{Map, Value, json};

use super::{Context, fields};
use crate::values::{Values, plain, truthy};
use crate::{proxy_config, quantity, written};

/// Suffixes of tags that say what kind of image it is.
const IMAGE_TYPES: &[&str] = &["-distroless", "-debug"];

/// The image of the proxy.
pub(crate) fn proxy_image(context: &Context<'_>) -> String {
    let kind = context.proxy_config.pointer("/image/imageType").and_then(Value::as_str).unwrap_or_default();
    image(context, "global.proxy.image", kind)
}

/// The image of what sets the rules.
pub(crate) fn init_image(context: &Context<'_>) -> String {
    image(context, "global.proxy_init.image", "")
}

fn image(context: &Context<'_>, name: &str, kind: &str) -> String {
    // A name with a slash is a whole reference; without one it is a name in the installation's hub.
    let wanted = context.annotation("sidecar.istio.io/proxyImage", name);
    if wanted.contains('/') {
        return wanted;
    }
    let values = context.values;
    let variant = values.text("global.variant");
    let kind = if kind.is_empty() { variant.as_str() } else { kind };
    let kind = context.annotations.get("sidecar.istio.io/proxyImageType").map_or(kind, String::as_str);
    let mut tag = match values.text("global.tag") {
        tag if tag.is_empty() => env!("CARGO_PKG_VERSION").to_owned(),
        tag => tag,
    };
    if !kind.is_empty() {
        if let Some(bare) = IMAGE_TYPES.iter().find_map(|suffix| tag.strip_suffix(suffix)) {
            tag = bare.to_owned();
        }
        if kind != "default" {
            tag = format!("{tag}-{kind}");
        }
    }
    format!("{}/{}:{tag}", values.text("global.hub"), values.text(name))
}

/// What the proxy needs: by annotations, or else as installed.
pub(crate) fn resources(context: &Context<'_>) -> Value {
    let annotated = |cpu: &str, memory: &str| {
        let mut map = Map::new();
        for (resource, annotation) in [("cpu", cpu), ("memory", memory)] {
            if let Some(value) = context.annotations.get(&format!("sidecar.istio.io/{annotation}")) {
                map.insert(resource.to_owned(), quantity::canonical(value).into());
            }
        }
        (!map.is_empty()).then_some(Value::Object(map))
    };
    let (requests, limits) = (annotated("proxyCPU", "proxyMemory"), annotated("proxyCPULimit", "proxyMemoryLimit"));
    if requests.is_some() || limits.is_some() {
        return fields([("limits", limits), ("requests", requests)]);
    }
    installed_resources(context.values)
}

/// What every proxy needs that does not say it itself.
pub(crate) fn installed_resources(values: &Values) -> Value {
    let mut installed = Value::Object(values.object("global.proxy.resources").cloned().unwrap_or_default());
    for list in ["limits", "requests"] {
        if let Some(values) = installed.get_mut(list) {
            quantity::canonical_values(values);
        }
    }
    if let Some(lists) = installed.as_object_mut() {
        lists.retain(|_, values| values.as_object().is_none_or(|values| !values.is_empty()));
    }
    installed
}

/// `--flag=value` from an annotation or an installed value.
pub(crate) fn flag(context: &Context<'_>, flag: &str, annotation: &str, value: &str) -> Value {
    format!("--{flag}={}", context.annotation(annotation, value)).into()
}

/// Arguments of the proxy in a role.
pub(crate) fn proxy_args(context: &Context<'_>, role: &str) -> Vec<Value> {
    let values = context.values;
    let mut args = vec![
        "proxy".into(),
        role.into(),
        "--domain".into(),
        format!("$(POD_NAMESPACE).svc.{}", values.text("global.proxy.clusterDomain")).into(),
        flag(context, "proxyLogLevel", "sidecar.istio.io/logLevel", "global.proxy.logLevel"),
        flag(context, "proxyComponentLogLevel", "sidecar.istio.io/componentLogLevel", "global.proxy.componentLogLevel"),
        flag(context, "log_output_level", "sidecar.istio.io/agentLogLevel", "global.logging.level"),
    ];
    if values.is_set("global.sts.servicePort") {
        args.push(format!("--stsPort={}", values.text("global.sts.servicePort")).into());
    }
    if values.is_set("global.logAsJson") {
        args.push("--log_as_json".into());
    }
    args
}

/// One variable.
pub(crate) fn var(name: &str, value: impl Into<String>) -> Value {
    json!({ "name": name, "value": value.into() })
}

/// A variable from a field of the pod.
pub(crate) fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

/// A variable from a limit of the container.
pub(crate) fn limit(name: &str, resource: &str) -> Value {
    json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": resource, "divisor": "1" } } })
}

/// Where certificates come from, and who the pod is.
pub(crate) fn identity(context: &Context<'_>) -> Vec<Value> {
    let values = context.values;
    let authority = match values.text("global.caAddress") {
        given if !given.is_empty() => given,
        _ => {
            let revision = values.text("revision");
            let revision = if revision.is_empty() { revision } else { format!("-{revision}") };
            format!("istiod{revision}.{}.svc:15012", values.text("global.istioNamespace"))
        }
    };
    vec![
        var("PILOT_CERT_PROVIDER", values.text("global.pilotCertProvider")),
        var("CA_ADDR", authority),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
    ]
}

/// What holds for a proxy of which nothing is said.
pub(crate) fn proxy_defaults() -> Value {
    json!({
        "configPath": "./etc/istio/proxy",
        "binaryPath": "/usr/local/bin/envoy",
        "serviceCluster": "istio-proxy",
        "drainDuration": "45s",
        "terminationDrainDuration": "5s",
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "proxyAdminPort": 15000,
        "controlPlaneAuthPolicy": "MUTUAL_TLS",
        "statNameLength": 189,
        "statusPort": 15020,
        "interceptionMode": "REDIRECT",
    })
}

/// Maps of a ProxyConfig, which say nothing when they are empty. Messages say that they are there.
const MAPS: &[&str] = &["proxyMetadata", "runtimeValues"];

/// What holds for the proxy where it differs from the defaults (spec §15), as one line of JSON.
pub(crate) fn proxy_config(context: &Context<'_>) -> Value {
    var("PROXY_CONFIG", format!("{}\n", differing(context.proxy_config)))
}

/// What a ProxyConfig says besides the defaults, in the order of its message.
pub(crate) fn differing(config: &Value) -> Value {
    let defaults = proxy_defaults();
    let differs = |(key, value): &(&String, &Value)| {
        defaults.get(*key) != Some(*value)
            && !value.is_null()
            && (truthy(value)
                || value.is_boolean()
                || *key == "concurrency"
                || value.is_object() && !MAPS.contains(&key.as_str()))
    };
    let mut kept: Vec<(&String, &Value)> = config.as_object().into_iter().flatten().filter(differs).collect();
    kept.sort_by(|a, b| proxy_config::rank(a.0).cmp(&proxy_config::rank(b.0)).then_with(|| a.0.cmp(b.0)));
    Value::Object(kept.into_iter().map(|(key, value)| (key.clone(), written::sorted(value))).collect())
}

/// The rules of an authority that the installation keeps to, if it does.
pub(crate) fn compliance_policy(context: &Context<'_>) -> String {
    context.values.text("pilot.env.COMPLIANCE_POLICY")
}

/// The same for the proxy and its agent.
pub(crate) fn compliance(context: &Context<'_>) -> Vec<Value> {
    let policy = compliance_policy(context);
    let strict = policy == "fips-140-3";
    let told = (!policy.is_empty()).then(|| var("COMPLIANCE_POLICY", policy));
    told.into_iter().chain(strict.then(|| var("GODEBUG", "fips140=only"))).collect()
}

/// The declared ports of all containers, one line each.
pub(crate) fn pod_ports(context: &Context<'_>) -> Value {
    let ports = context.all_containers().iter().filter_map(|c| c.get("ports")?.as_array()).flatten();
    let mut text = "[".to_owned();
    for (at, port) in ports.enumerate() {
        let mut port = port.clone();
        written::tidy(&mut port);
        text.push_str(if at == 0 { "\n    " } else { "\n    ," });
        text.push_str(&written::json(&port));
    }
    text.push_str("\n]");
    var("ISTIO_META_POD_PORTS", text)
}

/// The application's containers.
pub(crate) fn app_containers(context: &Context<'_>) -> Value {
    var("ISTIO_META_APP_CONTAINERS", context.containers().join(","))
}

/// What the cluster is called.
pub(crate) fn cluster(context: &Context<'_>) -> Value {
    let name = context.values.text("global.multiCluster.clusterName");
    var("ISTIO_META_CLUSTER_ID", if name.is_empty() { "Kubernetes".to_owned() } else { name })
}

/// The network, where there are several.
pub(crate) fn network(context: &Context<'_>) -> Option<Value> {
    let network = context.values.text("global.network");
    (!network.is_empty()).then(|| var("ISTIO_META_NETWORK", network))
}

/// The workload's name and its owner's reference.
pub(crate) fn workload(context: &Context<'_>, name: &str) -> Vec<Value> {
    let owner = context.owner;
    let mut all = Vec::new();
    if !name.is_empty() {
        all.push(var("ISTIO_META_WORKLOAD_NAME", name));
    }
    if !owner.api_version.is_empty() && !owner.name.is_empty() {
        let namespace = if owner.namespace.is_empty() { "default" } else { &owner.namespace };
        let kind = owner.kind.to_lowercase();
        let reference =
            format!("kubernetes://apis/{}/namespaces/{namespace}/{kind}s/{}", owner.api_version, owner.name);
        all.push(var("ISTIO_META_OWNER", reference));
    }
    all
}

/// Where a bootstrap of the pod's own lies.
pub(crate) fn bootstrap(context: &Context<'_>) -> Option<Value> {
    let given = context.annotations.contains_key(BOOTSTRAP);
    given.then(|| var("ISTIO_BOOTSTRAP_OVERRIDE", "/etc/istio/custom-bootstrap/custom_bootstrap.json"))
}

/// Names the ConfigMap of a bootstrap of the pod's own.
pub(crate) const BOOTSTRAP: &str = "sidecar.istio.io/bootstrapOverride";

/// Mesh and trust domain.
pub(crate) fn mesh(context: &Context<'_>) -> Vec<Value> {
    let trust_domain = context.trust_domain();
    let mesh_id = match context.values.text("global.meshID") {
        given if !given.is_empty() => given,
        _ => trust_domain.clone(),
    };
    let mut all = Vec::new();
    for (name, value) in [("ISTIO_META_MESH_ID", mesh_id), ("TRUST_DOMAIN", trust_domain)] {
        if !value.is_empty() {
            all.push(var(name, value));
        }
    }
    all
}

/// `proxyMetadata` as variables.
pub(crate) fn metadata(context: &Context<'_>) -> Vec<Value> {
    context.proxy_metadata().iter().map(|(name, value)| var(name, value.as_str())).collect()
}

/// The annotations that say which container people mean, unless the pod says.
pub(crate) fn default_container(context: &Context<'_>, annotations: &mut Map<String, Value>) {
    let Some(first) = context.containers().first().copied() else { return };
    for name in ["kubectl.kubernetes.io/default-logs-container", "kubectl.kubernetes.io/default-container"] {
        if !context.annotations.contains_key(name) {
            annotations.insert(name.to_owned(), first.into());
        }
    }
}

/// Our revision as an annotation tells it.
pub(crate) fn revision(context: &Context<'_>) -> Value {
    if context.revision.is_empty() { "default".into() } else { context.revision.into() }
}

/// When images are pulled, if the installation says.
pub(crate) fn pull_policy(context: &Context<'_>) -> Option<Value> {
    let policy = context.values.text("global.imagePullPolicy");
    (!policy.is_empty()).then(|| policy.into())
}

/// Secrets to pull images with, if the installation says.
pub(crate) fn pull_secrets(context: &Context<'_>) -> Option<Value> {
    let names = context.values.get("global.imagePullSecrets")?.as_array()?;
    let all: Vec<Value> = names.iter().map(|name| json!({ "name": plain(name) })).collect();
    (!all.is_empty()).then_some(Value::Array(all))
}

/// A number from an annotation or an installed value.
pub(crate) fn number(context: &Context<'_>, annotation: &str, value: &str) -> Value {
    context.annotation(annotation, value).parse::<i64>().map_or(Value::Null, Value::from)
}

/// The probe of readiness on a port; numbers by annotations where `annotated`.
pub(crate) fn readiness(context: &Context<'_>, port: u16, annotated: bool) -> Value {
    let number = |name: &str, value: &str| {
        let annotation = if annotated { format!("readiness.status.sidecar.istio.io/{name}") } else { String::new() };
        self::number(context, &annotation, value)
    };
    let mut probe = json!({
        "httpGet": { "path": "/healthz/ready", "port": port },
        "initialDelaySeconds": number("initialDelaySeconds", "global.proxy.readinessInitialDelaySeconds"),
        "periodSeconds": number("periodSeconds", "global.proxy.readinessPeriodSeconds"),
        "timeoutSeconds": 3,
        "failureThreshold": number("failureThreshold", "global.proxy.readinessFailureThreshold"),
    });
    written::tidy(&mut probe);
    probe
}

fn mount(path: &str, name: &str) -> Value {
    json!({ "name": name, "mountPath": path })
}

/// What differs between the templates' volumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volumes {
    /// The socket on which credentials of gateways are asked for.
    pub credential_socket: bool,
    /// The list of revoked certificates.
    pub crl: bool,
    /// The name of the volume that proxy and agent share.
    pub shared: &'static str,
    /// Emptiness is written out.
    pub written_out: bool,
    /// A bootstrap of the pod's own is mounted.
    pub bootstrap: bool,
}

/// Whether workload certificates come from Google's driver.
fn of_gke(context: &Context<'_>) -> bool {
    context.values.text("global.caName") == "GkeWorkloadCertificate"
}

/// Whether the mesh's roots come as a ConfigMap.
fn of_istiod(context: &Context<'_>) -> bool {
    context.values.text("global.pilotCertProvider") == "istiod"
}

/// The mount of workload certificates.
pub(crate) fn certificates_mount(context: &Context<'_>) -> Value {
    const PATH: &str = "/var/run/secrets/workload-spiffe-credentials";
    if of_gke(context) {
        return json!({ "name": "gke-workload-certificate", "mountPath": PATH, "readOnly": true });
    }
    mount(PATH, "workload-certs")
}

/// The proxy's mounts.
pub(crate) fn mounts(context: &Context<'_>, of: Volumes) -> Vec<Value> {
    let mut all = vec![mount("/var/run/secrets/workload-spiffe-uds", "workload-socket")];
    if of.credential_socket {
        all.push(mount("/var/run/secrets/credential-uds", "credential-socket"));
    }
    all.push(certificates_mount(context));
    if of_istiod(context) {
        all.push(mount("/var/run/secrets/istio", "istiod-ca-cert"));
        if of.crl {
            all.push(mount("/var/run/secrets/istio/crl", "istio-ca-crl"));
        }
    }
    all.push(mount("/var/lib/istio/data", "istio-data"));
    if of.bootstrap && context.annotations.contains_key(BOOTSTRAP) {
        all.push(mount("/etc/istio/custom-bootstrap", "custom-bootstrap-volume"));
    }
    all.push(mount("/etc/istio/proxy", of.shared));
    all.push(mount("/var/run/secrets/tokens", "istio-token"));
    if context.values.is_set("global.mountMtlsCerts") {
        all.push(json!({ "name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": true }));
    }
    all.push(mount("/etc/istio/pod", "istio-podinfo"));
    all
}

/// The pod's volumes for the proxy.
pub(crate) fn volumes(context: &Context<'_>, of: Volumes) -> Vec<Value> {
    let values = context.values;
    // A volume without a source is an empty folder too: so Istio's templates write some of them.
    let empty = |name: &str, written: bool| {
        if written { json!({ "name": name, "emptyDir": {} }) } else { json!({ "name": name }) }
    };
    let mut all = vec![empty("workload-socket", false)];
    if of.credential_socket {
        all.push(empty("credential-socket", of.written_out));
    }
    if of_gke(context) {
        let driver = json!({ "driver": "workloadcertificates.security.cloud.google.com" });
        all.push(json!({ "name": "gke-workload-certificate", "csi": driver }));
    } else {
        all.push(empty("workload-certs", of.written_out));
    }
    if let Some(name) = context.annotations.get(BOOTSTRAP) {
        all.push(json!({ "name": "custom-bootstrap-volume", "configMap": { "name": name } }));
    }
    all.push(json!({ "name": of.shared, "emptyDir": { "medium": "Memory" } }));
    all.push(json!({ "name": "istio-data", "emptyDir": {} }));
    all.push(json!({ "name": "istio-podinfo", "downwardAPI": { "items": [
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } },
    ] } }));
    all.push(json!({ "name": "istio-token", "projected": { "sources": [
        { "serviceAccountToken": {
            "path": "istio-token", "expirationSeconds": 43200, "audience": values.text("global.sds.token.aud"),
        } },
    ] } }));
    let bundle = values.text("global.trustBundleName");
    let named = |default: &str| if bundle.is_empty() { default.to_owned() } else { bundle.clone() };
    if of_istiod(context) {
        let by_api = values.get("pilot.env.ENABLE_CLUSTER_TRUST_BUNDLE_API") == Some(&Value::Bool(true));
        all.push(if by_api {
            let name = format!("istio.io:istiod-ca:{}", named("root-cert"));
            json!({ "name": "istiod-ca-cert", "projected": { "sources": [
                { "clusterTrustBundle": { "name": name, "path": "root-cert.pem" } },
            ] } })
        } else {
            json!({ "name": "istiod-ca-cert", "configMap": { "name": named("istio-ca-root-cert") } })
        });
    }
    if of.crl {
        let name = values.text("pilot.crlConfigMapName");
        let name = if name.is_empty() { "istio-ca-crl" } else { &name };
        all.push(json!({ "name": "istio-ca-crl", "configMap": { "name": name, "optional": true } }));
    }
    if values.is_set("global.mountMtlsCerts") {
        let account = context.spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty());
        let secret = format!("istio.{}", account.unwrap_or("default"));
        all.push(json!({ "name": "istio-certs", "secret": { "secretName": secret, "optional": true } }));
    }
    all
}

/// The entries of `userVolume` or `userVolumeMount`: an object by volume, or the older list of entries with a name.
///
/// # Errors
/// The annotation's value is neither.
pub(crate) fn user_entries(context: &Context<'_>, annotation: &str) -> Result<Vec<Value>, String> {
    let Some(text) = context.annotations.get(annotation) else { return Ok(Vec::new()) };
    let bad = || format!("annotation {annotation}: expected a JSON object of volumes by name");
    match serde_json::from_str::<Value>(text).map_err(|_| bad())? {
        Value::Object(map) => {
            let mut by_name: Vec<(String, Value)> = map.into_iter().collect();
            by_name.sort_by(|a, b| a.0.cmp(&b.0));
            let entry = |(name, value): (String, Value)| {
                let mut entry = value.as_object().cloned().ok_or_else(bad)?;
                entry.insert("name".to_owned(), name.into());
                Ok(Value::Object(entry))
            };
            by_name.into_iter().map(entry).collect()
        }
        Value::Array(list) if list.iter().all(|item| item.get("name").is_some_and(Value::is_string)) => Ok(list),
        _ => Err(bad()),
    }
}
