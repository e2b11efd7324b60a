//! The mTLS mode that PeerAuthentications give a workload: which objects apply, and what they come to.
//!
//! Invariant: as in the control plane, of several objects for one scope the oldest counts (by name where they are as
//! old), the narrowest scope that sets a mode wins, and nothing at all is PERMISSIVE.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{dotted, selects};

/// What applies to a workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// The mode of ports that have none of their own.
    pub mode: String,
    /// Ports with a mode of their own.
    pub ports: BTreeMap<u64, String>,
    /// The objects, widest scope first, as `name.namespace`.
    pub applied: Vec<String>,
}

/// Works it out.
pub fn effective(policies: &[Value], labels: &Value, namespace: &str, root: &str) -> Effective {
    let mut sorted: Vec<&Value> = policies.iter().collect();
    sorted.sort_by_key(|policy| {
        let created = policy.pointer("/metadata/creationTimestamp").and_then(Value::as_str).unwrap_or_default();
        (created.to_owned(), dotted(policy))
    });
    let of = |wanted: &str, workload: bool| {
        sorted.iter().copied().find(|policy| {
            let own = policy.pointer("/metadata/namespace").and_then(Value::as_str) == Some(wanted);
            let selector =
                policy.pointer("/spec/selector/matchLabels").filter(|s| s.as_object().is_some_and(|s| !s.is_empty()));
            own && selector.is_some() == workload && selects(selector, labels)
        })
    };
    let mut effective = Effective { mode: "PERMISSIVE".into(), ..Effective::default() };
    let scopes = [of(root, false), of(namespace, false).filter(|_| namespace != root), of(namespace, true)];
    for policy in scopes.into_iter().flatten() {
        effective.applied.push(dotted(policy));
        let mode = policy.pointer("/spec/mtls/mode").and_then(Value::as_str).filter(|mode| *mode != "UNSET");
        if let Some(mode) = mode {
            effective.mode = mode.to_owned();
        }
        let ports = policy.pointer("/spec/portLevelMtls").and_then(Value::as_object);
        for (port, value) in ports.into_iter().flatten() {
            let mode = value.get("mode").and_then(Value::as_str).filter(|mode| *mode != "UNSET");
            if let (Ok(port), Some(mode)) = (port.parse(), mode) {
                effective.ports.insert(port, mode.to_owned());
            }
        }
    }
    effective
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_narrowest_scope_wins() {
        let policy =
            |name: &str, ns: &str, spec: Value| json!({"metadata": {"name": name, "namespace": ns}, "spec": spec});
        let all = [
            policy(
                "web",
                "shop",
                json!({"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
            ),
            policy(
                "other",
                "shop",
                json!({"selector": {"matchLabels": {"app": "other"}}, "mtls": {"mode": "DISABLE"}}),
            ),
            policy("default", "shop", json!({"mtls": {"mode": "STRICT"}})),
            policy("default", "istio-system", json!({"mtls": {"mode": "PERMISSIVE"}})),
        ];
        let found = effective(&all, &json!({"app": "web"}), "shop", "istio-system");
        assert_eq!(found.mode, "STRICT");
        assert_eq!(found.ports, [(8080, "DISABLE".to_owned())].into());
        assert_eq!(found.applied, ["default.istio-system", "default.shop", "web.shop"]);
        let none = effective(&[], &json!({}), "shop", "istio-system");
        assert_eq!((none.mode.as_str(), none.applied.len()), ("PERMISSIVE", 0));
    }
}
