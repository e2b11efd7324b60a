//! A template of an installation's own that is written as a Go template, as Istio's users write them.
//!
//! Invariant: a function that there is not is refused when the configuration is read, by its name, and not when a pod comes. What a
//! program sees has Istio's names: `.ObjectMeta`, `.Spec`, `.Values`, `.ProxyConfig` and the rest.

use carrick_gotemplate::{Dialect, KNOWN, Template, text};
use serde_json::{Map, Value, json};

use super::{Context, parts};
use crate::{values, written};

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Program(Template);

/// Functions of Istio's injector, before Helm's: some have the same name and do something else.
const FUNCTIONS: &[&str] = &[
    "annotation",
    "appendMultusNetwork",
    "applicationPorts",
    "directory",
    "eq",
    "excludeInboundPort",
    "excludeInterfaces",
    "fromJSON",
    "includeInboundPorts",
    "indent",
    "isset",
    "kubevirtInterfaces",
    "mergeMaps",
    "ne",
    "omit",
    "omitNil",
    "otelResourceAttributes",
    "protoToJSON",
    "strdict",
    "structToJSON",
    "toJSON",
    "toJsonMap",
    "toLower",
    "valueOrDefault",
];

impl Program {
    /// Reads a text.
    ///
    /// # Errors
    /// What is not understood, or a function that there is not.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let template = Template::read(text)?;
        let unknown = |name: &&str| !KNOWN.contains(name) && !FUNCTIONS.contains(name);
        let unknown = template.functions().into_iter().find(unknown).map(str::to_owned);
        unknown.map_or(Ok(Self(template)), |name| Err(format!("there is no function {name:?} here")))
    }

    /// The fragment of a pod that it gives.
    ///
    /// # Errors
    /// What cannot be evaluated, or is no fragment of a pod.
    pub(crate) fn render(&self, context: &Context<'_>) -> Result<Value, String> {
        let text = self.0.render(&sees(context), Dialect { call, go_fields: true })?;
        let mut documents = carrick_api::parse::documents(text.as_bytes())
            .map_err(|error| format!("what it gives is not YAML: {error}"))?;
        match (documents.pop(), documents.is_empty()) {
            (None | Some(Value::Null), _) => Ok(json!({})),
            (Some(value), true) if value.is_object() => Ok(value),
            _ => Err("it gives something that is no fragment of a pod".to_owned()),
        }
    }
}

fn sees(context: &Context<'_>) -> Value {
    let mut config = parts::proxy_defaults();
    values::lay(&mut config, context.proxy_config);
    let mode = context.mesh.pointer("/inboundTrafficPolicy/mode").and_then(Value::as_str).unwrap_or("PASSTHROUGH");
    json!({
        "TypeMeta": { "APIVersion": context.owner.api_version, "Kind": context.owner.kind },
        "DeploymentMeta": { "Name": context.owner.name, "Namespace": context.owner.namespace },
        "ObjectMeta": context.metadata,
        "Spec": context.spec,
        "ProxyConfig": config,
        "MeshConfig": context.mesh,
        "Values": context.values.value(),
        "Revision": context.revision,
        "ProxyImage": parts::proxy_image(context),
        "ProxyInitImage": parts::init_image(context),
        "NativeSidecars": context.native,
        "ProxyUID": context.uid,
        "ProxyGID": context.gid,
        "InboundTrafficPolicyMode": mode.to_lowercase(),
        "CompliancePolicy": parts::compliance_policy(context),
    })
}

