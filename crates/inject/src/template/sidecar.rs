//! The template of a pod whose traffic goes through a proxy beside it.
//!
//! Invariant: the rules are there before the application, by an init container or by the CNI plugin that one waits for; a proxy
//! that is a container of the pod's start (`restartPolicy: Always`) replaces every other way of holding the application back.

use serde_json::{Map, Value, json};

use super::parts::{self, var};
use super::{Context, fields};
use crate::values::plain;

const STATUS_PORT: (&str, &str) = ("status.sidecar.istio.io/port", "global.proxy.statusPort");
const INCLUDE_RANGES: (&str, &str) =
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", "global.proxy.includeIPRanges");
const EXCLUDE_RANGES: (&str, &str) =
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "global.proxy.excludeIPRanges");
const INCLUDE_INBOUND: (&str, &str) =
    ("traffic.sidecar.istio.io/includeInboundPorts", "global.proxy.includeInboundPorts");
const EXCLUDE_INBOUND: (&str, &str) =
    ("traffic.sidecar.istio.io/excludeInboundPorts", "global.proxy.excludeInboundPorts");
const INCLUDE_OUTBOUND: (&str, &str) =
    ("traffic.sidecar.istio.io/includeOutboundPorts", "global.proxy.includeOutboundPorts");
const EXCLUDE_OUTBOUND: (&str, &str) =
    ("traffic.sidecar.istio.io/excludeOutboundPorts", "global.proxy.excludeOutboundPorts");
const KUBEVIRT: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const MODE: &str = "sidecar.istio.io/interceptionMode";

pub(super) const VOLUMES: parts::Volumes =
    parts::Volumes { credential_socket: true, crl: true, shared: "istio-envoy", written_out: false, bootstrap: true };

/// What follows from the pod's own words.
struct Sidecar<'a> {
    context: &'a Context<'a>,
    tproxy: bool,
    bind_low_ports: bool,
    native: bool,
    cni: bool,
}

pub(super) fn render(context: &Context<'_>) -> Result<Value, String> {
    let native = context.annotations.get("sidecar.istio.io/nativeSidecar").filter(|v| !v.is_empty());
    let sidecar = Sidecar {
        context,
        tproxy: context.interception() == "TPROXY",
        bind_low_ports: context.annotation("sidecar.istio.io/capNetBindService", "global.proxy.capNetBindService")
            == "true",
        native: native.map_or(context.native, |value| value != "false"),
        cni: context.values.is_set("pilot.cni.enabled"),
    };
    sidecar.fragment()
}

