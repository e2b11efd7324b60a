//! Probes and hooks of the application, brought to the agent.
//!
//! Invariant: what Kubernetes would have asked the application is told to the agent in full, with named ports resolved, and what
//! Kubernetes asks instead is one HTTP request at the agent's status port. `exec` stays as it is. Source: spec §16.7.

use serde_json::{Map, Value, json};

use crate::{CONTAINER_NAME, lists, written};

/// The variable in which the agent is told.
pub(crate) const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

/// Path of a probe or hook, and where it stands in a container.
const PLACES: &[(&str, &str, &str)] = &[
    ("/readinessProbe", "app-health", "readyz"),
    ("/livenessProbe", "app-health", "livez"),
    ("/startupProbe", "app-health", "startupz"),
    ("/lifecycle/preStop", "app-lifecycle", "prestopz"),
    ("/lifecycle/postStart", "app-lifecycle", "poststartz"),
];

/// The lists of a pod's containers that have probes.
const LISTS: &[&str] = &["initContainers", "containers"];

/// Rewrites all probes of the application, and tells the proxy's container what they were.
///
/// `known` is the port that a rewritten probe of an earlier injection has; `port` the one that is written.
pub(crate) fn rewrite(spec: &mut Value, known: i64, port: i64, injected_before: bool) {
    let told = told(spec, known);
    if !told.is_empty() {
        tell(spec, told, injected_before);
    }
    for list in LISTS {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if name == CONTAINER_NAME {
                continue;
            }
            for (place, group, path) in PLACES {
                if let Some(probe) = container.pointer_mut(place).and_then(Value::as_object_mut) {
                    redirect(probe, &format!("/{group}/{name}/{path}"), port, *group == "app-health");
                }
            }
        }
    }
}

/// What the agent has to know, by path.
fn told(spec: &Value, known: i64) -> Map<String, Value> {
    let mut all = std::collections::BTreeMap::new();
    let containers = LISTS.iter().filter_map(|list| spec.get(list)?.as_array()).flatten();
    for container in containers {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        if name == CONTAINER_NAME {
            continue;
        }
        for (place, group, path) in PLACES {
            let hook = *group == "app-lifecycle";
            if let Some(prober) = container.pointer(place).and_then(|probe| prober(probe, container, known, hook)) {
                all.insert(format!("/{group}/{name}/{path}"), prober);
            }
        }
    }
    all.into_iter().collect()
}

/// One probe in the agent's words; `None` where there is nothing to do for it.
fn prober(probe: &Value, container: &Value, known: i64, hook: bool) -> Option<Value> {
    let mut told = Map::new();
    let kind =
        ["httpGet", "tcpSocket", "grpc"].into_iter().find(|kind| probe.get(kind).is_some_and(Value::is_object))?;
    if hook && kind == "grpc" {
        return None;
    }
    let mut action = probe.get(kind)?.clone();
    written::tidy(&mut action);
    let fields = action.as_object_mut()?;
    match fields.get("port") {
        Some(Value::String(name)) if kind != "grpc" => {
            let number = number_of(container, name)?;
            fields.insert("port".to_owned(), number);
        }
        // It was rewritten before.
        Some(port) if kind != "grpc" && port.as_i64() == Some(known) => return None,
        _ => {}
    }
    if kind == "grpc" && !fields.contains_key("service") {
        fields.insert("service".to_owned(), Value::Null);
    }
    told.insert(kind.to_owned(), action);
    if let Some(timeout) = probe.get("timeoutSeconds").filter(|timeout| !hook && timeout.as_i64() != Some(0)) {
        told.insert("timeoutSeconds".to_owned(), timeout.clone());
    }
    Some(Value::Object(told))
}

/// A container's port by its name. A number written as text is a name that no port has.
fn number_of(container: &Value, name: &str) -> Option<Value> {
    let ports = container.get("ports")?.as_array()?;
    ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(name))?.get("containerPort").cloned()
}

