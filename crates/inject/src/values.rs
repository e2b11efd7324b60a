//! The injector's values: what an installation decides for every pod, in the words of Istio's chart.
//!
//! Invariant: whatever is not given has the default of [`defaults`]; a `null` removes a default, and resources that are given are all
//! there are. Nothing of a pod is in here.

use serde_json::{Map, Value, json};

/// What every proxy needs that does not say it itself.
const RESOURCES: &str = "/global/proxy/resources";

/// The values of an installation that decides nothing.
pub fn defaults() -> Value {
    let proxy = json!({
        "autoInject": "enabled",
        "clusterDomain": "cluster.local",
        "componentLogLevel": "misc:error",
        "excludeIPRanges": "",
        "excludeInboundPorts": "",
        "excludeOutboundPorts": "",
        "holdApplicationUntilProxyStarts": false,
        "image": "proxyv2",
        "includeIPRanges": "*",
        "includeInboundPorts": "*",
        "includeOutboundPorts": "",
        "logLevel": "warning",
        "outlierLogPath": "",
        "privileged": false,
        "readinessFailureThreshold": 4,
        "readinessInitialDelaySeconds": 0,
        "readinessPeriodSeconds": 15,
        "resources": {
            "limits": { "cpu": "2000m", "memory": "1024Mi" },
            "requests": { "cpu": "100m", "memory": "128Mi" },
        },
        "seccompProfile": {},
        "startupProbe": { "enabled": true, "failureThreshold": 600 },
        "statusPort": 15020,
        "tracer": "none",
    });
    json!({
        "revision": "",
        "global": {
            "istioNamespace": "istio-system",
            "hub": "localhost/carrick",
            "tag": "",
            "variant": "",
            "imagePullPolicy": "",
            "imagePullSecrets": [],
            "caAddress": "",
            "caName": "",
            "logAsJson": false,
            "logging": { "level": "default:info" },
            "meshID": "",
            "mountMtlsCerts": false,
            "multiCluster": { "clusterName": "" },
            "nativeNftables": false,
            "network": "",
            "pilotCertProvider": "istiod",
            "proxy": proxy,
            "proxy_init": { "image": "proxyv2", "forceApplyIptables": false },
            "sds": { "token": { "aud": "istio-ca" } },
            "sts": { "servicePort": 0 },
        },
        "gateways": { "securityContext": {} },
        "pilot": { "cni": { "enabled": false, "provider": "default" }, "env": {} },
        "sidecarInjectorWebhook": { "rewriteAppHTTPProbe": true },
    })
}

/// An installation's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(Value);

impl Default for Values {
    fn default() -> Self {
        Self(defaults())
    }
}

impl Values {
    /// The given values over the defaults.
    pub fn new(given: &Value) -> Self {
        let mut all = defaults();
        // A limit that an installation took away must not come back.
        if given.pointer(RESOURCES).is_some()
            && let Some(resources) = all.pointer_mut(RESOURCES)
        {
            *resources = json!({});
        }
        lay(&mut all, given);
        Self(all)
    }

    /// The values as they are.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// What is at a dotted path; `None` where nothing or `null` is.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, field| value.get(field)).filter(|value| !value.is_null())
    }

    /// What is at a path as text; empty where nothing is.
    pub(crate) fn text(&self, path: &str) -> String {
        self.get(path).map(plain).unwrap_or_default()
    }

    /// Whether what is at a path counts as given: not empty, not zero, not false.
    pub(crate) fn is_set(&self, path: &str) -> bool {
        self.get(path).is_some_and(truthy)
    }

    /// The object at a path, unless it is empty.
    pub(crate) fn object(&self, path: &str) -> Option<&Map<String, Value>> {
        self.get(path).and_then(Value::as_object).filter(|map| !map.is_empty())
    }
}

/// A value as a template prints it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether a template's `if` takes it.
pub(crate) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// One over the other: objects in each other, `null` removes, anything else replaces.
pub fn lay(below: &mut Value, over: &Value) {
    let (Value::Object(map), Value::Object(over)) = (&mut *below, over) else {
        *below = over.clone();
        return;
    };
    for (key, value) in over {
        match (map.get_mut(key), value) {
            (_, Value::Null) => {
                map.shift_remove(key);
            }
            (Some(place), value) => lay(place, value),
            (None, value) => {
                let mut own = if value.is_object() { json!({}) } else { Value::Null };
                lay(&mut own, value);
                map.insert(key.clone(), own);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_values_lie_over_the_defaults() {
        let values = Values::new(&json!({"global": {"proxy": {"logLevel": "debug", "resources": null}, "hub": "h"}}));
        assert_eq!(values.text("global.proxy.logLevel"), "debug");
        assert_eq!(values.text("global.proxy.statusPort"), "15020");
        assert_eq!(values.get("global.proxy.resources"), None);
        assert!(!values.is_set("global.logAsJson") && !values.is_set("global.sts.servicePort"));
        assert!(values.is_set("global.proxy.startupProbe.enabled"));
        assert_eq!(values.text("no.such.path"), "");
    }

    #[test]
    fn resources_that_are_given_are_all_there_are() {
        let limits = json!({"limits": {"cpu": null, "memory": "500Mi"}});
        let values = Values::new(&json!({"global": {"proxy": {"resources": limits}}}));
        assert_eq!(values.get("global.proxy.resources"), Some(&json!({"limits": {"memory": "500Mi"}})));
        assert_eq!(values.text("global.proxy.statusPort"), "15020");
    }
}
