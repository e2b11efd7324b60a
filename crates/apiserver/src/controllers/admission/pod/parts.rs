//! Parts of pods: volumes and their mounts, resources, probes, tolerations.
//!
//! Invariant: what is filled in is what Kubernetes fills in, and what is refused is refused in its words.

use carrick_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::super::rules::{self, Rule};
use super::default;
use crate::error::Cause;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The modes and types that volumes have where nothing is said.
pub(super) fn fill_in_volumes(spec: &mut Map<String, Value>) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(volume) = volume.as_object_mut() else { continue };
        if volume.iter().all(|(field, value)| field == "name" || value.is_null()) {
            volume.insert("emptyDir".into(), json!({}));
        }
        for kind in ["configMap", "secret", "downwardAPI", "projected"] {
            if let Some(Value::Object(source)) = volume.get_mut(kind) {
                default(source, "defaultMode", 420);
            }
        }
        if let Some(Value::Object(path)) = volume.get_mut("hostPath") {
            path.entry("type").or_insert_with(|| json!(""));
        }
        let sources = volume.get_mut("projected").and_then(|p| p.get_mut("sources")).and_then(Value::as_array_mut);
        for source in sources.into_iter().flatten() {
            if let Some(Value::Object(token)) = source.get_mut("serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
        }
    }
}

/// What a container has where nothing is said, besides what its neighbours fill in.
pub(super) fn fill_in(container: &mut Map<String, Value>) {
    for probe in PROBES {
        if let Some(Value::Object(service)) = container.get_mut(probe).and_then(|p| p.get_mut("grpc")) {
            service.entry("service").or_insert_with(|| json!(""));
        }
    }
}

/// What is wrong with a pod besides its containers.
pub(super) fn problems(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let Some(spec) = object.get("spec") else { return causes };
    volumes(spec, &mut causes);
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        causes.push(Cause::invalid("spec.activeDeadlineSeconds", &json!(seconds), why));
    }
    causes.extend(rules::held(object, "spec.hostname", Rule::Label));
    let policies = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    causes.extend(rules::held(object, "spec.dnsPolicy", Rule::OneOf(policies)));
    for (index, toleration) in list(spec, "tolerations").iter().enumerate() {
        let at = format!("spec.tolerations[{index}]");
        let text = |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or_default();
        match text("operator") {
            operator if text("key").is_empty() && operator != "Exists" => {
                let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
                causes.push(Cause::invalid(format!("{at}.operator"), &json!(operator), why));
            }
            "" | "Equal" => {}
            "Exists" if !text("value").is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                causes.push(Cause::invalid(format!("{at}.operator"), &json!(text("value")), why));
            }
            "Exists" => {}
            other => causes.push(Cause::unsupported(format!("{at}.operator"), &json!(other), &["Equal", "Exists"])),
        }
        if !matches!(text("effect"), "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            causes.push(Cause::unsupported(format!("{at}.effect"), &json!(text("effect")), &known));
        }
    }
    causes
}

fn volumes(spec: &Value, causes: &mut Vec<Cause>) {
    let volumes = list(spec, "volumes");
    let claims =
        |container: &Value| list(container, "volumeDevices").iter().map(|d| name(d).to_owned()).collect::<Vec<_>>();
    for (index, volume) in volumes.iter().enumerate() {
        let (at, own) = (format!("spec.volumes[{index}]"), name(volume));
        if own.is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if !super::is_dns_label(own) {
            causes.extend(
                rules::held(volume, "name", Rule::Label)
                    .into_iter()
                    .map(|cause| Cause { field: format!("{at}.name"), ..cause }),
            );
        } else if volumes.iter().take(index).any(|v| name(v) == own) {
            let message = format!("Duplicate value: {own:?}");
            causes.push(Cause { reason: "FieldValueDuplicate", message, field: format!("{at}.name") });
        }
        let sources =
            volume.as_object().into_iter().flatten().filter(|(field, value)| *field != "name" && !value.is_null());
        let kinds: Vec<&String> = sources.map(|(field, _)| field).collect();
        if let Some(second) = kinds.get(1) {
            causes.push(Cause::forbidden(format!("{at}.{second}"), "may not specify more than 1 volume type"));
        }
        for (kind, field) in [
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
            ("hostPath", "path"),
            ("nfs", "server"),
        ] {
            let source = volume.get(kind).filter(|s| s.is_object());
            if source.is_some_and(|s| s.get(field).and_then(Value::as_str).is_none_or(str::is_empty)) {
                causes.push(Cause::required(format!("{at}.{kind}.{field}"), ""));
            }
        }
    }
    for field in ["initContainers", "containers"] {
        for (index, container) in list(spec, field).iter().enumerate() {
            let devices = claims(container);
            let mounts = list(container, "volumeMounts");
            for (number, mount) in mounts.iter().enumerate() {
                let at = format!("spec.{field}[{index}].volumeMounts[{number}]");
                if name(mount).is_empty() {
                    causes.push(Cause::required(format!("{at}.name"), ""));
                } else if !volumes.iter().any(|v| name(v) == name(mount)) && !devices.iter().any(|d| d == name(mount)) {
                    causes.push(missing(format!("{at}.name"), name(mount)));
                }
                let path = mount.get("mountPath").and_then(Value::as_str).unwrap_or_default();
                if path.is_empty() {
                    causes.push(Cause::required(format!("{at}.mountPath"), ""));
                } else if mounts.iter().take(number).any(|m| m.get("mountPath") == mount.get("mountPath")) {
                    let why = "must be unique";
                    causes.push(Cause::invalid(format!("{at}.mountPath"), &json!(path), why));
                }
            }
        }
    }
}