fn call(name: &str, arguments: &[Value]) -> Option<Result<Value, String>> {
    if !FUNCTIONS.contains(&name) {
        return None;
    }
    let none = |value: &Value| value.is_null() || value == "";
    Some(Ok(match (name, arguments) {
        ("isset", [map, Value::String(key)]) => map.get(key).is_some().into(),
        ("annotation", [meta, Value::String(key), default]) => {
            let given = meta.get("annotations").and_then(|all| all.get(key));
            given.cloned().unwrap_or_else(|| text(default).into())
        }
        ("valueOrDefault", [value, default]) => if none(value) { default } else { value }.clone(),
        ("toLower", [value]) => text(value).to_lowercase().into(),
        ("toJSON" | "structToJSON" | "protoToJSON", [Value::Null]) => "{}".into(),
        ("toJSON", [value]) => written::sorted(value).to_string().into(),
        ("structToJSON", [value]) => written::json(value).into(),
        ("protoToJSON", [value]) => parts::differing(value).to_string().into(),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.iter().any(|other| same(first, other)).into(),
        ("ne", [first, second]) => (!same(first, second)).into(),
        // Its first line stands where it is printed.
        ("indent", [Value::Number(by), value]) => {
            let blanks = " ".repeat(by.as_u64().and_then(|by| usize::try_from(by).ok()).unwrap_or_default().min(64));
            text(value).replace('\n', &format!("\n{blanks}")).into()
        }
        ("fromJSON", [Value::String(json)]) => serde_json::from_str(json).unwrap_or_else(|_| "{}".into()),
        ("directory", [value]) => {
            let path = text(value);
            path.rfind('/').and_then(|at| path.get(..=at)).unwrap_or_default().into()
        }
        ("kubevirtInterfaces" | "excludeInterfaces", [value]) => value.clone(),
        ("excludeInboundPort", [port, excluded]) => super::sidecar::with_port(&text(excluded), &text(port)).into(),
        ("includeInboundPorts", [containers]) => ports(containers, |_| true).into(),
        ("applicationPorts", [containers]) => ports(containers, |name| name != crate::CONTAINER_NAME).into(),
        // The one network that is ever appended is the plugin's.
        ("appendMultusNetwork", [before, _]) => super::sidecar::with_network(&text(before)).into(),
        ("otelResourceAttributes", [mesh, annotations, labels, namespace, containers]) => {
            let of = |map: &Value, name: &str| map.get(name).map(text);
            let containers = containers.as_array().map(Vec::as_slice).unwrap_or_default();
            let (annotation, label) = (|name: &str| of(annotations, name), |name: &str| of(labels, name));
            super::sidecar::resource_attributes(mesh, annotation, label, &text(namespace), containers).into()
        }
        ("omit", [map, keys @ ..]) => {
            let mut map = map.as_object().cloned().unwrap_or_default();
            keys.iter().filter_map(Value::as_str).for_each(|key| drop(map.shift_remove(key)));
            map.into()
        }
        ("strdict", pairs) => {
            let pairs = pairs.chunks(2).map(|pair| {
                let at = |index: usize| pair.get(index).map(text).unwrap_or_default();
                (at(0), Value::from(at(1)))
            });
            pairs.collect::<Map<_, _>>().into()
        }
        ("mergeMaps", maps) => merged(maps),
        ("toJsonMap", maps) => written::sorted(&merged(maps)).to_string().into(),
        ("omitNil", [value]) => carrick_api::istio::mesh_config::without_nulls(value),
        _ => return Some(Err(format!("{name} does not take {} arguments like these", arguments.len()))),
    }))
}

/// Whether two values are equal; a field that is not there has its type's zero.
fn same(first: &Value, second: &Value) -> bool {
    let zero = |value: &Value| *value == "" || *value == 0 || *value == false;
    first == second || first.is_null() && zero(second) || second.is_null() && zero(first)
}

fn merged(maps: &[Value]) -> Value {
    let all = maps.iter().filter_map(Value::as_object).flatten();
    all.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>().into()
}

/// TCP ports of containers, with commas.
fn ports(containers: &Value, wanted: impl Fn(&str) -> bool) -> String {
    let name = |container: &Value| container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let containers = containers.as_array().into_iter().flatten().filter(|container| wanted(&name(container)));
    let ports = containers.filter_map(|container| container.get("ports")?.as_array()).flatten();
    let tcp = ports.filter(|port| !matches!(port.get("protocol").and_then(Value::as_str), Some("UDP" | "SCTP")));
    tcp.filter_map(|port| port.get("containerPort")).map(text).collect::<Vec<_>>().join(",")
}
