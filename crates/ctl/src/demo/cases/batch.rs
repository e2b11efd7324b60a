//! The objects of a case for all pairs at once, where that changes nothing.
//!
//! Invariant: two pairs share a mesh at the same time only when each object is either the same for both, or
//! concerns its own pair's pods alone; anything else is run one pair after the other.

use std::collections::BTreeMap;

use serde_json::Value;

use super::lab::{Names, Pair};

/// Kinds that nothing refers to by name, so that a pair's object may be called otherwise.
const RENAMED: [&str; 6] = [
    "AuthorizationPolicy",
    "DestinationRule",
    "PeerAuthentication",
    "RequestAuthentication",
    "Sidecar",
    "VirtualService",
];

/// What says whom an object concerns.
const SCOPES: [&str; 4] = ["/spec/selector", "/spec/workloadSelector", "/spec/host", "/spec/hosts"];

/// All objects, or `None` when the pairs must not meet.
pub fn merge(cases: &[(Pair, Vec<Value>)]) -> Option<Vec<Value>> {
    let mut same: BTreeMap<String, Vec<(Pair, &Value)>> = BTreeMap::new();
    let mut order = Vec::new();
    for (pair, objects) in cases {
        for object in objects {
            let key = key(object);
            if !same.contains_key(&key) {
                order.push(key.clone());
            }
            same.entry(key).or_default().push((*pair, object));
        }
    }
    let mut merged = Vec::new();
    for key in order {
        let versions = same.remove(&key)?;
        let (_, first) = *versions.first()?;
        if versions.len() == 1 && cases.len() > 1 {
            // Its name holds the pair's; whether its effect stays with the pair is told by its scope.
            let (pair, object) = *versions.first()?;
            if !concerns_only(object, pair) && !named_after(object, pair) {
                return None;
            }
            merged.push(object.clone());
        } else if versions.iter().all(|(_, object)| *object == first) {
            merged.push(first.clone());
        } else {
            for (pair, object) in versions {
                if !concerns_only(object, pair) {
                    return None;
                }
                merged.push(renamed(object, pair)?);
            }
        }
    }
    Some(merged)
}

fn key(object: &Value) -> String {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{}|{}|{}", field("/kind"), field("/metadata/namespace"), field("/metadata/name"))
}

fn named_after(object: &Value, pair: Pair) -> bool {
    let names = Names::of(pair);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    [&names.client, &names.server, &names.gateway, &names.transparent]
        .into_iter()
        .any(|own| name.contains(own.as_str()))
}

fn concerns_only(object: &Value, pair: Pair) -> bool {
    let names = Names::of(pair);
    SCOPES.iter().filter_map(|pointer| object.pointer(pointer)).any(|scope| {
        let text = scope.to_string();
        [&names.client, &names.server, &names.gateway, &names.transparent]
            .into_iter()
            .any(|own| text.contains(own.as_str()))
    })
}

fn renamed(object: &Value, pair: Pair) -> Option<Value> {
    let kind = object.get("kind")?.as_str()?;
    if !RENAMED.contains(&kind) {
        return None;
    }
    let mut object = object.clone();
    let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
    *object.pointer_mut("/metadata/name")? = format!("{name}-{}", pair.short()).into();
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pairs() -> [Pair; 2] {
        ["native-native".parse().unwrap(), "envoy-native".parse().unwrap()]
    }

    fn policy(pair: Pair, name: &str) -> Value {
        let app = Names::of(pair).server;
        json!({"kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "lab"},
            "spec": {"selector": {"matchLabels": {"app": app}}}})
    }

    #[test]
    fn each_pair_keeps_to_itself() {
        let cases: Vec<_> = pairs().into_iter().map(|pair| (pair, vec![policy(pair, "deny")])).collect();
        let merged = merge(&cases).unwrap();
        let names: Vec<_> = merged.iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["deny-nn", "deny-en"]);
    }

    #[test]
    fn what_is_the_same_is_applied_once() {
        let strict = json!({"kind": "PeerAuthentication", "metadata": {"name": "default"}, "spec": {}});
        let cases: Vec<_> = pairs().into_iter().map(|pair| (pair, vec![strict.clone()])).collect();
        assert_eq!(merge(&cases).unwrap(), [strict]);
    }

    #[test]
    fn what_would_meet_is_kept_apart() {
        let entry =
            |pair| json!({"kind": "ServiceEntry", "metadata": {"name": "x"}, "spec": {"to": Names::of(pair).server}});
        let cases: Vec<_> = pairs().into_iter().map(|pair| (pair, vec![entry(pair)])).collect();
        assert_eq!(merge(&cases), None);
        let everywhere = |pair: Pair| {
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "x"},
                "spec": {"rules": [{"from": Names::of(pair).client}]}})
        };
        let cases: Vec<_> = pairs().into_iter().map(|pair| (pair, vec![everywhere(pair)])).collect();
        assert_eq!(merge(&cases), None);
    }
}