impl Sidecar<'_> {
    fn given(&self, (annotation, value): (&str, &str)) -> String {
        self.context.annotation(annotation, value)
    }

    fn has(&self, annotation: &str) -> bool {
        self.context.annotations.contains_key(annotation)
    }

    fn fragment(&self) -> Result<Value, String> {
        let mut init = Vec::new();
        if self.context.interception() != "NONE" {
            init.push(self.init());
        }
        let proxy = self.proxy()?;
        let mut containers = Vec::new();
        if self.native {
            init.push(proxy)
        } else {
            containers.push(proxy)
        }
        let mut volumes = parts::volumes(self.context, VOLUMES);
        volumes.extend(parts::user_entries(self.context, "sidecar.istio.io/userVolume")?);
        let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
        Ok(json!({
            "metadata": { "labels": self.labels(), "annotations": self.annotations() },
            "spec": fields([
                ("initContainers", list(init)),
                ("containers", list(containers)),
                ("volumes", list(volumes)),
                ("imagePullSecrets", parts::pull_secrets(self.context)),
            ]),
        }))
    }

    fn labels(&self) -> Value {
        let label = |name: &str, default: &str| {
            let given = self.context.labels.get(name).map(String::as_str).filter(|value| !value.is_empty());
            given.unwrap_or(default).to_owned()
        };
        let mut labels = Map::new();
        labels.insert("security.istio.io/tlsMode".to_owned(), label("security.istio.io/tlsMode", "istio").into());
        if self.context.proxy_metadata().get("ISTIO_META_ENABLE_HBONE").is_some_and(|value| value == "true") {
            labels.insert("networking.istio.io/tunnel".to_owned(), label("networking.istio.io/tunnel", "http").into());
        }
        let name: String = self.context.canonical_name().chars().take(63).collect();
        let name = name.trim_matches(|c| matches!(c, '-' | '_' | '.'));
        labels.insert("service.istio.io/canonical-name".to_owned(), name.into());
        labels.insert("service.istio.io/canonical-revision".to_owned(), self.context.canonical_revision().into());
        Value::Object(labels)
    }

    fn annotations(&self) -> Value {
        let mut all = Map::new();
        all.insert("istio.io/rev".to_owned(), parts::revision(self.context));
        parts::default_container(self.context, &mut all);
        if !self.cni {
            return Value::Object(all);
        }
        // The plugin sees the pod and nothing of the installation: what is installed is written into the pod.
        let mut set = |name: &str, value: String| all.insert(name.to_owned(), value.into());
        if self.context.values.text("pilot.cni.provider") == "multus" {
            const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
            let before = self.context.annotations.get(NETWORKS).map(String::as_str).unwrap_or_default();
            set(NETWORKS, with_network(before));
        }
        set(MODE, self.context.interception());
        for pair in [INCLUDE_RANGES, EXCLUDE_RANGES] {
            let value = self.given(pair);
            if !value.is_empty() {
                set(pair.0, value);
            }
        }
        set(INCLUDE_INBOUND.0, self.given(INCLUDE_INBOUND));
        set(EXCLUDE_INBOUND.0, self.excluded_inbound());
        for pair in [INCLUDE_OUTBOUND, EXCLUDE_OUTBOUND] {
            if self.has(pair.0) || !self.context.values.text(pair.1).is_empty() {
                set(pair.0, self.given(pair));
            }
        }
        for name in [KUBEVIRT, REROUTE, EXCLUDE_INTERFACES] {
            if let Some(value) = self.context.annotations.get(name).filter(|value| !value.is_empty()) {
                set(name, value.clone());
            }
        }
        Value::Object(all)
    }

    /// The excluded incoming ports with the status port among them, unless there is none.
    fn excluded_inbound(&self) -> String {
        with_port(&self.given(EXCLUDE_INBOUND), &self.given(STATUS_PORT))
    }

    /// What sets the rules, or waits for those of the CNI plugin.
    fn init(&self) -> Value {
        let values = self.context.values;
        let port = |name: &str, default: i64| match self.context.mesh.get(name).and_then(Value::as_i64) {
            Some(port) if port != 0 => port.to_string(),
            _ => default.to_string(),
        };
        let uid = if self.tproxy { 1337 } else { self.context.uid };
        let excluded = match self.excluded_inbound() {
            ports if ports.is_empty() => "15090,15021".to_owned(),
            ports => format!("15090,15021,{ports}"),
        };
        let mut args: Vec<Value> = vec!["istio-iptables".into()];
        let mut flag = |flag: &str, value: String| args.extend([Value::from(flag), value.into()]);
        flag("-p", port("proxyListenPort", 15001));
        flag("-z", port("proxyInboundListenPort", 15006));
        flag("-u", uid.to_string());
        flag("-m", self.context.interception());
        flag("-i", self.given(INCLUDE_RANGES));
        flag("-x", self.given(EXCLUDE_RANGES));
        flag("-b", self.given(INCLUDE_INBOUND));
        flag("-d", excluded);
        for (name, pair) in [("-q", INCLUDE_OUTBOUND), ("-o", EXCLUDE_OUTBOUND)] {
            if self.has(pair.0) || !values.text(pair.1).is_empty() {
                flag(name, self.given(pair));
            }
        }
        let annotated = |name: &str| self.context.annotations.get(name).cloned();
        if let Some(interfaces) = annotated(REROUTE).or_else(|| annotated(KUBEVIRT)) {
            flag("-k", interfaces);
        }
        if let Some(interfaces) = annotated(EXCLUDE_INTERFACES) {
            flag("-c", interfaces);
        }
        args.push(parts::flag(
            self.context,
            "log_output_level",
            "sidecar.istio.io/agentLogLevel",
            "global.logging.level",
        ));
        if values.is_set("global.logAsJson") {
            args.push("--log_as_json".into());
        }
        if self.cni {
            args.extend(["--run-validation".into(), "--skip-rule-apply".into()]);
        } else if values.is_set("global.proxy_init.forceApplyIptables") {
            args.push("--force-apply".into());
        }
        if values.is_set("global.nativeNftables") {
            args.push("--native-nftables".into());
        }
        let env = parts::metadata(self.context);
        fields([
            ("name", Some(if self.cni { "istio-validation" } else { "istio-init" }.into())),
            ("image", Some(parts::init_image(self.context).into())),
            ("args", Some(Value::Array(args))),
            ("env", (!env.is_empty()).then_some(Value::Array(env))),
            ("resources", Some(parts::resources(self.context))),
            ("imagePullPolicy", parts::pull_policy(self.context)),
            ("securityContext", Some(self.init_security())),
        ])
    }

    fn privileged(&self) -> bool {
        self.context.values.is_set("global.proxy.privileged")
    }

    fn seccomp(&self) -> Option<Value> {
        self.context.values.object("global.proxy.seccompProfile").cloned().map(Value::Object)
    }

    fn init_security(&self) -> Value {
        let id = |own: i64| if self.tproxy { 1337 } else { own };
        let capabilities = if self.cni {
            json!({ "drop": ["ALL"] })
        } else {
            json!({ "add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"] })
        };
        let (user, group) = if self.cni { (id(self.context.uid), id(self.context.gid)) } else { (0, 0) };
        fields([
            ("allowPrivilegeEscalation", Some(self.privileged().into())),
            ("capabilities", Some(capabilities)),
            ("privileged", Some(self.privileged().into())),
            ("readOnlyRootFilesystem", Some(self.cni.into())),
            ("runAsGroup", Some(group.into())),
            ("runAsNonRoot", Some(self.cni.into())),
            ("runAsUser", Some(user.into())),
            ("seccompProfile", self.seccomp()),
        ])
    }

    fn proxy_security(&self) -> Value {
        if self.context.proxy_metadata().get("IPTABLES_TRACE_LOGGING").is_some_and(|value| value == "true") {
            return json!({
                "allowPrivilegeEscalation": true,
                "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
                "privileged": true,
                "readOnlyRootFilesystem": true,
                "runAsGroup": self.context.gid,
                "runAsNonRoot": false,
                "runAsUser": 0,
            });
        }
        let added: Vec<Value> = [(self.tproxy, "NET_ADMIN"), (self.bind_low_ports, "NET_BIND_SERVICE")]
            .into_iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, capability)| capability.into())
            .collect();
        let as_root = !added.is_empty();
        let capabilities = fields([("add", as_root.then_some(Value::Array(added))), ("drop", Some(json!(["ALL"])))]);
        fields([
            ("allowPrivilegeEscalation", Some(self.privileged().into())),
            ("capabilities", Some(capabilities)),
            ("privileged", Some(self.privileged().into())),
            ("readOnlyRootFilesystem", Some(true.into())),
            ("runAsGroup", Some(if as_root { 1337 } else { self.context.gid }.into())),
            ("runAsNonRoot", Some((!as_root).into())),
            ("runAsUser", Some(if as_root { 0 } else { self.context.uid }.into())),
            ("seccompProfile", self.seccomp()),
        ])
    }

    fn lifecycle(&self) -> Option<Value> {
        let installed = self.context.values.object("global.proxy.lifecycle");
        if let Some(lifecycle) = installed {
            return Some(Value::Object(lifecycle.clone()));
        }
        if self.native {
            // The application ends first; the proxy is told to drain when that begins.
            let port = format!("--debug-port={}", self.given(STATUS_PORT));
            let command = json!(["pilot-agent", "request", port, "POST", "drain"]);
            return Some(json!({ "preStop": { "exec": { "command": command } } }));
        }
        let hold = self.context.proxy_config.get("holdApplicationUntilProxyStarts") == Some(&Value::Bool(true))
            || self.context.values.is_set("global.proxy.holdApplicationUntilProxyStarts");
        hold.then(|| json!({ "postStart": { "exec": { "command": ["pilot-agent", "wait"] } } }))
    }

    fn proxy(&self) -> Result<Value, String> {
        let context = self.context;
        let values = context.values;
        let mut args = parts::proxy_args(context, "sidecar");
        if values.is_set("global.proxy.outlierLogPath") {
            args.push(format!("--outlierLogPath={}", values.text("global.proxy.outlierLogPath")).into());
        }
        let probed = self.given(STATUS_PORT) != "0";
        let startup = probed && values.is_set("global.proxy.startupProbe.enabled");
        let mut mounts = parts::mounts(context, VOLUMES);
        mounts.extend(parts::user_entries(context, "sidecar.istio.io/userVolumeMount")?);
        Ok(fields([
            ("name", Some(crate::CONTAINER_NAME.into())),
            ("image", Some(parts::proxy_image(context).into())),
            ("restartPolicy", self.native.then(|| "Always".into())),
            ("ports", Some(json!([{ "containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom" }]))),
            ("args", Some(Value::Array(args))),
            ("lifecycle", self.lifecycle()),
            ("env", Some(Value::Array(self.environment()?))),
            ("imagePullPolicy", parts::pull_policy(context)),
            (
                "startupProbe",
                startup.then(|| {
                    json!({
                        "httpGet": { "path": "/healthz/ready", "port": 15021 },
                        "periodSeconds": 1,
                        "timeoutSeconds": 3,
                        "failureThreshold": parts::number(context, "", "global.proxy.startupProbe.failureThreshold"),
                    })
                }),
            ),
            ("readinessProbe", probed.then(|| parts::readiness(context, 15021, true))),
            ("securityContext", Some(self.proxy_security())),
            ("resources", Some(parts::resources(context))),
            ("volumeMounts", Some(Value::Array(mounts))),
        ]))
    }

    fn environment(&self) -> Result<Vec<Value>, String> {
        let context = self.context;
        let mut env = Vec::new();
        if parts_of_localhost(context) {
            env.push(var("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true"));
        }
        env.extend(parts::identity(context));
        env.push(parts::limit("ISTIO_CPU_LIMIT", "limits.cpu"));
        env.push(parts::proxy_config(context));
        env.push(parts::pod_ports(context));
        env.push(parts::app_containers(context));
        env.push(parts::limit("GOMEMLIMIT", "limits.memory"));
        env.extend(parts::compliance(context));
        env.push(parts::cluster(context));
        env.push(parts::field("ISTIO_META_NODE_NAME", "spec.nodeName"));
        let annotated = context.annotations.get(MODE).filter(|mode| !mode.is_empty()).cloned();
        env.push(var("ISTIO_META_INTERCEPTION_MODE", annotated.unwrap_or_else(|| context.mesh_interception())));
        env.extend(parts::network(context));
        let named = context.labels.get("service.istio.io/workload-name").filter(|name| !name.is_empty());
        env.extend(parts::workload(context, named.unwrap_or(&context.owner.name)));
        env.extend(parts::bootstrap(context));
        env.extend(parts::mesh(context));
        env.extend(self.datadog()?);
        env.extend(otel(context));
        env.extend(parts::metadata(context));
        Ok(env)
    }

    /// Variables for Datadog's library, where its tracer is installed.
    fn datadog(&self) -> Result<Vec<Value>, String> {
        const ENV: &str = "apm.datadoghq.com/env";
        let installed = self.context.values.text("global.proxy.tracer") == "datadog";
        let Some(text) = self.context.annotations.get(ENV).filter(|_| installed) else { return Ok(Vec::new()) };
        let map: std::collections::BTreeMap<String, Value> =
            serde_json::from_str(text).map_err(|_| format!("annotation {ENV}: expected a JSON object"))?;
        Ok(map.iter().map(|(name, value)| var(name, plain(value))).collect())
    }
}

