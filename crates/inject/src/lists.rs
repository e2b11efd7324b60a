//! Lists of a pod's `spec` whose elements have names: containers, volumes, secrets.
//!
//! Invariant: a list that is not there is empty, and what is not a list is let alone.

use serde_json::{Value, json};

use crate::CONTAINER_NAME;

fn take(spec: &mut Value, list: &str, name: &str) -> Option<Value> {
    let at = position(Some(spec), list, name)?;
    Some(spec.get_mut(list)?.as_array_mut()?.remove(at))
}

/// Moves an element to the front of a list.
pub(crate) fn first(spec: &mut Value, list: &str, name: &str) {
    if let Some(container) = take(spec, list, name)
        && let Some(all) = list_mut(spec, list)
    {
        all.insert(0, container);
    }
}

/// Moves an element to the end of a list.
pub(crate) fn last(spec: &mut Value, list: &str, name: &str) {
    if let Some(container) = take(spec, list, name)
        && let Some(all) = list_mut(spec, list)
    {
        all.push(container);
    }
}

/// The names of a list's elements.
pub(crate) fn names(spec: Option<&Value>, list: &str) -> Vec<String> {
    let items = spec.and_then(|spec| spec.get(list)).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.get("name")?.as_str()).map(str::to_owned).collect()
}

/// Where an element is in a list.
pub(crate) fn position(spec: Option<&Value>, list: &str, name: &str) -> Option<usize> {
    spec?.get(list)?.as_array()?.iter().position(|item| item.get("name").and_then(Value::as_str) == Some(name))
}

/// An element of a list by its name.
pub(crate) fn find<'a>(spec: Option<&'a Value>, list: &str, name: &str) -> Option<&'a Value> {
    spec?.get(list)?.as_array()?.iter().find(|item| item.get("name").and_then(Value::as_str) == Some(name))
}

/// The proxy's container, wherever it is.
pub(crate) fn proxy_mut(spec: &mut Value) -> Option<&mut Value> {
    let list = ["containers", "initContainers"]
        .into_iter()
        .find(|list| position(Some(spec), list, CONTAINER_NAME).is_some())?;
    let at = position(Some(spec), list, CONTAINER_NAME)?;
    spec.get_mut(list)?.as_array_mut()?.get_mut(at)
}

/// A list of an object, made where there is none.
pub(crate) fn list_mut<'a>(object: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    let place = object.as_object_mut()?.entry(list).or_insert_with(|| json!([]));
    if place.is_null() {
        *place = json!([]);
    }
    place.as_array_mut()
}