fn missing(field: String, name: &str) -> Cause {
    Cause { reason: "FieldValueNotFound", message: format!("Not found: {name:?}"), field }
}

/// What is wrong with a container's resources, variables and probes.
pub(super) fn container(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (index, variable) in list(container, "env").iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        if name(variable).is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if name(variable).contains('=') {
            let why =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(format!("{at}.name"), &json!(name(variable)), why));
        }
        let value = variable.get("value").and_then(Value::as_str).unwrap_or_default();
        if variable.get("valueFrom").is_some_and(Value::is_object) && !value.is_empty() {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{at}.valueFrom"), &json!(""), why));
        }
    }
    for (index, port) in list(container, "ports").iter().enumerate() {
        let known = &["SCTP", "TCP", "UDP"];
        let told = rules::held(port, "protocol", Rule::OneOf(known)).into_iter().chain(rules::held(
            port,
            "hostPort",
            Rule::Port,
        ));
        // Port 0 is none.
        let told = told.filter(|c| !(c.field == "hostPort" && port.get("hostPort").and_then(Value::as_i64) == Some(0)));
        causes.extend(told.map(|c| Cause { field: format!("{at}.ports[{index}].{}", c.field), ..c }));
    }
    let known = &["Always", "IfNotPresent", "Never"];
    let policy = rules::held(container, "imagePullPolicy", Rule::OneOf(known));
    causes.extend(policy.into_iter().map(|c| Cause { field: format!("{at}.imagePullPolicy"), ..c }));
    for probe in PROBES {
        if let Some(value) = container.get(probe).filter(|p| p.is_object()) {
            check_probe(value, &format!("{at}.{probe}"), causes);
        }
    }
    resources(container, at, causes);
}

fn check_probe(probe: &Value, at: &str, causes: &mut Vec<Cause>) {
    let used: Vec<&str> = HANDLERS.into_iter().filter(|h| probe.get(*h).is_some_and(Value::is_object)).collect();
    if used.is_empty() {
        causes.push(Cause::required(at, "must specify a handler type"));
    }
    for second in used.iter().skip(1) {
        causes.push(Cause::forbidden(format!("{at}.{second}"), "may not specify more than 1 handler type"));
    }
    for handler in ["httpGet", "tcpSocket"] {
        let Some(port) = probe.get(handler).and_then(|h| h.get("port")) else { continue };
        let field = format!("{at}.{handler}.port");
        match (port.as_i64(), port.as_str()) {
            (Some(number), _) if !(1..=65535).contains(&number) => {
                causes.push(Cause::invalid(field, port, super::PORT_RANGE));
            }
            (None, Some(text)) if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
                let why = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)";
                causes.push(Cause::invalid(field, port, why));
            }
            _ => {}
        }
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        let broken = rules::held(probe, field, Rule::AtLeast(0));
        causes.extend(broken.into_iter().map(|c| Cause { field: format!("{at}.{}", c.field), ..c }));
    }
}

fn resources(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    let of = |part: &str| {
        let map = container.get("resources").and_then(|r| r.get(part)).and_then(Value::as_object);
        let mut all: Vec<(String, Quantity, Value)> = map
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?, value.clone())))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let (limits, requests) = (of("limits"), of("requests"));
    for (part, all) in [("limits", &limits), ("requests", &requests)] {
        for (name, _, value) in all.iter().filter(|(_, amount, _)| amount.nano() < 0) {
            let why = "must be greater than or equal to 0";
            causes.push(Cause::invalid(format!("{at}.resources.{part}[{name}]"), value, why));
        }
    }
    for (name, asked, value) in &requests {
        let Some((_, limit, _)) = limits.iter().find(|(other, ..)| other == name) else { continue };
        if asked > limit {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            causes.push(Cause::invalid(format!("{at}.resources.requests"), value, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_refused_as_elsewhere() {
        let pod = json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": {"path": ""}}],
            "containers": [{"name": "a", "volumeMounts": [{"name": "none", "mountPath": "/x"}]}],
            "activeDeadlineSeconds": 0,
        }});
        let told: Vec<String> = problems(&pod).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            told,
            [
                "spec.volumes[1].name: Duplicate value: \"v\"",
                "spec.volumes[2].hostPath.path: Required value",
                "spec.containers[0].volumeMounts[0].name: Not found: \"none\"",
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ]
        );
        let mut causes = Vec::new();
        let with = json!({
            "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1", "memory": "-1"}},
            "livenessProbe": {"httpGet": {"port": 80}, "exec": {}}, "startupProbe": {},
        });
        container(&with, "c", &mut causes);
        let told: Vec<String> = causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            told,
            [
                "c.livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
                "c.startupProbe: Required value: must specify a handler type",
                "c.resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "c.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ]
        );
    }
}