/// Excluded ports with one more among them, unless that is none.
pub(super) fn with_port(excluded: &str, port: &str) -> String {
    let port = port.trim();
    if port.is_empty() || port == "0" || excluded.split(',').any(|other| other == port) {
        return excluded.to_owned();
    }
    let ports = excluded.split(',').map(str::trim).filter(|port| !port.is_empty());
    ports.chain([port]).collect::<Vec<_>>().join(",")
}

/// Whether incoming requests reach the application on its loopback address.
pub(super) fn parts_of_localhost(context: &Context<'_>) -> bool {
    context.mesh.pointer("/inboundTrafficPolicy/mode").and_then(Value::as_str) == Some("LOCALHOST")
}

/// What the service is to OpenTelemetry, where a provider asks for its conventions.
fn otel(context: &Context<'_>) -> Option<Value> {
    let attributes = resource_attributes(
        context.mesh,
        |name| context.annotations.get(name).cloned(),
        |name| context.labels.get(name).cloned(),
        &context.owner.namespace,
        context.all_containers(),
    );
    (!attributes.is_empty()).then(|| var("OTEL_RESOURCE_ATTRIBUTES", attributes))
}

/// The attributes by OpenTelemetry's conventions, with commas; empty where no provider asks for them.
pub(super) fn resource_attributes(
    mesh: &Value,
    annotation: impl Fn(&str) -> Option<String>,
    label: impl Fn(&str) -> Option<String>,
    namespace: &str,
    containers: &[Value],
) -> String {
    let providers = mesh.get("extensionProviders").and_then(Value::as_array).into_iter().flatten();
    let mut enrichments = providers.filter_map(|p| p.pointer("/opentelemetry/serviceAttributeEnrichment")?.as_str());
    if !enrichments.any(|enrichment| enrichment == "OTEL_SEMANTIC_CONVENTIONS") {
        return String::new();
    }
    let annotated =
        |name: &str| annotation(&format!("resource.opentelemetry.io/{name}")).filter(|value| !value.is_empty());
    let of_image = || match containers {
        [only] => only.get("image").and_then(Value::as_str).and_then(version_of_image),
        _ => None,
    };
    let labelled = || label("app.kubernetes.io/version").filter(|version| !version.is_empty());
    let first = containers.first().and_then(|c| c.get("name")).and_then(Value::as_str);
    let of_namespace = || (!namespace.is_empty()).then(|| namespace.to_owned());
    let attributes = [
        ("service.namespace", annotated("service.namespace").or_else(of_namespace)),
        ("service.version", annotated("service.version").or_else(labelled).or_else(of_image)),
        (
            "service.instance.id",
            annotated("service.instance.id").or_else(|| first.map(|name| format!("{namespace}.$(POD_NAME).{name}"))),
        ),
    ];
    let all = attributes.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    all.collect::<Vec<_>>().join(",")
}

