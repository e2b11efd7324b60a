//! Statuses of the Gateway API's objects: lists of parents, ancestors and listeners, each with conditions.
//!
//! Invariant: pure. Entries of other controllers are kept; a condition keeps the time of its last transition while its status stays; a status
//! that says nothing new is not written.

use crate::ledger::{Key, is_gateway_api};
use carrick_base::ObjectRef;
use carrick_mesh::gateway_api::CONTROLLER;
use serde_json::{Map, Value};

const TIME: &str = "lastTransitionTime";
/// Lists in which every controller has entries of its own.
const SHARED: [&str; 2] = ["parents", "ancestors"];

/// The object a status is for. `K8sGateway` tells a Gateway from Istio's kind of that name.
pub(super) fn key(reference: &ObjectRef) -> Option<Key> {
    let name = match &*reference.kind {
        "K8sGateway" => "Gateway",
        other => other,
    };
    let info = crate::source::KINDS.iter().find(|i| i.name == name && is_gateway_api(i.kind))?;
    Some((info.kind, (reference.name.namespace.to_string(), reference.name.name.to_string())))
}

/// The status to write, with its times; `None` when what is there says the same.
pub(super) fn news(wanted: &Value, there: &Value, now: &str) -> Option<Value> {
    let mut status = timed(wanted, there, now);
    if let Some(map) = status.as_object_mut() {
        for list in SHARED {
            if let (Some(Value::Array(ours)), Some(Value::Array(all))) = (map.get_mut(list), there.get(list)) {
                ours.extend(
                    all.iter().filter(|e| e.get("controllerName").and_then(Value::as_str) != Some(CONTROLLER)).cloned(),
                );
            }
        }
    }
    let same = status.as_object().is_some_and(|new| new.iter().all(|(k, v)| there.get(k) == Some(v)));
    (!same).then_some(status)
}

fn timed(wanted: &Value, there: &Value, now: &str) -> Value {
    match wanted {
        Value::Array(items) => {
            let known = there.as_array().map(Vec::as_slice).unwrap_or_default();
            let twin = |item: &Value| known.iter().find(|k| same_entry(item, k)).cloned().unwrap_or_default();
            Value::Array(items.iter().map(|item| timed(item, &twin(item), now)).collect())
        }
        Value::Object(fields) => {
            let mut out: Map<String, Value> = fields
                .iter()
                .map(|(key, value)| (key.clone(), timed(value, there.get(key).unwrap_or(&Value::Null), now)))
                .collect();
            if fields.contains_key("type") && fields.contains_key("status") && fields.contains_key("reason") {
                let kept = there.get(TIME).filter(|_| there.get("status") == fields.get("status"));
                out.insert(TIME.to_owned(), kept.cloned().unwrap_or_else(|| now.into()));
            }
            Value::Object(out)
        }
        other => other.clone(),
    }
}

/// Whether two entries of a list are about the same thing.
fn same_entry(a: &Value, b: &Value) -> bool {
    for field in ["parentRef", "ancestorRef", "name"] {
        if a.get(field).is_some() {
            return a.get(field) == b.get(field) && a.get("controllerName") == b.get("controllerName");
        }
    }
    a.get("type").is_some() && a.get("type") == b.get("type") && a.get("value") == b.get("value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parents(name: &str, controller: &str, status: &str, time: Option<&str>) -> Value {
        let mut condition = json!({"type": "Accepted", "status": status, "reason": "Accepted"});
        if let Some(time) = time {
            condition[TIME] = json!(time);
        }
        json!({"parentRef": {"name": name}, "controllerName": controller, "conditions": [condition]})
    }

    #[test]
    fn says_only_news_and_keeps_what_others_said() {
        let wanted = json!({"parents": [parents("a", CONTROLLER, "True", None)]});
        let theirs = parents("a", "other", "False", Some("t0"));
        let first = news(&wanted, &json!({"parents": [theirs]}), "t1").expect("news");
        assert_eq!(first, json!({"parents": [parents("a", CONTROLLER, "True", Some("t1")), theirs]}));
        assert_eq!(news(&wanted, &first, "t2"), None);
        let turned = json!({"parents": [parents("a", CONTROLLER, "False", None)]});
        let second = news(&turned, &first, "t3").expect("news");
        assert_eq!(second["parents"][0]["conditions"][0][TIME], "t3");
        assert_eq!(second["parents"][1], theirs);
    }
}