/// Makes a probe or hook ask the agent.
fn redirect(probe: &mut Map<String, Value>, path: &str, port: i64, of_health: bool) {
    if !["httpGet", "tcpSocket", "grpc"].iter().any(|kind| probe.get(*kind).is_some_and(Value::is_object)) {
        return;
    }
    if let Some(action) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        action.insert("path".to_owned(), path.into());
        action.insert("port".to_owned(), port.into());
        // The agent speaks TLS to the application; to the agent nobody does.
        if action.get("scheme") == Some(&"HTTPS".into()) {
            action.insert("scheme".to_owned(), "HTTP".into());
        }
        return;
    }
    if probe.contains_key("grpc") && !of_health {
        return;
    }
    probe.shift_remove("tcpSocket");
    probe.shift_remove("grpc");
    probe.insert("httpGet".to_owned(), json!({ "path": path, "port": port }));
}

/// Adds the variable to the proxy's container; what an earlier injection told there stays.
fn tell(spec: &mut Value, mut told: Map<String, Value>, injected_before: bool) {
    let Some(proxy) = lists::proxy_mut(spec) else { return };
    let Some(env) = lists::list_mut(proxy, "env") else { return };
    let before = env.iter_mut().find(|entry| injected_before && entry.get("name") == Some(&VARIABLE.into()));
    if let Some(entry) = before {
        let text = entry.get("value").and_then(Value::as_str).unwrap_or_default();
        if let Ok(Value::Object(earlier)) = serde_json::from_str(text) {
            told.extend(earlier);
            told.sort_keys();
            *entry = json!({ "name": VARIABLE, "value": written::json(&Value::Object(told)) });
        }
        return;
    }
    env.push(json!({ "name": VARIABLE, "value": written::json(&Value::Object(told)) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_probe_is_brought_to_the_agent() {
        let mut spec = json!({
            "containers": [
                {
                    "name": "web",
                    "ports": [{"name": "http", "containerPort": 80}],
                    "readinessProbe": {"httpGet": {"port": "http", "path": "/ready"}, "timeoutSeconds": 3},
                    "livenessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 5},
                    "startupProbe": {"grpc": {"port": 82}},
                    "lifecycle": {
                        "preStop": {"httpGet": {"port": 83, "path": "/stop", "scheme": "HTTPS"}},
                        "postStart": {"exec": {"command": ["true"]}},
                    },
                },
                {"name": "istio-proxy", "readinessProbe": {"httpGet": {"port": 15021}}},
            ],
        });
        rewrite(&mut spec, 15020, 15020, false);
        let web = &spec["containers"][0];
        assert_eq!(
            web["readinessProbe"],
            json!({"httpGet": {"port": 15020, "path": "/app-health/web/readyz"}, "timeoutSeconds": 3})
        );
        assert_eq!(
            web["livenessProbe"],
            json!({"periodSeconds": 5, "httpGet": {"path": "/app-health/web/livez", "port": 15020}})
        );
        assert_eq!(web["startupProbe"], json!({"httpGet": {"path": "/app-health/web/startupz", "port": 15020}}));
        assert_eq!(web["lifecycle"]["preStop"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(web["lifecycle"]["postStart"], json!({"exec": {"command": ["true"]}}));
        let proxy = &spec["containers"][1];
        assert_eq!(proxy["readinessProbe"]["httpGet"]["port"], 15021);
        assert_eq!(
            proxy["env"][0]["value"],
            concat!(
                r#"{"/app-health/web/livez":{"tcpSocket":{"port":81}},"#,
                r#""/app-health/web/readyz":{"httpGet":{"path":"/ready","port":80},"timeoutSeconds":3},"#,
                r#""/app-health/web/startupz":{"grpc":{"port":82,"service":null}},"#,
                r#""/app-lifecycle/web/prestopz":{"httpGet":{"path":"/stop","port":83,"scheme":"HTTPS"}}}"#
            )
        );
        let once = spec.clone();
        rewrite(&mut spec, 15020, 15020, true);
        assert_eq!(spec, once, "a second time changes nothing");
    }
}