/// Tag and digest of an image.
fn version_of_image(image: &str) -> Option<String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag).filter(|tag| !tag.is_empty());
    match (tag, digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (tag, digest) => tag.or(digest).map(str::to_owned),
    }
}

/// The networks of Multus with the plugin's among them.
pub(super) fn with_network(before: &str) -> String {
    const NAME: &str = "default/istio-cni";
    if before.is_empty() {
        return NAME.to_owned();
    }
    if let Some((head, tail)) = before.rsplit_once(']') {
        let Ok(list) = serde_json::from_str::<Vec<Value>>(before) else { return before.to_owned() };
        let ours =
            |n: &Value| n.get("name") == Some(&"istio-cni".into()) && n.get("namespace") == Some(&"default".into());
        if list.iter().any(ours) {
            return before.to_owned();
        }
        return format!("{head}, {{\"name\": \"istio-cni\", \"namespace\": \"default\"}}]{tail}");
    }
    if before.split(',').any(|network| network.trim() == NAME) {
        return before.to_owned();
    }
    format!("{before}, {NAME}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_multus() {
        assert_eq!(with_network(""), "default/istio-cni");
        assert_eq!(with_network("a, b/c"), "a, b/c, default/istio-cni");
        assert_eq!(with_network("default/istio-cni,a"), "default/istio-cni,a");
        let listed = with_network(r#"[{"name": "a"}]"#);
        assert_eq!(listed, r#"[{"name": "a"}, {"name": "istio-cni", "namespace": "default"}]"#);
        assert_eq!(with_network(&listed), listed);
    }

    #[test]
    fn images_have_versions() {
        assert_eq!(version_of_image("h:5000/a/b:1.2@sha256:x").as_deref(), Some("1.2@sha256:x"));
        assert_eq!(version_of_image("h:5000/b"), None);
        assert_eq!(version_of_image("b@sha256:x").as_deref(), Some("sha256:x"));
    }
}
