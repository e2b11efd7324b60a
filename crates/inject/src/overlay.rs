//! One object laid over another: Kubernetes' strategic merge patch, as far as pods, what holds them, and Services go.
//!
//! Invariant: lists that have a key are merged element by element, what the overlay names comes first and in its own order, and
//! every other list is replaced as a whole; `null` removes. Which lists have which key is Kubernetes' API (`patchMergeKey`).

use carrick_api::istio::mesh_config::without_nulls;
use serde_json::{Map, Value};

/// Lists of objects that are merged, by the name of their field, and the key of their elements. The names are unambiguous within
/// a pod but for `ports`, which only containers have.
const KEYS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("imagePullSecrets", "name"),
    ("schedulingGates", "name"),
    ("resourceClaims", "name"),
    ("env", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ownerReferences", "uid"),
];

/// The key of a Service's `ports`.
const PORT: &str = "port";

/// Whose lists they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Pod,
    Service,
}

impl Keys {
    fn of(self, field: &str) -> Option<&'static str> {
        match (self, field) {
            (Keys::Service, "ports") => Some(PORT),
            _ => KEYS.iter().find(|(list, _)| *list == field).map(|(_, key)| *key),
        }
    }
}

/// Lists of plain values that are merged as sets.
const SETS: &[&str] = &["finalizers"];

/// What an overlay lacks to be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// An element of a merged list does not say which one it is.
    #[error("an element of {list} has no {key}")]
    NoKey { list: String, key: &'static str },
    /// A list holds something that is not an object.
    #[error("an element of {0} is not an object")]
    NotAnObject(String),
}

/// Lays `over` on `below`, both pods.
///
/// # Errors
/// As [`apply_to`].
pub fn apply(below: &mut Map<String, Value>, over: &Map<String, Value>) -> Result<(), OverlayError> {
    apply_to(below, over, Keys::Pod)
}

/// Lays `over` on `below`.
///
/// # Errors
/// [`OverlayError`]; `below` may then be half merged and must not be used.
pub fn apply_to(below: &mut Map<String, Value>, over: &Map<String, Value>, keys: Keys) -> Result<(), OverlayError> {
    for (field, value) in over {
        match (below.get_mut(field), value) {
            (_, Value::Null) => {
                below.shift_remove(field);
            }
            (Some(Value::Object(below)), Value::Object(over)) => apply_to(below, over, keys)?,
            (Some(Value::Array(below)), Value::Array(over)) => list(field, below, over, keys)?,
            (Some(place), value) => *place = without_nulls(value),
            (None, value) => {
                below.insert(field.clone(), without_nulls(value));
            }
        }
    }
    Ok(())
}

fn list(field: &str, below: &mut Vec<Value>, over: &[Value], keys: Keys) -> Result<(), OverlayError> {
    if SETS.contains(&field) {
        for value in over {
            if !below.contains(value) {
                below.push(value.clone());
            }
        }
        return Ok(());
    }
    match keys.of(field) {
        Some(key) => keyed(field, key, below, over, keys),
        None => {
            *below = over.iter().map(without_nulls).collect();
            Ok(())
        }
    }
}

fn keyed(
    field: &str,
    key: &'static str,
    below: &mut Vec<Value>,
    over: &[Value],
    keys: Keys,
) -> Result<(), OverlayError> {
    let server_order: Vec<Value> = below.iter().map(|item| item.get(key).cloned().unwrap_or_default()).collect();
    let mut named: Vec<Value> = Vec::new();
    for item in over {
        let item = item.as_object().ok_or_else(|| OverlayError::NotAnObject(field.to_owned()))?;
        let id = item.get(key).ok_or_else(|| OverlayError::NoKey { list: field.to_owned(), key })?.clone();
        match below.iter_mut().find(|other| other.get(key) == Some(&id)).and_then(Value::as_object_mut) {
            Some(below) => apply_to(below, item, keys)?,
            None => below.push(without_nulls(&Value::Object(item.clone()))),
        }
        if !named.contains(&id) {
            named.push(id);
        }
    }
    let place = |id: &Value| server_order.iter().position(|other| other == id);
    let id_of = |item: &Value| item.get(key).cloned().unwrap_or_default();
    let (mut own, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(below).into_iter().partition(|item| named.contains(&id_of(item)));
    own.sort_by_key(|item| named.iter().position(|id| *id == id_of(item)));
    // Both lists keep their order. Only where both of a pair were there before does the former order count.
    let (mut own, mut others) = (own.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let before = match (others.peek(), own.peek()) {
            (Some(left), Some(right)) => match (place(&id_of(left)), place(&id_of(right))) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
            (left, right) => left.is_some() && right.is_none(),
        };
        let Some(next) = (if before { others.next() } else { own.next() }) else { break };
        below.push(next);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(below: Value, over: Value) -> Value {
        let mut below = below.as_object().unwrap().clone();
        apply(&mut below, over.as_object().unwrap()).unwrap();
        Value::Object(below)
    }

    #[test]
    fn maps_merge_lists_with_keys_merge_others_are_replaced_and_null_removes() {
        assert_eq!(
            merged(json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null, "d": 3}})),
            json!({"a": {"c": 2, "d": 3}})
        );
        assert_eq!(merged(json!({"args": ["a", "b"]}), json!({"args": ["c"]})), json!({"args": ["c"]}));
        assert_eq!(
            merged(
                json!({"containers": [{"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]}]}),
                json!({"containers": [{"name": "a", "env": [{"name": "M", "value": "3"}, {"name": "K", "value": "9"}]}]})
            ),
            json!({"containers": [{"name": "a", "image": "x", "env": [
                {"name": "M", "value": "3"}, {"name": "K", "value": "9"}, {"name": "L", "value": "2"}
            ]}]})
        );
        assert_eq!(
            merged(json!({"finalizers": ["a"]}), json!({"finalizers": ["b", "a"]})),
            json!({"finalizers": ["a", "b"]})
        );
    }

    #[test]
    fn what_the_overlay_names_comes_first() {
        let names = |value: &Value| -> Vec<String> {
            value["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect()
        };
        let below = json!({"volumes": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        assert_eq!(
            names(&merged(below.clone(), json!({"volumes": [{"name": "x"}, {"name": "y"}]}))),
            ["x", "y", "a", "b", "c"]
        );
        assert_eq!(names(&merged(below, json!({"volumes": [{"name": "b"}, {"name": "x"}]}))), ["a", "b", "x", "c"]);
    }

    #[test]
    fn an_element_without_its_key_is_an_error() {
        let mut below = json!({"volumes": [{"name": "a"}]}).as_object().unwrap().clone();
        let over = json!({"volumes": [{"emptyDir": {}}]});
        let error = apply(&mut below, over.as_object().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "an element of volumes has no name");
    }
}
