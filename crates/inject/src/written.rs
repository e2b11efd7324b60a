//! Pods as Kubernetes' own types write them: fields in their order, empty ones left out, quantities in canonical form.
//!
//! Invariant: nothing is changed that a cluster would read differently. JSON that ends up as text inside a pod (annotations,
//! environment) and manifests of `kube-inject` are written this way, so that they are the same whoever wrote the pod.

use serde_json::{Map, Value};

use crate::quantity;

/// Fields in the order of the types of Kubernetes' core API; where two types disagree, neither is written as text.
const ORDER: &[&str] = &[
    "initContainers",
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "value",
    "valueFrom",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "path",
    "port",
    "host",
    "scheme",
    "httpHeaders",
    "service",
    "apiVersion",
    "fieldPath",
    "containerName",
    "resource",
    "divisor",
    "prefix",
    "configMapRef",
    "secretRef",
    "fieldRef",
    "resourceFieldRef",
    "configMapKeyRef",
    "secretKeyRef",
    "key",
    "optional",
    "ports",
    "envFrom",
    "env",
    "limits",
    "requests",
    "claims",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "readOnly",
    "recursiveReadOnly",
    "mountPath",
    "subPath",
    "mountPropagation",
    "subPathExpr",
    "volumeMounts",
    "volumeDevices",
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "sleep",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "postStart",
    "preStop",
    "lifecycle",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "add",
    "drop",
    "capabilities",
    "privileged",
    "seLinuxOptions",
    "windowsOptions",
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "procMount",
    "seccompProfile",
    "appArmorProfile",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
];

/// Fields that are left out when they are zero or false.
const OMITTED: &[&str] = &[
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "hostPort",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "hostNetwork",
    "hostPID",
    "hostIPC",
];

/// Fields that hold names of the user's, whose values stay even when they are empty.
const MAPS: &[&str] = &["labels", "annotations", "matchLabels", "nodeSelector", "volumeAttributes", "options"];

/// Compact JSON with the fields in their order.
pub(crate) fn json(value: &Value) -> String {
    ordered(value).to_string()
}

fn ordered(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let rank = |key: &String| ORDER.iter().position(|field| field == key).unwrap_or(ORDER.len());
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by(|a, b| rank(a.0).cmp(&rank(b.0)).then_with(|| a.0.cmp(b.0)));
            Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), ordered(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(ordered).collect()),
        other => other.clone(),
    }
}

/// A pod's `metadata` or `spec` without what is empty, with canonical quantities.
pub(crate) fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => tidy_fields(map),
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn tidy_fields(map: &mut Map<String, Value>) {
    for (key, value) in map.iter_mut() {
        match key.as_str() {
            field if MAPS.contains(&field) => {}
            "requests" | "limits" => quantity::canonical_values(value),
            "divisor" | "sizeLimit" => {
                if let Value::String(text) = value {
                    *text = quantity::canonical(text);
                }
            }
            "containers" | "initContainers" => {
                for container in value.as_array_mut().into_iter().flatten() {
                    tidy(container);
                    with_resources(container);
                }
            }
            _ => tidy(value),
        }
    }
    map.retain(|key, value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty() || key == "containers",
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty() || !MAPS.contains(&key.as_str()),
        Value::Bool(false) => !OMITTED.contains(&key.as_str()),
        Value::Number(number) => number.as_i64() != Some(0) || !OMITTED.contains(&key.as_str()),
        Value::Bool(true) => true,
    });
}

/// A container always says what it needs, if only that it needs nothing.
pub(crate) fn with_resources(container: &mut Value) {
    if let Some(container) = container.as_object_mut()
        && !container.contains_key("resources")
    {
        container.insert("resources".to_owned(), Value::Object(Map::new()));
    }
}

/// A value with every object's fields sorted by name, as YAML of Kubernetes' tools has them.
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_has_the_order_of_the_types() {
        let probe = json!({"timeoutSeconds": 3, "httpGet": {"port": 80, "path": "/a", "scheme": "HTTPS", "host": "h"}});
        assert_eq!(
            json(&probe),
            r#"{"httpGet":{"path":"/a","port":80,"host":"h","scheme":"HTTPS"},"timeoutSeconds":3}"#
        );
        assert_eq!(
            json(&json!({"protocol": "TCP", "containerPort": 1, "name": "a"})),
            r#"{"name":"a","containerPort":1,"protocol":"TCP"}"#
        );
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let mut spec = json!({
            "containers": [{
                "name": "a", "args": ["-x", ""], "image": "", "readinessProbe": {"initialDelaySeconds": 0, "periodSeconds": 2},
                "resources": {"limits": {"cpu": "2000m"}},
            }, {"name": "b"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "imagePullSecrets": [],
            "hostNetwork": false,
            "nodeSelector": {"x": ""},
        });
        tidy(&mut spec);
        assert_eq!(
            spec,
            json!({
                "containers": [{
                    "name": "a", "args": ["-x", ""], "readinessProbe": {"periodSeconds": 2}, "resources": {"limits": {"cpu": "2"}},
                }, {"name": "b", "resources": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "nodeSelector": {"x": ""},
            })
        );
    }
}
